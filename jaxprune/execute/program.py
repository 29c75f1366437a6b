"""``execute``: trace a function, and run its equations on compressed weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxprune._core import paths
from jaxprune.execute.pack import Packed
from jaxprune.execute.rewrite import Rewriter
from jaxprune.execute.views import is_packed, token
from jaxprune.graph import _jax
from jaxprune.graph.program import arrays_of, refilled
from jaxprune.graph.uses import Skipped
from jaxprune.types import Tree


@dataclasses.dataclass(frozen=True, repr=False, eq=False)  # a function: jit hashes it
class Executable:
    """A function that runs on compressed weights; `execute` makes it.

    Attributes:
      fn: the function of dense weights.
      params: the compressed parameters that it was made for.
      implementation: as of `jaxprune.kernels.sparse_matmul`.
    """

    fn: Callable[..., Any]
    params: Tree
    implementation: str | None = None

    def __call__(self, params: Tree, *inputs: Any) -> Any:
        """Return what the function returns on the weights that the compressed ones stand for.

        Args:
          params: compressed parameters, from `pack`.
          *inputs: the function's other arguments.
        """
        return self._run(_params(params), inputs)[0]

    def densified(self, *inputs: Any) -> tuple[Skipped, ...]:
        """Return which weights are made dense on the way, where, and why.

        Nothing is run.

        Args:
          *inputs: the function's other arguments, or their shapes.
        """
        notes: list[Skipped] = []

        def run(params: Tree, *inputs: Any) -> Any:
            result, found = self._run(params, inputs)
            notes.extend(found)
            return result

        jax.eval_shape(run, self.params, *inputs)
        return tuple(notes)

    def _run(self, params: Tree, inputs: Sequence[Any]) -> tuple[Any, list[Skipped]]:
        dense = jax.tree.map(_as_dense, params, is_leaf=is_packed)
        outputs: list[Any] = []

        def flat(*arrays: Any) -> Any:
            own, others = refilled((dense, tuple(inputs)), arrays)
            leaves, tree = jax.tree.flatten(self.fn(own, *others))
            outputs.append(tree)
            return leaves

        of_params, of_inputs = arrays_of(dense, inputs)
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*of_params, *of_inputs)]
        body = _jax.jaxpr_of(flat, shapes)
        rewriter = Rewriter(self.implementation)
        results = rewriter.run(body, [*_values(params), *of_inputs], ())
        leaves = [rewriter.dense(value, "an output", ()) for value in results]
        return jax.tree.unflatten(outputs[0], leaves), rewriter.notes


def execute(
    fn: Callable[..., Any], packed: Packed | Tree, *, implementation: str | None = None
) -> Executable:
    """Return a function that does the same on compressed weights.

    The function is traced, and each product of an array and a packed weight becomes a
    `jaxprune.kernels.sparse_matmul`; through ``jit``, ``scan`` (whose slices take layers of
    formats), ``while``, ``cond``, rematerialisation and custom derivatives. Transposes, reshapes,
    casts and slices of layers on the way cost nothing. Where a weight meets another equation it is
    made dense for that one; ``densified`` lists these. It is differentiable.

    It traces in every call: wrap it in `jax.jit`, as a function of the packed parameters.

    Args:
      fn: the function of ``(params, *inputs)`` that was traced for `pack`, or any other of the same
        parameters.
      packed: what `pack` returned, or its tree.
      implementation: as of `jaxprune.kernels.sparse_matmul`.

    Returns:
      An `Executable`: a function of ``(packed parameters, *inputs)``.

    Raises:
      ValueError: the tree holds no compressed weight.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune.execute import execute, pack
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["in"]) @ params["out"].T
      >>> params = {"in": jnp.eye(8, 16), "out": jnp.ones((3, 16))}
      >>> x = jnp.arange(8.0)[None]
      >>> graph = jaxprune.trace(model, params, x)
      >>> packed = pack(params, graph=graph, format=jaxprune.NM(1, 4))
      >>> dict(packed.dense)
      {'out': "NMSparse: 'out' is not 1:4: ..."}
      >>> fast = execute(model, packed)
      >>> jax.jit(fast)(packed.params, x)
      Array([[28., 28., 28.]], dtype=float32)
      >>> fast.densified(x)
      ()
    """
    params = _params(packed)
    if not any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed))):
        raise ValueError(
            "execute: packed holds no compressed weight. Compress the parameters with "
            "jaxprune.pack first."
        )
    return Executable(fn, params, implementation)


def _params(packed: Any) -> Tree:
    return packed.params if isinstance(packed, Packed) else packed


def _as_dense(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_packed(leaf) else leaf


def _values(params: Tree) -> list[Any]:
    """Return the arrays of the parameters in tree order, tokens for compressed ones."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_packed)
    return [
        token(paths.path_of(keys), leaf) if is_packed(leaf) else leaf
        for keys, leaf in leaves
        if is_packed(leaf) or _jax.is_array(leaf)
    ]
