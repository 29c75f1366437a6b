"""Real weights, where they lie already, and a real text as tokens."""

from pathlib import Path

from jaxprune import models

TEXT = Path(__file__).parent / "data" / "persuasion.npz"


def weights_probe() -> str | None:
    """Look where the weights may lie already: a test downloads nothing."""
    try:
        models.fetch_smollm2(download=False)
    except FileNotFoundError as error:
        return str(error)
    return None
