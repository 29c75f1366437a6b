"""The picture of the schedule page: the four ramps, and the steps at which masks change."""

from pathlib import Path

from matplotlib import pyplot as plt

from docs.figures import style
from jaxprune import schedules

BEGIN, END, EVERY, FINAL, STEPS = 100, 900, 150, 0.9, 1_000
RAMPS = {
    "cubic": schedules.cubic(0.0, FINAL, begin=BEGIN, end=END),
    "polynomial, power=6": schedules.polynomial(0.0, FINAL, begin=BEGIN, end=END, power=6.0),
    "cosine": schedules.cosine(0.0, FINAL, begin=BEGIN, end=END),
    "linear": schedules.linear(0.0, FINAL, begin=BEGIN, end=END),
}
COLOURS = (style.TEAL, style.INK, style.AMBER, style.GREY)
LABELS = {  # where each name is written
    "cubic": (285, 0.41),
    "polynomial, power=6": (190, 0.93),
    "cosine": (580, 0.73),
    "linear": (525, 0.40),
}


def draw(file: Path) -> None:
    """Draw the picture."""
    figure, axes = plt.subplots(figsize=(7.2, 2.7), layout="constrained")
    changes = [*range(BEGIN, END, EVERY), END]
    for (name, ramp), colour in zip(RAMPS.items(), COLOURS, strict=True):
        axes.plot([ramp.at(step) for step in range(STEPS + 1)], color=colour, linewidth=1.6)
        axes.plot(changes, [ramp.at(step) for step in changes], "o", color=colour, markersize=4)
        axes.annotate(name, LABELS[name], color=colour, size=8.5)
    axes.set(xlim=(0, STEPS), ylim=(-0.03, 1.0), xlabel="step", ylabel="sparsity")
    axes.set_xticks([0, BEGIN, END, STEPS], ["0", f"begin={BEGIN}", f"end={END}", f"{STEPS:,}"])
    axes.set_yticks([0.0, 0.3, 0.6, FINAL])
    axes.grid(axis="y", color=style.FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(file)
