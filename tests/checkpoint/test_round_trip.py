"""What is saved comes back bit for bit, in the form that the template asks for."""

import json
import threading
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxprune
from jaxprune.checkpoint import latest_step, restore, save
from tests.checkpoint import states


@pytest.mark.parametrize("saved", [False, True], ids=["bool", "packed"])
@pytest.mark.parametrize("wanted", [False, True], ids=["to bool", "to packed"])
def test_an_optimizer_state_comes_back(tmp_path: Path, saved: bool, wanted: bool):
    state = {False: states.trained(), True: states.packed(states.trained())}
    save(tmp_path, 5, state[saved])
    step, got = restore(tmp_path, states.as_zeros(state[wanted]))
    assert step == 5
    assert len(states.packed_masks(got)) == (2 if wanted else 0)
    states.assert_equal(got, state[wanted])


def test_a_run_goes_on_bit_for_bit(tmp_path: Path):
    state = states.trained()
    save(tmp_path, 5, state)
    _, again = restore(tmp_path, states.start(seed=7))  # other weights, the number 0 as step
    assert again["step"] == 5
    ends = [states.train(s, 6) for s in (state, again)]
    for name in ("params", "opt_state", "key"):
        states.assert_equal(ends[1][name], ends[0][name])
    kernel = np.asarray(ends[1]["params"]["first"]["kernel"])
    assert np.count_nonzero(kernel) == kernel.size // 4  # and the schedule was reached


LEAVES: dict[str, Any] = {
    "float32": jnp.array([1.0, -0.0, jnp.nan, jnp.inf]),
    "bfloat16": jnp.array([[1.0, 1e-40]], jnp.bfloat16),
    "float16": jnp.ones((2, 3), jnp.float16),
    "float8": jnp.ones(3, jnp.float8_e4m3fn),
    "int8": jnp.array([-128, 127], jnp.int8),
    "complex64": jnp.array([1 + 2j], jnp.complex64),
    "mask": jnp.arange(33).reshape(3, 11) % 3 == 0,
    "flag": jnp.asarray(True),
    "weak": jnp.asarray(2.5),
    "key": jax.random.key(5),
    "keys": jax.random.split(jax.random.key(5, impl="rbg"), (2, 3)),
    "raw key": jax.random.key_data(jax.random.key(6)),
    "numpy": np.arange(3, dtype=np.float64),
    "numpy bfloat16": np.ones(3, jnp.bfloat16),
    "numpy mask": np.arange(9) % 2 == 0,
    "numpy scalar": np.float32(0.1),
    "int": 2**40,
    "float": 0.1,
    "bool": True,
    "empty": jnp.zeros((0, 3)),
    "empty mask": jnp.zeros((3, 0), bool),
    "empty rows of a mask": np.zeros((0, 9), bool),
    "nothing": optax.MaskedNode(),
    "none": None,
}


def test_every_kind_of_leaf_comes_back(tmp_path: Path):
    save(tmp_path, 0, LEAVES)
    _, got = restore(tmp_path, LEAVES)
    states.assert_equal(got, LEAVES)
    for name in ("numpy", "numpy mask", "numpy scalar", "int", "float", "bool"):
        assert type(got[name]) is type(LEAVES[name])


def test_shapes_alone_are_a_template(tmp_path: Path):
    state = states.packed(states.trained())
    save(tmp_path, 2, state)
    _, got = restore(tmp_path, jax.eval_shape(lambda: state))
    states.assert_equal(got, state)


def test_a_donated_state_is_a_template(tmp_path: Path):
    state = states.start() | {"step": jnp.asarray(0)}
    save(tmp_path, 0, state)
    jax.tree.map(lambda x: x.delete(), state)
    _, got = restore(tmp_path, state)
    states.assert_equal(got["params"], states.params())


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (3, jnp.asarray(0, jnp.int32)),
        (jnp.asarray(3, jnp.uint32), 0),
        (3.0, jnp.asarray(0.0, jnp.bfloat16)),
        (np.float32(3.0), 0.0),
    ],
    ids=str,
)
def test_a_counter_may_be_a_number_or_an_array(tmp_path: Path, saved: Any, wanted: Any):
    save(tmp_path, 0, {"n": saved})
    _, got = restore(tmp_path, {"n": wanted})
    assert got["n"] == 3
    assert type(got["n"]) is type(wanted)


def test_every_leaf_keeps_the_sharding_of_its_template(tmp_path: Path, mesh: Mesh):
    spread = NamedSharding(mesh, PartitionSpec("data", "model"))
    weights = jax.device_put(jnp.arange(128.0).reshape(8, 16), spread)
    keys = jax.device_put(
        jax.random.split(jax.random.key(0), 8), NamedSharding(mesh, PartitionSpec("data"))
    )
    mask = jax.device_put(np.arange(96).reshape(8, 12) % 5 == 0, spread)  # 6 bits a shard
    state = {"weights": weights, "mask": mask, "keys": keys, "step": jnp.asarray(3)}
    save(tmp_path, 0, state)
    _, got = restore(tmp_path, states.as_zeros(state))
    states.assert_equal(got, state)

    other = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    along = NamedSharding(other, PartitionSpec("x"))
    moved = {name: jax.device_put(state[name], along) for name in ("weights", "mask", "keys")}
    _, got = restore(tmp_path, states.as_zeros(moved) | {"step": jnp.asarray(0)})
    states.assert_equal(got, moved | {"step": jnp.asarray(3)})

    shape = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=along)
    _, got = restore(tmp_path, state | {"weights": shape})
    assert got["weights"].sharding == along
    assert states.bits(got["weights"]) == states.bits(weights)


def test_a_sharded_run_goes_on(tmp_path: Path):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    spread = NamedSharding(mesh, PartitionSpec("data", None))
    weights = {"kernel": jax.device_put(jax.random.normal(jax.random.key(0), (8, 16)), spread)}
    _, masks = jaxprune.prune(weights, 0.5)
    tx = jaxprune.static(optax.adam(0.1), masks, packed=True)
    update = jax.jit(tx.update)
    with states.optax_rules():
        _, opt_state = update(weights, jax.jit(tx.init)(weights), weights)
        save(tmp_path, 1, {"opt_state": opt_state})
        _, got = restore(tmp_path, {"opt_state": states.as_zeros(opt_state)})
        states.assert_equal(got["opt_state"], opt_state)
        ends = [update(weights, s, weights) for s in (got["opt_state"], opt_state)]
    states.assert_equal(*ends)


def test_an_abstract_sharding_goes_onto_the_mesh_that_is_set(tmp_path: Path):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    spread = NamedSharding(mesh, PartitionSpec("data", "model"))
    state = {"w": jax.device_put(jnp.arange(64.0).reshape(8, 8), spread)}
    save(tmp_path, 0, state)
    shapes = jax.eval_shape(lambda: state)
    with jax.set_mesh(mesh):
        _, got = restore(tmp_path, shapes)
    states.assert_equal(got, state)
    with pytest.raises(ValueError) as error:
        restore(tmp_path, shapes)
    assert str(error.value) == (
        "template has 'w' sharded over the abstract mesh {'data': 4, 'model': 2}, and the mesh "
        "that is set is {}. Call restore inside jax.set_mesh(mesh), or give arrays as the template."
    )


def test_a_train_state_comes_back(tmp_path: Path):
    model = nn.Dense(5)
    variables = model.init(jax.random.key(0), jnp.ones((1, 8)))
    tx = jaxprune.static(optax.adam(0.1), jaxprune.prune(variables["params"], 0.5)[1])
    fresh = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    with states.optax_rules():
        state = jax.jit(lambda s: s.apply_gradients(grads=s.params))(fresh)
    save(tmp_path, 1, state)
    _, got = restore(tmp_path, fresh)
    assert got.step == 1
    assert got.apply_fn == state.apply_fn
    states.assert_equal(got.replace(step=state.step), state)


def test_an_nnx_state_comes_back(tmp_path: Path):
    def make(seed: int) -> tuple[nnx.Module, nnx.Optimizer]:
        model = nnx.Linear(8, 5, rngs=nnx.Rngs(seed))
        masks = jaxprune.prune(nnx.state(model), 0.5)[1]
        return model, nnx.Optimizer(model, jaxprune.static(optax.adam(0.1), masks), wrt=nnx.Param)

    model, optimizer = make(0)
    with states.optax_rules():
        optimizer.update(model, nnx.state(model, nnx.Param))
    want = nnx.state((model, optimizer))
    save(tmp_path, 1, want)
    again = make(1)
    _, got = restore(tmp_path, nnx.state(again))
    nnx.update(again, got)
    states.assert_equal(nnx.state(again), want)
    assert int(again[1].step[...]) == 1


def test_the_container_may_change(tmp_path: Path):
    weights = {"kernel": jax.random.normal(jax.random.key(0), (8, 5)), "bias": jnp.ones(5)}
    save(tmp_path, 0, {"params": weights})
    model = nnx.Linear(8, 5, rngs=nnx.Rngs(1))
    _, got = restore(tmp_path, {"params": nnx.state(model)})
    nnx.update(model, got["params"])
    assert states.bits(model.kernel[...]) == states.bits(weights["kernel"])
    assert model.bias is not None
    assert states.bits(model.bias[...]) == states.bits(weights["bias"])


def test_masks_are_stored_as_bits(tmp_path: Path):
    masks = states.trained()["opt_state"][1].masks
    path = save(tmp_path, 0, {"masks": masks})
    leaves = json.loads((path / "manifest.json").read_text())["leaves"]
    assert leaves == {
        "masks/first/kernel": [[8, 16], "bool"],
        "masks/second/kernel": [[16, 5], "bool"],
    }
    # What any other program reads with Orbax:
    how = ocp.args.PyTreeRestore(restore_args=dict.fromkeys(leaves, ocp.RestoreArgs(np.ndarray)))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        plain = checkpointer.restore(path / "arrays", args=how)
    for name in ("first", "second"):
        mask = np.packbits(masks[name]["kernel"], axis=-1, bitorder="little")
        np.testing.assert_array_equal(plain[f"masks/{name}/kernel"], mask)


def test_a_bit_an_entry_is_written(tmp_path: Path, rng: np.random.Generator):
    mask = rng.random((512, 512)) < 0.5  # incompressible

    def size(root: Path) -> int:
        return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())

    bits, whole = save(tmp_path, 0, {"m": mask}), save(tmp_path, 1, {"m": mask.astype(np.uint8)})
    assert mask.size / 8 < size(bits) < mask.size / 8 + 10_000
    assert size(bits) < size(whole)


def test_older_steps_are_removed(tmp_path: Path):
    for step, keep in [(1, 3), (5, 3), (9, 3), (12, 3), (10, 2), (20, 1)]:
        assert save(tmp_path, step, {"a": np.ones(2)}, keep=keep) == tmp_path / str(step)
        assert latest_step(tmp_path) == max(step, 12 if step == 10 else step)
        left = sorted(int(path.name) for path in tmp_path.iterdir())
        want = {9: [1, 5, 9], 12: [5, 9, 12], 10: [9, 10, 12], 20: [20]}
        assert left == want.get(step, left)


def test_any_step_is_restored(tmp_path: Path):
    for step in (3, 20):
        save(tmp_path, step, {"a": np.full(2, step)})
    assert restore(tmp_path, {"a": np.zeros(2, int)}, step=3)[1]["a"].tolist() == [3, 3]
    assert restore(tmp_path, {"a": np.zeros(2, int)})[0] == 20


def test_restore_changes_nothing_on_disk(tmp_path: Path):
    save(tmp_path, 0, {"a": jnp.ones(3)})
    (tmp_path / ".1.partial").mkdir()
    before = states.snapshot(tmp_path)
    restore(tmp_path, {"a": jnp.ones(3)})
    with pytest.raises(ValueError):
        restore(tmp_path, {"b": jnp.ones(3)})
    assert states.snapshot(tmp_path) == before


def test_no_thread_is_left(tmp_path: Path):
    before = set(threading.enumerate())
    save(tmp_path, 0, {"a": jnp.ones(3)})
    restore(tmp_path, {"a": jnp.ones(3)})
    assert set(threading.enumerate()) <= before


def test_a_directory_without_checkpoints_has_no_latest_step(tmp_path: Path):
    assert latest_step(tmp_path / "absent") is None
    (tmp_path / "notes").mkdir()
    (tmp_path / ".7.partial").mkdir()
    assert latest_step(tmp_path) is None
