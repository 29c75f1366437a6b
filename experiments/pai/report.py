"""The section of the page on pruning before training."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.runner import claims, page
from experiments.runner.api import Claim, Result, Results
from experiments.runner.statistics import Difference, difference, sample

NAMES = {"random": "random, ERK", "snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow"}
SYNFLOW = "Tanaka et al., arXiv:2006.05467"
RANDOM = "Liu et al., arXiv:2202.02643"

SETTING = """\
Eight convolutions of widths {widths} in pairs, with batch normalisation, and a dense layer; AdamW,
{epochs} epochs. SNIP and GraSP look once at {images:,} training images, SynFlow takes {rounds}
rounds and no data; these rank all layers together. A layer is lost if none of its weights is live:
the network is then constant, at 10%. Test accuracy in %, and the number of layers lost, of 9, as a
mean over seeds where it is not 0:
"""


def section(results: Results) -> str:
    """Write the section."""
    settings = dict(next(iter(results.values())).settings)
    settings["widths"] = ", ".join(map(str, settings["widths"]))
    settings["images"] = settings["score_batches"] * settings["score_batch_size"]
    parts = [SETTING.format(**settings), _table(results)]
    if "dense" in results:
        parts.append(f"Dense: {sample(results['dense'].values['accuracy']).shown()}.\n")
    parts += [page.image("pai-accuracy", "Test accuracy and layers lost by density")]
    return "\n".join([*parts, page.claims(_claims(results))])


def by_method(results: Results) -> dict[str, dict[float, Result]]:
    """Return the results by method and sparsity, in rising order."""
    found: dict[str, dict[float, Result]] = {method: {} for method in NAMES}
    for result in sorted(results.values(), key=lambda r: r.settings["sparsity"]):
        if result.settings["method"] in found:
            found[result.settings["method"]][result.settings["sparsity"]] = result
    return found


def _table(results: Results) -> str:
    grouped = by_method(results)
    levels = sorted({level for rows in grouped.values() for level in rows})
    rows = [
        [f"{100 * level:g}%", *(_cell(grouped[method].get(level)) for method in NAMES)]
        for level in levels
    ]
    return page.table(["sparsity", *NAMES.values()], rows)


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    lost = sample(result.values["layers_lost"]).mean
    note = f" ({lost:.1f} lost)" if lost else ""
    return sample(result.values["accuracy"]).shown() + note


def _claims(results: Results) -> list[Claim]:
    grouped = by_method(results)
    lost = {method: _loses(rows) for method, rows in grouped.items()}
    told = "; ".join(f"{NAMES[method]} {_told(levels)}" for method, levels in lost.items())
    collapse = "SynFlow avoids the layer collapse that SNIP shows"
    made = [Claim(collapse, SYNFLOW, told, _collapse(lost["snip"], lost["synflow"]))]
    where = [level for level in lost["snip"] if level not in lost["synflow"]]
    found = _differences(grouped, "snip", "synflow", where)
    better = "Where SNIP loses a layer, SynFlow is better"
    made.append(Claim(better, SYNFLOW, claims.shown(found), claims.is_better(found)))
    high = [level for level in grouped["synflow"] if level >= 0.98]
    found = _differences(grouped, "grasp", "synflow", high)
    better = "At 98% and above SynFlow is better than GraSP"
    made.append(Claim(better, SYNFLOW, claims.shown(found), claims.is_better(found)))
    low = [level for level in grouped["random"] if level <= 0.9]
    found = _differences(grouped, "snip", "random", low)
    random = "Up to 90%, random masks are no worse than SNIP"
    made.append(Claim(random, RANDOM, claims.shown(found), claims.is_no_worse(found)))
    return made


def _loses(rows: Mapping[float, Result]) -> list[float]:
    """Return the sparsities at which a layer is lost in any seed."""
    return [level for level, result in rows.items() if any(result.values["layers_lost"])]


def _told(levels: list[float]) -> str:
    if not levels:
        return "loses none"
    return "loses layers at " + ", ".join(f"{100 * level:g}%" for level in levels)


def _collapse(snip: list[float], synflow: list[float]) -> str:
    if synflow:
        return "not reproduced: SynFlow loses layers too" if snip else "not reproduced"
    return "reproduced" if snip else "not reproduced: SNIP loses no layer either"


def _differences(
    grouped: Mapping[str, Mapping[float, Result]], low: str, high: str, levels: list[float]
) -> dict[str, Difference]:
    return {
        f"{100 * level:g}%": difference(
            *(grouped[method][level].values["accuracy"] for method in (low, high))
        )
        for level in levels
        if level in grouped[low] and level in grouped[high]
    }


def figures(results: Results) -> Mapping[str, Figure]:
    """Draw accuracy and lost layers by density."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, rows in by_method(results).items():
        if not rows:
            continue
        densities = [100 * (1 - level) for level in rows]
        found = [sample(result.values["accuracy"]) for result in rows.values()]
        means, sds = ([100 * s[i] for s in found] for i in (0, 1))
        left.errorbar(densities, means, sds, marker="o", ms=3, capsize=2, label=NAMES[method])
        lost = [np.mean(result.values["layers_lost"]) for result in rows.values()]
        right.plot(densities, lost, marker="o", ms=3, label=NAMES[method])
    left.set(ylabel="test accuracy (%)")
    right.set(ylabel="layers lost, of 9")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="density (%)")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, fontsize=7)
    return {"accuracy": figure}
