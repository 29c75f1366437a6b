"""Ways to place a small model on eight devices, and its training step in each of them."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from tests import third_party
from tests.members import TransformRow

LAYERS, BATCH = 2, 64
SHAPES = {"hidden": (128, 256), "out": (256, 128)}
FAST: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of the compiler that leave what it does for several devices as it is."""

_INNER = optax.sgd(0.25, momentum=0.5)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a step is spread over the devices.

    Attributes:
      name: for tables.
      axes: the axes of the mesh and their sizes.
      data: those that split the batch.
      rows: those that split the features that a weight sums over in the first product, and those
        that it makes in the second; gathered before a product, as FSDP does.
      columns: those that split the others, and the activations between both products.
      explicit: whether shardings are in the types.
      stacked: whether two blocks are stacked and scanned.
      manual: whether the optimizer runs inside ``shard_map``, on gradients that it is given.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    data: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    explicit: bool = False
    stacked: bool = False
    manual: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def mesh(self) -> Mesh:
        kind = AxisType.Explicit if self.explicit else AxisType.Auto
        names, sizes = zip(*self.axes, strict=True)
        return jax.make_mesh(sizes, names, axis_types=(kind,) * len(names))

    def spec(self, name: str, *, gathered: bool = False) -> P:
        """Where a weight lies, in memory or in a product."""
        rows = () if gathered else self.rows
        axes = (rows, self.columns) if name == "hidden" else (self.columns, rows)
        return P(*((None,) if self.stacked and not gathered else ()), *(a or None for a in axes))

    def params(self, mesh: Mesh) -> Any:
        """Describe the weights."""
        ahead = (LAYERS,) if self.stacked else ()
        return {
            name: {
                "kernel": jax.ShapeDtypeStruct(
                    (*ahead, *shape), jnp.float32, sharding=NamedSharding(mesh, self.spec(name))
                )
            }
            for name, shape in SHAPES.items()
        }


_BOTH: dict[str, Any] = {
    "axes": (("data", 4), ("model", 2)),
    "data": ("data",),
    "rows": ("data",),
    "columns": ("model",),
}

PLACEMENTS = (
    Placement("data parallel", (("data", 8),), data=("data",)),
    Placement("FSDP", (("data", 8),), data=("data",), rows=("data",)),
    Placement("tensor parallel", (("model", 8),), columns=("model",)),
    Placement("FSDP × tensor", **_BOTH),
    Placement("FSDP × tensor, explicit", **_BOTH, explicit=True),
    Placement(
        "data × FSDP × tensor",
        (("data", 2), ("fsdp", 2), ("model", 2)),
        data=("data", "fsdp"),
        rows=("fsdp",),
        columns=("model",),
    ),
    Placement("FSDP × tensor, scanned layers", **_BOTH, stacked=True),
    Placement("`shard_map`", **_BOTH, manual=True),
)


def loss(placement: Placement, mesh: Mesh, params: Any, x: jax.Array) -> jax.Array:
    """Return the loss of one block, or of two that are scanned."""
    if not placement.stacked:
        return jnp.mean(jnp.square(_block(placement, mesh, params, x)))

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return _block(placement, mesh, layer, x), None

    return jnp.mean(jnp.square(jax.lax.scan(body, x, params)[0]))


def _block(placement: Placement, mesh: Mesh, params: Any, x: jax.Array) -> jax.Array:
    def at(value: jax.Array, spec: P) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        if placement.explicit:
            return jax.reshard(value, sharding)
        return jax.lax.with_sharding_constraint(value, sharding)

    def product(x: jax.Array, name: str, spec: P) -> jax.Array:
        weight = at(params[name]["kernel"], placement.spec(name, gathered=True))
        out = NamedSharding(mesh, spec) if placement.explicit else None
        return at(jnp.einsum("bi,io->bo", x, weight, out_sharding=out), spec)

    batch = placement.data or None
    hidden = jax.nn.relu(product(x, "hidden", P(batch, placement.columns or None)))
    return product(hidden, "out", P(batch, None))


def transform(row: TransformRow | None, placement: Placement, params: Any, *, manual: bool) -> Any:
    """Return the row's transform around the bare optimizer, or that alone."""
    inner = third_party.inner(_INNER)
    if row is None:
        return optax.with_extra_args_support(inner)
    given: dict[str, Any] = {}
    if placement.stacked:
        given["layers"] = {".*": 0}
    if manual:
        given["shapes"] = {f"{name}/kernel": shape for name, shape in SHAPES.items()}
    known = inspect.signature(getattr(jaxprune, row.name)).parameters
    return row.make(inner, params, **{k: v for k, v in given.items() if k in known})


def step(row: TransformRow | None, placement: Placement) -> Any:
    """Lower the training step of a row, or of the bare optimizer, and compile it."""
    mesh = placement.mesh
    params = placement.params(mesh)
    with _set(placement, mesh):
        run, state = _step_of(row, placement, mesh, params)
        x = jax.ShapeDtypeStruct(
            (BATCH, SHAPES["hidden"][0]),
            jnp.float32,
            sharding=NamedSharding(mesh, P(placement.data or None)),
        )
        given = params if placement.manual else x
        return jax.jit(run, donate_argnums=(0, 1)).lower(params, state, given).compile(FAST)


def _step_of(
    row: TransformRow | None, placement: Placement, mesh: Mesh, params: Any
) -> tuple[Callable[..., Any], Any]:
    values = _values(params)
    tx = transform(row, placement, values, manual=placement.manual)
    first = transform(row, placement, values, manual=False).init
    apply = third_party.leniently(optax.apply_updates)
    differentiate = jaxprune.value_and_grad if row is not None else _bare

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    def train(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        def objective(p: Any) -> jax.Array:
            return loss(placement, mesh, p, x)

        return update(params, state, differentiate(objective)(params, state)[1])

    state = _placed(jax.eval_shape(first, values), placement, mesh)
    if not placement.manual:
        return train, state
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, (params, state))
    inside = jax.shard_map(update, mesh=mesh, in_specs=(*specs, specs[0]), out_specs=specs)
    return inside, state


def _bare(objective: Callable[[Any], jax.Array]) -> Callable[[Any, Any], Any]:
    return lambda params, state: jax.value_and_grad(objective)(params)


def _placed(state: Any, placement: Placement, mesh: Mesh) -> Any:
    """Let what has a weight's shape lie as the weight does."""
    ahead = (LAYERS,) if placement.stacked else ()
    specs = {(*ahead, *shape): placement.spec(name) for name, shape in SHAPES.items()}
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, specs.get(leaf.shape, P()))
        ),
        state,
    )


def _values(params: Any) -> Any:
    """Weights on the host: masks that are given are made of them."""
    keys = iter(jax.random.split(jax.random.key(0), len(SHAPES)))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)


@contextlib.contextmanager
def _set(placement: Placement, mesh: Mesh) -> Iterator[None]:
    if not placement.explicit:
        yield
        return
    with jax.set_mesh(mesh):
        yield
