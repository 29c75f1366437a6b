"""The k largest of all scores of a sharded tree together, against one read of the scores."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from experiments.benchmarks import timing
from experiments.pod import measure

Leaves = dict[str, Any]
KEPT = 0.1  # share of the scores
WAYS = {"automatic": "automatic axes", "shard_map": "`shard_map`"}


class Selection:
    """The programs of one selection over all leaves, and of what it is compared with."""

    def __init__(self, described: Leaves) -> None:
        """Trace them.

        Args:
          described: scores with their shardings, on one mesh, by path.
        """
        self.size = sum(x.size for x in described.values())
        self.k = round(KEPT * self.size)
        places = {path: x.sharding for path, x in described.items()}
        mesh = next(iter(places.values())).mesh
        specs = {path: place.spec for path, place in places.items()}
        split = jax.shard_map(
            jaxprune.global_top_k_mask, mesh=mesh, in_specs=(specs, P()), out_specs=specs
        )
        self._everywhere = NamedSharding(mesh, P())
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._everywhere)
        kept = {
            p: jax.ShapeDtypeStruct(x.shape, bool, sharding=x.sharding)
            for p, x in described.items()
        }

        def drawn() -> Leaves:
            keys = jax.random.split(jax.random.key(0), len(described))
            return {
                path: jnp.abs(jax.random.normal(key, x.shape, x.dtype))
                for key, (path, x) in zip(keys, described.items(), strict=True)
            }

        self._lowered = {
            "drawn": jax.jit(drawn, out_shardings=places).lower(),
            "read": jax.jit(_total).lower(described),
            "automatic": jax.jit(jaxprune.global_top_k_mask).lower(described, number),
            "shard_map": jax.jit(split).lower(described, number),
            "edges": jax.jit(_edges).lower(described, kept),
        }

    def compile(self, pool: Executor) -> None:
        """Begin to compile what was traced."""
        self._jobs = {name: pool.submit(low.compile) for name, low in self._lowered.items()}

    def measure(self, effort: timing.Effort) -> list[dict[str, Any]]:
        """Time a read and both ways to select, and check their masks; one row for each way."""
        run: dict[str, Any] = {name: job.result() for name, job in self._jobs.items()}
        scores, k = run["drawn"](), jax.device_put(np.int32(self.k), self._everywhere)
        cases: dict[str, timing.Run] = {"read": lambda: run["read"](scores)}
        cases |= {way: lambda way=way: run[way](scores, k) for way in WAYS}
        times = timing.medians(cases, effort)
        return [
            {
                "name": way,
                "scores": self.size,
                "k": self.k,
                "kernel": "mosaic_gpu" in self._lowered[way].as_text(),
                "read": times["read"],
                "select": times[way],
                "wrong": self.wrong(*jax.device_get(run["edges"](scores, run[way](scores, k)))),
                "collectives": measure.listed(run[way].as_text()),
            }
            for way in WAYS
        ]

    def wrong(self, kept: Sequence[int], least_kept: float, most_dropped: float) -> int:
        """Return by how many a mask misses k, plus one if a score left out is above one kept."""
        return abs(sum(int(number) for number in kept) - self.k) + int(most_dropped > least_kept)


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells: times, and the ratio to a read."""
    header = ["scores", "under", "counted by", "read", "select", "in reads", "collectives"]
    cells = [
        [
            f"{row['scores'] / 1e9:.3g}B",
            WAYS[row["name"]],
            "kernel" if row["kernel"] else "search",
            timing.shown(row["read"]),
            timing.shown(row["select"]),
            timing.ratio(row["select"], row["read"]),
            moved(row["collectives"]),
        ]
        for row in rows
    ]
    return header, cells


def moved(collectives: Sequence[Sequence[Any]]) -> str:
    """Write collectives as their number and the bytes of the largest."""
    if not collectives:
        return "none"
    number, most = sum(row[3] for row in collectives), max(row[1] for row in collectives)
    return f"{number}, {most} B"


def _total(scores: Leaves) -> jax.Array:
    return jnp.stack([jnp.sum(x) for x in scores.values()]).sum()


def _edges(scores: Leaves, masks: Leaves) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Return how many of each leaf are kept, the least score kept and the largest dropped."""
    pairs = [(scores[path], mask) for path, mask in masks.items()]
    kept = [jnp.sum(mask, dtype=jnp.int32) for _, mask in pairs]
    least = [jnp.min(jnp.where(mask, x, jnp.full_like(x, jnp.inf))) for x, mask in pairs]
    most = [jnp.max(jnp.where(mask, jnp.full_like(x, -jnp.inf), x)) for x, mask in pairs]
    return kept, jnp.min(jnp.stack(least)), jnp.max(jnp.stack(most))
