"""The one-shot methods by the names that the command line takes, with the published rules.

Where the published code prunes all that ties at the cut, so does the command.
"""

import functools
import re
from collections.abc import Callable, Mapping

from jaxprune import posttraining
from jaxprune.models import LlamaConfig
from jaxprune.patterns import NM, Unstructured
from jaxprune.posttraining import Method

METHODS: Mapping[str, Callable[[], Method]] = {
    "magnitude": functools.partial(posttraining.magnitude, select=posttraining.below_threshold),
    "wanda": posttraining.wanda,
    "ria": functools.partial(posttraining.ria, select=posttraining.below_threshold),
    "gblm": posttraining.gblm,
    "dpruner": posttraining.dpruner,
    "sparsegpt": posttraining.sparsegpt,
    "admm": posttraining.admm,
    "alps": posttraining.alps,
}


def pattern_of(text: str, sparsity: float | None) -> tuple[Unstructured | NM, float]:
    """Return the pattern that a text names, and its sparsity.

    Args:
      text: ``unstructured``, or ``n:m`` with n kept of every m.
      sparsity: what was asked for, or None.

    Raises:
      ValueError: another text, a sparsity that the pattern does not have, or none at all.
    """
    if text == "unstructured":
        share = 0.5 if sparsity is None else sparsity
        if not 0.0 <= share < 1.0:
            raise ValueError(f"--sparsity must be in [0, 1), got {share}: the share of zeros.")
        return Unstructured(), share
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise ValueError(
            "--pattern must be unstructured, or n:m with n kept of every m as in 2:4; got "
            f"{text!r}."
        )
    pattern = NM(int(found[1]), int(found[2]))
    own = pattern.final_sparsity
    if sparsity is not None and not abs(sparsity - own) < 1e-3:
        raise ValueError(
            f"--pattern {text} keeps {pattern.n} of every {pattern.m}, a sparsity of {own:g}; "
            f"--sparsity is {sparsity}. Leave --sparsity out, or choose another pattern."
        )
    return pattern, own


def check_blocks(pattern: Unstructured | NM, method: str) -> None:
    """Check that a method which takes some inputs at a time does not cut a pattern's groups.

    Raises:
      ValueError: it does.
    """
    size = getattr(METHODS[method](), "blocksize", None)
    if isinstance(pattern, NM) and size is not None and size % pattern.m:
        raise ValueError(
            f"--method {method} takes {size} inputs at a time, which --pattern {pattern.n}:"
            f"{pattern.m} would cut within a group of {pattern.m}. Pass an M that divides {size}, "
            "or another method."
        )


def check_groups(pattern: Unstructured | NM, config: LlamaConfig) -> None:
    """Check that the groups of a pattern divide the inputs of every weight.

    Raises:
      ValueError: they do not.
    """
    if isinstance(pattern, Unstructured):
        return
    heads = config.num_attention_heads * config.head_dim
    widths = {
        "the hidden state": config.hidden_size,
        "the attention's output": heads,
        "the feed-forward layer": config.intermediate_size,
    }
    for name, width in widths.items():
        if width % pattern.m:
            raise ValueError(
                f"--pattern {pattern.n}:{pattern.m}: groups of {pattern.m} do not divide the "
                f"{width} inputs from {name}. Pass an M that divides "
                f"{', '.join(str(w) for w in widths.values())}."
            )
