"""What a wrapped optimizer costs next to the bare one, on a decoder of ten million parameters.

    python -m experiments.benchmarks.overhead
    python -m experiments.benchmarks.overhead --only snfs "gradual, packed"

The second measures some rows anew, beside the bare optimizer. The others that the device's file
has stay there, with their command and the bare optimizer of their run.

Steps that change masks and steps that do not are timed apart: within a whole training step, and
for the optimizer alone. Parameters and state are donated, and steps run back to back, as in
training: many are sent off before the first result is waited for.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import jaxprune
from experiments.benchmarks import timing
from experiments.benchmarks.decoder import Decoder, Size, loss
from experiments.benchmarks.wrapped import TRANSFORMS, Wrapped

PERIOD = 100  # steps between changes of masks, in a usual training run


See = Callable[[Any, Any], Any]


class Work(NamedTuple):
    """Where a step's gradients come from: ``gradients(params, data)``."""

    gradients: Callable[[Any, Any], Any]
    data: Any


class Loop:
    """A compiled step, and the parameters and state that it carries along."""

    def __init__(
        self, tx: optax.GradientTransformation, work: Work, params: Any, see: See, cycle: int
    ) -> None:
        """Compile the step; the loss is taken at ``see(params, opt_state)``."""

        def step(params: Any, opt_state: Any, data: Any) -> tuple[Any, Any]:
            grads = work.gradients(see(params, opt_state), data)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self.data, self.cycle = work.data, cycle
        self.params = jax.tree.map(jnp.copy, params)
        self.opt_state = tx.init(self.params)
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.opt_state))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.opt_state, self.data)
        self.step = lowered.compile()
        memory = self.step.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory is not None else 0

    def __call__(self) -> Any:
        for _ in range(self.cycle):
            self.params, self.opt_state = self.step(self.params, self.opt_state, self.data)
        return self.params


def loops(work: Work, params: Any, transforms: Mapping[str, Wrapped]) -> dict[str, Loop]:
    """Return the bare optimizer's loop and every transform's, quiet and updating.

    Each is called twice, so that the first change of masks and the look after it are behind it.
    """
    inner = optax.adamw(1e-5)
    see = jaxprune.forward_params
    wanted: dict[str, tuple[Any, See, int]] = {"bare": (inner, lambda params, _: params, 1)}
    for name, wrapped in transforms.items():
        wanted[name] = (wrapped.quiet(inner, params), see, 1)
        if wrapped.updating is not None:
            updating = wrapped.updating(inner, params)
            wanted[_update(name)] = (updating, see, wrapped.cycle)
    with ThreadPoolExecutor(max_workers=8) as pool:  # compilers wait for nobody
        started = {
            name: pool.submit(Loop, tx, work, params, seen, cycle)
            for name, (tx, seen, cycle) in wanted.items()
        }
        found = {}
        for name, loop in started.items():
            found[name] = loop.result()
            timing.said(f"{name} is compiled")
    for loop in found.values():
        loop()
        jax.block_until_ready(loop())
    return found


def measure(
    works: Mapping[str, Work],
    params: Any,
    effort: timing.Effort,
    transforms: Mapping[str, Wrapped] = TRANSFORMS,
) -> list[dict[str, Any]]:
    """Time every loop; one row for each transform and kind of step."""
    weights = sum(x.size for x in jax.tree.leaves(jaxprune.make_masks(params, 0.5)))
    rows: dict[str, dict[str, Any]] = {}
    for kind, work in works.items():
        found = loops(work, params, transforms)
        times = per_step(timing.medians(found, effort), transforms)
        timing.said(f"each {kind} is timed")
        for name, loop in found.items():
            row = rows.setdefault(name, {"name": name})
            row[kind] = times[name]
            row["state_bytes"] = (loop.state_bytes - found["bare"].state_bytes) / weights
            extra = loop.temporary_bytes - found["bare"].temporary_bytes
            row[f"{kind}_temporary_bytes"] = extra / weights
    return list(rows.values())


def per_step(
    times: Mapping[str, float | None], transforms: Mapping[str, Wrapped]
) -> dict[str, float | None]:
    """Return the time of one step that changes masks where that of a whole cycle is given."""
    found = dict(times)
    for name, wrapped in transforms.items():
        cycle, quiet = found.get(_update(name)), found.get(name)
        if cycle is not None and wrapped.cycle > 1:
            rests = 0.0 if quiet is None else wrapped.rests * quiet
            found[_update(name)] = (cycle - rests) / (wrapped.cycle - wrapped.rests)
    return found


def _update(name: str) -> str:
    return f"{name}: update"


def earlier(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return this device's earlier runs of the benchmark, without the rows that were run anew.

    A run keeps its own bare optimizer and command: its ratios are to nothing else.
    """
    anew = {row["name"] for row in rows} - {"bare"}
    found = []
    for run in timing.runs("overhead", folder):
        left = [row for row in run["rows"] if row["name"] not in anew]
        if any(row["name"] != "bare" for row in left):
            found.append({**run, "rows": left})
    return found


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells; bytes are per prunable weight, beyond the bare optimizer's."""
    header = ["optimizer", "step", "to bare", "alone", "to bare"]
    header += [f"every {PERIOD} steps", "state bytes", "temporary bytes"]
    known = {row["name"]: row for row in rows}
    cells = [
        [
            row["name"],
            timing.shown(row["step"]),
            timing.ratio(row["step"], rows[0]["step"]),
            timing.shown(row["optimizer"]),
            timing.ratio(row["optimizer"], rows[0]["optimizer"]),
            timing.ratio(_amortised(row, known), rows[0]["step"]),
            f"{row['state_bytes']:+.3f}",
            f"{row['step_temporary_bytes']:+.2f}",
        ]
        for row in rows
    ]
    return header, cells


def _amortised(row: dict[str, Any], known: Mapping[str, dict[str, Any]]) -> float | None:
    """Return the mean step of a run in which one step of `PERIOD` changes masks."""
    update = known.get(_update(row["name"]), {})
    return timing.amortised(row["step"], update.get("step"), PERIOD)


def _print(rows: Sequence[dict[str, Any]], title: str) -> None:
    header, cells = table(rows)
    shown = Table(*header, title=title)
    for line in cells:
        shown.add_row(*line)
    Console().print(shown)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark."""
    small = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4 if small else 64)
    parser.add_argument("--length", type=int, default=64 if small else 256)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--seconds", type=float, default=20.0 if small else 4.0)
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(TRANSFORMS),
        choices=list(TRANSFORMS),
        metavar="ROW",
        help=f"these and the bare optimizer, of: {', '.join(map(repr, TRANSFORMS))}",
    )
    args = parser.parse_args(argv)
    model = Decoder(Size(layers=args.layers))
    tokens = jax.random.randint(
        jax.random.key(0), (args.batch, args.length + 1), 0, model.size.vocabulary
    )
    params = jax.jit(model.init)(jax.random.key(1), tokens[:, :-1])
    fixed = jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x), params)
    works = {
        "step": Work(jax.grad(functools.partial(loss, model)), tokens),
        "optimizer": Work(lambda params, gradients: gradients, fixed),
    }
    count = sum(x.size for x in jax.tree.leaves(params))
    effort = timing.Effort(least=0.01 if small else 0.1, total=args.seconds)
    rows = measure(works, params, effort, {name: TRANSFORMS[name] for name in args.only})
    where = f"{count / 1e6:.1f} million parameters, {args.batch} x {args.length} tokens"
    _print(rows, f"a wrapped optimizer on {timing.device()['device']}: {where}")
    content = {"what": where, "rows": rows, "earlier": earlier(rows, args.output)}
    timing.save("overhead", argv, content, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
