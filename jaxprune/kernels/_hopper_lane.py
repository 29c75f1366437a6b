"""Code for one lane of a Hopper GPU: integers with operators, and the instructions as functions.

Used inside `mosaic_gpu.inline_mgpu` under lane semantics, where a value is one register of every
lane. Nothing here can be interpreted on a CPU: the kernels keep their index arithmetic in functions
that take Python integers as well, and tests emulate the few instructions.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, scf

mosaic: Any = utils  # not type-checked: it differs between versions of jax


def i32() -> Any:
    """Return the type of a 32-bit integer."""
    return ir.IntegerType.get_signless(32)


def i64() -> Any:
    """Return the type of a 64-bit integer."""
    return ir.IntegerType.get_signless(64)


def f32() -> Any:
    """Return the type of a float32."""
    return ir.F32Type.get()


class Word:
    """An unsigned 32-bit integer of each lane, with the operators of Python."""

    def __init__(self, value: Any) -> None:
        if isinstance(value, int):
            value = mosaic.c((value + 2**31) % 2**32 - 2**31, i32())
        self.value = value

    def _with(self, other: Any, operation: Callable[..., Any]) -> "Word":
        other = other if isinstance(other, Word) else Word(other)
        return Word(operation(self.value, other.value))

    def _compare(self, other: Any, predicate: Any) -> Any:
        other = other if isinstance(other, Word) else Word(other)
        return arith.cmpi(predicate, self.value, other.value)

    def __add__(self, other: Any) -> "Word":
        return self._with(other, arith.addi)

    def __sub__(self, other: Any) -> "Word":
        return self._with(other, arith.subi)

    def __mul__(self, other: Any) -> "Word":
        return self._with(other, arith.muli)

    def __floordiv__(self, other: Any) -> "Word":
        return self._with(other, arith.divui)

    def __mod__(self, other: Any) -> "Word":
        return self._with(other, arith.remui)

    def __and__(self, other: Any) -> "Word":
        return self._with(other, arith.andi)

    def __or__(self, other: Any) -> "Word":
        return self._with(other, arith.ori)

    def __lshift__(self, other: Any) -> "Word":
        return self._with(other, arith.shli)

    def __rshift__(self, other: Any) -> "Word":
        return self._with(other, arith.shrui)

    def __invert__(self) -> "Word":
        return self._with(-1, arith.xori)

    def minimum(self, other: Any) -> "Word":
        """Return the smaller of the two."""
        return self._with(other, arith.minui)

    def below(self, other: Any) -> Any:
        """Return the predicate ``self < other``, of unsigned integers."""
        return self._compare(other, arith.CmpIPredicate.ult)

    def equals(self, other: Any) -> Any:
        """Return the predicate ``self == other``."""
        return self._compare(other, arith.CmpIPredicate.eq)


def both(a: Any, b: Any) -> Any:
    """Return the predicate ``a and b``."""
    return arith.andi(a, b)


def global_address(ref: Any) -> Any:
    """Return the 64-bit address of a ref in device memory."""
    return llvm.ptrtoint(i64(), mosaic.memref_ptr(ref))


def shared_address(ref: Any) -> Word:
    """Return the 32-bit address of a ref in shared memory."""
    return Word(llvm.ptrtoint(i32(), mosaic.memref_ptr(ref)))


def advanced(address: Any, offset: Word, scale: int = 1) -> Any:
    """Return a 64-bit address moved by ``offset * scale`` bytes."""
    wide = arith.extui(i64(), offset.value)
    if scale != 1:
        wide = arith.muli(wide, mosaic.c(scale, i64()))
    return arith.addi(address, wide)


def ptx(code: str, *args: Any, results: Sequence[Any] = ()) -> tuple[Any, ...]:
    """Emit instructions; operands are numbered results first."""
    raw = [a.value if isinstance(a, Word) else a for a in args]
    types = tuple(results)
    out = mosaic.inline_ptx(code, *raw, result_types=types or None, has_side_effects=True)
    return tuple(out) if types else ()


def pure(code: str, *args: Any, result: Any) -> Any:
    """Emit an instruction without side effects, which may be moved or dropped."""
    raw = [a.value if isinstance(a, Word) else a for a in args]
    return mosaic.inline_ptx(code, *raw, result_types=result, has_side_effects=False)


def _vector(first: int, size: int) -> str:
    names = ",".join(f"${first + i}" for i in range(size))
    return f"{{{names}}}" if size > 1 else names


def load_weights(address: Any, offset: int, size: int, wanted: Any) -> list[Word]:
    """Load ``size`` words that are read once, where ``wanted``; elsewhere they are undefined."""
    kind = f"v{size}.b32" if size > 1 else "b32"
    code = (
        f"@${size + 1} ld.global.nc.L1::no_allocate.L2::128B.{kind} {_vector(0, size)}, "
        f"[${size}+{offset}];"
    )
    return [Word(r) for r in ptx(code, address, wanted, results=[i32()] * size)]


def load_shared(address: Word, offset: int = 0) -> list[Word]:
    """Load four words from shared memory."""
    code = f"ld.shared.v4.b32 {_vector(0, 4)}, [$4+{offset}];"
    return [Word(r) for r in ptx(code, address, results=[i32()] * 4)]


def load_matrices(address: Word, offset: int = 0) -> list[Word]:
    """Load four 8 x 8 matrices of 16-bit entries; lane l points to row l % 8 of matrix l // 8."""
    code = f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {_vector(0, 4)}, [$4+{offset}];"
    return [Word(r) for r in ptx(code, address, results=[i32()] * 4)]


def store_sums(address: Word, sums: Sequence[Any]) -> None:
    """Store four float32 to shared memory."""
    ptx("st.shared.v4.f32 [$0], {$1,$2,$3,$4};", address, *sums)


def load_sums(address: Word, rank: Word | None) -> list[Any]:
    """Load four float32 from shared memory, of block ``rank`` of the cluster if it is given."""
    if rank is None:
        return list(ptx(f"ld.shared.v4.f32 {_vector(0, 4)}, [$4];", address, results=[f32()] * 4))
    code = (
        "{ .reg .b32 far; mapa.shared::cluster.u32 far, $4, $5; "
        f"ld.shared::cluster.v4.f32 {_vector(0, 4)}, [far]; }}"
    )
    return list(ptx(code, address, rank, results=[f32()] * 4))


def sign_bytes(word: Word, selector: Word) -> Word:
    """Replicate the signs of two bytes of a word over 16 bits each."""
    return Word(pure("prmt.b32 $0, $1, $1, $2;", word, selector, result=i32()))


def sparse_product(
    sums: Sequence[Any],
    weights: Sequence[Word],
    tokens: Sequence[Word],
    meta: Word,
    *,
    lanes: int,
    kind: str,
) -> list[Any]:
    """Add a 16 x 32 sparse tile times a 32 x 8 tile; ``lanes`` selects whose metadata counts."""
    code = (
        f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32 "
        f"{_vector(0, 4)}, {_vector(4, 4)}, {_vector(8, 4)}, {_vector(12, 4)}, $16, {lanes};"
    )
    return list(ptx(code, *weights, *tokens, *sums, meta, results=[f32()] * 4))


def store_rounded(address: Any, value: Any, kind: str, wanted: Any) -> None:
    """Round a float32 to 16 bits and store it to device memory, where ``wanted``."""
    half = pure(f"cvt.rn.{kind}.f32 $0, $1;", value, result=ir.IntegerType.get_signless(16))
    ptx("@$2 st.global.b16 [$0], $1;", address, half, wanted)


def barrier_init(barrier: Word, arrivals: int) -> None:
    """Initialise a barrier in shared memory."""
    ptx(f"mbarrier.init.shared::cta.b64 [$0], {arrivals};", barrier)


def barrier_fence() -> None:
    """Show initialised barriers to the copy engine."""
    ptx("fence.mbarrier_init.release.cluster; fence.proxy.async;")


def reads_fence() -> None:
    """Order this lane's reads of shared memory before later writes of the copy engine."""
    ptx("fence.proxy.async.shared::cta;")


def barrier_arrive(barrier: Word) -> None:
    """Arrive at a barrier."""
    ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", barrier)


def barrier_expect(barrier: Word, size: Word) -> None:
    """Arrive at a barrier, and let it wait for ``size`` bytes."""
    ptx("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", barrier, size)


def barrier_wait(barrier: Word, parity: Word) -> None:
    """Wait for the end of the phase of this parity."""
    ptx(
        "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; "
        "@!done bra again; }",
        barrier,
        parity,
    )


def bulk_copy(target: Word, source: Any, size: Word, barrier: Word, wanted: Any) -> None:
    """Copy ``size`` bytes, a multiple of 16, to shared memory, where ``wanted``."""
    ptx(
        "@$4 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[$0], [$1], $2, [$3];",
        target,
        source,
        size,
        barrier,
        wanted,
    )


def warp_sync() -> None:
    """Wait for the lanes of a warp."""
    ptx("bar.warp.sync -1;")


def named_sync(number: int, threads: int) -> None:
    """Wait for the first ``threads`` threads of a block at a barrier that is not Mosaic's own."""
    ptx(f"bar.sync {number}, {threads};")


def cluster_sync() -> None:
    """Wait for all threads of a cluster."""
    ptx("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;")


def if_else(condition: Any, values: Sequence[Any], then: Callable[[], Sequence[Any]]) -> list[Any]:
    """Return what ``then`` emits where the condition holds, else the given values."""
    branch: Any = scf.IfOp(condition, [v.type for v in values], has_else=True)
    with ir.InsertionPoint(branch.then_block):
        scf.yield_(list(then()))
    with ir.InsertionPoint(branch.else_block):
        scf.yield_(list(values))
    return list(branch.results)
