"""The section of the page on one-shot pruning of a language model."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.llm_oneshot import verdicts
from experiments.llm_oneshot.settings import METHODS, RECOVERIES, Settings
from experiments.runner import page
from experiments.runner.api import Result, Results
from experiments.runner.statistics import Sample, sample

NAMES = {
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "ria": "RIA",
    "sparsegpt": "SparseGPT",
    "gblm": "GBLM-Pruner",
    "admm": "ADMM",
    "perp": "MaskLoRA and norms (PERP)",
    "norms": "norms alone",
    "sft-ag": "SFT-AG",
    "sft-ma": "SFT-MA",
    "owl": "OWL",
    "mirrored": "mirrored OWL",
    "ecoflap": "ECoFLaP",
}
PATTERNS = {"50": "50%", "60": "60%", "4-8": "4:8", "2-4": "2:4"}

SETTING = """\
SmolLM2-135M-Instruct, whose weights come as numbers of 4 bits, in float32; its {blocks}
weights of 30 blocks are pruned, embedding and head are not. Calibration: {calibration_windows}
windows of {length} tokens ({calibration:,} tokens) at random places of five novels of Jane Austen;
a seed draws the windows. Evaluation: the first {test_windows} windows of {length} tokens
({test:,} tokens) of the sixth, *Persuasion*, from its first chapter on, lines joined. Block after
block, on the activations of the pruned blocks before; methods have the options they have by
default: magnitude, RIA and ADMM choose within a matrix, Wanda and GBLM-Pruner within an output,
SparseGPT within 128 inputs. ECoFLaP takes {loss_windows} of the windows for its scores.

Recovery keeps the masks: {steps} steps of {batch_size} windows of the same five novels
({training:,} tokens), with a rate that rises over a tenth of the steps and falls to 0.
MaskLoRA has rank {rank}, and sparse fine-tuning as many numbers as that ({entries:,}).
The dense model trained alike stands beside it, because a model that has read five of these novels
knows the sixth better, pruned or not.

Perplexity, less is better:
"""

MIRROR = """\
Where OWL and ECoFLaP prune: OWL, which spares blocks with many outliers, prunes the first and the
last {third} blocks by {owl}; ECoFLaP, which asks the loss, by {ecoflap}. The correlation of both
over blocks is {same:.2f}. OWL's sparsities mirrored about 60%, so that blocks with many outliers
are pruned most, come to {after}, the same sparsity everywhere to {even}, and OWL
to {before}: outliers do not tell which blocks of this model matter.
"""


def section(results: Results) -> str:
    """Write the section."""
    settings = dict(next(iter(results.values())).settings)
    length = settings["length"]
    facts = {
        "blocks": 210,
        "calibration": settings["calibration_windows"] * length,
        "test": settings["test_windows"] * (length - 1),
        "training": settings["steps"] * settings["batch_size"] * length,
    }
    parts = [SETTING.format(**settings | facts), _table(results)]
    parts += [_first(results), page.claims(verdicts.claims_of(results)), verdicts.NOTE]
    return "\n".join([*parts, *filter(None, [_allocations(results), _other_rates(results)])])


def figures(results: Results) -> Mapping[str, Figure]:
    """Draw nothing: the table says it."""
    del results
    return {}


def _table(results: Results) -> str:
    """Write the rows that have a result: methods, allocations, and recoveries."""
    rows = [["dense", *[_shown(results.get("dense"))] * len(PATTERNS)]]
    rows += [[NAMES[name], *_cells(results, name)] for name in METHODS]
    for allocation in ("owl", "mirrored", "ecoflap"):
        for method in ("wanda", "sparsegpt"):
            label = f"{NAMES[method]}, {NAMES[allocation]} allocation"
            rows.append([label, *_cells(results, f"{allocation}-{method}")])
    for kind in RECOVERIES:
        rows.append([f"Wanda, then {NAMES[kind]}", *_cells(results, "wanda", kind)])
    for kind in RECOVERIES:
        shown = _shown(results.get(f"dense-{kind}"))
        rows.append([f"dense, then {NAMES[kind]}", *[shown] * len(PATTERNS)])
    kept = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return page.table(["perplexity", *PATTERNS.values()], kept)


def _cells(results: Results, method: str, recovery: str | None = None) -> list[str]:
    ending = "" if recovery is None else f"-{recovery}"
    return [_shown(results.get(f"{method}-{pattern}{ending}")) for pattern in PATTERNS]


def _shown(result: Result | None) -> str:
    return "-" if result is None else _digits(sample(result.values["perplexity"]))


def _digits(found: Sample) -> str:
    """Write four digits of a mean, and no deviation where nothing is drawn."""
    digits = max(0, 3 - math.floor(math.log10(found.mean)))
    single = found if found.sd else found._replace(n=1)
    return single.shown(1.0, digits)


def _first(results: Results) -> str:
    """Tie the figures to others of this project, on the beginning of the same text."""
    if "dense" not in results:
        return ""
    found = sample(results["dense"].values["perplexity_first"]).mean
    return f"On the first 4,096 of these tokens alone the dense model has {found:.2f}.\n"


def _allocations(results: Results) -> str:
    """Compare OWL's sparsities of blocks with those that the loss asks for, and with its mirror."""
    names = ("owl-wanda-60", "ecoflap-wanda-60", "mirrored-wanda-60", "wanda-60")
    if not all(name in results for name in names):
        return ""
    published, mirrored = (sample(results[name].values["perplexity"]) for name in names[::2])
    if published.mean <= mirrored.mean:
        return ""  # outliers tell it
    owl, ecoflap = (np.mean(results[name].values["shares"], 0) for name in names[:2])
    third = len(owl) // 3
    ends = [
        f"{100 * s[:third].mean():.0f}% and {100 * s[-third:].mean():.0f}%" for s in (owl, ecoflap)
    ]
    same = np.corrcoef(owl, ecoflap)[0, 1]
    before, _, after, even = (_shown(results[name]) for name in names)
    return MIRROR.format(
        third=third, owl=ends[0], ecoflap=ends[1], same=same, after=after, before=before, even=even
    )


def _other_rates(results: Results) -> str:
    """Tell what other learning rates came to."""
    told = []
    for result in results.values():
        settings = Settings(**result.settings)
        parts = settings.name.split(f"{settings.recovery}-")
        if settings.recovery is not None and len(parts) == 2:
            usual = results.get(parts[0] + settings.recovery)
            pair = f"{settings.learning_rate:g}: {_shown(result)}"
            if usual is not None:
                pair = f"{usual.settings['learning_rate']:g}: {_shown(usual)}, {pair}"
            told.append(f"{NAMES[settings.recovery]} at {pair}")
    return _sentence(told)


def _sentence(told: Sequence[str]) -> str:
    start = "Learning rates were not tuned. Two of them at 2:4: "
    return f"{start}{'; '.join(told)}.\n" if told else ""
