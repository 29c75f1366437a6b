"""One launch of the decode kernel: its numbers, what a lane works on, and the ring of x."""

import dataclasses
from typing import Any

from jaxprune.kernels import _hopper_lane as lane
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels._hopper import ceil_div
from jaxprune.kernels._hopper_lane import Word, mosaic
from jaxprune.kernels.nm_decode_gpu_layout import Config, Plan

SUMS = 512  # bytes of a warp's float32 sums of 16 x 8 outputs


@dataclasses.dataclass(frozen=True)
class Launch:
    """The numbers of one launch, all known when it is traced."""

    plan: Plan
    config: Config
    rows: int
    k: int
    n_out: int
    tiles: int
    chunks: int
    kind: str  # of the instruction: bf16 or f16

    @property
    def wide(self) -> int:
        """Products of 8 rows."""
        return ceil_div(self.rows, 8)

    @property
    def warps(self) -> int:
        """Warps that multiply."""
        return self.config.tiles // self.config.per_warp * self.config.slices

    @property
    def warpgroups(self) -> int:
        """Warpgroups of a block."""
        return ceil_div(self.warps, 4)

    @property
    def groups(self) -> int:
        """Clusters."""
        return ceil_div(self.tiles, self.config.tiles)

    @property
    def rounds(self) -> int:
        """Rounds of the block with the most chunks."""
        return ceil_div(ceil_div(self.chunks, self.config.cluster), self.config.slices)

    @property
    def whole_rounds(self) -> int:
        """Rounds in which every slice of every block has a chunk."""
        return self.chunks // self.config.cluster // self.config.slices

    @property
    def panels(self) -> int:
        """Panels of x of a block."""
        return ceil_div(self.rounds, self.config.panel)

    @property
    def panel_bytes(self) -> int:
        """Bytes of a row in a panel."""
        return self.config.panel * self.config.slices * self.plan.chunk * 2

    @property
    def stride(self) -> int:
        """Bytes between the rows of a panel."""
        return layout.x_stride(self.plan, self.panel_bytes)

    @property
    def stage_bytes(self) -> int:
        """Bytes of a panel in shared memory."""
        return self.rows * self.stride

    @property
    def recycles(self) -> bool:
        """Whether a stage of the ring is filled more than once."""
        return self.panels > self.config.stages

    @property
    def lag(self) -> int:
        """Panels after which a stage is filled again: late enough not to wait for slower warps."""
        return 2 if self.config.stages >= 3 else 1

    @property
    def sum_bytes(self) -> int:
        """Bytes of the sums of a block."""
        return self.config.slices * self.config.tiles * self.wide * SUMS


@dataclasses.dataclass(frozen=True)
class Place:
    """What a lane works on."""

    lane: Word
    warp: Word
    group: Word  # cluster
    rank: Word  # block in its cluster
    row_group: Word  # which tiles of the cluster the warp has
    slice: Word
    first: Word  # chunk at which the block's part of k begins
    count: Word  # its chunks


def place(it: Launch, group: Any, rank: Any) -> Place:
    """Return what this lane works on."""
    thread, warp = Word(mosaic.thread_idx()), Word(mosaic.warp_idx())
    group, rank = Word(group.registers.item()), Word(rank.registers.item())
    teams = it.config.tiles // it.config.per_warp
    each, more = divmod(it.chunks, it.config.cluster)
    return Place(
        lane=thread & 31,
        warp=warp,
        group=group,
        rank=rank,
        row_group=warp % teams,
        slice=warp // teams,
        first=rank * each + rank.minimum(more),
        count=Word(each) + Word(more).minimum(rank + 1) - Word(more).minimum(rank),
    )


@dataclasses.dataclass(frozen=True)
class Ring:
    """The panels of x in shared memory."""

    it: Launch
    at: Place
    x: Any  # address of x
    panels: Word  # address of the first stage
    barriers: Word  # full, then empty

    def _stage(self, panel: Word) -> tuple[Word, Word]:
        """Return the stage of a panel, and the parity of its phase."""
        stages = self.it.config.stages
        return panel % stages, (panel // stages) & 1

    def _full(self, stage: Word) -> Word:
        return self.barriers + stage * 8

    def _empty(self, stage: Word) -> Word:
        return self.barriers + (stage + self.it.config.stages) * 8

    def init(self) -> None:
        """Initialise the barriers, in one lane, before a barrier of the block."""
        with mosaic.when(lane.both(self.at.warp.equals(0), self.at.lane.equals(0))):
            for stage in range(self.it.config.stages):
                lane.barrier_init(self._full(Word(stage)), 1)
                lane.barrier_init(self._empty(Word(stage)), self.it.warps)
            lane.barrier_fence()

    def start(self) -> None:
        """Begin to fill all stages."""
        for panel in range(self.it.config.stages):
            self._copy(Word(panel))

    def _copy(self, panel: Word) -> None:
        """Copy this warp's rows of a panel; the copies of a warp are issued one by one."""
        it, at = self.it, self.at
        stage, _ = self._stage(panel)
        row_bytes = it.plan.chunk * 2
        begin = panel * (it.config.panel * it.config.slices)
        end = (begin + it.config.panel * it.config.slices).minimum(at.count)
        size = (end - begin.minimum(end)) * row_bytes
        # Bytes of other warps may arrive before they are expected: the phase ends after both.
        with mosaic.when(lane.both(at.warp.equals(0), at.lane.equals(0))):
            lane.barrier_expect(self._full(stage), size * it.rows)
        source = lane.advanced(self.x, (at.first + begin) * row_bytes)
        for start in range(0, it.rows, 32 * it.warps):
            row = at.lane * it.warps + at.warp + start
            wanted = lane.both(row.below(it.rows), Word(0).below(size))
            target = self.panels + stage * it.stage_bytes + row * it.stride
            here = lane.advanced(source, row, 2 * it.k)
            lane.bulk_copy(target, here, size, self._full(stage), wanted)

    def enter(self, panel: Word) -> Word:
        """Wait for a panel and return its address; the warp has done with the panel before."""
        it = self.it
        if it.recycles:
            with mosaic.when(Word(0).below(panel)):
                lane.reads_fence()  # or the copy engine may overtake reads that are under way
                lane.warp_sync()
                with mosaic.when(self.at.lane.equals(0)):
                    lane.barrier_arrive(self._empty(self._stage(panel - 1)[0]))
            self._refill(panel)
        stage, parity = self._stage(panel)
        lane.barrier_wait(self._full(stage), parity)
        return self.panels + stage * it.stage_bytes

    def _refill(self, panel: Word) -> None:
        """Fill the stage of a panel that was left a while ago."""
        it = self.it
        old = panel - it.lag
        due = lane.both(Word(it.lag - 1).below(panel), (old + it.config.stages).below(it.panels))
        with mosaic.when(due):
            stage, parity = self._stage(old)
            lane.barrier_wait(self._empty(stage), parity)
            self._copy(old + it.config.stages)
