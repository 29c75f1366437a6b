"""Draw the figures of the docs: `python -m docs.figures`."""

from pathlib import Path

from docs.figures import layers, pipeline, schedules, style

DRAWINGS = {
    "pipeline": pipeline.draw,
    "schedules": schedules.draw,
    "per_layer": layers.draw,
}

style.use()
for name, draw in DRAWINGS.items():
    draw(Path(__file__).with_name(f"{name}.svg"))
