import jax
import jax.numpy as jnp
import optax

import jaxprune

x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.argmax(x[:, :3], axis=1)

# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)

params = {
    "hidden": {"kernel": jax.random.normal(jax.random.key(0), (8, 64)) / 3, "bias": jnp.zeros(64)},
    "out": {"kernel": jax.random.normal(jax.random.key(2), (64, 3)) / 8, "bias": jnp.zeros(3)},
}
opt_state = tx.init(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        h = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = h @ params["out"]["kernel"] + params["out"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


for _ in range(100):
    params, opt_state = train_step(params, opt_state, x, y)

masks = jaxprune.get_masks(opt_state)  # like params, True = kept
jaxprune.check(params, opt_state).raise_for_problems()
pruned = params  # 80% of each kernel is exactly zero
