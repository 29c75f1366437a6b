"""What holds for a trainer on a mesh; a subclass says how its framework trains there."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import checkpoint
from jaxprune._core import paths
from tests.interop import scenario
from tests.interop.jobs import Jobs
from tests.third_party import inner

CHANGES = (4, 9, 14, 16)  # steps at which masks change


class Trained(NamedTuple):
    """A run of all steps: its job at the end, its losses, and what it held before some steps."""

    job: Any
    losses: list[float]
    before: dict[int, Any]  # arrays on the host, by step


class MeshLaws(Jobs):
    """The laws.

    The axes of the mesh are automatic: Flax's layers leave the sharding of their products to the
    compiler.
    """

    specs: ClassVar[dict[str, P]]  # of the prunable parameters, by path
    stacked: ClassVar[dict[str, int]] = {}  # as the transform's layers

    def start(self, tx: optax.GradientTransformationExtraArgs, mesh: Mesh) -> Any:
        """Return a new job on a mesh; always the same."""
        raise NotImplementedError

    def step(self, job: Any, mesh: Mesh, batch: scenario.Batch) -> tuple[Any, jax.Array]:
        """Return the job after one jitted step, and the loss before it."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def tx(cls) -> optax.GradientTransformationExtraArgs:
        ramp = jaxprune.schedules.cubic(
            0.0, 1 - scenario.DENSITY, begin=scenario.BEGIN, end=scenario.END
        )
        return jaxprune.gradual(inner(optax.adamw(2e-2)), ramp, every=5, layers=cls.stacked)

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tx: optax.GradientTransformationExtraArgs) -> Trained:
        return cls()._train(tx, _mesh(4, 2))

    def test_counts_are_exact_and_the_pruned_weights_are_zero(self, trained: Trained):
        weights, masks = self._weights(trained.job), self._masks(trained.job)
        assert set(masks) == set(self.specs)
        for path, mask in masks.items():
            layers = mask.shape[0] if path.split("/")[0] in self.stacked else 1
            kept = np.asarray(mask).reshape(layers, -1).sum(axis=1)
            assert kept.tolist() == [round(scenario.DENSITY * mask.size / layers)] * layers, path
            np.testing.assert_array_equal(weights[path] != 0.0, mask, err_msg=path)
        params, opt_state = self.params(trained.job), self.opt_state(trained.job)
        assert jaxprune.check(params, opt_state).problems == ()

    @pytest.mark.parametrize("when", ["at the start", "in the end"])
    def test_masks_are_sharded_as_their_parameters(
        self, when: str, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        job = trained.job if when == "in the end" else self.start(tx, _mesh(4, 2))
        weights, masks = self._weights(job), self._masks(job)
        for path, spec in self.specs.items():
            asked, rank = NamedSharding(_mesh(4, 2), spec), masks[path].ndim
            assert weights[path].sharding.is_equivalent_to(asked, rank), path
            assert masks[path].sharding.is_equivalent_to(asked, rank), path

    def test_the_loss_falls_and_is_that_of_one_device(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        assert trained.losses[-1] < 0.5 * trained.losses[0]
        # Sums over devices are rounded in another order, which training makes larger.
        alone = self._train(tx, _mesh(1, 1))
        np.testing.assert_allclose(trained.losses, alone.losses, rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("step", CHANGES)
    def test_a_change_of_masks_is_that_of_one_device_to_the_bit(
        self, step: int, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        # From the same weights, which are ranked before the step that gradients make.
        after = []
        for mesh in (_mesh(1, 1), _mesh(4, 2)):
            job = self._placed(self.start(tx, mesh), trained.before[step])
            job, _ = self.step(job, mesh, _batch(mesh))
            after.append(jax.device_get((self._masks(job), self._weights(job))))
        (masks, weights), (others, other_weights) = after
        for path, mask in masks.items():
            np.testing.assert_array_equal(mask, others[path], err_msg=path)
        for path, weight in weights.items():  # Adam's step is 0.02: those of zero gradients, too
            np.testing.assert_allclose(weight, other_weights[path], atol=1e-3, err_msg=path)

    def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs, tmp_path: Path
    ):
        mesh, half = _mesh(4, 2), scenario.STEPS // 2
        job = self.start(tx, mesh)
        for _ in range(half):
            job, _ = self.step(job, mesh, _batch(mesh))
        checkpoint.save(tmp_path, half, self.arrays(job))
        job = self.start(tx, mesh)
        step, arrays = checkpoint.restore(tmp_path, self.arrays(job))
        job = self.with_arrays(job, arrays)
        for expected in trained.losses[step:]:
            job, loss = self.step(job, mesh, _batch(mesh))
            assert float(loss) == expected
        leaves, others = (jax.tree.leaves(self.arrays(j)) for j in (job, trained.job))
        for leaf, other in zip(leaves, others, strict=True):
            np.testing.assert_array_equal(leaf, other)
            assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)

    def test_a_checkpoint_goes_on_on_one_device(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs, tmp_path: Path
    ):
        checkpoint.save(tmp_path, 1, self.arrays(trained.job))
        mesh = _mesh(1, 1)
        job = self.start(tx, mesh)
        _, arrays = checkpoint.restore(tmp_path, self.arrays(job))
        job, _ = self.step(self.with_arrays(job, arrays), mesh, _batch(mesh))
        weights = self._weights(job)
        for path, mask in self._masks(trained.job).items():
            np.testing.assert_array_equal(weights[path] != 0.0, mask, err_msg=path)

    def _train(self, tx: optax.GradientTransformationExtraArgs, mesh: Mesh) -> Trained:
        job, losses, before = self.start(tx, mesh), [], {}
        for step in range(scenario.STEPS):
            if step in CHANGES:
                before[step] = jax.device_get(self.arrays(job))
            job, loss = self.step(job, mesh, _batch(mesh))
            losses.append(float(loss))
        return Trained(job, losses, before)

    def _placed(self, job: Any, arrays: Any) -> Any:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.arrays(job))
        return self.with_arrays(job, jax.device_put(arrays, shardings))

    def _weights(self, job: Any) -> dict[str, Any]:
        return paths.flatten(self.params(job))

    def _masks(self, job: Any) -> dict[str, Any]:
        return paths.flatten(jaxprune.get_masks(self.opt_state(job)))


def _mesh(data: int, model: int) -> Mesh:
    devices = jax.devices()[: data * model]
    kinds = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=kinds, devices=devices)


def _batch(mesh: Mesh) -> scenario.Batch:
    return jax.device_put(scenario.batch(), NamedSharding(mesh, P("data")))
