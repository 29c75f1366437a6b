"""How sparse is each weight, does it keep to its pattern, and what would it take to store?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core import paths
from jaxprune.analysis import _sizes
from jaxprune.analysis._rows import Row, Summary, share, together
from jaxprune.analysis._table import print_summary
from jaxprune.masks import MaskRule, Patterns, check_masks, mask_leaves
from jaxprune.patterns import Unstructured
from jaxprune.types import Pattern, Tree


def summary(
    params: Tree,
    masks: Tree,
    *,
    pattern: Patterns | None = None,
    layers: Mapping[str, int] | None = None,
    print_table: bool = True,
) -> Summary:
    """Count what is kept, per weight and in total, and print it as a table.

    Compressed sizes are estimates from the layout of the formats: the smallest of

    - dense: ``size · itemsize``;
    - bitmap: ``kept · itemsize + ⌈size / 8⌉``;
    - N:M, where it holds: ``n · itemsize + n · ⌈log2 m⌉ / 8`` for each group;
    - blocks and channels, where they hold: the values and an int32 for each one kept.

    Leaves without a mask are dense, and are counted in a line of their own.

    Args:
      params: parameters in any container, or their ``jax.ShapeDtypeStruct``. Transforms that
        store dense weights are looked at through `jaxprune.final_params`.
      masks: masks in any container, matched by path; boolean or packed, True = kept.
      pattern: the pattern that zeros should obey, or ``{regex: pattern}``; None to look only
        whether the pruned weights are exactly zero.
      layers: as in `jaxprune.make_masks`: weights that stack several layers along an axis.
      print_table: whether to print.

    Returns:
      The figures.

    Raises:
      ValueError: masks that do not match the parameters, or a pattern that does not fit one;
        named by path.
      TypeError: a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> params = {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.zeros(4)}
      >>> params, masks = jaxprune.prune(params, 0.75)
      >>> figures = jaxprune.analysis.summary(params, masks)
      weight ┃ shape ┃ kept ┃ of ┃ sparsity ┃ zeros exact ┃ dense ┃ compressed
      ...
      kernel │ 8 × 4 │ 8 │ 32 │ 75.00% │ yes │ 128 bytes │ 36 bytes
      ...
      >>> figures.total.kept, figures.total.sparsity, figures.model.compressed_bytes
      (8, 0.75, 52)
    """
    leaves = paths.flatten(params).items()
    weights = {path: leaf for path, leaf in leaves if hasattr(leaf, "dtype")}
    kept = mask_leaves(masks)
    check_masks(weights, kept)
    if not kept:
        raise ValueError("masks has no entries. Pass those of jaxprune.make_masks or get_masks.")
    rule = MaskRule(Unstructured() if pattern is None else pattern, layers=dict(layers or {}))
    rule.check({path: mask.shape for path, mask in kept.items()})
    shown = {path: None if pattern is None else rule.pattern_of(path) for path in kept}
    stacks = {path: rule.layer_axis(path, mask.shape) for path, mask in kept.items()}
    rows = [_row(p, weights[p], np.asarray(kept[p]), shown[p], stacks[p]) for p in kept]
    result = _totals(rows, [_dense_row(p, x) for p, x in weights.items() if p not in kept])
    if print_table:
        print_summary(result)
    return result


def _totals(rows: list[Row], dense: list[Row]) -> Summary:
    total, model = together("total", rows), together("whole model", rows + dense)
    return Summary(
        rows=tuple(rows),
        total=total,
        unprunable=together(f"not prunable ({len(dense)})", dense),
        # Leaves without a mask cannot break the pattern.
        model=dataclasses.replace(model, pattern=total.pattern, holds=total.holds),
    )


def _row(
    path: str, weight: Any, mask: np.ndarray, pattern: Pattern | None, stack: int | None
) -> Row:
    size, kept = mask.size, int(np.count_nonzero(mask))
    layers = [mask] if stack is None else list(np.moveaxis(mask, stack, 0))
    obeys = None if pattern is None else all(bool(pattern.holds(jnp.asarray(m))) for m in layers)
    nonzero = _nonzero(weight, mask)
    verdicts = [obeys, None if nonzero is None else nonzero == 0]
    known = [verdict for verdict in verdicts if verdict is not None]
    format_ = pattern if obeys else None
    return Row(
        path=path,
        shape=tuple(weight.shape),
        dtype=str(weight.dtype),
        size=size,
        kept=kept,
        sparsity=share(size, kept),
        pattern="" if pattern is None else repr(pattern),
        nonzero=nonzero,
        holds=all(known) if known else None,
        dense_bytes=size * weight.dtype.itemsize,
        compressed_bytes=sum(_sizes.smallest(m, weight.dtype.itemsize, format_) for m in layers),
    )


def _nonzero(weight: Any, mask: np.ndarray) -> int | None:
    if isinstance(weight, jax.ShapeDtypeStruct):
        return None
    return int(np.count_nonzero(np.asarray(weight)[~mask]))


def _dense_row(path: str, leaf: Any) -> Row:
    size = int(np.prod(leaf.shape, dtype=np.int64))
    stored = size * leaf.dtype.itemsize
    return Row(
        path=path,
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        size=size,
        kept=size,
        sparsity=0.0,
        pattern="",
        nonzero=None,
        holds=None,
        dense_bytes=stored,
        compressed_bytes=stored,
    )
