"""``jaxprune eval``: the perplexity of a model."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxprune import models
from jaxprune.cli import tokens
from jaxprune.cli.source import open_model


def evaluate(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    eval: Path,
    length: int = 512,
) -> None:
    """Measure the perplexity of a language model on a text.

    Args:
      model: smollm2-135m, a Hugging Face folder such as jaxprune llm writes, or a .gguf file.
      eval: a text, or an .npz with an array eval of token ids (windows, tokens).
      length: tokens in a window, where a text is cut.
    """
    source = open_model(model)
    windows = tokens.windows(eval, "eval", source.config, source.path, length=length)
    found = models.perplexity(models.llama(source.config), source.load(), windows)
    Console().print(
        f"perplexity {found.value:.3f} over {found.predictions} predictions in "
        f"{len(windows)} windows of {windows.shape[1]} tokens",
        highlight=False,
    )
