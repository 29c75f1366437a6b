"""Flax NNX: parameters, masks and moments are variables, each of another type."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from jaxprune._core import paths
from tests.interop import scenario
from tests.interop.laws import Laws, Trained, check_exported
from tests.interop.nnx_jobs import Job, NnxJobs, train_step
from tests.interop.scenario import CLASSES, HEADS, VOCABULARY, WIDTH, cross_entropy
from tests.third_party import leniently


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.statistics = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        heads = nnx.LinearGeneral(WIDTH, (HEADS, WIDTH), rngs=rngs)
        self.layers = nnx.List([heads, nnx.Linear(HEADS * WIDTH, CLASSES, rngs=rngs)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x = self.norm(x + self.conv(x))
        x = self.dropout(self.statistics(x)).mean(axis=1)
        x = nnx.relu(self.layers[0](nnx.relu(x)))
        return self.layers[1](x.reshape(-1, HEADS * WIDTH))


class TestNnx(NnxJobs, Laws):
    prunable = frozenset(
        {
            "conv/kernel",
            "layers/0/kernel",
            "layers/1/kernel",
        }
    )
    left = frozenset(
        {
            "conv/bias",
            "embed/embedding",
            "layers/0/bias",  # of two axes, as in attention
            "norm/scale",
            "statistics/scale",
        }
    )

    def start(self, tx: optax.GradientTransformationExtraArgs) -> Job:
        model = leniently(Net)(nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def step(self, job: Job, batch: scenario.Batch) -> tuple[Job, jax.Array]:
        return job, train_step(*job, *batch)

    def test_packed_masks_are_refused(self):
        job = self.start(scenario.transform(packed=True))
        job, _ = self.step(job, scenario.batch())
        with pytest.raises(ValueError) as error:
            self.step(job, scenario.batch())
        assert str(error.value) == (
            "the packed masks of conv/kernel/bits, layers/0/kernel/bits, layers/1/kernel/bits have "
            "lost their sizes: flax.nnx rebuilds an optimizer's state from its arrays alone. Pass "
            "packed=False with nnx.Optimizer."
        )

    def test_the_optimizer_holds_variables_of_other_types(self, trained: Trained):
        def types(tree: Any) -> set[type]:
            leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
            return {type(leaf) for leaf in leaves}

        (weight,), (mask,) = types(self.params(trained.job)), types(trained.job[1].opt_state.masks)
        assert weight is nnx.Param
        assert not issubclass(mask, nnx.Param)

    def test_the_state_with_everything_else_is_exported(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        model, _ = self.start(tx)
        assert {"dropout/rngs/key", "statistics/mean"} <= set(paths.flatten(nnx.state(model)))
        check_exported(nnx.state(model), self.opt_state(trained.job))

    def test_the_model_itself_is_exported(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        model, _ = self.start(tx)
        opt_state = self.opt_state(trained.job)
        check_exported(model, opt_state)
        nnx.update(model, jaxprune.final_params(nnx.state(model), opt_state))
        mask = jaxprune.get_masks(opt_state)["conv"]["kernel"][...]
        np.testing.assert_array_equal(model.conv.kernel[...] != 0.0, mask)

    def test_a_part_of_the_model_is_trained_and_pruned(
        self, tx: optax.GradientTransformationExtraArgs
    ):
        model = leniently(Net)(nnx.Rngs(0))
        head = nnx.All(nnx.Param, nnx.PathContains("layers"))
        optimizer = nnx.Optimizer(model, tx, wrt=head)
        tokens, labels = scenario.batch()

        @nnx.jit
        def step(model: Net, optimizer: nnx.Optimizer) -> None:
            def loss_fn(model: Net) -> jax.Array:
                return cross_entropy(model(tokens), labels)

            differentiate = nnx.grad(loss_fn, argnums=nnx.DiffState(0, head))
            optimizer.update(model, leniently(differentiate)(model))

        for _ in range(scenario.END + 1):
            step(model, optimizer)
        masks = paths.flatten(jaxprune.get_masks(optimizer.opt_state))
        assert set(masks) == {"layers/0/kernel", "layers/1/kernel"}
        np.testing.assert_array_equal(model.layers[0].kernel[...] != 0, masks["layers/0/kernel"])
