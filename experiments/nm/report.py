"""The section of the page on N:M training."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.runner import claims, page
from experiments.runner.api import Claim, Results
from experiments.runner.statistics import Difference, difference, sample

NAMES = {
    "ste": "STE",
    "sr-ste": "SR-STE",
    "mdgf-linear": "MdGf-Linear",
    "mdgf-exponential": "MdGf-Exponential",
    "sdgf-stepwise": "SdGf-Stepwise",
    "sdgf-geometric": "SdGf-Geometric",
}
PROGRESSIVE = [name for name in NAMES if name[:4] in ("mdgf", "sdgf")]
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
HIGH = PATTERNS[2:]  # above 80%, where the claim is made
SPARSITY = {"2:4": 50.0, "1:4": 75.0, "1:8": 87.5, "1:16": 93.75}


class Measure(NamedTuple):
    """What a model is judged by."""

    name: str  # in values
    about: str
    scale: float  # of what is shown
    digits: int
    better: int  # 1 if more is better, -1 if less is


MODELS = {
    "vit": Measure("accuracy", "test accuracy, %", 100.0, 2, 1),
    "lm": Measure("bits", "bits per character", 1.0, 3, -1),
}
TITLES = {"vit": "Vision transformer", "lm": "Decoder"}

SETTING = """\
Two transformers of {depth} blocks of width {width}: one on patches of 4 x 4 pixels of Fashion-MNIST
(test accuracy), and one on characters of five novels of Jane Austen, in windows of {length} (bits
per character of the sixth, *Persuasion*). N:M applies to all kernels of the blocks, not to
embedding and head. All cells of a model take the same {steps:,} steps of AdamW with the same
warm-up, cosine, first weights and order of the data; what is evaluated is the exported model, whose
masks are hard. Progressive gradient flow is dense for the first 5% of the steps and plain N:M for
the last 20%; over the steps between, MdGf-Linear fades to 0 and MdGf-Exponential to exp(-10).
SR-STE has its published decay of 2e-4.
"""

RATES = """\
Learning rates were tried on dense training alone. The sparse cells take the one in bold, which was
the best of training for 2,400 steps; at this length the next one is better by a little:
"""

READING = """\
The training is short, a few passes over the data, and that weighs on the progressive methods more
than on STE and SR-STE: four fifths of their steps go by before the final pattern is alone in force.
MdGf-Exponential, which keeps the final masks from its first step and lets the rest fade fast, is
the only one of the four above SR-STE, and only on the vision transformer. The published gains are
of longer training, and of fine-tuning; whether length is the reason was not tried.
"""


def section(results: Results) -> str:
    """Write the section."""
    parts = [SETTING.format(**_settings(results)), RATES, _rates(results)]
    parts += [
        f"{TITLES[model]}, {MODELS[model].about}:\n\n{_table(model, results)}" for model in MODELS
    ]
    parts += [page.image("nm-sparsity", "Quality of each method by pattern"), _claims(results)]
    parts += [READING]
    return "\n".join(parts)


def _settings(results: Results) -> dict[str, int]:
    """Return what all cells share; the length of a window is that of the decoder."""
    settings = [result.settings for result in results.values()]
    return {**settings[0], "length": max(each["length"] for each in settings)}


def _rates(results: Results) -> str:
    rows = []
    for model, measure in MODELS.items():
        used = {
            r.settings["learning_rate"] for r in results.values() if _is_sparse(r.settings, model)
        }
        row = []
        for rate, values in sorted(_dense(model, results).items()):
            row.append(f"{_bold(f'{rate:g}', rate in used)}: {_shown(measure, values)}")
        rows.append([TITLES[model], "; ".join(row) or "-"])
    return page.table(["model", "learning rate: result of dense training"], rows)


def _is_sparse(settings: Mapping[str, object], model: str) -> bool:
    return settings["model"] == model and settings["method"] is not None


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _dense(model: str, results: Results) -> dict[float, list[float]]:
    """Return what dense training came to at each learning rate."""
    found = [r for r in results.values() if r.settings["model"] == model]
    name = MODELS[model].name
    dense = [r for r in found if r.settings["method"] is None]
    return {r.settings["learning_rate"]: r.values[name] for r in dense}


def values_of(model: str, method: str, pattern: str, results: Results) -> list[float] | None:
    """Return what a cell came to for each seed, or None if it was not run."""
    result = results.get(f"{model}-{method}-{pattern.replace(':', '-')}")
    return None if result is None else result.values[MODELS[model].name]


def _shown(measure: Measure, values: list[float] | None) -> str:
    return "-" if values is None else sample(values).shown(measure.scale, measure.digits)


def _table(model: str, results: Results) -> str:
    measure = MODELS[model]
    rows = []
    for method, shown in NAMES.items():
        found = [values_of(model, method, pattern, results) for pattern in PATTERNS]
        if any(values is not None for values in found):
            rows.append([shown, *(_shown(measure, values) for values in found)])
    header = [f"{pattern} ({SPARSITY[pattern]:g}%)" for pattern in PATTERNS]
    return page.table(["method", *header], rows)


def gains(
    base: str, method: str, patterns: tuple[str, ...], results: Results
) -> dict[tuple[str, str], Difference]:
    """Return by how much a method is better than another, by model and pattern."""
    found = {}
    for model, measure in MODELS.items():
        for pattern in patterns:
            pair = [values_of(model, each, pattern, results) for each in (base, method)]
            a, b = pair if measure.better > 0 else pair[::-1]
            if a is not None and b is not None:
                found[model, pattern] = difference(a, b)
    return found


def _claims(results: Results) -> str:
    pgf, sr = "Bambhaniya et al., arXiv:2402.04744", "Zhou et al., arXiv:2102.04010"
    made = []
    for method in PROGRESSIVE:
        published = f"{NAMES[method]} is better than SR-STE above 80% sparsity"
        made.append(_claim(published, pgf, gains("sr-ste", method, HIGH, results)))
    made.append(_claim("SR-STE is better than STE", sr, gains("ste", "sr-ste", PATTERNS, results)))
    note = (
        "\nGains, positive where the claim holds: of the vision transformer in points of accuracy, "
    )
    return page.claims(made) + note + "of the decoder in bits per character.\n"


def _claim(published: str, source: str, found: Mapping[tuple[str, str], Difference]) -> Claim:
    labelled = {f"{_short(model)} {pattern}": each for (model, pattern), each in found.items()}
    measured = []
    for (label, each), (model, _) in zip(labelled.items(), found, strict=True):
        measured.append(f"{label}: {each.shown(MODELS[model].scale, MODELS[model].digits)}")
    return Claim(published, source, "; ".join(measured), claims.is_better(labelled))


def _short(model: str) -> str:
    return {"vit": "ViT", "lm": "decoder"}[model]


def figures(results: Results) -> Mapping[str, Figure]:
    """Draw what each method comes to by sparsity, and dense training as a line."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (model, measure) in zip(figure.subplots(1, 2), MODELS.items(), strict=True):
        for method, shown in NAMES.items():
            found = {p: values_of(model, method, p, results) for p in PATTERNS}
            drawn = {SPARSITY[p]: sample(v) for p, v in found.items() if v is not None}
            means, sds = ([measure.scale * s[i] for s in drawn.values()] for i in (0, 1))
            if drawn:
                axes.errorbar([*drawn], means, sds, marker="o", ms=3, capsize=2, label=shown)
        dense = [measure.scale * np.mean(values) for values in _dense(model, results).values()]
        if dense:
            best = measure.better * max(measure.better * value for value in dense)
            axes.axhline(best, color="0.4", ls="--", label="dense")
        axes.set(title=TITLES[model], xlabel="sparsity (%)", ylabel=measure.about)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    return {"sparsity": figure}
