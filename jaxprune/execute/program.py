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
          params: compressed parameters, from `pack` or `prepared`.
          *inputs: the function's other arguments.
        """
        return self._run(_params(params), inputs)[0]

    def densified(self, *inputs: Any) -> tuple[Skipped, ...]:
        """Return which weights every call makes dense, where, and why.

        These are products that nothing compressed is known to do faster, and all other
        equations. Nothing is run.

        Args:
          *inputs: the function's other arguments, or their shapes.
        """
        return tuple(self._followed(inputs).notes)

    def prepared(self, *inputs: Any) -> Tree:
        """Return the parameters for the fastest calls: dense where no product gains.

        A weight that every use in a call would make dense is made dense here, once; calls with the
        result are as fast as with dense weights, or faster. A weight that some product takes
        compressed stays so. To save memory rather than time, call with the compressed parameters.

        Args:
          *inputs: the function's other arguments, or their shapes: what is faster depends on the
            number of rows.

        Returns:
          A tree of arrays and compressed weights, in place of ``params``. Where it is trained, the
          zeros of dense weights are trained, too.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import jaxprune
          >>> def model(params, x):
          ...     return x @ params["w"]
          >>> params, x = {"w": jnp.eye(8)}, jnp.ones((1, 8))
          >>> graph = jaxprune.trace(model, params, x)
          >>> packed = jaxprune.pack(params, graph=graph, format=jaxprune.Unstructured())
          >>> packed.params["w"]
          Bitmap([8, 8], float32, 8 values)
          >>> fast = jaxprune.execute(model, packed)
          >>> fast.densified(x)[0].reason
          "with 1 row, nothing is known to be faster than dense on 'cpu'"
          >>> type(fast.prepared(x)["w"]).__name__
          'ArrayImpl'
        """
        followed = self._followed(inputs)
        chosen = {note.path for note in followed.notes} - followed.multiplied
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: leaf.todense() if paths.path_of(keys) in chosen else leaf,
            self.params,
            is_leaf=is_packed,
        )

    def _followed(self, inputs: Sequence[Any]) -> Rewriter:
        """Return the rewriter after a call on shapes."""
        found: list[Rewriter] = []

        def run(params: Tree, *inputs: Any) -> Any:
            result, rewriter = self._run(params, inputs)
            found.append(rewriter)
            return result

        jax.eval_shape(run, self.params, *inputs)
        return found[0]

    def _run(self, params: Tree, inputs: Sequence[Any]) -> tuple[Any, Rewriter]:
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
        return jax.tree.unflatten(outputs[0], leaves), rewriter


def execute(
    fn: Callable[..., Any], packed: Packed | Tree, *, implementation: str | None = None
) -> Executable:
    """Return a function that does the same on compressed weights.

    The function is traced, and each product of an array and a packed weight becomes a
    `jaxprune.kernels.sparse_matmul`; through ``jit``, ``scan`` (whose slices take layers of
    formats), ``while``, ``cond``, rematerialisation and custom derivatives. Transposes, reshapes,
    casts and slices of layers on the way cost nothing. Where a weight meets another equation it is
    made dense for that one; `Executable.densified` lists these. It is differentiable.

    A product that nothing compressed is known to do faster makes its weight dense in every
    call: that saves memory and costs time. `Executable.prepared` returns parameters for the fastest
    calls, in which such weights are dense. It traces in every call: wrap
    it in `jax.jit`.

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
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["in"]) @ params["out"].T
      >>> params = {"in": jnp.eye(8, 16), "out": jnp.ones((3, 16))}
      >>> x = jnp.arange(8.0)[None]
      >>> graph = jaxprune.trace(model, params, x)
      >>> packed = jaxprune.pack(params, graph=graph, format=jaxprune.NM(1, 4))
      >>> dict(packed.dense)
      {'out': "NMSparse: 'out' is not 1:4: ..."}
      >>> fast = jaxprune.execute(model, packed)
      >>> jax.jit(fast)(packed.params, x)  # the smallest
      Array([[28., 28., 28.]], dtype=float32)
      >>> jax.jit(fast)(fast.prepared(x), x)  # the fastest
      Array([[28., 28., 28.]], dtype=float32)
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
