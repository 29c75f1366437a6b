"""The figures of a summary by hand; the table; masks and patterns that do not fit."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune
from jaxprune import NM, Block, Channel, Unstructured
from jaxprune._core.packing import pack
from jaxprune.analysis import Row, summary


def figures(params: Any, masks: Any, **settings: Any) -> Any:
    return summary(params, masks, print_table=False, **settings)


def pruned() -> tuple[Any, Any]:
    """A quarter of 8 × 4 weights kept, in float32; a bias; and an embedding in bfloat16."""
    kernel = jnp.arange(1.0, 33.0).reshape(8, 4)
    params = {
        "dense": {"kernel": kernel, "bias": jnp.ones(4)},
        "embedding": jnp.ones((3, 2), jnp.bfloat16),
    }
    return jaxprune.prune(params, 0.75)


def test_the_figures():
    got = figures(*pruned())
    kernel = Row(
        path="dense/kernel",
        shape=(8, 4),
        dtype="float32",
        size=32,
        kept=8,
        sparsity=0.75,
        pattern="",
        nonzero=0,
        holds=True,
        dense_bytes=128,
        compressed_bytes=8 * 4 + 4,
    )
    assert got.rows == (kernel,)
    assert got.total.path == "total"
    assert (got.total.size, got.total.kept, got.total.sparsity) == (32, 8, 0.75)
    assert got.unprunable.path == "not prunable (2)"
    assert got.unprunable.dtype == "bfloat16, float32"
    assert (got.unprunable.size, got.unprunable.kept, got.unprunable.sparsity) == (10, 10, 0.0)
    assert got.unprunable.dense_bytes == got.unprunable.compressed_bytes == 4 * 4 + 6 * 2
    assert (got.model.size, got.model.kept) == (42, 18)
    assert got.model.sparsity == 1 - 18 / 42
    assert (got.model.dense_bytes, got.model.compressed_bytes) == (156, 64)
    assert (got.total.holds, got.model.holds, got.unprunable.holds) == (True, True, None)


def test_a_model_without_other_leaves_is_its_total():
    params, masks = jaxprune.prune({"kernel": jnp.ones((4, 4))}, 0.5)
    got = figures(params, masks)
    assert got.unprunable.size == got.unprunable.dense_bytes == 0
    assert (got.model.size, got.model.compressed_bytes) == (16, got.total.compressed_bytes)


ONES = np.ones((8, 8), bool)


def made(pattern: Any, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    """A mask of the pattern, of its own sparsity or one half."""
    scores = jnp.arange(float(np.prod(shape))).reshape(shape)
    density = 0.5 if pattern.final_sparsity is None else 1.0 - pattern.final_sparsity
    return np.asarray(pattern.mask(scores, pattern.units(shape, density)))


@pytest.mark.parametrize(
    ("mask", "pattern", "dtype", "want"),
    [
        (ONES, None, jnp.float32, 64 * 4),  # dense is smallest
        (made(Unstructured()), None, jnp.float32, 32 * 4 + 8),
        (made(Unstructured(), (3, 3)), None, jnp.float32, 4 * 4 + 2),  # 9 bits
        (made(Unstructured()), Unstructured(), jnp.bfloat16, 32 * 2 + 8),
        (made(NM(1, 4)), NM(1, 4), jnp.bfloat16, 16 * 2 + 16 * 2 // 8),
        (made(NM(1, 8, axis=-1)), NM(1, 8, axis=-1), jnp.int8, 8 + 8 * 3 // 8),
        (made(NM(1, 6, pad=True)), NM(1, 6, pad=True), jnp.float32, 16 * 4 + 16 * 3 // 8),
        (made(NM(2, 2)), NM(2, 2), jnp.float32, 64 * 4),
        (
            made(NM(1, 8, axis=(0, 1)), (4, 4, 2)),
            NM(1, 8, axis=(0, 1)),
            jnp.float32,
            4 * 4 + 2,  # 12 bits
        ),
        (made(Block((4, 4))), Block((4, 4)), jnp.float32, 2 * (16 * 4 + 4)),
        (made(Block((4,)), (2, 8)), Block((4,)), jnp.float32, 8 * 4 + 2),  # a bitmap is smaller
        (np.ones((8, 60), bool) & (np.arange(60) < 32), Block((8, 8), pad=True), jnp.float32, 1040),
        (made(Channel(0)), Channel(0), jnp.float32, 32 * 4 + 8),
        (made(Channel(1), (16, 2)), Channel(1), jnp.float32, 16 * 4 + 4),
        (made(Unstructured()), Channel(1), jnp.float32, 32 * 4 + 8),  # a pattern that fails
    ],
)
def test_compressed_bytes(mask: np.ndarray, pattern: Any, dtype: Any, want: int):
    params = {"w": jnp.where(mask, 1, 0).astype(dtype)}
    (row,) = figures(params, {"w": jnp.asarray(mask)}, pattern=pattern).rows
    assert row.dense_bytes == mask.size * jnp.dtype(dtype).itemsize
    assert row.compressed_bytes == want


@pytest.mark.parametrize(
    ("pattern", "obeys"),
    [
        (NM(1, 4), True),
        (NM(2, 4), True),
        (Unstructured(), True),
        (NM(1, 8), False),
        (Channel(1), False),
    ],
    ids=str,
)
def test_whether_a_pattern_holds(pattern: Any, obeys: bool):
    mask = jnp.asarray(made(NM(1, 4)))
    weights = {"w": jnp.where(mask, 1.0, 0.0)}
    (row,) = figures(weights, {"w": mask}, pattern=pattern).rows
    assert (row.holds, row.nonzero, row.pattern) == (obeys, 0, repr(pattern))
    shapes = jax.eval_shape(lambda: weights)
    (row,) = figures(shapes, {"w": mask}, pattern=pattern).rows
    assert (row.holds, row.nonzero) == (obeys, None)


@pytest.mark.parametrize("value", [1e-30, -1.0, np.nan, np.inf])
def test_pruned_weights_that_are_not_zero_are_counted(value: float):
    params, masks = pruned()
    params["dense"]["kernel"] = params["dense"]["kernel"].at[0, :2].set(value)
    for pattern in (None, Unstructured()):
        got = figures(params, masks, pattern=pattern)
        assert (got.rows[0].holds, got.rows[0].nonzero) == (False, 2)
        assert (got.total.holds, got.total.nonzero, got.model.holds) == (False, 2, False)


def test_kept_zeros_and_negative_zeros_are_fine():
    (row,) = figures({"w": jnp.array([0.0, -0.0])}, {"w": jnp.array([True, False])}).rows
    assert (row.kept, row.nonzero, row.holds) == (1, 0, True)


def test_shapes_alone_tell_nothing_about_zeros():
    params, masks = pruned()
    got = figures(jax.eval_shape(lambda: params), masks)
    assert (got.rows[0].holds, got.rows[0].nonzero, got.total.holds) == (None, None, None)
    assert got.total.kept == 8


def test_each_weight_is_held_to_its_own_pattern():
    mask = jnp.asarray(made(NM(1, 4)))
    params = {"a": jnp.where(mask, 1.0, 0.0), "b": jnp.where(mask, 1.0, 0.0)}
    got = figures(params, {"a": mask, "b": mask}, pattern={"^a$": NM(1, 4), ".*": NM(1, 8)})
    assert [(row.pattern, row.holds) for row in got.rows] == [
        ("NM(n=1, m=4)", True),
        ("NM(n=1, m=8)", False),
    ]
    assert (got.total.pattern, got.total.holds) == ("", False)


def test_stacked_layers_are_looked_at_one_by_one():
    mask = jnp.stack([jnp.asarray(made(NM(1, 4)))] * 3, axis=1)  # (8, 3, 8)
    params = {"blocks": jnp.where(mask, 1.0, 0.0)}
    settings: dict[str, Any] = {"pattern": NM(1, 4), "layers": {"blocks": 1}}
    (row,) = figures(params, {"blocks": mask}, **settings).rows
    assert row.holds is True
    assert row.compressed_bytes == 3 * (16 * 4 + 4)
    (row,) = figures(params, {"blocks": mask.at[:, 2].set(True)}, **settings).rows
    assert row.holds is False


class Module(eqx.Module):
    kernel: jax.Array
    bias: jax.Array
    activation: Any = jax.nn.relu  # a leaf that is no array


def containers(params: Any) -> Any:
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    model.kernel[...] = params["kernel"]
    return {
        "dict": params,
        "frozen": freeze(params),
        "nnx": nnx.state(model),
        "nnx model": model,
        "equinox": Module(**params),
    }


@pytest.mark.parametrize("name", ["dict", "frozen", "nnx", "nnx model", "equinox"])
@pytest.mark.parametrize("packed", [False, True])
def test_containers_may_differ(name: str, packed: bool):
    params, masks = jaxprune.prune({"kernel": jnp.arange(32.0).reshape(8, 4)}, 0.75)
    params["bias"] = jnp.zeros(4)
    masks = {"kernel": pack(masks["kernel"])} if packed else masks
    got = figures(containers(params)[name], masks)
    assert [(row.path, row.kept, row.holds) for row in got.rows] == [("kernel", 8, True)]
    assert got.model.size == 36


def test_a_sharded_model_is_summarised():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    params = {"kernel": jnp.arange(64.0).reshape(8, 8)}
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data", "model")))
    params, masks = jaxprune.prune(params, 0.75, pattern=NM(1, 4))
    (row,) = figures(params, masks, pattern=NM(1, 4)).rows
    assert (row.kept, row.holds) == (16, True)


def test_the_masks_of_an_optimizer_state_are_summarised():
    params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
    tx = jaxprune.gradual(optax.sgd(0.0), 0.5)
    updates, opt_state = tx.update(params, tx.init(params), params)
    masks = jaxprune.get_masks(opt_state)
    assert figures(params, masks).total.holds is False
    assert figures(optax.apply_updates(params, updates), masks).total.holds is True


def test_the_table(capsys: pytest.CaptureFixture[str]):
    params, masks = pruned()
    summary(params, masks)
    lines = [
        [cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.split("\n")
    ]
    assert lines[2] == [
        "dense/kernel",
        "8 × 4",
        "8",
        "32",
        "75.00%",
        "yes",
        "128 bytes",
        "36 bytes",
    ]
    assert lines[4] == ["total", "", "8", "32", "75.00%", "yes", "128 bytes", "36 bytes"]
    assert lines[5] == ["not prunable (2)", "", "10", "10", "0.00%", "", "28 bytes", "28 bytes"]
    assert lines[6] == ["whole model", "", "18", "42", "57.14%", "yes", "156 bytes", "64 bytes"]


def test_the_table_says_what_fails(capsys: pytest.CaptureFixture[str]):
    mask = jnp.asarray(made(NM(1, 4)))
    names = ("[bold]", "a" * 150, "c")  # no markup, nothing cut off in a log
    params = {name: jnp.where(mask, 1.0, 0.0) for name in names}
    params["c"] = params["c"] + 1
    summary(params, dict.fromkeys(names, mask), pattern={"a": NM(1, 8), ".": NM(1, 4)})
    text = capsys.readouterr().out
    assert "[bold]" in text
    assert "a" * 150 in text
    assert "NM(n=1, m=8) no " in text
    assert "NM(n=1, m=4) yes" in text
    assert "NM(n=1, m=4) no: 48 not zero" in text
    assert "not prunable" not in text


def test_nothing_is_printed_unless_asked_for(capsys: pytest.CaptureFixture[str]):
    figures(*pruned())
    assert capsys.readouterr().out == ""


def test_masks_that_do_not_match_are_named():
    params, masks = pruned()
    with pytest.raises(ValueError) as error:
        figures(params, {"dense": {"kernel": masks["dense"]["kernel"].T}})
    assert str(error.value) == (
        "the mask of 'dense/kernel' has shape (4, 8), its parameter (8, 4). Pass masks made for "
        "these parameters."
    )
    with pytest.raises(ValueError) as error:
        figures(params, {"other": masks["dense"]["kernel"]})
    assert str(error.value) == (
        "masks has entries without a parameter: other. The parameters are dense/bias, "
        "dense/kernel, embedding. Pass masks made for these parameters."
    )
    with pytest.raises(ValueError) as error:
        figures(params, {})
    assert str(error.value) == (
        "masks has no entries. Pass those of jaxprune.make_masks or get_masks."
    )


def test_a_pattern_that_does_not_fit_is_named():
    params, masks = pruned()
    with pytest.raises(ValueError, match=r"NM\(n=1, m=3\) does not fit 'dense/kernel'"):
        figures(params, masks, pattern=NM(1, 3))
    with pytest.raises(ValueError, match="pattern has no entry for 'dense/kernel'"):
        figures(params, masks, pattern={"conv": NM(1, 4)})
