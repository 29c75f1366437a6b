"""ECoFLaP as its authors' code divides a budget, and scores a small network."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import posttraining, scores

Recorded = Callable[[str], Any]
POWERS = {"GradOnly": 0, "GradMagAbs": 1, "GradMagSquare": 2}


def test_the_published_allocation(recorded: Recorded) -> None:
    data = recorded("ecoflap")
    for match in data.matches(r"(\w+)/numel"):
        case = data.under(match[1])
        found = allocated(case, published=True)
        np.testing.assert_allclose(found, case["sparsity"], rtol=0, atol=1e-6, err_msg=match[1])


def test_ours_keeps_the_budget_that_the_published_exceeds(recorded: Recorded) -> None:
    data = recorded("ecoflap")
    for match in data.matches(r"(\w+)/numel"):
        case = data.under(match[1])
        sizes, (sparsity, most) = case["numel"], case["cfg"].tolist()
        found = allocated(case, published=False)
        least = np.ceil(sizes * (1 - most) - 1e-6).sum()
        budget = max(int(sizes.sum() * (1 - sparsity)), least)
        assert round(float((sizes * (1 - found)).sum())) == budget, match[1]
        assert round(float((sizes * (1 - case["sparsity"])).sum())) >= budget
        assert (found <= most + 1e-9).all()


def test_first_order_scores(recorded: Recorded) -> None:
    data = recorded("ecoflap")
    grads = gradients(data)
    for match in data.matches(r"score/(Grad\w+)_(sum|avg)/(.+)"):
        power, found = POWERS[match[1]], grads[match[3]]
        size = jnp.sqrt((found**2).mean(0)) if power == 2 else jnp.abs(found).mean(0)
        weight = jnp.asarray(data[f"mezo/{match[3]}"], jnp.float32)
        ours = posttraining.weighted_gradient(weight, size, power=power)
        np.testing.assert_allclose(ours, data[match[0]], rtol=1e-5, atol=1e-9, err_msg=match[0])


def test_zeroth_order_scores_come_from_one_number(recorded: Recorded) -> None:
    data = recorded("ecoflap")
    for match in data.matches(r"score/MEZO-(\w+)_(?:sum|avg)/(.+)"):
        weight = jnp.asarray(data[f"mezo/{match[2]}"], jnp.float32)
        number = jnp.float32(recorded_number(data, match[2]))
        ours = posttraining.weighted_gradient(weight, number, power=POWERS[match[1]])
        want = data[match[0]]
        np.testing.assert_allclose(jnp.broadcast_to(ours, want.shape), want, rtol=1e-5)


def test_zeroth_order_gradients_have_the_recorded_size(recorded: Recorded) -> None:
    """The reference draws its own directions; ours must have the same distribution."""
    data = recorded("ecoflap")
    inputs, labels = jnp.asarray(data["mezo/X"], jnp.float32), jnp.asarray(data["mezo/Y"])
    params, slopes = network(data), gradients(data)
    eps = float(data.settings["noise_eps"])
    for name, weight in params.items():

        def losses(key: jax.Array, name: str = name, weight: jax.Array = weight) -> jax.Array:
            moved = [params | {name: end} for end in posttraining.perturbed(weight, key, eps=eps)]
            each = jax.vmap(loss, (None, 0, 0))
            return jnp.stack([each(p, inputs, labels) for p in moved])

        keys = jax.random.split(jax.random.key(0), 256)
        plus, minus = jnp.moveaxis(jax.jit(jax.vmap(losses))(keys), 1, 0)
        mean = posttraining.zeroth_order(plus, minus, eps=eps) / len(keys)
        # |z · g| has mean √(2/π) |g| and standard deviation √(1 − 2/π) |g| for each sample.
        size = np.sqrt((slopes[name] ** 2).reshape(len(inputs), -1).sum(1))
        np.testing.assert_allclose(mean, np.sqrt(2 / np.pi) * size, rtol=0.25)
        spread = np.sqrt((1 - 2 / np.pi) * (size**2).sum())
        assert abs(recorded_number(data, name) - float(mean.sum())) < 5 * spread


def recorded_number(data: Any, name: str) -> float:
    """The one number that the reference found for a weight."""
    (match,) = data.matches(rf"score/MEZO-GradOnly_(?:sum|avg)/{re.escape(name)}")
    (number,) = data[match[0]]
    return float(number)


def allocated(case: dict[str, np.ndarray], *, published: bool) -> np.ndarray:
    """Our sparsities of one recorded case."""
    sparsity, most = case["cfg"].tolist()
    return posttraining.ecoflap_sparsities(
        case["scores"], case["numel"], sparsity, max_sparsity=most, published=published
    )


def network(data: Any) -> dict[str, jax.Array]:
    """The weights [out, in] of the recorded network by name."""
    return {m[1]: jnp.asarray(data[m[0]], jnp.float32) for m in data.matches(r"mezo/(\d+\.weight)")}


def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """The cross-entropy of two linear layers with tanh between them."""
    first, second = (params[name] for name in sorted(params))
    logits = jnp.tanh(x @ first.T) @ second.T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
    return -jnp.mean(chosen)


def gradients(data: Any) -> dict[str, jax.Array]:
    """The gradient on each sample, by the weight's name."""
    slope = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))
    x, y = jnp.asarray(data["mezo/X"], jnp.float32), jnp.asarray(data["mezo/Y"])
    return slope(network(data), x, y)


def test_gradient_norms_give_first_order_scores(recorded: Recorded) -> None:
    data = recorded("ecoflap")
    batches = list(zip(jnp.asarray(data["mezo/X"], jnp.float32), data["mezo/Y"], strict=True))
    norms: Any = scores.gradient_norm(
        lambda p, batch: loss(p, *batch), network(data), batches, order=1, scale=1.0
    )
    for match in data.matches(r"score/GradOnly_(?:sum|avg)/(.+)"):
        np.testing.assert_allclose(
            norms[match[1]] / len(batches), data[match[0]], rtol=1e-5, atol=1e-9
        )
