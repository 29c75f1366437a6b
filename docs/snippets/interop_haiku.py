import haiku as hk
import jax
import jax.numpy as jnp
import optax

import jaxprune


def forward(x):
    return hk.nets.MLP([64, 3])(x)


x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.argmax(x[:, :3], axis=1)

# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)

net = hk.without_apply_rng(hk.transform(forward))
params = net.init(jax.random.key(0), x)
opt_state = tx.init(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = net.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


for _ in range(100):
    params, opt_state = train_step(params, opt_state, x, y)

masks = jaxprune.get_masks(opt_state)  # like params, True = kept
jaxprune.check(params, opt_state).raise_for_problems()
pruned = params  # 80% of each "w" is exactly zero
