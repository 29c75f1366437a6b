"""The commands, and how their errors reach the terminal."""

import sys
from collections.abc import Sequence

import jax
import tyro
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError

from jaxprune.cli.bench import bench
from jaxprune.cli.evaluate import evaluate
from jaxprune.cli.inspect import inspect
from jaxprune.cli.llm import llm

_COMMANDS = {"llm": llm, "eval": evaluate, "inspect": inspect, "bench": bench}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of ``jaxprune``.

    Args:
      argv: the words after ``jaxprune``; those of the process by default.

    Returns:
      0; 1 after an error, which is printed to stderr; 130 if it was interrupted. Words that are no
      command end the process with 2.

    Example:
      >>> from jaxprune import cli
      >>> cli.main(["inspect", "no/such/folder"])
      1
    """
    try:
        with jax.default_matmul_precision("highest"):  # figures do not depend on the device
            tyro.extras.subcommand_cli_from_dict(
                _COMMANDS,
                prog="jaxprune",
                description="Prune a language model in one shot, and measure what it lost.",
                args=sys.argv[1:] if argv is None else list(argv),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        _complain("error", str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted", "jaxprune llm goes on with --resume.")
        return 130
    return 0


def _complain(title: str, text: str) -> None:
    # As it is: brackets of shapes are no markup, and whoever reads a log wraps it.
    words = Text.assemble((f"{title}: ", "bold red"), text)
    Console(stderr=True).print(words, soft_wrap=True)
