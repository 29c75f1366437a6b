"""Write docs/benchmarks.md from the measured files.

python -m experiments.benchmarks.report
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import (
    calibration,
    decoding,
    kernels,
    overhead,
    selection,
    sharded,
    sharded_selection,
    sparse_training,
    sustained,
    timing,
)

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
Section = dict[str, Any]

HEAD = """\
# Benchmarks

Measured, not asserted: no test looks at a clock. Times are medians of many samples, the cases of a
table interleaved; the files that they come from are in `experiments/benchmarks/results`, and
`python -m experiments.benchmarks.report` writes this page from them. Every table shows ratios to
what a run does anyway. The commands also run on your machine and add its file.
"""

SELECTION = """\
## Exact selection

`jaxprune.top_k_mask` keeps exactly a tenth of the scores. `in reads` is its time over that of
`jnp.sum`, one read of the scores; the other ratios say how much longer `jnp.sort` and `lax.top_k`
take. Neither of them gives a mask yet, and both gather an array that is split over devices.
Every mask was compared with numpy's. The CPU table was measured on a machine busy with other work,
so its times are too long; its ratios are of one run.
"""

OVERHEAD = """\
## A wrapped optimizer

A Flax decoder trained with `optax.adamw`, bare and wrapped at sparsity 0.9, uniform over layers.
`step` is a whole training step, `alone` the optimizer and `apply_updates`. Rows named `update`
change masks in every step (the mean of two where a method does two things in turns: GraNet prunes
and regenerates, AC/DC prunes and restores); a training run does that every so many steps, and
otherwise pays what the row above says: `every 100 steps` is the mean over a hundred steps, one of
which changes masks, to the bare step. Rows without an `update` have one kind of step. Steps run
back to back. N:M rows are 2:4. Bytes are per prunable weight, beyond what the bare optimizer has:
in its state, and in the temporaries of the compiled step.
"""

SHARDED = """\
## Sharded over devices

A Llama-shaped decoder whose weights, moments and masks are split over all devices by FSDP, and the
batch with them: float32 weights and Adam moments, bfloat16 products, layers scanned and computed
again in the backward pass. Each layer has a budget and a ranking of its own; the kernels of the
blocks are prunable, to 80%, or to 2:4 by `mdgf_exponential`. `step` changes no masks, `update`
does; both are the same program, with `every=100`, and each is compared with bare steps taken
between. An update also does what the step after it would: it looks whether pruned weights came
back. `every 100 steps` is the mean over a hundred steps, one of them an update, to the bare step.
`memory` is the compiler's, arguments and temporaries of one device; `peak` the most that a device
had in use while the program ran alone, a dash where that is not known. *Collectives* are those
beyond the bare step's, of the selection all, with the bytes of the largest.

Below, `jaxprune.global_top_k_mask` keeps exactly a tenth of the scores of all prunable weights
together, against `jnp.sum` of all of them. Every mask was checked: counts of each layer, zeros and
groups after training; of the selection its count, and that no score left out is above one kept.
"""

CALIBRATION = """\
## Calibration

Wanda and SparseGPT beside the same algorithms written plainly in torch, in one process, on the same
weights, tokens and batches; both prune in float32. Each cell is ours / torch's. `prune` is what the
method does once its statistics are gathered; `torch / ours` gives that and the whole. `equal masks`
is the share of weights on which both agree, `error` the squared error of the layers' outputs over
their squares. `TF32` says of which type the products of the forward pass are.
"""

KERNELS = """\
## Products with compressed weights

Dense is XLA's product with an ordinary weight that has the same zeros. `fastest` is the fastest
implementation that is right, with its settings if they are not the default; `error` is relative, in
the norm, to sums in float32. `roofline` is the share of what the device allows: of a copy's
bandwidth, or of the operations of a large dense product, on what is stored. `its roofline` is the
same of the dense product. That of a large one is below 100% because the rate was measured in short
turns with a copy: under products alone an H200 reaches its limit of 700 W within half a second and
lowers its clock from 1980 MHz ([below](#large-products-for-longer)). Products of up to 256 rows go
round as many weights as no cache holds. Sizes are rows of x, inputs and outputs; blocks are pruned
without a balance.
"""

PEERS = """
torch's peers are the fastest of cuSPARSELt as torch calls it and with its algorithm searched for,
or of its kernels for block rows, beside torch's own dense product: `{command}` (torch {torch}).
"""

SUSTAINED = """\
## Large products for longer

A device that draws more power than it may lowers its clock, and products take longer than in a
short benchmark. Samples of a few runs, after a second of rest: the fastest, the median of the first
tenth, and that of the second half; the lowest clock and the largest power while they were taken.
"""

MODELS = """\
## Whole models on compressed weights

`jaxprune.execute` runs the same function on packed weights, in the process that runs it dense. In
bfloat16 random weights make logits that lie close together, and tokens part where two of them are
rounded apart; in float32 packed weights give the tokens of dense ones.
"""


def page(results: Sequence[dict[str, Section]]) -> str:
    """Return the page's text."""
    parts = [HEAD, SELECTION, *_tables(results, "selection", _selection), OVERHEAD]
    parts += _tables(results, "overhead", _overhead)
    if any("sharded" in result for result in results):
        parts += [SHARDED, *_tables(results, "sharded", _sharded)]
    parts += [CALIBRATION, *_tables(results, "calibration", _calibration)]
    if any("kernels" in result for result in results):
        parts += [KERNELS, *(text for result in results for text in _kernels(result))]
    if any("sustained" in result for result in results):
        parts += [SUSTAINED, *_tables(results, "sustained", _sustained)]
    wholes = {"decoding": decoding.table, "sparse_training": sparse_training.table}
    if any(name in result for result in results for name in wholes):
        parts.append(MODELS)
        for name, table in wholes.items():
            parts += _tables(results, name, lambda s, t=table: _whole(s, t))
    return "\n".join(parts)


def load(folder: Path = timing.RESULTS) -> list[dict[str, Section]]:
    """Read the measured files, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _tables(
    results: Sequence[dict[str, Section]], name: str, body: Callable[[Section], str]
) -> Iterator[str]:
    for result in results:
        if section := result.get(name):
            parts = [
                f"{'Of another run: ' if i else ''}`{run['command']}` "
                f"(jax {run['jax']}, Python {run['python']}).\n\n{body(run)}"
                for i, run in enumerate(timing.split(section))
            ]
            yield "\n".join([f"### {section['device']}\n", *parts])


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    aligned = ["---" if i == 0 else "---:" for i in range(len(header))]
    lines = [f"| {' | '.join(line)} |" for line in (header, aligned, *cells)]
    return "\n".join(lines) + "\n"


def _selection(section: Section) -> str:
    rows = section["rows"]
    masks, wrong = selection.checked(rows, section["hard"])
    ways = {row["kernel"] for row in rows}
    used = {(True,): "a Pallas kernel counts", (False,): "by search, without a kernel"}
    checked = f"{masks} masks compared, {wrong} wrong"
    notes = [f"{used.get(tuple(ways), 'the kernel counts where it serves')}; {checked}."]
    for other, name in (("sort", "jnp.sort"), ("top_k", "lax.top_k")):
        slower = [_named(r) for r in rows if r[other] is not None and r[other] < r["select"]]
        if slower:
            notes.append(f"**Slower than `{name}`** for {', '.join(slower)}.")
    notes = [note[0].upper() + note[1:] for note in notes]
    return _markdown(*selection.table(rows)) + "\n" + " ".join(notes) + "\n"


def _named(row: Section) -> str:
    return f"{selection.power(row['n'])} {row['dtype']} ({row['input']})"


def _overhead(section: Section) -> str:
    what = section["what"][0].upper() + section["what"][1:]
    return f"{what}.\n\n{_markdown(*overhead.table(section['rows']))}"


def _sharded(section: Section) -> str:
    billions = f"{section['weights'] / 1e9:.2f} billion weights"
    prunable, devices = section["prunable"], section["devices"]
    several = f"{devices} devices" if devices > 1 else "one device"
    shared = f"{billions}, {prunable / 1e9:.2f} prunable, on {several}"
    tokens = f"{section['sequences']} x {section['length']} tokens a device"
    rows = section["rows"] + section["selection"]
    wrong = sum(row["wrong"] > 0 for row in rows)
    checked = f"{sum(row['name'] != 'bare' for row in rows)} programs checked, {wrong} wrong"
    parts = [f"{shared}; {tokens}; {checked}.\n"]
    if section["rows"]:
        parts.append(_markdown(*sharded.table(section["rows"], prunable / devices)))
    if section["selection"]:
        parts.append(_markdown(*sharded_selection.table(section["selection"])))
    return "\n".join(parts)


def _calibration(section: Section) -> str:
    tables = {"block": calibration.block_table, "smollm2": calibration.smollm2_table}
    names = {"block": "One block of Llama-7B's shape", "smollm2": "SmolLM2-135M"}
    return "\n".join(
        f"{names[part]}, `{section[part]['command']}`: {section[part]['what']}.\n\n"
        f"{_markdown(*table(section[part]['rows']))}"
        for part, table in tables.items()
        if part in section
    )


def _sustained(section: Section) -> str:
    side = section["side"]
    return f"{side} x {side} x {side}.\n\n{_markdown(*sustained.table(section['rows']))}"


def _kernels(result: dict[str, Section]) -> Iterator[str]:
    torch = result.get("kernels_torch", {"rows": []})
    peers = torch["rows"]

    def body(section: Section) -> str:
        top = section["ceilings"]
        rates = f"{top['bytes'] / 1e9:.0f} GB/s in a copy, {top['flops'] / 1e12:.3g} TFLOP/s dense"
        table = _markdown(*kernels.table(section["products"], peers))
        missed = (
            f"\n{section['missed']} more products were not reached.\n" if section["missed"] else ""
        )
        beside = PEERS.format(command=torch["command"], torch=peers[0]["torch"]) if peers else ""
        return f"{rates}.\n\n{table}{missed}{beside}"

    return _tables([result], "kernels", body)


def _whole(section: Section, table: Callable[[Sequence[Section]], Any]) -> str:
    model = section["model"]
    shape = f"{model['num_hidden_layers']} layers of {model['hidden_size']}"
    wide = f"{model['intermediate_size']} in the feed-forward layer"
    return f"{shape}, {wide}.\n\n{_markdown(*table(section['rows']))}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(load()))


if __name__ == "__main__":
    main()
