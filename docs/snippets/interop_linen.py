import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

import jaxprune


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(64)(x)))


x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.argmax(x[:, :3], axis=1)

# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)

model = Net()
state = train_state.TrainState.create(
    apply_fn=model.apply, params=model.init(jax.random.key(0), x)["params"], tx=tx
)


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


for _ in range(100):
    state = train_step(state, x, y)

masks = jaxprune.get_masks(state.opt_state)  # like state.params, True = kept
jaxprune.check(state.params, state.opt_state).raise_for_problems()
pruned = state.params  # 80% of each kernel is exactly zero
