"""``pack``: compress the weights of a tree that a function multiplies with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core import packing, paths
from jaxprune.execute.views import Format, MatrixView, trivial
from jaxprune.formats import Bitmap, BlockSparse, NMSparse, _checks
from jaxprune.graph.matrix import Layout, layout_of
from jaxprune.graph.trace import Graph
from jaxprune.kernels import layout_of as kernel_layout_of
from jaxprune.patterns import NM, Block, Unstructured
from jaxprune.types import Tree

Compress = Callable[..., Format]
"""``(matrix, mask, *, path) -> format``; a ValueError leaves the weight dense."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """Compressed parameters.

    Attributes:
      params: the tree, with a format (or a `MatrixView` of one) in place of each packed weight.
      dense: why each other prunable weight stays dense, by path.
    """

    params: Tree
    dense: Mapping[str, str]


def pack(
    params: Tree,
    masks: Tree | None = None,
    *,
    graph: Graph,
    format: NM | Block | Unstructured | Compress,
    rows: int = 1,
) -> Packed:
    """Compress every weight that products contract and that a format fits.

    Args:
      params: parameters, as `jaxprune.trace` saw them.
      masks: boolean masks in any container, matched by path, True = kept, packed or not; a weight
        without one stays dense. None takes what is not zero as kept.
      graph: what the function does with each weight. A weight is compressed as the matrix
        ``[in, out]`` of its product; a layer axis stays in front.
      format: ``NM(n, m)`` for `formats.NMSparse`, ``Block((height, width))``, along ``in`` and
        ``out``, for `formats.BlockSparse`, ``Unstructured()`` for `formats.Bitmap`; or a function
        ``(matrix, mask, *, path) -> format``, for example one that quantizes, too.
      rows: rows that products will have, 1 for generating text: weights are laid out for the kernel
        that is fastest then. Weights are packed where dense is faster, too, to save memory;
        `Executable.prepared` makes those dense.

    Returns:
      The parameters, and what stays dense with the reasons.

    Raises:
      ValueError: nothing could be packed, or a weight has something outside its mask.
      TypeError: ``format`` is none of these.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["in"]) @ params["out"].T
      >>> keys = jax.random.split(jax.random.key(0))
      >>> params = {"in": jax.random.normal(keys[0], (8, 16)), "out": jnp.ones((3, 16))}
      >>> graph = jaxprune.trace(model, params, jnp.ones((1, 8)))
      >>> masks = jaxprune.make_masks(params, 0.5, where="in", pattern=jaxprune.NM(2, 4))
      >>> packed = jaxprune.pack(jaxprune.apply_masks(params, masks), masks, graph=graph,
      ...                        format=jaxprune.NM(2, 4))
      >>> packed.params["in"], dict(packed.dense)
      (NMSparse([8, 16], float32, 2:4), {'out': 'it has no mask'})
    """
    compress = _compressor(format)
    known = None if masks is None else _masks(masks)
    found: dict[str, Any] = {}
    dense: dict[str, str] = {}
    chosen = graph.where().chosen
    for path, weight in paths.flatten(params).items():
        if path in chosen:
            packed = _packed(graph, path, weight, known, compress, rows)
            (dense if isinstance(packed, str) else found)[path] = packed
    if not found:
        reasons = paths.listed(f"{path}: {why}" for path, why in dense.items())
        raise ValueError(
            f"pack: no weight fits format={format!r}. {reasons or 'No weight is prunable'}. Prune "
            "with the same pattern first, or choose another format."
        )
    return Packed(paths.refill(params, found, lambda path, leaf: leaf), dense)


def _compressor(format: Any) -> Compress:
    if isinstance(format, NM):
        n, m = format.n, format.m
        return lambda w, mask, *, path: NMSparse.from_dense(w, mask, n=n, m=m, path=path)
    if isinstance(format, Block) and len(format.shape) == 2:
        height, width = format.shape
        return lambda w, mask, *, path: BlockSparse.from_dense(
            w, mask, block=(height, width), path=path
        )
    if isinstance(format, Unstructured):
        return Bitmap.from_dense
    if isinstance(format, Block) or not callable(format):
        raise TypeError(
            f"pack: format must be NM(n, m), Block((height, width)), Unstructured() or a function, "
            f"got {format!r}."
        )
    function: Any = format
    return function


def _masks(masks: Tree) -> dict[str, jax.Array]:
    return paths.flatten(jax.tree.map(packing.unpack, masks, is_leaf=packing.is_packed))


def _packed(
    graph: Graph,
    path: str,
    weight: jax.Array,
    masks: Mapping[str, jax.Array] | None,
    compress: Compress,
    rows: int,
) -> Any:
    """Return a compressed weight, or why it stays dense."""
    if masks is not None and path not in masks:
        return "it has no mask"
    layout = _layout(graph, path)
    if isinstance(layout, str):
        return layout
    mask = None if masks is None else masks[path]
    if mask is not None:
        _checks.refuse_outside("pack", _checks.outside(weight, mask), weight, mask, path)
    matrix = layout.matrix(jnp.asarray(weight))
    kept = None if mask is None else layout.matrix(mask)
    try:
        packed = compress(matrix, kept, path=path)
    except ValueError as error:
        return str(error)
    if isinstance(packed, NMSparse):
        one = packed[0] if packed.ndim == 3 else packed
        fastest = kernel_layout_of(rows, one)
        packed = packed if fastest == packed.layout else packed.relaid(fastest)
    return packed if trivial(layout) else MatrixView(packed, layout)


def _layout(graph: Graph, path: str) -> Layout | str:
    """Return how a weight makes up matrices, or why it cannot be packed."""
    for use in graph.uses_of(path):
        if use.primitive != "dot_general":
            return f"it is used by {use.primitive}, too"
        if not use.zero_preserving or use.derived_from:
            return "it is changed before it is multiplied"
    try:
        layout = layout_of(graph.program, path)
    except ValueError as error:
        return str(error)
    if len(layout.lead) > (graph.layer_axis(path) is not None):
        return "it holds several matrices for one layer, such as experts"
    return layout
