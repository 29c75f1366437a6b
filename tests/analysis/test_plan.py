"""The figures of a plan by hand and against what is compiled; meshes and trees that do not fit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import NM, Block, schedules
from jaxprune.analysis import Plan
from jaxprune.patterns import Unstructured
from tests import third_party

MESH = AbstractMesh((4, 2), ("data", "model"))
# More than the counters of a state by so much that these are no part of 2%.
SHAPES = {"dense": {"kernel": (256, 512), "bias": (512,)}, "out": {"kernel": (512, 64)}}
SPECS = {"dense": {"kernel": P("data", "model"), "bias": P("model")}, "out": {"kernel": P("data")}}
WEIGHTS, OTHERS = 256 * 512 + 512 * 64, 512


def shapes(dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def figures(tx: optax.GradientTransformation, params: Any = None, **settings: Any) -> Plan:
    params = shapes() if params is None else params
    return jaxprune.plan(params, tx, print_table=False, **settings)


def test_the_figures_on_one_device():
    got = figures(jaxprune.rigl(third_party.inner(optax.adam(0.1)), 0.75, every=10, end=100))
    first, second = got.rows
    assert (first.path, second.path) == ("dense/kernel", "out/kernel")
    assert (first.shape, first.dtype, first.size) == ((256, 512), "float32", 256 * 512)
    assert first.weight_bytes == first.size * 4
    assert (first.mask_bytes, first.method_bytes) == (first.size, 0)
    assert first.optimizer_bytes == 2 * first.size * 4
    assert first.bytes == first.size * 13
    assert first.kept is not None and second.kept is not None
    assert first.sparsity == 1 - first.kept / first.size
    assert first.kept + second.kept == got.total.kept == WEIGHTS // 4
    assert (got.total.size, got.total.sparsity) == (WEIGHTS, 0.75)
    assert (got.unprunable.path, got.unprunable.size) == ("not prunable (1)", OTHERS)
    assert (got.unprunable.kept, got.unprunable.sparsity) == (OTHERS, 0.0)
    assert got.unprunable.bytes == OTHERS * 12
    assert got.rest.optimizer_bytes == 4  # Adam's count
    # The step, the fingerprint, the health of two weights.
    assert (got.rest.weight_bytes, got.rest.mask_bytes, got.rest.method_bytes) == (0, 0, 28)
    assert got.model.bytes == WEIGHTS * 13 + OTHERS * 12 + 4 + 28
    assert got.model.kept == got.model.mean_kept == WEIGHTS // 4 + OTHERS
    assert (got.steps, dict(got.mesh), got.notes) == (91, {}, ())
    assert got.model.training_flops is got.run_flops is got.sparse_run_flops is None


def test_what_is_split_and_what_is_packed():
    tx = jaxprune.snfs(optax.sgd(0.1, momentum=0.9), 0.5, every=10, end=100, packed=True)
    got = figures(tx, mesh=MESH, specs=SPECS)
    first, second = got.rows
    assert (first.split, second.split) == ("data × model", "data × ·")
    assert (first.weight_bytes, first.optimizer_bytes) == (256 * 512 * 4 // 8,) * 2
    assert first.method_bytes == 256 * 512 * 4 // 8  # the momentum of the dense gradients
    assert (first.mask_bytes, second.mask_bytes) == (256 * 512 // 64, 512 * 64 // 32)
    assert got.unprunable.weight_bytes == 512 * 4 // 2
    assert got.mesh == {"data": 4, "model": 2}


def test_one_placement_said_in_four_ways(mesh: Mesh):
    tx = jaxprune.gradual(optax.sgd(0.1), 0.5)
    wanted = figures(tx, mesh=MESH, specs=SPECS)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)

    def of_path(path: str) -> P:
        name, leaf = path.split("/")
        return SPECS[name][leaf]

    structs = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes(),
        placed,
    )
    assert figures(tx, mesh=mesh, specs=of_path) == wanted
    assert figures(tx, specs=placed) == wanted
    assert figures(tx, structs) == wanted
    arrays = jax.jit(lambda: jax.tree.map(lambda x: jnp.ones(x.shape), shapes()))()
    assert figures(tx, jax.device_put(arrays, placed)) == wanted


STEPPED: dict[str, Any] = {
    "gradual, packed": lambda inner: jaxprune.gradual(inner, 0.5, packed=True),
    "rigl, packed": lambda inner: jaxprune.rigl(inner, 0.9, every=10, end=100, packed=True),
    "snfs": lambda inner: jaxprune.snfs(inner, 0.9, every=10, end=100),
    "top_kast, packed": lambda inner: jaxprune.top_kast(
        inner, 0.9, backward_sparsity=0.5, packed=True
    ),
    "sr_ste": lambda inner: jaxprune.sr_ste(inner, NM(2, 4)),
}


def case(name: str, axes: str) -> Any:
    fast = name == "sr_ste" or (name, axes) == ("gradual, packed", "explicit")
    return pytest.param(name, axes, marks=[] if fast else pytest.mark.slow(reason="compiles"))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [case(name, axes) for name in STEPPED for axes in ("explicit", "auto")],
    indirect=["mesh"],
)
def test_a_compiled_step_takes_what_is_planned(name: str, mesh: Mesh):
    tx = optax.chain(optax.clip(1.0), STEPPED[name](third_party.inner(optax.adam(0.1))))
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)

    @functools.partial(jax.jit, keep_unused=True)
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(params, state, params)
        return third_party.leniently(optax.apply_updates)(params, updates), state

    with jax.set_mesh(mesh):
        params = jax.device_put(jax.tree.map(lambda x: jnp.ones(x.shape), shapes()), placed)
        # The moments lie as the weights do from the first step on.
        params, state = step(params, jax.jit(tx.init)(params))
        taken = step.lower(params, state).compile().memory_analysis().argument_size_in_bytes
    planned = figures(tx, params).model.bytes
    assert planned == taken
    assert planned * 6 < figures(tx).model.bytes  # on eight devices, or four


def _model(params: Any, x: jax.Array) -> jax.Array:
    x = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"][None])
    return x @ params["out"]["kernel"]


GRAPH = jaxprune.trace(_model, shapes(), jax.ShapeDtypeStruct((10, 256), jnp.float32))
DENSE = 2 * 10 * 256 * 512, 2 * 10 * 512 * 64  # of one product with each weight


def test_the_flops_of_a_method_that_looks_at_gradients_where_masks_change():
    tx = jaxprune.rigl(
        optax.sgd(0.1), 0.75, every=10, end=35, allocation=jaxprune.allocation.uniform
    )
    got = figures(tx, graph=GRAPH, steps=40)
    first, second = got.rows
    # The first weight's input needs no gradient.
    assert (first.training_flops, second.training_flops) == (2 * DENSE[0], 3 * DENSE[1])
    looks = 3 / 40  # at 10, 20 and 30
    own = 0.25 * (1 - looks) + looks
    assert first.sparse_training_flops == pytest.approx((0.25 + own) * DENSE[0])
    assert second.sparse_training_flops == pytest.approx((0.5 + own) * DENSE[1])
    assert got.run_flops == 40 * (2 * DENSE[0] + 3 * DENSE[1])
    assert got.sparse_run_flops == pytest.approx(
        40 * (first.sparse_training_flops + second.sparse_training_flops)
    )


def test_averages_are_over_the_steps_of_the_run():
    ramp = schedules.linear(0.0, 0.5, begin=0, end=4)
    got = figures(jaxprune.gradual(optax.sgd(0.1), ramp), graph=GRAPH)
    assert got.steps == 5
    # What a call changes is seen in the next: 1, 1, 7/8, 6/8, 5/8 of the weights; 1/2 at the end.
    mean = (8 + 8 + 7 + 6 + 5) / 40
    assert got.total.mean_kept == pytest.approx(mean * WEIGHTS)
    assert got.model.mean_kept == pytest.approx(mean * WEIGHTS + OTHERS)
    assert (got.total.sparsity, got.total.kept) == (0.5, WEIGHTS // 2)
    assert got.sparse_run_flops == pytest.approx(mean * got.run_flops)
    longer = figures(jaxprune.gradual(optax.sgd(0.1), ramp), steps=10)
    assert longer.total.mean_kept == pytest.approx((0.5 * mean + 0.25) * WEIGHTS)


def test_a_schedule_without_a_window_takes_the_steps_that_are_given():
    tx = jaxprune.gradual(optax.sgd(0.1), lambda step: 0.125 * jnp.minimum(jnp.float32(step), 4.0))
    got = figures(tx, steps=8)
    assert got.total.mean_kept == pytest.approx((8 + 8 + 7 + 6 + 5 + 4 + 4 + 4) / 64 * WEIGHTS)
    assert got.total.sparsity == 0.5
    with pytest.raises(ValueError, match=r"has no window.*Pass steps="):
        figures(tx)


def test_what_the_scores_decide_is_left_open():
    tx = jaxprune.gradual(optax.sgd(0.1), 0.75, allocation=jaxprune.allocation.global_())
    got = figures(tx, graph=GRAPH, steps=2)
    assert [(row.kept, row.sparsity, row.mean_kept) for row in got.rows] == [(None,) * 3] * 2
    assert (got.total.kept, got.total.sparsity) == (WEIGHTS // 4, 0.75)
    assert got.sparse_run_flops == pytest.approx(0.625 * got.run_flops)
    assert "only the total is known" in got.notes[0]


def test_a_recipe_that_does_not_say_what_it_keeps():
    recipe = jaxprune.transforms.Recipe(
        method=jaxprune.transforms.Method("mine"),
        text="mine",
        where="kernel",
        timetable=None,
        init=lambda ws: ({p: jaxprune.transforms.everything(w) for p, w in ws.items()}, ()),
        change=lambda moment: (moment.masks, ()),
    )
    got = figures(jaxprune.transforms.wrap(optax.sgd(0.1), recipe), graph=GRAPH)
    assert got.total.mask_bytes == WEIGHTS
    assert got.total.kept is got.model.kept is got.model.sparse_training_flops is None
    assert "pass course= to its transforms.Method" in got.notes[0]


def test_two_transforms_in_one_optimizer():
    tx = optax.multi_transform(
        {
            "dense": jaxprune.gradual(optax.sgd(0.1), schedules.one_shot(0.5, step=9)),
            "out": jaxprune.ste(optax.sgd(0.1, momentum=0.9), NM(1, 4)),
        },
        {"dense": "dense", "out": "out"},
    )
    got = figures(tx)
    assert [row.sparsity for row in got.rows] == [0.5, 0.75]
    assert [row.pattern for row in got.rows] == ["", "NM(n=1, m=4)"]
    assert [row.optimizer_bytes for row in got.rows] == [0, 512 * 64 * 4]
    assert got.steps == 10


def test_fixed_masks_are_counted():
    masks = jaxprune.make_masks({"kernel": jnp.arange(64.0).reshape(8, 8)}, 0.75)
    params = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    got = figures(jaxprune.static(optax.sgd(0.1), masks), params)
    assert (got.total.kept, got.total.mean_kept, got.steps) == (16, 16.0, None)
    assert "has no end, and steps= is not given" in got.notes[0]


def test_a_run_that_ends_before_its_schedule():
    ramp = schedules.linear(0.0, 0.5, begin=0, end=4)
    got = figures(jaxprune.gradual(optax.sgd(0.1), ramp), steps=3)
    assert got.total.sparsity == 0.25
    assert got.notes == (
        "gradual ends at step 4, which 3 calls of update do not reach: it takes 5.",
    )


def test_nothing_is_allocated():
    side, layers = 2**15, 128  # 137 billion weights
    kernel = {"kernel": jax.ShapeDtypeStruct((side, side), jnp.bfloat16)}
    got = figures(
        jaxprune.gradual(optax.sgd(0.1, momentum=0.9), 0.9, packed=True),
        {f"layer{i}": kernel for i in range(layers)},
        mesh=AbstractMesh((64, 64), ("data", "model")),
        specs=lambda path: P("data", "model"),
    )
    assert got.total.weight_bytes == got.total.optimizer_bytes == layers * side * side * 2 // 2**12
    assert got.total.mask_bytes == layers * side * side // 2**15
    assert got.total.kept == layers * round(side * side * 0.1)


def test_the_table(capsys: pytest.CaptureFixture[str]):
    tx = jaxprune.rigl(optax.sgd(0.1), 0.75, every=10, end=100, packed=True)
    jaxprune.plan(shapes(), tx, mesh=MESH, specs=SPECS, graph=GRAPH)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("dense/kernel │ 256 × 512 │ data × model │") for line in lines)
    assert any(line.startswith("total │") and "75.00%" in line for line in lines)
    assert "on each device of the mesh (data 4, model 2)." in lines[-3]
    assert lines[-2].startswith("91 steps see 41.47 k of 164.4 k parameters on average (25.2%).")
    assert "training FLOPs dense" in lines[-1]


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no transform": (optax.sgd(0.1), {}, ValueError, "holds no state of a jaxprune transform"),
    "a byte": (
        jaxprune.gradual(optax.sgd(0.1), 0.5, packed=True),
        {
            "mesh": AbstractMesh((16, 16), ("data", "model")),
            "specs": lambda path: P(None, "model") if "out" in path else P(),
        },
        ValueError,
        r"packed=True cannot store the mask of 'out/kernel' .* 16 shards of mesh axis 'model'.*"
        "Pass packed=False, or split another axis",
    ),
    "a group": (
        jaxprune.ste(optax.sgd(0.1), NM(1, 64)),
        {"mesh": AbstractMesh((8,), ("data",)), "specs": lambda path: P("data")},
        ValueError,
        r"NM\(n=1, m=64\) needs 64 neighbours of axis 0 of 'dense/kernel' .* on one device, and "
        r"mesh axis 'data' cuts it into 8 shards of 32.*Split another axis",
    ),
    "a block": (
        jaxprune.gradual(
            optax.sgd(0.1), 0.5, pattern={"dense": Block((1, 64)), "": Unstructured()}
        ),
        {
            "mesh": AbstractMesh((4, 4), ("data", "model")),
            "specs": lambda path: P(None, ("data", "model")) if "dense/kernel" in path else P(),
        },
        ValueError,
        r"needs 64 neighbours of axis 1 of 'dense/kernel'.*mesh axis \('data', 'model'\)",
    ),
    "an axis": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"mesh": AbstractMesh((3,), ("data",)), "specs": lambda path: P("data")},
        ValueError,
        "axis 0 of 'dense/bias' of shape .512,. is split over 3 shards of mesh axis 'data'.*"
        "Split another axis, or pad the parameter",
    ),
    "a name": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"mesh": MESH, "specs": lambda path: P("rows")},
        ValueError,
        "of 'dense/bias' names 'rows', which is no axis of the mesh",
    ),
    "no mesh": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"specs": SPECS},
        ValueError,
        "there is no mesh. Pass mesh=",
    ),
    "a tree": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"specs": {"dense": {"kernel": P()}}, "mesh": MESH},
        ValueError,
        "no entry for dense/bias, out/kernel",
    ),
    "a long spec": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"specs": lambda path: P(None, None, "data"), "mesh": MESH},
        ValueError,
        "has 3 parts, and 'dense/bias' of shape .512,. has 1 axes",
    ),
    "no spec": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"specs": lambda path: "data", "mesh": MESH},
        TypeError,
        "specs gives 'data' of type str for 'dense/bias'",
    ),
    "another graph": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {
            "graph": jaxprune.trace(
                lambda p, x: x @ p["w"], {"w": jnp.ones((4, 4))}, jnp.ones((1, 4))
            )
        },
        ValueError,
        "graph was traced with other parameters: dense/bias",
    ),
    "no steps": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"steps": 0},
        ValueError,
        "steps must be 1",
    ),
    "odd steps": (
        jaxprune.gradual(optax.sgd(0.1), 0.5),
        {"steps": 1.5},
        TypeError,
        "steps must be an integer",
    ),
}


@pytest.mark.parametrize(("tx", "settings", "kind", "text"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(tx: Any, settings: Any, kind: type[Exception], text: str):
    with pytest.raises(kind, match=text):
        figures(tx, **settings)


def test_groups_over_several_axes_may_be_split_along_the_first():
    params = {"kernel": jax.ShapeDtypeStruct((8, 6, 4), jnp.float32)}
    tx = jaxprune.ste(optax.sgd(0.1), NM(2, 4, axis=(0, 1)))
    mesh = AbstractMesh((2,), ("data",))
    assert figures(tx, params, mesh=mesh, specs={"kernel": P("data")}).total.mask_bytes == 96
    with pytest.raises(ValueError, match="needs 6 neighbours of axis 1"):
        figures(tx, params, mesh=mesh, specs={"kernel": P(None, "data")})


def test_meshes_that_differ_and_leaves_that_are_none():
    tx = jaxprune.gradual(optax.sgd(0.1), 0.5)
    specs = {"kernel": NamedSharding(AbstractMesh((2,), ("rows",)), P("rows"))}
    params = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    with pytest.raises(ValueError, match="are on different meshes"):
        figures(tx, params, mesh=MESH, specs=specs)
    with pytest.raises(TypeError, match=r"nothing else, got activation \(function\)"):
        figures(tx, params | {"activation": lambda x: x})
