"""``jaxprune llm``: prune a language model in one shot."""

import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console

from jaxprune.cli import tables, tokens
from jaxprune.cli.folder import Folder, digest
from jaxprune.cli.methods import check_blocks, check_groups, pattern_of
from jaxprune.cli.run import Run
from jaxprune.cli.source import open_model
from jaxprune.cli.work import work

Name = Literal["magnitude", "wanda", "ria", "gblm", "dpruner", "sparsegpt", "admm", "alps"]


def llm(
    *,
    calibration: Path,
    eval: Path,
    out: Path,
    model: str = "smollm2-135m",
    method: Name = "sparsegpt",
    pattern: Annotated[str, tyro.conf.arg(metavar="unstructured|N:M")] = "unstructured",
    sparsity: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None,
    allocation: Literal["uniform", "owl", "ecoflap"] = "uniform",
    general: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None,
    rate: float = 1e-4,
    samples: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None,
    length: int = 512,
    batch_size: int = 2,
    seed: int = 0,
    random_windows: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
) -> None:
    """Prune a language model in one shot, block after block.

    The folder gets a Hugging Face model, masks.safetensors and report.json.

    An interrupted run has lost one block at most, and goes on with --resume.

    Args:
      calibration: a text, or an .npz with an array calib of token ids (windows, tokens).
      eval: a text, or an .npz with an array eval of token ids (windows, tokens).
      out: folder for the results, empty or not there yet.
      model: smollm2-135m, a Hugging Face folder of the Llama family, or a .gguf file.
      method: how weights are chosen, and whether others make up for them.
      pattern: any weights, or at most N of every M consecutive inputs, as 2:4.
      sparsity: share of zeros in the blocks' weights. If left out, 0.5 or what N:M has.
      allocation: the same sparsity for every block, by the outliers of each (OWL), or by how the
        loss changes when its weights move (ECoFLaP).
      general: for dpruner, text of all kinds, where calibration is of one domain; or an .npz with
        an array general.
      rate: for dpruner, how far a step of training on the domain goes: its square weighs the
        general text.
      samples: calibration windows. If left out, 16 of a text, or all that an .npz has.
      length: tokens in a window, where a text is cut.
      batch_size: windows that go through a block together.
      seed: of random windows, and of ECoFLaP's directions.
      random_windows: cut a text's calibration windows at random places, not at even distances.
      resume: go on with an interrupted run.
    """
    start = time.perf_counter()
    kept, share = pattern_of(pattern, sparsity)
    _check(kept, method, allocation, general, rate, batch_size)
    source = open_model(model)
    check_groups(kept, source.config)
    cut: dict[str, Any] = {
        "count": samples, "length": length, "default": 16, "seed": seed if random_windows else None
    }  # fmt: skip
    calib = tokens.windows(calibration, "calib", source.config, source.path, **cut)
    others = None
    if general is not None:
        others = tokens.windows(general, "general", source.config, source.path, **cut)
        _check_alike(calib, others)
    evaluation = tokens.windows(eval, "eval", source.config, source.path, length=length)
    count = len(calib) if others is None else math.gcd(len(calib), len(others))
    run = Run(
        source, method, allocation, calib, others, evaluation, kept, share,
        _divisor(count, batch_size), seed, rate,
    )  # fmt: skip
    settings = _settings(run, pattern, random_windows)
    console, folder = Console(), Folder(out, settings, resume=resume, start=start)
    report = folder.report
    if report is None:
        report = work(run, folder, settings, console)
    else:
        console.print("The run is finished.")
    tables.print_report(report, out, console)


def _settings(run: Run, pattern: str, random_windows: bool) -> dict[str, Any]:
    """Return what a resumed run has to have in common with the one before."""
    windows = {"calibration": run.calibration, "evaluation": run.evaluation}
    if run.general is not None:
        windows["general"] = run.general
    return {
        "model": run.source.name, "weights": run.source.fingerprint(), "method": run.method,
        "pattern": pattern, "sparsity_asked": run.sparsity, "allocation": run.allocation,
        "seed": run.seed, "random_windows": random_windows,
        "windows": {name: list(array.shape) for name, array in windows.items()},
        "batch_size": run.batch, **{name: digest(array) for name, array in windows.items()},
        **({} if run.general is None else {"rate": run.rate}),
    }  # fmt: skip


def _check(
    pattern: Any, method: str, allocation: str, general: Path | None, rate: float, batch_size: int
) -> None:
    if batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {batch_size}.")
    if allocation != "uniform" and pattern.final_sparsity is not None:
        raise ValueError(
            f"--allocation {allocation} divides a sparsity among the blocks, and --pattern "
            f"{pattern.n}:{pattern.m} has the same in all of them. Pass --pattern unstructured."
        )
    if method == "dpruner" and general is None:
        raise ValueError(
            "--method dpruner reads a second text: --calibration is of the domain, --general of "
            "all kinds. Pass --general."
        )
    if method != "dpruner" and general is not None:
        raise ValueError(
            f"--general is read by --method dpruner alone, and --method is {method}. Leave it out."
        )
    if not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"--rate must be 0 or more, got {rate}.")
    check_blocks(pattern, method)


def _check_alike(calib: np.ndarray, general: np.ndarray) -> None:
    if calib.shape[1] != general.shape[1]:
        raise ValueError(
            f"--calibration has windows of {calib.shape[1]} tokens, and --general of "
            f"{general.shape[1]}. Store windows of one length."
        )


def _divisor(count: int, most: int) -> int:
    """Return the largest batch, of ``most`` at most, that makes all batches alike."""
    return max(n for n in range(1, min(most, count) + 1) if count % n == 0)
