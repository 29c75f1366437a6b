"""A training step of a decoder that is split over devices, and the weights that it trains."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from experiments.pod import measure, steps
from jaxprune import allocation, masks
from jaxprune._core import paths

Tree = Any

BARE = "bare"
WRAPPED: Mapping[str, Callable[[steps.Work], Any]] = {
    "gradual": steps.gradual,
    "rigl": steps.rigl,
    "mdgf_exponential": steps.mdgf,
    "gradual, packed": functools.partial(steps.gradual, packed=True),
}
ONE_KIND = ("mdgf_exponential",)  # every step makes its mask
FIRST, LAST = 6000, steps.END - steps.EVERY  # updates that are timed, beyond the steep first ones


class Program:
    """A compiled training step, and the weights and state that it carries along."""

    def __init__(self, work: steps.Work, name: str) -> None:
        """Trace the step of the bare optimizer or of one in `WRAPPED`."""
        self.work, self.name = work, name
        wrapped = WRAPPED.get(name)
        tx = steps.optimizer() if wrapped is None else wrapped(work)
        state = steps.placed(jax.eval_shape(tx.init, work.params), work.params, work.mesh)
        places = jax.tree.map(lambda x: x.sharding, state)
        init = jax.jit(tx.init, out_shardings=places)
        self._lowered = {"step": steps.train(work, wrapped), "init": init.lower(work.params)}
        if wrapped is not None:
            look = jax.jit(functools.partial(_look, groups=name in ONE_KIND))
            self._lowered["look"] = look.lower(work.params, state)
        self._updates = _updates()
        # Neither an update nor the step after one, which looks at the weights.
        self._others = itertools.cycle(range(FIRST + 2, FIRST + steps.EVERY))

    def compile(self, pool: Executor) -> None:
        """Begin to compile what was traced."""
        self._jobs = {name: pool.submit(low.compile) for name, low in self._lowered.items()}

    def ready(self) -> None:
        """Wait until all is compiled."""
        self._programs: dict[str, Any] = {name: job.result() for name, job in self._jobs.items()}

    def figures(self) -> dict[str, Any]:
        """Return what the compiler says of the step, on one device."""
        memory = self._programs["step"].memory_analysis()
        return {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "collectives": measure.listed(self._programs["step"].as_text()),
        }

    def start(self, params: Tree, tokens: jax.Array) -> None:
        """Take weights, which the first step is given."""
        self.params, self.tokens = params, tokens
        self.state = self._programs["init"](params)

    def stop(self) -> None:
        """Let go of all arrays."""
        del self.params, self.state, self.tokens

    def ordinary(self) -> Any:
        """Take a step that changes no masks, or the only kind of step."""
        return self._step(next(self._others))

    def update(self) -> Any:
        """Take a step that changes masks, and looks at the weights as the step after it does."""
        self.last = next(self._updates)
        return self._step(self.last, changed=self.last - 1)

    def wrong(self) -> int:
        """Count layers with another number of live weights than wanted, and wrong weights.

        Wrong are pruned weights that are not zero, and groups that do not keep 2 of 4.
        """
        kept, bad = jax.device_get(self._programs["look"](self.params, self.state))
        wanted = _wanted(self.name, self.work, self.last if self.name not in ONE_KIND else 0)
        layers = sum(int(np.sum(kept[path] != wanted[path])) for path in kept)
        return layers + sum(int(number) for number in bad.values())

    def _step(self, step: int, changed: int | None = None) -> Any:
        if self.name != BARE:
            health = self.state.health
            if changed is not None:
                health = health._replace(changed=self._number(changed))
            self.state = self.state._replace(step=self._number(step), health=health)
        run = self._programs["step"]
        self.params, self.state, _ = run(self.params, self.state, self.tokens)
        return self.params

    def _number(self, value: int) -> jax.Array:
        return jax.device_put(np.int32(value), NamedSharding(self.work.mesh, P()))


def prunable(work: steps.Work) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe the weights that the steps prune, by path."""
    leaves = paths.flatten(work.params)
    return {path: leaf for path, leaf in leaves.items() if re.search(work.where, path)}


def drawn(work: steps.Work) -> Any:
    """Trace a program that draws weights and tokens."""
    tokens = work.tokens(work.length + 1)
    described = paths.flatten(work.params)

    def draw() -> tuple[Tree, jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(described) + 1)
        weights = {
            path: jnp.ones(x.shape) if "scale" in path else 0.02 * jax.random.normal(key, x.shape)
            for key, (path, x) in zip(keys[1:], described.items(), strict=True)
        }
        return paths.refill(work.params, weights), jax.random.randint(
            keys[0], tokens.shape, 0, work.shape.vocabulary
        )

    places = jax.tree.map(lambda x: x.sharding, (work.params, tokens))
    return jax.jit(draw, out_shardings=places).lower()


def _updates() -> Iterator[int]:
    """Yield the steps that change masks, then the last one for ever."""
    return itertools.chain(range(FIRST, LAST, steps.EVERY), itertools.repeat(LAST))


def _look(params: Tree, state: Any, *, groups: bool) -> tuple[Tree, Tree]:
    """Return, by path, the live weights of each layer, and how many weights or groups are wrong."""
    weights, found = paths.flatten(params), paths.flatten(jaxprune.get_masks(state))
    kept = {path: jnp.sum(mask, axis=(1, 2), dtype=jnp.int32) for path, mask in found.items()}
    if groups:
        parted = {p: m.reshape(m.shape[0], -1, 4, m.shape[2]) for p, m in found.items()}
        bad = {p: jnp.sum(m, axis=2, dtype=jnp.int32) != 2 for p, m in parted.items()}
    else:
        bad = {path: ~mask & (weights[path] != 0) for path, mask in found.items()}
    return kept, {path: jnp.sum(each, dtype=jnp.int32) for path, each in bad.items()}


def _wanted(name: str, work: steps.Work, step: int) -> dict[str, Any]:
    """Return the weights that each layer keeps after an update, counted on the host."""
    shapes = {path: leaf.shape for path, leaf in prunable(work).items()}
    if name in ONE_KIND:
        return {p: np.full(shape[0], shape[1] * shape[2] // 2) for p, shape in shapes.items()}
    if name == "rigl":
        rule = masks.MaskRule(allocation=allocation.erdos_renyi_kernel, layers=steps.LAYERS)
        return rule.counts(shapes, steps.SPARSITY)
    ramp = jaxprune.schedules.cubic(0.0, steps.SPARSITY, begin=steps.BEGIN, end=steps.END)
    return masks.MaskRule(layers=steps.LAYERS).counts(shapes, ramp.at(step))
