"""The section of the page on dynamic sparse training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.runner import claims, page
from experiments.runner.api import Claim, Results
from experiments.runner.statistics import Difference, difference, sample

LEVELS = ("90", "95", "98")
NAMES = {
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "rigl-mean": "RigL, `mean_of_live`",
    "granet": "GraNet, from 50%",
    "gradual": "gradual",
    "dense": "dense",
}
LONGER = "-x5"

SETTING = """\
The CNN of the quickstart (410,000 weights), AdamW, layers at ERK densities. Masks change every 100
steps: SET, RigL and GraNet until 75% of training, a first share of 30% with a cosine (GraNet: 50%);
GraNet prunes from 50% in the first half, gradual pruning between 20% and 70%. Each seed has its own
first masks, weights and order of the data. Moments of grown weights are fresh unless it says so.
All sparse methods but GraNet and gradual pruning are sparse from the first step on. Test accuracy
in %:
"""

LONG_SETTING = """\
With training 5 times longer, every part of the schedule with it:
"""

MOMENTS = """\
### Moments of grown weights

`rigl` with `moments=fresh`, the published rule, against `mean_of_live`, by which a grown weight's
second moment is the mean of the live ones. Differences are `mean_of_live` minus `fresh`; a better
rule has a higher accuracy and a lower training loss.
"""

Pair = tuple[str, str, Sequence[str]]


def section(results: Results) -> str:
    """Write the section."""
    parts = [SETTING, _accuracies(results, "")]
    if any(name.endswith(LONGER) for name in results):
        parts += [LONG_SETTING, _accuracies(results, LONGER)]
    parts += [page.image("dst-accuracy", "Test accuracy of each method by sparsity and by epoch")]
    parts += [page.claims(_claims(results)), MOMENTS, _moments(results)]
    return "\n".join(parts)


def _accuracies(results: Results, suffix: str) -> str:
    rows = []
    for method, shown in NAMES.items():
        keys = [f"{method}{'' if method == 'dense' else f'-{s}'}{suffix}" for s in LEVELS]
        if any(key in results for key in keys):
            rows.append([shown, *(_accuracy(results, key) for key in keys)])
    return page.table(["method", *(f"{level}%" for level in LEVELS)], rows)


def _accuracy(results: Results, key: str) -> str:
    return sample(results[key].values["accuracy"]).shown() if key in results else "-"


def _compared(
    results: Results, pairs: Mapping[str, tuple[str, str]], name: str = "accuracy"
) -> dict[str, Difference]:
    """Return the second minus the first of each pair whose cells were run."""
    return {
        label: difference(*(results[key].values[name] for key in pair))
        for label, pair in pairs.items()
        if all(key in results for key in pair)
    }


def _by_level(low: str, high: str, longer: bool = True) -> dict[str, tuple[str, str]]:
    """Pair the cells of two methods at every sparsity, and with longer training."""
    pairs = {}
    for suffix, times in (("", ""), (LONGER, " 5x")) if longer else (("", ""),):
        for s in LEVELS:
            keys = (f"{m}{suffix}" if m == "dense" else f"{m}-{s}{suffix}" for m in (low, high))
            low_key, high_key = keys
            pairs[f"{s}%{times}"] = (low_key, high_key)
    return pairs


def _claims(results: Results) -> list[Claim]:
    rigl, granet = "Evci et al., arXiv:1911.11134", "Liu et al., arXiv:2106.10404"
    better = [
        ("SET is better than static masks", "Mocanu et al., arXiv:1707.04780", "static", "set"),
        ("RigL is better than SET", rigl, "set", "rigl"),
        ("RigL is better than static masks", rigl, "static", "rigl"),
    ]
    no_worse = [
        ("GraNet is no worse than RigL", granet, "rigl", "granet"),
        ("GraNet is no worse than gradual pruning", granet, "gradual", "granet"),
        ("Gradual pruning is no worse than RigL at equal length", rigl, "rigl", "gradual"),
        ("No sparse method is better than dense training: GraNet", granet, "granet", "dense"),
    ]
    made = []
    for judge, rows in ((claims.is_better, better), (claims.is_no_worse, no_worse)):
        for published, source, low, high in rows:
            found = _compared(results, _by_level(low, high))
            made.append(Claim(published, source, claims.shown(found), judge(found)))
    pairs = {f"{s}%": (f"gradual-{s}", f"rigl-{s}{LONGER}") for s in LEVELS}
    found = _compared(results, pairs)
    published = "RigL that trains 5 times longer is no worse than gradual pruning"
    made.append(Claim(published, rigl, claims.shown(found), claims.is_no_worse(found)))
    return made


def _moments(results: Results) -> str:
    pairs = _by_level("rigl", "rigl-mean", longer=False)
    accuracy = _compared(results, pairs)
    loss = _compared(results, pairs, "train_loss")
    rows = [[label, accuracy[label].shown(), loss[label].shown(1, 4)] for label in accuracy]
    verdict = _moments_verdict(list(accuracy.values()))
    table = page.table(["sparsity", "accuracy, points", "training loss"], rows)
    return f"{table}\nOn accuracy: **{verdict}**.\n"


def _moments_verdict(found: Sequence[Difference]) -> str:
    above, below = sum(d.above for d in found), sum(d.below for d in found)
    if not found:
        return "not run"
    if above and not below:
        return f"`mean_of_live` is better at {above} of {len(found)} sparsities, nowhere worse"
    if below and not above:
        return f"`fresh` is better at {below} of {len(found)} sparsities, nowhere worse"
    return "the two are within noise" if not above else "neither is better throughout"


def figures(results: Results) -> Mapping[str, Figure]:
    """Draw accuracy by sparsity, and by epoch at the highest one."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, shown in NAMES.items():
        keys = [f"{method}-{level}" for level in LEVELS if f"{method}-{level}" in results]
        if keys:
            found = [sample(results[key].values["accuracy"]) for key in keys]
            levels = [100 * results[key].settings["sparsity"] for key in keys]
            means, sds = ([100 * s[i] for s in found] for i in (0, 1))
            left.errorbar(levels, means, sds, marker="o", ms=3, capsize=2, label=shown.strip("`"))
        last = method if method == "dense" else f"{method}-{LEVELS[-1]}"
        if last in results:
            curve = 100 * np.mean(results[last].values["history"]["accuracy"], axis=0)
            label = shown if method == "dense" else None
            style = {"color": "0.4", "ls": "--"} if method == "dense" else {}
            right.plot(np.arange(1, curve.size + 1), curve, label=label, **style)
    left.set(xlabel="sparsity (%)", ylabel="test accuracy (%)")
    right.set(xlabel=f"epoch, at {LEVELS[-1]}% sparsity")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    return {"accuracy": figure}
