"""What holds in every framework; a subclass says how its framework trains."""

import pickle
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune._core import paths
from tests.interop import scenario
from tests.interop.jobs import Jobs
from tests.laws.measure import compilations


class Trained(NamedTuple):
    """A job after all steps, and the losses on the way."""

    job: Any
    losses: list[float]


class Laws(Jobs):
    """The laws."""

    prunable: ClassVar[frozenset[str]]
    left: ClassVar[frozenset[str]]  # some of the others, so that the model is known to have them

    def start(self, tx: optax.GradientTransformationExtraArgs) -> Any:
        """Return a new job; always the same."""
        raise NotImplementedError

    def step(self, job: Any, batch: scenario.Batch) -> tuple[Any, jax.Array]:
        """Return the job after one jitted step, and the loss before it."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def tx(cls) -> optax.GradientTransformationExtraArgs:
        return scenario.transform()

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tx: optax.GradientTransformationExtraArgs) -> Trained:
        framework = cls()
        job, losses = framework.start(tx), []
        for _ in range(scenario.STEPS):
            job, loss = framework.step(job, scenario.batch())
            losses.append(float(loss))
        return Trained(job, losses)

    @pytest.fixture
    def masks(self, trained: Trained) -> Any:
        return jaxprune.get_masks(self.opt_state(trained.job))

    @pytest.fixture
    def weights(self, trained: Trained) -> dict[str, np.ndarray]:
        return jax.device_get(paths.flatten(self.params(trained.job)))

    def test_the_loss_falls(self, trained: Trained):
        assert trained.losses[-1] < 0.5 * trained.losses[0]

    def test_kernels_are_prunable_and_nothing_else_is(self, masks: Any, weights: dict[str, Any]):
        assert set(paths.flatten(masks)) == self.prunable
        assert self.left <= set(weights) - self.prunable

    def test_masks_have_the_container_of_the_parameters(self, masks: Any, trained: Trained):
        assert type(masks) is type(self.params(trained.job))
        assert {mask.dtype.name for mask in paths.flatten(masks).values()} == {"bool"}

    def test_counts_are_exact(self, masks: Any):
        for path, mask in paths.flatten(masks).items():
            assert int(mask.sum()) == round(scenario.DENSITY * mask.size), path

    def test_the_pruned_weights_and_no_others_are_zero(
        self, masks: Any, weights: dict[str, np.ndarray]
    ):
        for path, mask in paths.flatten(masks).items():
            np.testing.assert_array_equal(weights[path] != 0.0, mask, err_msg=path)
            assert not np.signbit(weights[path][~np.asarray(mask)]).any(), path

    def test_the_check_finds_nothing(self, trained: Trained):
        params, opt_state = self.params(trained.job), self.opt_state(trained.job)
        assert jaxprune.check(params, opt_state).problems == ()

    def test_the_check_knows_an_unfinished_run(self, tx: optax.GradientTransformationExtraArgs):
        job = self.start(tx)
        report = jaxprune.check(self.params(job), self.opt_state(job))
        assert "before the schedule's end at step 16" in report.problems[0]

    def test_a_further_step_compiles_nothing(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        job, batch = self.start(tx), scenario.batch()
        for _ in range(2):
            job, _ = self.step(job, batch)
        with compilations() as found:
            self.step(job, batch)
        assert trained.losses
        assert not found

    def test_a_saved_run_goes_on_bit_for_bit(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        job, half = self.start(tx), scenario.STEPS // 2
        for _ in range(half):
            job, _ = self.step(job, scenario.batch())
        saved = pickle.dumps([scenario.to_host(x) for x in jax.tree.leaves(self.arrays(job))])

        job = self.start(tx)
        leaves, treedef = jax.tree.flatten(self.arrays(job))
        stored = map(scenario.from_host, leaves, pickle.loads(saved))
        job = self.with_arrays(job, jax.tree.unflatten(treedef, stored))
        for expected in trained.losses[half:]:
            job, loss = self.step(job, scenario.batch())
            assert float(loss) == expected
        assert _all_equal(self.arrays(job), self.arrays(trained.job))

    def test_other_parameters_are_exported_with_the_masks(
        self, masks: Any, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        dense = self.params(self.start(tx))
        pruned = jaxprune.final_params(dense, self.opt_state(trained.job))
        assert jax.tree.structure(pruned) == jax.tree.structure(dense)
        assert _all_equal(pruned, jaxprune.apply_masks(dense, masks))
        _check_pruned(dense, pruned, masks)


class PackedLaws(Laws):
    """The laws of frameworks that keep an optimizer's state as it is."""

    def test_packed_masks_are_the_same(self, masks: Any):
        job = self.start(scenario.transform(packed=True))
        for _ in range(scenario.STEPS):
            job, _ = self.step(job, scenario.batch())
        packed = paths.flatten(jaxprune.get_masks(self.opt_state(job)))
        jax.tree.map(np.testing.assert_array_equal, packed, paths.flatten(masks))


def check_exported(whole: Any, opt_state: Any) -> None:
    """Check the export of a container that holds more than the parameters."""
    pruned = jaxprune.final_params(whole, opt_state)
    assert type(pruned) is type(whole)
    assert jax.tree.structure(pruned) == jax.tree.structure(whole)
    _check_pruned(whole, pruned, jaxprune.get_masks(opt_state))


def _check_pruned(dense: Any, pruned: Any, masks: Any) -> None:
    """Masked weights are zero where the mask says so; other leaves are those that were given."""
    kept, after = paths.flatten(masks), paths.flatten(pruned)
    for path, leaf in paths.flatten(dense).items():
        if path in kept:
            expected = np.where(kept[path], leaf, 0.0)
            np.testing.assert_array_equal(after[path], expected, err_msg=path)
            assert not np.array_equal(expected, leaf), path
        else:
            assert after[path] is leaf, path


def _all_equal(tree: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(scenario.to_host(x), scenario.to_host(y)) for x, y in pairs)
