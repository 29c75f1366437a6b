"""What all formats promise: bits come back, layers can be cut out, misfits are refused."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import formats
from tests.formats import masks

NM, BLOCK, BITMAP = formats.NMSparse, formats.BlockSparse, formats.Bitmap
Make = Callable[..., Any]


def awkward(mask: np.ndarray) -> np.ndarray:
    """A weight with awkward live values."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=mask.shape).astype(np.float32)
    w[rng.random(mask.shape) < 0.2] = -0.0
    w[rng.random(mask.shape) < 0.1] = np.nan
    w[rng.random(mask.shape) < 0.1] = -np.inf
    return np.where(mask, w, np.float32(0))


def nm(n: int, m: int) -> tuple[np.ndarray, Make]:
    mask = masks.nm((3, 96, 6), n, m, np.random.default_rng(0))
    return mask, lambda w, mask, **more: NM.from_dense(w, mask, n=n, m=m, **more)


def block() -> tuple[np.ndarray, Make]:
    mask = masks.blocks((3, 16, 10), (4, 2), 7, np.random.default_rng(0))
    return mask, lambda w, mask, **more: BLOCK.from_dense(
        w, mask, block=(4, 2), **{"slots": 12, **more}
    )


def bitmap() -> tuple[np.ndarray, Make]:
    mask = masks.anywhere((3, 8, 11), 30, np.random.default_rng(0))
    mask[0, 0] = False  # layers of different counts
    return mask, BITMAP.from_dense


MAKERS: dict[str, Callable[[], tuple[np.ndarray, Make]]] = {
    "2:4": lambda: nm(2, 4),
    "3:16": lambda: nm(3, 16),
    "block with room": block,
    "bitmap": bitmap,
}


@functools.cache
def case(name: str) -> tuple[Any, Any, Make]:
    mask, make = MAKERS[name]()
    return awkward(mask), mask, make


FEW = ("2:4", "block with room", "bitmap")


def bits(x: Any) -> np.ndarray:
    return np.asarray(x).view(np.dtype(f"u{x.dtype.itemsize}"))


@pytest.mark.parametrize("name", MAKERS)
def test_all_bits_come_back(name: str):
    w, mask, make = case(name)
    cast = w.astype(jnp.bfloat16 if name in FEW else jnp.float32)
    sparse = make(cast, mask)
    assert (sparse.shape, sparse.ndim, sparse.dtype) == (w.shape, 3, cast.dtype)
    np.testing.assert_array_equal(bits(sparse.todense()), bits(cast))
    assert np.isnan(np.asarray(w)).any()
    assert (np.signbit(np.asarray(w)) & (np.asarray(w) == 0)).any()


@pytest.mark.parametrize("name", FEW)
def test_jit_vmap_and_scan_see_layers(name: str):
    w, mask, make = case(name)
    w = np.nan_to_num(w)
    room: dict[str, Any] = {"count": 40} if name == "bitmap" else {}
    if name.startswith("block"):
        room = {"slots": 20}

    @jax.jit
    def around(w: jax.Array, mask: jax.Array) -> Any:
        whole = make(w, mask, **room)
        assert whole.shape == w.shape
        by_layer = jax.vmap(lambda w, mask: make(w, mask, **room))(w, mask)
        scanned = jax.lax.scan(lambda _, layer: (None, layer.todense()), None, by_layer)[1]
        return scanned, jnp.concatenate([whole[0].todense()[None], whole[1:].todense()])

    for dense in around(w, mask):
        np.testing.assert_array_equal(dense, w)


def test_a_matrix_has_no_layers():
    with pytest.raises(IndexError) as error:
        NM.from_dense(np.zeros((4, 2), np.float32), n=2, m=4)[0]
    assert str(error.value) == (
        "NMSparse of shape (4, 2) stacks no layers; indexing takes layers. Use todense() to index "
        "a matrix."
    )


@pytest.mark.parametrize("name", FEW)
def test_inside_jit_a_misfit_is_nan_not_a_silent_drop(name: str):
    w, mask, make = case(name)
    room: dict[str, Any] = {"count": 29} if name == "bitmap" else {}
    if name.startswith("block"):
        room = {"slots": 6}
    everything = np.ones_like(mask) if name == "2:4" else mask
    dense = jax.jit(lambda w, mask: make(w, mask, **room).todense())(np.ones_like(w), everything)
    assert np.isnan(dense).any()
    assert not (np.asarray(dense) == 1).any()


def test_the_bytes_are_those_promised():
    w, mask, make = case("2:4")
    assert make(w.astype(jnp.bfloat16), mask).nbytes / w.astype(jnp.bfloat16).nbytes == 0.5625
    w = (np.arange(64).reshape(8, 8) % 4 == 0).astype(jnp.bfloat16)
    assert BITMAP.from_dense(w).nbytes == 16 * 2 + 8


def test_padding_slots_hold_nothing_and_stand_where_the_kernels_want_them():
    w, mask, make = case("block with room")
    stored = jax.tree.map(lambda leaf: np.asarray(leaf)[1], make(w, mask))
    assert int(stored.count) == 7
    assert not stored.data[7:].any()
    assert stored.rows[7:].tolist() == [0] * 5
    assert stored.columns.tolist() == sorted(stored.columns.tolist())
    assert stored.columns[7:].tolist() == [4] * 5
    assert int(stored.starts[-1]) == int(stored.row_starts[-1]) == 12
    for column in range(5):
        inside = stored.columns[stored.starts[column] : stored.starts[column + 1]]
        assert (inside == column).all()
    ordered = stored.rows[stored.by_row]
    for row in range(4):
        assert (ordered[stored.row_starts[row] : stored.row_starts[row + 1]] == row).all()


def test_a_padding_slot_does_not_hide_the_block_under_it():
    w = np.zeros((4, 4), np.float32)
    w[:2, 2:] = -0.0
    stored = BLOCK.from_dense(w, w == w, block=(4, 4), slots=3)
    np.testing.assert_array_equal(bits(stored.todense()), bits(w))


@pytest.mark.parametrize("name", FEW[:2])
def test_a_checkpoint_gives_the_format_back(name: str, tmp_path: Any):
    w, mask, make = case(name)
    tree = {"kernel": make(w, mask), "bias": np.ones(3, np.float32)}
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", tree)
    with ocp.StandardCheckpointer() as saver:
        got = saver.restore(tmp_path / "state", jax.eval_shape(lambda: tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    np.testing.assert_array_equal(bits(got["kernel"].todense()), bits(w))


def test_safetensors_give_the_format_back(tmp_path: Any):
    w, mask, make = case("2:4")
    tree = {"a/kernel": make(w.astype(jnp.bfloat16), mask), "bias": np.ones(3, np.float32)}
    formats.save_file(tree, tmp_path / "x.safetensors")
    got = formats.load_file(tmp_path / "x.safetensors")
    assert repr(got["a/kernel"]) == repr(tree["a/kernel"])
    np.testing.assert_array_equal(bits(got["a/kernel"].todense()), bits(tree["a/kernel"].todense()))
    np.testing.assert_array_equal(got["bias"], tree["bias"])


def test_a_broken_file_is_refused(tmp_path: Any):
    path = tmp_path / "x.safetensors"
    formats.save_file({"w": BITMAP.from_dense(np.eye(4, dtype=np.float32))}, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"x\.safetensors is no complete safetensors file: .*anew"):
        formats.load_file(path)


def test_nm_keeps_the_sharding_of_its_axes(mesh: jax.sharding.Mesh):
    w, mask, _ = case("2:4")
    w = np.nan_to_num(w)
    place = NamedSharding(mesh, PartitionSpec(None, "data", "model"))
    w, mask = jax.device_put(w, place), jax.device_put(mask, place)
    sparse = NM.from_dense(w, mask, n=2, m=4)
    for leaf in sparse.packed:
        spec = (*leaf.sharding.spec, None, None, None)
        assert spec[:3] == (None, "model", "data"), leaf.sharding
    np.testing.assert_array_equal(sparse.todense(), w)
    scale = sparse.quantize(jnp.int8).scale
    assert (*scale.sharding.spec, None)[:2] == (None, "model"), scale.sharding


class Mirrored(formats.layouts.PlainLayout):
    """A layout of the kernels' kind: one matrix, its groups in reverse, a padded word beside."""

    def pack(self, values: Any, positions: Any, *, m: int) -> Any:
        assert values.ndim == 3
        return {"v": values[:, ::-1], "p": jnp.pad(positions, ((0, 1), (0, 0), (0, 0)))}

    def unpack(self, packed: Any, *, n: int, m: int, k: int, n_out: int) -> Any:
        assert packed["v"].shape == (n_out, k // m, n)
        return packed["v"][:, ::-1], packed["p"][:n_out]


class Kernel:
    """As `Mirrored`, and no kin of the plain one."""

    pack, unpack = Mirrored.pack, Mirrored.unpack

    def __repr__(self) -> str:
        return "Kernel()"


def test_another_layout_holds_the_same_weight():
    w, mask, _ = case("2:4")
    sparse = NM.from_dense(w, mask, n=2, m=4, layout=Kernel())
    assert sparse.shape == w.shape
    assert sparse.dtype == w.dtype
    assert sparse[1].shape == w.shape[1:]
    np.testing.assert_array_equal(bits(sparse.todense()), bits(w))
    np.testing.assert_array_equal(bits(sparse[2].todense()), bits(w[2]))
    plain = sparse.relaid(formats.PLAIN)
    assert plain.packed.values.shape == (3, 6, 24, 2)
    np.testing.assert_array_equal(bits(plain.todense()), bits(w))
    assert sparse.astype(jnp.bfloat16).dtype == jnp.bfloat16


def test_arrays_cut_under_a_layout_are_found_out():
    w, mask, _ = case("2:4")
    sparse = NM.from_dense(w, mask, n=2, m=4, layout=Kernel())
    cut = jax.tree.map(lambda leaf: leaf[:, :2], sparse)
    with pytest.raises(ValueError) as error:
        _ = cut.shape
    assert str(error.value) == (
        "NMSparse: the arrays of Kernel() are not those of a matrix of 96 inputs and 6 outputs: "
        "something has cut or reshaped them. Use relaid(formats.PLAIN) first; only layers can be "
        "taken out of another layout."
    )


ONES = np.ones((8, 4), np.float32)
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "pattern": (
        lambda: NM.from_dense(ONES, n=2, m=4, path="a/kernel"),
        ValueError,
        "NMSparse: 'a/kernel' is not 2:4: 8 groups of 4 along axis -2 keep more than 2, the first "
        "is group 0 of output 0. Pass a mask made with pattern=jaxprune.NM(2, 4), or another n.",
    ),
    "nan outside": (
        lambda: NM.from_dense(ONES * np.float32(np.nan), ONES == 0, n=2, m=4),
        ValueError,
        "NMSparse: w has 32 values outside its mask that are not zero, the first at index (0, 0). "
        "Pass jaxprune.apply_masks(params, masks), or another mask.",
    ),
    "multiple": (
        lambda: NM.from_dense(np.ones((6, 4)), n=2, m=4),
        ValueError,
        "NMSparse: axis -2 of w of shape (6, 4) has length 6, which must be a multiple of m=4. Pad "
        "it with zeros to 8, or leave the weight dense.",
    ),
    "m": (
        lambda: NM.from_dense(ONES, n=2, m=32),
        ValueError,
        "NMSparse: m must be in [1, 16], got 32.",
    ),
    "n": (
        lambda: NM.from_dense(ONES, n="2", m=4),
        TypeError,
        "NMSparse: n must be an integer, got '2'.",
    ),
    "integers": (
        lambda: BITMAP.from_dense(np.ones((2, 2), np.int8), path="w"),
        TypeError,
        "Bitmap: 'w' has dtype int8; a format holds floating-point weights. Convert it with astype "
        "first.",
    ),
    "vector": (
        lambda: BITMAP.from_dense(np.ones(2)),
        ValueError,
        "Bitmap: w has shape (2,); a format holds matrices [..., in, out]. Leave vectors dense.",
    ),
    "mask": (
        lambda: BITMAP.from_dense(ONES, np.ones((8, 4), np.int8)),
        ValueError,
        "Bitmap: mask must be boolean of the shape (8, 4) of w, got int8 of shape (8, 4). True = "
        "kept; a packed mask is unpacked first.",
    ),
    "count": (
        lambda: BITMAP.from_dense(ONES, count=31, path="w"),
        ValueError,
        "Bitmap: count=31 is too small for 'w': it keeps 32 weights. Leave count out, or pass 32.",
    ),
    "no count": (
        lambda: jax.jit(BITMAP.from_dense)(ONES),
        ValueError,
        "Bitmap: how many weights w keeps is not known inside jit. Pass count=, the room for "
        "values.",
    ),
    "in part": (
        lambda: BLOCK.from_dense(np.tril(ONES), np.tril(ONES == 1), block=(4, 4), path="w"),
        ValueError,
        "BlockSparse: the mask of 'w' keeps 1 blocks of 4 × 4 in part, the first at (0, 0) of the "
        "grid of blocks. Make it with pattern=jaxprune.Block((4, 4)).",
    ),
    "side": (
        lambda: BLOCK.from_dense(ONES, block=(4, 3)),
        ValueError,
        "BlockSparse: axis -1 of w of shape (8, 4) has length 4, which must be a multiple of 3, "
        "the block's side. Pad it with zeros to 6, or choose another block.",
    ),
    "block": (
        lambda: BLOCK.from_dense(ONES, block=4),
        ValueError,
        "BlockSparse: block must be two sizes, the height along the inputs and the width along the "
        "outputs, got 4.",
    ),
    "slots": (
        lambda: BLOCK.from_dense(ONES, block=(4, 4), slots=1),
        ValueError,
        "BlockSparse: slots=1 is too small for w: it keeps 2 blocks. Leave slots out, or pass 2.",
    ),
    "no slots": (
        lambda: jax.jit(lambda w: BLOCK.from_dense(w, block=(4, 4)))(ONES),
        ValueError,
        "BlockSparse: how many blocks w keeps is not known inside jit. Pass slots=, the room for "
        "blocks.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_misfit_is_refused(name: str):
    call, kind, text = BAD[name]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text


def test_without_a_mask_zeros_are_pruned_and_nan_is_not():
    w = np.array([[0.0, np.nan, -0.0, np.inf]], np.float32).T
    sparse = NM.from_dense(w, n=2, m=4)
    assert sparse.unpack()[1].tolist() == [[[1, 3]]]
    np.testing.assert_array_equal(sparse.todense(), w)
