import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxprune


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 64, rngs=rngs)
        self.out = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


x = jax.random.normal(jax.random.key(1), (256, 8))
y = jnp.argmax(x[:, :3], axis=1)

# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)

model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss_fn)(model))


for _ in range(100):
    train_step(model, optimizer, x, y)

masks = jaxprune.get_masks(optimizer.opt_state)  # like nnx.state(model, nnx.Param), True = kept
jaxprune.check(nnx.state(model, nnx.Param), optimizer.opt_state).raise_for_problems()
pruned = nnx.state(model, nnx.Param)  # 80% of each kernel is exactly zero
