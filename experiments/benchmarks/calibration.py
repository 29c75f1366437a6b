"""What Wanda and SparseGPT cost next to the same algorithms written plainly in torch.

    python -m experiments.benchmarks.calibration block
    python -m experiments.benchmarks.calibration smollm2 --model SmolLM2-135M.gguf

`block` is one block of the shape of Llama-7B with random weights, its phases timed apart: the
forward pass alone, the forward pass that gathers statistics, and the pruning itself. `smollm2` is
the whole model, pruned by `jaxprune.posttraining.prune_blocks`. Both sides take the same weights,
tokens and batches, keep the batches' activations on the device, and prune in float32 with Gram
matrices in float32; only the products of the forward pass may be of TF32. What they prune is
compared before anything is timed. What was compiled is compiled before, and its time is told apart.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import timing
from experiments.benchmarks.calibration_jax import METHODS
from experiments.benchmarks.calibration_rows import Row, Work, block_rows, smollm2_rows
from jaxprune import models
from jaxprune.models import LlamaConfig
from jaxprune.types import Tree

PARTS = ("block", "smollm2")


def llama_block(args: argparse.Namespace) -> tuple[LlamaConfig, Tree]:
    """Return a random block, twice in a row, so that it is found as one.

    Both times it is the same arrays, and only the first is run. The vocabulary gives Gram matrices
    of full rank.
    """
    config = LlamaConfig(
        vocab_size=2 * args.hidden, hidden_size=args.hidden, intermediate_size=args.ffn,
        num_hidden_layers=2, num_attention_heads=args.heads, num_key_value_heads=args.heads,
        head_dim=args.hidden // args.heads, max_position_embeddings=args.length,
    )  # fmt: skip
    one = dataclasses.replace(config, num_hidden_layers=1)
    params = models.init_llama(one, jax.random.key(0))
    return config, params | {"layers_1": params["layers_0"]}


def smollm2(args: argparse.Namespace) -> tuple[LlamaConfig, Tree]:
    """Return SmolLM2-135M from a file, or of random weights; of its first blocks only, if asked."""
    if args.model is not None:
        config, params = models.load(args.model, dtype=jnp.float32, stacked=True)
    else:
        config = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, head_dim=64, rms_norm_eps=1e-5,
            rope_theta=100_000.0, tie_word_embeddings=True, max_position_embeddings=8192,
        )  # fmt: skip
        params = models.init_llama(config, jax.random.key(0), stacked=True)
    layers = jax.tree.map(lambda leaf: leaf[: args.blocks], params["layers"])
    config = dataclasses.replace(config, num_hidden_layers=args.blocks)
    return config, {**params, "layers": layers}


def block_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of `block_rows`; each cell is ours / torch's."""
    header = ["method", "pattern", "TF32", "forward", "with statistics", "prune", "in all"]
    header += ["torch / ours", "peak GB", "equal masks", "error", "compile"]
    cells = []
    for row in rows:
        mine, theirs = (
            [row.get(f"{side}{key}") for key in ("forward", "collect", "solve")]
            for side in ("", "torch_")
        )
        all_mine, all_theirs = _sum(mine), _sum(theirs)
        cells.append([
            row["method"], row["pattern"], "on" if row["tf32"] else "off",
            *(_both(a, b) for a, b in zip(mine, theirs, strict=True)),
            _both(all_mine, all_theirs),
            f"{timing.ratio(theirs[2], mine[2])}, {timing.ratio(all_theirs, all_mine)}",
            *_checks(row),
            timing.shown(row["compile_passes"] + row["compile_solve"]),
        ])  # fmt: skip
    return header, cells


def smollm2_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of `smollm2_rows`; each cell is ours / torch's."""
    header = ["method", "pattern", "forward", "model", "torch / ours", "block", "peak GB"]
    header += ["equal masks", "error", "first run"]
    cells = [
        [
            row["method"], row["pattern"],
            *(_both(row[key], row.get(f"torch_{key}")) for key in ("forward", "seconds")),
            timing.ratio(row.get("torch_seconds"), row["seconds"]),
            _both(row["block"], row.get("torch_block")),
            *_checks(row),
            timing.shown(row["compile"]),
        ]
        for row in rows
    ]  # fmt: skip
    return header, cells


def _checks(row: Row) -> Iterator[str]:
    sizes = [row.get("peak_bytes"), row.get("torch_peak_bytes")]
    yield " / ".join("-" if size is None else f"{size / 1e9:.2f}" for size in sizes)
    yield "-" if "equal" not in row else f"{row['equal']:.4%}"
    found = [row[key] for key in ("error", "torch_error") if key in row]
    yield " / ".join(f"{error:.4g}" for error in found) or "-"


def _sum(times: Sequence[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


def _both(mine: float | None, theirs: float | None) -> str:
    return f"{timing.shown(mine)} / {timing.shown(theirs)}"


def _told(argv: Sequence[str]) -> list[str]:
    """Return the command line without the folder of the model."""
    told = list(argv)
    if "--model" in told:
        at = told.index("--model") + 1
        told[at] = Path(told[at]).name
    return told


def kept(part: str, folder: Path) -> Row:
    """Return what was measured of the other parts on this device."""
    found: Row = {}
    for run in timing.runs("calibration", folder):
        found |= {key: run[key] for key in PARTS if key in run and key != part}
    return found


def parser() -> argparse.ArgumentParser:
    """Return the command line's."""
    small = jax.default_backend() == "cpu"
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("part", choices=PARTS)
    found.add_argument("--samples", type=int, default=8 if small else 128)
    found.add_argument("--length", type=int, help="tokens of a sample; 2048, of smollm2 512")
    found.add_argument("--batch", type=int, default=4, help="samples in a batch")
    found.add_argument("--hidden", type=int, default=256 if small else 4096)
    found.add_argument("--ffn", type=int, default=688 if small else 11008)
    found.add_argument("--heads", type=int, default=4 if small else 32)
    found.add_argument("--tf32", nargs="+", default=["off", "on"], choices=["off", "on"])
    found.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    found.add_argument("--model", type=Path, help="of SmolLM2; random weights without")
    found.add_argument("--blocks", type=int, default=2 if small else 30, help="of SmolLM2")
    found.add_argument("--seconds", type=float, default=3.0, help="for the samples of one phase")
    found.add_argument("--without-torch", action="store_true")
    found.add_argument("--output", type=Path, default=timing.RESULTS)
    return found


def main(argv: Sequence[str]) -> int:
    """Run the benchmark."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch takes its own
    args = parser().parse_args(argv)
    if args.length is None:
        long = {"block": 2048, "smollm2": 512}[args.part]
        args.length = 64 if jax.default_backend() == "cpu" else long
    if args.samples % args.batch:
        raise SystemExit(f"--samples {args.samples} is not a multiple of --batch {args.batch}.")
    make, rows_of, table = {
        "block": (llama_block, block_rows, block_table),
        "smollm2": (smollm2, smollm2_rows, smollm2_table),
    }[args.part]
    work = Work(*make(args), args)
    stack = work.params["layers" if args.part == "smollm2" else "layers_0"]
    count = sum(leaf.size for leaf in jax.tree.leaves(stack)) / 1e6
    what = f"{count:.1f} million weights, {args.samples} x {args.length} tokens, batches of "
    what += f"{args.batch}" + ("" if args.part == "block" or args.model else ", random weights")
    if work.torch:
        what += f", torch {work.torch.torch.__version__}"
    command = timing.command("calibration", _told(argv))

    def save(found: Row) -> None:
        part = {"what": what, "command": command} | found
        known = kept(args.part, args.output)
        timing.save("calibration", _told(argv), known | {args.part: part}, args.output)

    header, cells = table(rows_of(work, save))
    shown = Table(
        *header, title=f"{args.part} on {timing.device()['device']}: {what}; ours / torch"
    )
    for line in cells:
        shown.add_row(*line)
    Console(width=200).print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
