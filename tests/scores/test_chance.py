"""Random scores: uniform, and tied to nothing but the key and the path."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import scores


def test_random_scores_are_uniform_in_float32(key: jax.Array):
    found = scores.random({"w": jnp.zeros((100, 100), jnp.bfloat16)}, key)["w"]
    assert found.dtype == jnp.float32
    assert float(found.min()) >= 0.0
    assert float(found.max()) < 1.0
    counts, _ = np.histogram(found, bins=10, range=(0.0, 1.0))
    assert counts.min() > 850  # 1000 each, standard deviation 30


def test_another_layer_changes_nothing(key: jax.Array):
    weight = jnp.zeros((4, 4))
    small = scores.random({"b": {"kernel": weight}}, key)
    large = scores.random({"a": weight, "b": {"bias": weight, "kernel": weight}}, key)
    np.testing.assert_array_equal(small["b"]["kernel"], large["b"]["kernel"])


def test_layers_and_keys_differ(key: jax.Array):
    params = {name: jnp.zeros((4, 4)) for name in "abc"}
    drawn = [scores.random(params, k)[name] for k in (key, jax.random.key(1)) for name in "abc"]
    assert len(np.unique(jnp.stack(drawn))) == 6 * 16


def test_the_weights_are_not_read(key: jax.Array):
    zeros = scores.random({"w": jnp.zeros(4)}, key)["w"]
    nans = scores.random({"w": jnp.full(4, jnp.nan)}, key)["w"]
    np.testing.assert_array_equal(zeros, nans)
