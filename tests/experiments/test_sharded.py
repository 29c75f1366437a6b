"""The benchmark of sharded training, on eight virtual devices."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxprune
from experiments.benchmarks import report, sharded, sharded_selection, sharded_step, timing
from experiments.benchmarks.timing import Effort
from experiments.pod import steps
from experiments.pod.model import FSDP, TENSOR, Shape

SHAPE = Shape(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, hidden=64, vocabulary=64)
ONE_KERNEL = "^layers/mlp/down_proj"

pytestmark = pytest.mark.standard_promotion  # a decoder as users write it


def _work(where: str = ONE_KERNEL) -> steps.Work:
    mesh = Mesh(np.array(jax.devices())[:, None], (FSDP, TENSOR))
    return steps.Work(SHAPE, mesh, mesh.size, 8, where)


def _drawn(work: steps.Work, rng: np.random.Generator) -> tuple[Any, jax.Array]:
    described = (work.params, work.tokens(9))
    values = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), described)
    return jax.tree.map(lambda v, x: jax.device_put(abs(v), x.sharding), values, described)


def test_a_step_updates_masks_only_when_told(rng: np.random.Generator) -> None:
    work = _work()
    program = sharded_step.Program(work, "gradual")
    with ThreadPoolExecutor() as pool:
        program.compile(pool)
    program.ready()
    program.start(*_drawn(work, rng))

    def live() -> int:
        masks = jaxprune.get_masks(program.state)
        return sum(int(mask.sum()) for mask in jax.tree.leaves(masks))

    program.ordinary()
    assert live() == 2 * 64 * 32
    for step in (6000, 6100):
        program.update()
        sparsity = 0.8 * (1 - (1 - (step - 1000) / 19_000) ** 3)
        assert live() == 2 * round((1 - sparsity) * 64 * 32)
    program.ordinary()
    assert program.wrong() == 0
    zeros = live() - 2 * 64 * 32
    program.params = jax.tree.map(jnp.ones_like, program.params)
    assert program.wrong() == -zeros
    program.last = 6000
    assert program.wrong() == -zeros + 2  # layers with another number of live weights


def test_a_selection_is_checked() -> None:
    described = sharded_step.prunable(_work())
    selection = sharded_selection.Selection(described)
    with ThreadPoolExecutor() as pool:
        selection.compile(pool)
    rows = selection.measure(Effort(least=0.0, total=0.0, rounds=(1, 1)))
    assert [row["name"] for row in rows] == ["automatic", "shard_map"]
    for row in rows:
        assert (row["scores"], row["k"], row["wrong"]) == (4096, 410, 0)
        assert {each[0] for each in row["collectives"]} == {"all-reduce"}
    assert selection.wrong([400, 10], 1.0, 1.0) == 0
    assert selection.wrong([400, 9], 1.0, 1.0) == 1
    assert selection.wrong([400, 10], 1.0, 1.5) == 1


class Alone:
    """A program that needs some memory while it runs."""

    def __init__(self, name: str, needs: float, device: list[float]) -> None:
        self.name, self.needs, self.device = name, needs, device

    def start(self) -> None:
        self.device.append(max(self.needs, self.device[-1]))

    def ordinary(self) -> None: ...
    def update(self) -> None: ...
    def stop(self) -> None: ...


def test_the_peak_of_a_program_is_known_if_it_raises_the_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = [1.0]
    monkeypatch.setattr(sharded, "_most", lambda: device[-1])
    needs = {"rigl": (30, 31.0), "bare": (10, 12.0), "gradual": (20, 11.0)}
    programs: dict[str, Any] = {name: Alone(name, n, device) for name, (_, n) in needs.items()}
    figures = {name: {"arguments": n, "temporaries": 0} for name, (n, _) in needs.items()}
    found = sharded.peaks(programs, figures, lambda: ())
    assert found == {"bare": 12.0, "gradual": None, "rigl": 31.0}


def test_runs_on_other_numbers_of_devices_stay(tmp_path: Path) -> None:
    for devices in (1, 2, 1):
        content = {"devices": devices, "earlier": sharded.earlier(devices, tmp_path)}
        timing.save("sharded", [], content, tmp_path)
    assert [run["devices"] for run in timing.runs("sharded", tmp_path)] == [1, 2]


@pytest.mark.slow(reason="compiles every program for all kernels")
def test_every_program_is_timed(tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPE, width=64, hidden=128)  # eight bits of a mask on each device
    lengths = [f"--{name.replace('_', '-')}={n}" for name, n in dataclasses.asdict(shape).items()]
    argv = [*lengths, "--sequences=1", "--length=8", "--seconds=0", f"--output={tmp_path}"]
    assert sharded.main(argv) == 0
    (section,) = (result["sharded"] for result in report.load(tmp_path))
    assert section["devices"] == 8
    assert section["prunable"] == shape.prunable
    assert [row["name"] for row in section["rows"]] == ["bare", *sharded_step.WRAPPED]
    for row in section["rows"]:
        assert row["bare"] > 0
        assert row["ordinary"] > 0
        assert (row["update"] is None) == (row["name"] in ("bare", "mdgf_exponential"))
        assert {each[0] for each in row["collectives"]} <= {"all-reduce"}
    assert "6 programs checked, 0 wrong" in report.page([{"sharded": section}])


def test_the_page_has_ratios_to_bare_steps_of_the_same_minutes() -> None:
    bare = {"name": "bare", "bare": 0.2, "ordinary": 0.2, "update": None, "wrong": 0, "peak": None}
    bare |= {"arguments": 9_000_000_000, "temporaries": 1_000_000_000, "collectives": []}
    counts = [["all-reduce", 448, "s32[112]", 14], ["all-reduce", 56, "s32[14]", 1]]
    row = bare | {"name": "rigl", "bare": 0.25, "ordinary": 0.255, "update": 0.5, "wrong": 2}
    row |= {"arguments": 9_500_000_000, "peak": 12.5e9, "collectives": counts}
    chosen = {"name": "shard_map", "scores": 970_000_000, "k": 97_000_000, "kernel": True}
    chosen |= {"read": 0.0005, "select": 0.002, "wrong": 0, "collectives": counts}
    section = {
        "device": "a device", "jax": "1", "python": "3", "command": "run me", "devices": 2,
        "weights": 1_500_000_000, "prunable": 1_000_000_000, "sequences": 2, "length": 4096,
        "rows": [bare, row], "selection": [chosen],
    }  # fmt: skip
    text = report.page([{"sharded": section}])
    assert "1.50 billion weights, 1.00 prunable, on 2 devices; 2 x 4096 tokens a device" in text
    assert "2 programs checked, 1 wrong" in text
    assert "| bare | 200 ms | 1 | - | - | - | 10.00 GB | - | +0.00 | none |" in text
    amortised = "1.03"  # (99 * 255 + 500) / 100 / 250
    rest = "10.50 GB | 12.50 GB | +1.00 | 15, 448 B |"
    assert f"| rigl | 255 ms | 1.02 | 500 ms | 2 | {amortised} | {rest}" in text
    assert "| 0.97B | `shard_map` | kernel | 0.5 ms | 2 ms | 4 | 15, 448 B |" in text
    assert "Sharded over devices" not in report.page([])
