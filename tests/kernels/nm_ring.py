"""The decode kernel's ring of panels, run warp by warp in an order drawn at random.

The kernel's own code (`Ring`, `_multiply`) runs with numpy's integers for its words, and with
barriers and copies that are simulated: a copy lands some time after it was issued, and reads are
under way until a fence. What is checked: no warp waits for ever, or gives a stage back that it is
still reading, every warp multiplies each of its chunks once with the weights of that chunk, and
finds in shared memory the x that belongs to it.
"""

import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxprune.kernels import nm_decode_gpu_kernel as kernel
from jaxprune.kernels import nm_decode_gpu_launch as launch
from jaxprune.kernels import nm_decode_gpu_layout as layout

LANES = 32


class Word:
    """What `_hopper_lane.Word` is on the device: one integer of each lane."""

    def __init__(self, value: Any) -> None:
        self.value = np.broadcast_to(np.asarray(value, np.int64), (LANES,))

    def _with(self, other: Any, operation: Callable[[Any, Any], Any]) -> "Word":
        return Word(operation(self.value, other.value if isinstance(other, Word) else other))

    def __add__(self, other: Any) -> "Word":
        return self._with(other, np.add)

    def __sub__(self, other: Any) -> "Word":
        return self._with(other, np.subtract)

    def __mul__(self, other: Any) -> "Word":
        return self._with(other, np.multiply)

    def __floordiv__(self, other: Any) -> "Word":
        return self._with(other, np.floor_divide)

    def __mod__(self, other: Any) -> "Word":
        return self._with(other, np.mod)

    def __and__(self, other: Any) -> "Word":
        return self._with(other, np.bitwise_and)

    def __rshift__(self, other: Any) -> "Word":
        return self._with(other, np.right_shift)

    def minimum(self, other: Any) -> "Word":
        return self._with(other, np.minimum)

    def below(self, other: Any) -> np.ndarray:
        other = other.value if isinstance(other, Word) else other
        assert np.all(self.value >= 0) and np.all(np.asarray(other) >= 0), "compared unsigned"
        return self.value < other

    def equals(self, other: Any) -> np.ndarray:
        return self.value == other


@dataclasses.dataclass
class Barrier:
    """An mbarrier: a phase ends when all have arrived and all expected bytes have."""

    arrivals: int
    pending: int
    transfer: int = 0
    phase: int = 0

    def settle(self) -> None:
        assert abs(self.transfer) < 2**20
        if self.pending == 0 and self.transfer == 0:
            self.phase, self.pending = self.phase + 1, self.arrivals
        assert self.pending >= 0, "more arrivals than a phase has"


class Block:
    """A thread block: shared memory, barriers, copies under way, and the warp whose turn it is."""

    def __init__(self, it: launch.Launch, order: random.Random) -> None:
        self.it, self.order = it, order
        size = max(it.config.stages * it.stage_bytes, it.sum_bytes)
        self.memory = np.full(size // 2, -1)  # which entry of x lies there
        self.barriers: dict[int, Barrier] = {}
        self.copies: list[tuple[int, int, int, Barrier]] = []
        self.local = threading.local()
        self.turn = threading.Condition()
        self.running: int | None = None
        self.waits: dict[int, Callable[[], bool]] = {}
        self.errors: list[BaseException] = []

    # what a warp does

    def active(self) -> np.ndarray:
        return np.logical_and.reduce([np.ones(LANES, bool), *self.local.masks])

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let other warps and copies go on, until it is this warp's turn and it is ready."""
        with self.turn:
            self.waits[self.local.warp] = ready
            self.running = None
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.running == self.local.warp)
            if self.errors:
                raise SystemExit

    def one(self, word: Word) -> int:
        """Return the value that all active lanes have."""
        values = set(word.value[self.active()].tolist())
        assert len(values) == 1, values
        return values.pop()

    def fence(self) -> None:
        if self.active().all():
            self.local.reading = False

    def arrive(self, barrier: Word, size: Word | None = None) -> None:
        if self.active().any():
            of_readers = size is None
            assert not (of_readers and self.local.reading), "reads are under way, without a fence"
            b = self.barriers[self.one(barrier)]
            b.transfer += self.one(size) if size is not None else 0
            b.pending -= int(self.active().sum())
            b.settle()
            self.pause()

    def wait(self, barrier: Word, parity: Word) -> None:
        if self.active().any():
            b, p = self.barriers[self.one(barrier)], self.one(parity)
            self.pause(lambda: b.phase % 2 != p)

    def copy(
        self, target: Word, source: Word, size: Word, barrier: Word, wanted: np.ndarray
    ) -> None:
        for lane in np.flatnonzero(self.active() & wanted):
            to, of, number = (int(w.value[lane]) for w in (target, source, size))
            assert to % 16 == of % 16 == number % 16 == 0 and number > 0
            assert to >= 0 and to + number <= 2 * self.memory.size
            assert of // (2 * self.it.k) == (of + number - 1) // (2 * self.it.k), "one row of x"
            self.copies.append((to, of, number, self.barriers[int(barrier.value[lane])]))

    def land(self) -> None:
        """Let one copy, any of those under way, arrive."""
        to, of, number, barrier = self.copies.pop(self.order.randrange(len(self.copies)))
        self.memory[to // 2 : (to + number) // 2] = np.arange(of // 2, (of + number) // 2)
        barrier.transfer -= number
        barrier.settle()

    # how warps take turns

    def run(self, body: Callable[[int], None]) -> None:
        """Run ``body(warp)`` for every warp."""

        def start(warp: int) -> None:
            self.local.warp, self.local.masks, self.local.reading = warp, [], False
            try:
                self.pause()
                body(warp)
            except SystemExit:
                pass
            except BaseException as error:  # shown by the thread that waits for this one
                self.errors.append(error)
            finally:
                with self.turn:
                    del self.waits[warp]
                    self.running = None
                    self.turn.notify_all()

        threads = [threading.Thread(target=start, args=(w,)) for w in range(self.it.warps)]
        for thread in threads:
            with self.turn:
                thread.start()
                number = len(self.waits) + 1
                self.turn.wait_for(lambda number=number: len(self.waits) == number)
        while self.waits:
            self._next()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _next(self) -> None:
        with self.turn:
            able = [w for w in sorted(self.waits) if self.errors or self.waits[w]()]
            if self.copies and (not able or self.order.random() < 0.5):
                self.land()
                return
            if not able:
                stuck = {b: dataclasses.astuple(v) for b, v in self.barriers.items()}
                text = f"warps {sorted(self.waits)} wait for ever: {stuck}"
                self.errors.append(AssertionError(text))
                return
            self.running = self.order.choice(able)
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.running is None)


def simulate(it: launch.Launch, rank: int, order: random.Random) -> None:
    """Run the multiplication of one block of a cluster; raises where a promise is broken."""
    block = Block(it, order)
    memory = it.config.stages * it.stage_bytes
    for stage in range(it.config.stages):
        for place, arrivals in ((stage, 1), (stage + it.config.stages, it.warps)):
            block.barriers[memory + 8 * place] = Barrier(arrivals, arrivals)

    def body(warp: int) -> None:
        _warp(it, block, rank, warp, memory)

    with _instructions(block):
        block.run(body)
    assert not block.copies


def _warp(it: launch.Launch, block: Block, rank: int, warp: int, barriers: int) -> None:
    block.local.rounds = 0
    at = _place(rank, warp)(it)
    ring = launch.Ring(it, at, Word(0), Word(0), Word(barriers))
    block.local.at = at
    kernel._multiply(it, at, ring, lambda number: [[Word(number.value)]])
    slice_, count = int(at.slice.value[0]), int(at.count.value[0])
    assert block.local.rounds == len(range(slice_, count, it.config.slices))


def _place(rank: int, warp: int) -> Callable[[launch.Launch], launch.Place]:
    def index(value: int) -> Any:
        return SimpleNamespace(registers=SimpleNamespace(item=lambda: value))

    def place(it: launch.Launch) -> launch.Place:
        found = launch.place(it, index(0), index(rank))
        teams = it.config.tiles // it.config.per_warp
        return dataclasses.replace(
            found,
            lane=Word(np.arange(LANES)),
            warp=Word(warp),
            row_group=Word(warp % teams),
            slice=Word(warp // teams),
        )

    return place


def _product(block: Block) -> Callable[..., Any]:
    """Return what takes the place of the products of a chunk: a look at their operands."""

    def look(it: launch.Launch, sums: list, tiles: list, x: list[Word], lanes: Word) -> list:
        at, number = block.local.at, block.local.rounds
        block.local.rounds += 1
        block.local.reading = True
        assert int(tiles[0][0].value[0]) == number, "weights of another chunk"
        chunk = int(at.first.value[0]) + number * it.config.slices + int(at.slice.value[0])
        for b, address in enumerate(x):
            lane = np.arange(LANES)
            row = np.minimum((lane & 7 if it.plan.native else lane >> 2) + 8 * b, it.rows - 1)
            start = row * it.k + chunk * it.plan.chunk + layout.x_offset(it.plan, lane) // 2
            for ahead in (0, it.plan.chunk - 64):
                found = block.memory[address.value // 2 + ahead]
                assert np.array_equal(found, start + ahead), (number, found - start - ahead)
        block.pause()
        return sums

    return look


@contextlib.contextmanager
def _instructions(block: Block) -> Iterator[None]:
    """Put simulated instructions in the place of the device's."""

    @contextlib.contextmanager
    def when(condition: np.ndarray) -> Iterator[None]:
        block.local.masks.append(np.broadcast_to(condition, (LANES,)))
        yield
        block.local.masks.pop()

    def fori(times: int, values: Sequence[Any]) -> Callable[[Callable[..., Any]], Any]:
        def run(body: Callable[..., Any]) -> Any:
            carried = list(values)
            for i in range(times):
                carried = body(i, carried)
            return SimpleNamespace(results=carried)

        return run

    def if_else(condition: np.ndarray, values: Any, then: Callable[[], Any]) -> Any:
        assert condition.all() or not condition.any(), "a warp stays together"
        return then() if condition.all() else values

    mosaic = SimpleNamespace(
        when=when, fori=fori, c=lambda value, _: value, thread_idx=lambda: 0, warp_idx=lambda: 0
    )
    lane = SimpleNamespace(
        both=np.logical_and,
        advanced=lambda address, offset, scale=1: address + offset * scale,
        reads_fence=block.fence,
        barrier_arrive=block.arrive,
        barrier_expect=block.arrive,
        barrier_wait=block.wait,
        bulk_copy=block.copy,
        warp_sync=lambda: None,
        if_else=if_else,
        i32=lambda: None,
        f32=lambda: None,
    )
    names = [(module, name) for module in (kernel, launch) for name in ("Word", "lane", "mosaic")]
    names.append((kernel, "_product"))
    before = [(module, name, getattr(module, name)) for module, name in names]
    new = {"Word": Word, "lane": lane, "mosaic": mosaic, "_product": _product(block)}
    try:
        for module, name, _ in before:
            setattr(module, name, new[name])
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)
