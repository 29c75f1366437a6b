"""Write docs/collectives.md: what every transform adds to what a step moves between devices.

python -m tests.transforms.common.collectives
"""

import collections
import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import hlo
from tests.members import TRANSFORMS, TransformRow
from tests.transforms.common import placements
from tests.transforms.common.placements import LAYERS, PLACEMENTS, SHAPES, Placement

PAGE = Path(__file__).parents[3] / "docs" / "collectives.md"
REFUSED = "top_kast ranks all weights of a layer"

_HIDDEN, _OUT = (" × ".join(map(str, SHAPES[name])) for name in ("hidden", "out"))
HEAD = f"""\
# What moves between devices

For each transform and each way to place a model: the collectives of a compiled training step beyond
those of the bare optimizer's step, and the bytes of the largest. All are all-reduces of counts: a
search needs those of five thresholds, for every layer, in each of its passes, and health those of
weights that came back. No weight, mask or score is moved. Where every device holds whole weights,
or a method looks at groups that no device shares, nothing is.

The model has two weights, {_HIDDEN} and {_OUT} in float32, on eight virtual
devices; *scanned layers* are {LAYERS} such blocks whose weights are stacked. Axes are
automatic, except where the table says explicit. Under `shard_map` it is the optimizer's step
alone, which is given gradients; there `top_kast` refuses weights that are split. The first line is
what the bare step moves itself.
"""


def version() -> str:
    """Return the line that says how the page was made."""
    return f"`python -m tests.transforms.common.collectives` (jax {jax.__version__})."


@functools.cache
def moved(row: TransformRow | None, placement: Placement) -> collections.Counter[hlo.Operation]:
    """Count the collectives of a row's step, or of the bare optimizer's."""
    return collections.Counter(hlo.collectives(placements.step(row, placement)))


def added(row: TransformRow, placement: Placement) -> collections.Counter[hlo.Operation]:
    """Count the collectives that a row's step has beyond the bare one's."""
    return moved(row, placement) - moved(None, placement)


def page() -> str:
    """Return the text of the page."""
    header = ["transform", *(placement.name for placement in PLACEMENTS)]
    bare = ["bare", *(_shown(moved(None, placement)) for placement in PLACEMENTS)]
    rows = [[f"`{row.name}`", *(_cell(row, place) for place in PLACEMENTS)] for row in TRANSFORMS]
    aligned = ["---", *("---:" for _ in PLACEMENTS)]
    return "\n".join([HEAD, version(), "", *map(_line, [header, aligned, bare, *rows])]) + "\n"


def _cell(row: TransformRow, placement: Placement) -> str:
    try:
        return _shown(added(row, placement))
    except ValueError as error:
        if REFUSED not in str(error):
            raise
        return "refused"


def _shown(operations: collections.Counter[hlo.Operation]) -> str:
    if not operations:
        return "none"
    largest = max(operation.bytes for operation in operations)
    size = f"{largest} B" if largest < 1024 else f"{largest // 1024} KiB"
    return f"{operations.total()}, {size}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compile all steps and write the page."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
