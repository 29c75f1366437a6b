import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxprune


class Net(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(8, 64, key=keys[0])
        self.out = eqx.nn.Linear(64, 3, key=keys[1])

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.argmax(x[:, :3], axis=1)

# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)

model = Net(jax.random.key(0))
opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def train_step(model, opt_state, x, y):
    def loss_fn(model):
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = eqx.filter_grad(loss_fn)(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = tx.update(grads, opt_state, params)
    return eqx.apply_updates(model, updates), opt_state


for _ in range(100):
    model, opt_state = train_step(model, opt_state, x, y)

masks = jaxprune.get_masks(opt_state)  # like the model, True = kept
jaxprune.check(model, opt_state).raise_for_problems()
pruned = model  # 80% of each weight matrix is exactly zero
