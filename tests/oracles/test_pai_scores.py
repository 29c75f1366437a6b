"""SNIP, GraSP and SynFlow as the authors' code of SynFlow and of GraSP compute them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune
from jaxprune import allocation, initial, scores
from tests.oracles import exact

RTOL = 1e-6
WEIGHTS = r"\.weight$"
Recorded = Callable[[str], Any]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """The recordings are made in float64."""
    with jax.enable_x64(True):
        yield


def convolved(params: Any, x: jax.Array, name: str) -> jax.Array:
    axes = ("NCHW", "OIHW", "NCHW")
    y = lax.conv_general_dilated(
        x, params[f"{name}.weight"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes
    )
    return y + params[f"{name}.bias"][None, :, None, None]


def multiplied(params: Any, x: jax.Array, name: str) -> jax.Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None]


def logits(params: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(convolved(params, x, "0"))
    x = jax.nn.relu(convolved(params, x, "2"))
    x = jax.nn.relu(multiplied(params, x.reshape(len(x), -1), "5"))
    return multiplied(params, x, "7")


def loss(params: Any, batch: Any, temperature: Any = 1.0) -> jax.Array:
    x, y = batch
    found = logits(params, x) / temperature
    return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()


@dataclasses.dataclass(frozen=True)
class Setting:
    """The recorded network and data, and our scores by the recorded name."""

    data: Any
    params: dict[str, jax.Array]

    def batches(self, number: int) -> list[Any]:
        parts = (np.split(self.data[name], number) for name in "xy")
        return [tuple(map(jnp.asarray, pair)) for pair in zip(*parts, strict=True)]

    def synflow(self, params: Any, masks: Any = None) -> Any:
        ones = jax.ShapeDtypeStruct((1, *self.data["x"].shape[1:]), jnp.float64)
        return scores.synflow(logits, params, ones, masks=masks, where=WEIGHTS)

    def scored(self, method: str) -> dict[str, Any]:
        heat = self.data.settings["grasp_T"]
        made = {
            "snip": lambda: scores.snip(loss, self.params, self.batches(1), where=WEIGHTS),
            "snip_4batches": lambda: scores.snip(loss, self.params, self.batches(4), where=WEIGHTS),
            "grasp": lambda: scores.grasp(
                loss, self.params, self.batches(1), temperature=heat, where=WEIGHTS
            ),
            "synflow": lambda: self.synflow(self.params),
            "mag": lambda: scores.magnitude(self.params),
        }
        found = made[method]()
        return {name: leaf for name, leaf in found.items() if name.endswith(".weight")}

    def size(self) -> int:
        return sum(leaf.size for name, leaf in self.params.items() if name.endswith(".weight"))

    def left(self, density: float) -> int:
        """Their count: the `int((1 - density) * n)` lowest are pruned."""
        return self.size() - int((1.0 - density) * self.size())

    def masks(self, scored: Any, kept: int) -> Any:
        target = exact.sparsity(kept, self.size())
        ranking = allocation.global_()
        return jaxprune.make_masks(scored, target, allocation=ranking, where=".*")


@pytest.fixture
def setting(recorded: Recorded) -> Setting:
    data = recorded("pai_scores")
    return Setting(data, {k: jnp.asarray(v) for k, v in data.under("param").items()})


def scaled(scored: dict[str, Any]) -> dict[str, np.ndarray]:
    """Scores up to a common factor: what theirs are divided by is different for each method."""
    total = sum(np.abs(np.asarray(leaf)).sum() for leaf in scored.values())
    return {name: np.asarray(leaf) / total for name, leaf in scored.items()}


def assert_equal_masks(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    for name, mask in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), mask != 0, err_msg=name)


def test_the_scores_are_ours(setting: Setting):
    for method in {match[1] for match in setting.data.matches("score/([^/]+)/.+")}:
        ours, theirs = scaled(setting.scored(method)), scaled(setting.data.under(f"score/{method}"))
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            tiny = 1e-9 * np.abs(leaf).max()
            np.testing.assert_allclose(ours[name], leaf, rtol=RTOL, atol=tiny, err_msg=method)


def test_theirs_of_snip_sum_to_1_as_ours_do(setting: Setting):
    theirs = sum(leaf.sum() for leaf in setting.data.under("score/snip").values())
    ours = sum(float(leaf.sum()) for leaf in setting.scored("snip").values())
    assert ours == pytest.approx(theirs, rel=RTOL)


def test_the_masks_are_ours(setting: Setting):
    names = {(m[1], m[2]) for m in setting.data.matches("mask_keep([^/]+)/([^/]+)/.+")}
    for density, method in names:
        masks = setting.masks(setting.scored(method), setting.left(float(density)))
        assert_equal_masks(masks, setting.data.under(f"mask_keep{density}/{method}"))


def test_the_masks_of_grasps_own_code_are_ours(setting: Setting):
    for sparsity in {m[1] for m in setting.data.matches("grasp_original_mask_rm([^/]+)/.+")}:
        # It prunes what lies above the lowest of the `int(n * s)` highest, and so one less.
        kept = setting.size() - int(setting.size() * float(sparsity)) + 1
        masks = setting.masks(setting.scored("grasp"), kept)
        assert_equal_masks(masks, setting.data.under(f"grasp_original_mask_rm{sparsity}"))


def test_iterated_synflow_is_ours(setting: Setting):
    courses = {"exponential": initial.exponential, "linear": initial.linear}
    found = setting.data.matches(r"(synflow_iter(\d+)_([a-z]+)_keep([^/]+))/.+")
    for name, rounds, course, density in {match.groups() for match in found}:

        def rounded(sparsity: float, k: int, rounds: int, course: str = course) -> float:
            del sparsity
            share = courses[course](1.0 - float(density), k, rounds)
            return exact.sparsity(setting.left(1.0 - share), setting.size())

        masks = initial.iterate(
            setting.params,
            setting.synflow,
            rounded(0.0, int(rounds), int(rounds)),
            rounds=int(rounds),
            schedule=rounded,
            where=WEIGHTS,
        )
        assert_equal_masks(masks, setting.data.under(name))
