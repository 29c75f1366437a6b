"""The command line, and the folder that a run writes to."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says."""

    dataset: str = "fashion_mnist"
    epochs: int = 7
    batch_size: int = 128
    learning_rate: float = 8e-3
    seed: int = 0  # the first one
    seeds: int = 1
    out: Path = Path("runs/quickstart")
    resume: bool = False

    def decisive(self) -> dict[str, Any]:
        """Return what an interrupted run must be continued with."""
        names = ("dataset", "epochs", "batch_size", "learning_rate")
        return {name: getattr(self, name) for name in names}


def parse(arguments: list[str] | None, description: str | None) -> Settings:
    """Read the command line."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", default=default.dataset, help="any TFDS image dataset")
    parser.add_argument("--epochs", type=_count, default=default.epochs)
    parser.add_argument("--batch-size", type=_count, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed, help="the first seed")
    parser.add_argument("--seeds", type=_count, default=default.seeds, help="how many seeds")
    parser.add_argument("--out", type=Path, default=default.out, help="a folder")
    parser.add_argument("--resume", action="store_true", help="continue what is in --out")
    return Settings(**vars(parser.parse_args(arguments)))


def prepare_folder(settings: Settings, data_sha256: str, console: Console) -> None:
    """Make the output folder; refuse to continue a run that had other settings or data."""
    decisive = settings.decisive() | {"data_sha256": data_sha256}
    record = settings.out / "settings.json"
    if settings.resume and record.exists():
        _refuse_changes(json.loads(record.read_text()), decisive, settings.out)
        return
    for old in sorted(settings.out.glob("seed*")):
        console.print(f"Starting anew: removing {old}; --resume would have continued it.")
        shutil.rmtree(old)
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(decisive, indent=2))


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    differ = [name for name in now if before.get(name) != now[name]]
    if differ:
        changes = ", ".join(f"{name} {before.get(name)!r} is now {now[name]!r}" for name in differ)
        raise ValueError(
            f"--resume cannot continue the run in {str(out)!r}, which was started otherwise: "
            f"{changes}. Start with the same settings and data, or in another --out."
        )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number
