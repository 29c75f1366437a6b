"""Which implementation is taken, and that a kernel plugs in as its description says."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import formats, kernels
from jaxprune.kernels import dispatch, tuning
from tests.kernels import fake_block, fake_nm

NM_KERNEL = kernels.Candidate("mosaic_gpu", "cpu", "nm", "tests.kernels.fake_nm")
BLOCK_KERNEL = kernels.Candidate("mosaic_gpu", "cpu", "block", "tests.kernels.fake_block")
ABSENT = kernels.Candidate("mosaic_tpu", "tpu", "nm", "tests.kernels.no_such_module")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "CANDIDATES", (ABSENT, NM_KERNEL, BLOCK_KERNEL))
    fake_nm.CALLS.clear()
    fake_block.CALLS.clear()


def weight(columns: int = 6) -> formats.NMSparse:
    w = jnp.arange(1.0, 8 * columns + 1).reshape(8, columns)
    return formats.NMSparse.from_dense(
        jnp.where((jnp.arange(8) % 4 < 2)[:, None], w, jnp.float32(0)), n=2, m=4
    )


def blocks() -> formats.BlockSparse:
    w = jnp.zeros((8, 6)).at[:4, 2:4].set(2.0).at[4:, :2].set(jnp.arange(8.0).reshape(4, 2))
    return formats.BlockSparse.from_dense(w, block=(4, 2), slots=3)


@pytest.mark.usefixtures("plugged")
def test_a_kernel_that_is_named_multiplies():
    w, x = weight(), jnp.arange(16.0).reshape(2, 8)
    config = fake_nm.Config(3)
    assert dispatch.choose(2, w, "mosaic_gpu").kernel == NM_KERNEL
    got = kernels.sparse_matmul(x, w, implementation="fake_nm", config=config)
    assert [config] == fake_nm.CALLS
    np.testing.assert_allclose(got, x @ w.todense())


@pytest.mark.usefixtures("plugged")
def test_a_weight_packed_for_a_kernel_has_product_gradients_and_vmap():
    plain, x = weight(), jnp.arange(32.0).reshape(2, 2, 8)
    w = plain.relaid(dispatch.KernelLayout("fake_nm"))
    assert isinstance(w.packed, fake_nm.Packed)
    layers = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), w)

    def loss(x: Any, w: Any) -> Any:
        one = lambda x, w: kernels.sparse_matmul(x, w, implementation="fake_nm")  # noqa: E731
        return jnp.sum(jax.vmap(one)(x, w))

    (dx, dw) = jax.grad(loss, (0, 1), allow_int=True)(x, layers)
    np.testing.assert_allclose(dx, np.broadcast_to(w.todense().sum(1), x.shape))
    values = dw.packed.stream[:, :, ::-1]  # [layer, out, group, n], packed in reverse
    sums = np.asarray(x).sum(1).reshape(2, 1, 2, 4)[..., :2]
    np.testing.assert_allclose(values, np.broadcast_to(sums, values.shape))
    assert fake_nm.CALLS


@pytest.mark.usefixtures("plugged")
def test_a_block_kernel_serves_all_three_products():
    w, x = blocks(), jnp.arange(24.0).reshape(3, 8)

    def loss(x: Any, w: Any, name: str) -> Any:
        return jnp.sum(kernels.sparse_matmul(x, w, implementation=name) ** 2)

    got = jax.grad(loss, (0, 1), allow_int=True)(x, w, "fake_block")
    assert fake_block.CALLS == ["forward None", "input", "weight"]
    want = jax.grad(loss, (0, 1), allow_int=True)(x, w, "xla")
    np.testing.assert_allclose(got[0], want[0])
    np.testing.assert_allclose(got[1].data, want[1].data)
    assert not np.asarray(got[1].data[2:]).any()
    assert np.asarray(got[1].data[:2]).any((1, 2)).all()


@pytest.mark.parametrize("name", ["mosaic_tpu", "typo"])
@pytest.mark.usefixtures("plugged")
def test_an_implementation_that_is_not_here_is_named_with_those_that_are(name: str):
    with pytest.raises(ValueError) as error:
        kernels.sparse_matmul(jnp.ones((2, 8)), weight(), implementation=name)
    why = {
        "mosaic_tpu": "needs the platform 'tpu'",
        "typo": "is the name of no implementation",
    }[name]
    assert str(error.value) == (
        f"implementation={name!r} {why}. The platform 'cpu' has 'xla', 'dense', 'mosaic_gpu', "
        "'fake_nm', 'fake_block'; None chooses the fastest."
    )


@pytest.mark.usefixtures("plugged")
def test_a_product_that_all_kernels_refuse_says_why_of_each():
    with pytest.raises(ValueError) as error:
        kernels.sparse_matmul(jnp.ones((2, 8)), weight(5), implementation="mosaic_gpu")
    assert str(error.value) == (
        "implementation='mosaic_gpu' cannot multiply 2 rows with NMSparse([8, 5], float32, 2:4): "
        "fake_nm needs an even number of outputs, not 5.; fake_block takes no NMSparse. "
        "implementation='xla' takes everything."
    )


def entry(w: Any, rows: int, best: str, **more: Any) -> tuning.Entry:
    return tuning.Entry(tuning.product_of(rows, w, "cpu"), best, 2.0, **more)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(*entries: tuning.Entry) -> None:
        tuning.save(entries, tmp_path / "own.json")
        tuning._cached.cache_clear()
        monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "own.json"))

    return write


@pytest.mark.usefixtures("plugged")
def test_the_table_chooses_for_products_that_are_near(table: Any):
    w = weight()
    packed = w.relaid(dispatch.KernelLayout("fake_nm"))
    table(entry(w, 4, "fake_nm", config={"width": 7}), entry(blocks(), 4, "xla"))
    assert kernels.layout_of(3, w) == dispatch.KernelLayout("fake_nm")
    chosen = dispatch.choose(3, packed, None)  # 3 rows count as 4
    assert chosen == dispatch.Choice(NM_KERNEL, fake_nm.Config(7))
    assert dispatch.choose(8, packed, None) == dispatch.Choice(NM_KERNEL)  # settings may not fit
    assert dispatch.choose(3, w, None) == dispatch.Choice()  # not packed for it: dense
    assert dispatch.choose(16, packed, None) == dispatch.Choice()  # two octaves away
    assert dispatch.choose(4, packed.astype(jnp.bfloat16), None) == dispatch.Choice()
    assert not dispatch.choose(4, blocks(), None).dense


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_product_that_is_divided_among_devices_is_dense(table: Any, kind: AxisType):
    w = weight().relaid(dispatch.KernelLayout("fake_nm"))
    table(entry(w, 4, "fake_nm"))
    x = jnp.ones((4, 8))
    alone = kernels.sparse_matmul(x, w)
    assert fake_nm.CALLS == [None]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    divided = jax.device_put(x, NamedSharding(mesh, P("data")))
    got = jax.jit(kernels.sparse_matmul)(divided, jax.device_put(w, NamedSharding(mesh, P())))
    assert fake_nm.CALLS == [None]
    np.testing.assert_allclose(got, alone, rtol=1e-6)


@pytest.mark.usefixtures("plugged")
def test_the_nearest_entry_counts_and_a_refusal_goes_on_to_the_next(table: Any):
    w, odd = weight(), weight(5)
    table(entry(w, 4, "fake_nm"), entry(w, 2, "dense"))
    assert kernels.layout_of(2, w) == formats.PLAIN
    assert kernels.layout_of(4, w) == dispatch.KernelLayout("fake_nm")
    assert kernels.layout_of(4, odd) == formats.PLAIN  # refused; then dense


def test_a_weight_for_a_kernel_that_is_gone_says_so():
    w = weight()
    with pytest.raises(ValueError) as error:
        w.relaid(dispatch.KernelLayout("old"))
    assert str(error.value) == (
        "a weight is packed for the kernel 'old', which this version does not have; it has "
        f"{dispatch._listed(c.kernel for c in kernels.CANDIDATES)}. Pack the weight again."
    )


def test_a_broken_table_is_refused(tmp_path: Path):
    path = tmp_path / "t.json"
    path.write_text('[{"best": "xla"}]')
    with pytest.raises(ValueError) as error:
        tuning.load(path)
    assert str(error.value) == (
        f"{path} is no table of timings: KeyError('product'). Write it with kernels.tuning.save."
    )


def test_the_package_has_a_table_for_this_machine_kind():
    devices = {entry.product.device for entry in tuning.load(tuning.PATH)}
    assert "cpu" in devices
