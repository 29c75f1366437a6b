"""One process of several: `python -m tests.processes.worker '{"index": 0, "count": 2, ...}'`."""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Settings = dict[str, Any]

FINISHED = "finished"


def main(settings: Settings) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        settings["address"],
        settings["count"],
        settings["index"],
        initialization_timeout=settings["patience"],
        heartbeat_timeout_seconds=settings["heartbeat"],
    )
    assert jax.process_count() == settings["count"]
    TASKS[settings["task"]](settings)
    print(FINISHED, flush=True)


def train(settings: Settings) -> None:
    """Train until the end, or until this process is to die."""
    from tests.processes import training

    def before_step(now: int) -> None:
        if now == settings.get("dies_at") and settings["index"] == settings["mortal"]:
            _die(settings["dies"])

    axes = (getattr(jax.sharding.AxisType, settings.get("axes", "Explicit")),) * 2
    mesh = jax.make_mesh(tuple(settings["mesh"]), ("data", "model"), axis_types=axes)
    training.train(settings["folder"], settings["until"], mesh, settings["methods"], before_step)


def disagree(settings: Settings) -> None:
    """Let one process fail alone, be elsewhere, and stay away; tell what the first gets to see."""
    from jaxprune import checkpoint
    from jaxprune.checkpoint import _processes

    state: Settings = {"w": np.ones(4) if settings["index"] == 0 else np.tanh}
    _told(TypeError, lambda: checkpoint.save(settings["folder"], 1, state))
    _told(RuntimeError, lambda: checkpoint.save(settings["folder"], 1 + settings["index"], 2.0))
    _processes.PATIENCE = 1.0
    if settings["index"] == 0:
        _told(RuntimeError, lambda: checkpoint.latest_step(settings["folder"]))
        _told(RuntimeError, lambda: checkpoint.save(settings["folder"], 1, {"w": 1.0}))
        os._exit(0)  # what would be closed together cannot be: the other is not coming
    signal.pause()


def store(settings: Settings) -> None:
    """Save what lies in every way, and restore it onto the same and onto the other axis."""
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxprune import checkpoint

    mesh = jax.make_mesh((jax.device_count(),), ("x",))

    def spread(value: Any, *spec: Any) -> jax.Array:
        return jax.jit(value, out_shardings=NamedSharding(mesh, P(*spec)))()

    def state(*spec: Any) -> Settings:
        return {
            "bytes are cut": spread(lambda: jnp.arange(48).reshape(4, 12) % 5 < 2, *spec),
            "bytes are whole": spread(lambda: jnp.arange(64).reshape(4, 16) % 5 < 2, *spec),
            "weights": spread(lambda: jnp.arange(48.0).reshape(4, 12), *spec),
            "key": spread(lambda: jax.random.key(3)),
            "keys": spread(lambda: jax.random.split(jax.random.key(3), 4), *spec[:1]),
            "of one process": jnp.arange(3.0),
            "of the host": np.arange(3),
            "a number": 7,
        }

    checkpoint.save(settings["folder"], 1, state(None, "x"))
    for spec in ((None, "x"), ("x", None)):
        want = state(*spec)
        _, got = checkpoint.restore(settings["folder"], want)
        for name, leaf in want.items():
            _check_same(name, got[name], leaf)


def _check_same(name: str, got: Any, want: Any) -> None:
    assert type(got) is type(want), name
    if isinstance(want, jax.Array):
        assert got.sharding.is_equivalent_to(want.sharding, want.ndim), name
        assert (got.dtype, got.committed) == (want.dtype, want.committed), name
        if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        got, want = (np.stack([part.data for part in x.addressable_shards]) for x in (got, want))
    np.testing.assert_array_equal(got, want, err_msg=name)


TASKS: dict[str, Callable[[Settings], None]] = {
    "train": train,
    "store": store,
    "disagree": disagree,
}


def _told(kind: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        print(f"{kind.__name__}:", error, *getattr(error, "__notes__", ()), flush=True)


def _die(where: str) -> None:
    """End as a process does that is out of memory, or whose machine is taken away."""
    import orbax.checkpoint as ocp

    from jaxprune.checkpoint import _folder

    def now(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    calls = {
        "before the arrays": (ocp.Checkpointer, "save"),
        "before the digests": (_folder, "digests"),
        "before the manifest": (_folder, "commit"),
        "before a rename": (os, "rename"),
    }
    if where == "in a step":
        now()
    setattr(*calls[where], now)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
