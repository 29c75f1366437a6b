"""Draw the figures of the docs: `python -m docs.figures`."""

from docs.figures import pipeline, schedules, style

style.use()
for name, module in {"pipeline": pipeline, "schedules": schedules}.items():
    print(style.save(module.draw(), name).name)
