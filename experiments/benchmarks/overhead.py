"""What a wrapped optimizer costs next to the bare one, on a decoder of ten million parameters.

    python -m experiments.benchmarks.overhead

Steps that change masks and steps that do not are timed apart: within a whole training step, and
for the optimizer alone. Parameters and state are donated, as in training.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
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

Transform = optax.GradientTransformationExtraArgs
Wrap = Callable[[optax.GradientTransformation, Any], Transform]
END = 20_000  # more steps than are timed


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """One transform to measure.

    Attributes:
      quiet: wraps an optimizer so that no step but the first changes masks.
      updating: wraps it so that every step does; None if the transform never does.
    """

    quiet: Wrap
    updating: Wrap | None = None


def _gradual(every: int, *, packed: bool) -> Wrap:
    ramp = jaxprune.schedules.cubic(0.0, 0.9, begin=0, end=END)
    return lambda inner, _: jaxprune.gradual(inner, ramp, every=every, packed=packed)


def _static(*, packed: bool) -> Wrap:
    def wrap(inner: optax.GradientTransformation, params: Any) -> Transform:
        masks = jaxprune.make_masks(jaxprune.scores.magnitude(params), 0.9)
        return jaxprune.static(inner, masks, packed=packed)

    return wrap


TRANSFORMS: dict[str, Wrapped] = {
    "gradual": Wrapped(_gradual(END, packed=False), _gradual(1, packed=False)),
    "gradual, packed": Wrapped(_gradual(END, packed=True), _gradual(1, packed=True)),
    "static": Wrapped(_static(packed=False)),
    "static, packed": Wrapped(_static(packed=True)),
}


class Work(NamedTuple):
    """Where a step's gradients come from: ``gradients(params, data)``."""

    gradients: Callable[[Any, Any], Any]
    data: Any


class Loop:
    """A compiled step, and the parameters and state that it carries along."""

    def __init__(self, tx: optax.GradientTransformation, work: Work, params: Any) -> None:
        """Compile the step, and take the first, in which every transform changes masks."""

        def step(params: Any, opt_state: Any, data: Any) -> tuple[Any, Any]:
            updates, opt_state = tx.update(work.gradients(params, data), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self.data = work.data
        self.params = jax.tree.map(jnp.copy, params)
        self.opt_state = tx.init(self.params)
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.opt_state))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.opt_state, self.data)
        self.step = lowered.compile()
        memory = self.step.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory is not None else 0
        jax.block_until_ready(self())

    def __call__(self) -> Any:
        self.params, self.opt_state = self.step(self.params, self.opt_state, self.data)
        return self.params


def loops(work: Work, params: Any) -> dict[str, Loop]:
    """Return the bare optimizer's loop and every transform's, quiet and updating."""
    inner = optax.adamw(1e-5)
    found = {"bare": Loop(inner, work, params)}
    for name, wrapped in TRANSFORMS.items():
        found[name] = Loop(wrapped.quiet(inner, params), work, params)
        if wrapped.updating is not None:
            found[f"{name}: update"] = Loop(wrapped.updating(inner, params), work, params)
    return found


def measure(works: Mapping[str, Work], params: Any, effort: timing.Effort) -> list[dict[str, Any]]:
    """Time every loop; one row for each transform and kind of step."""
    weights = sum(x.size for x in jax.tree.leaves(jaxprune.make_masks(params, 0.5)))
    rows: dict[str, dict[str, Any]] = {}
    for kind, work in works.items():
        found = loops(work, params)
        times = timing.medians(found, effort)
        for name, loop in found.items():
            row = rows.setdefault(name, {"name": name})
            row[kind] = times[name]
            row["state_bytes"] = (loop.state_bytes - found["bare"].state_bytes) / weights
            extra = loop.temporary_bytes - found["bare"].temporary_bytes
            row[f"{kind}_temporary_bytes"] = extra / weights
    return list(rows.values())


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells; bytes are per prunable weight, beyond the bare optimizer's."""
    header = ["optimizer", "step", "to bare", "alone", "to bare", "state bytes", "temporary bytes"]
    cells = [
        [
            row["name"],
            timing.shown(row["step"]),
            timing.ratio(row["step"], rows[0]["step"]),
            timing.shown(row["optimizer"]),
            timing.ratio(row["optimizer"], rows[0]["optimizer"]),
            f"{row['state_bytes']:+.3f}",
            f"{row['step_temporary_bytes']:+.2f}",
        ]
        for row in rows
    ]
    return header, cells


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
    parser.add_argument("--batch", type=int, default=4 if small else 32)
    parser.add_argument("--length", type=int, default=64 if small else 256)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--seconds", type=float, default=20.0 if small else 4.0)
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
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
    rows = measure(works, params, timing.Effort(total=args.seconds))
    where = f"{count / 1e6:.1f} million parameters, {args.batch} x {args.length} tokens"
    _print(rows, f"a wrapped optimizer on {timing.device()['device']}: {where}")
    timing.save("overhead", argv, {"what": where, "rows": rows}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
