"""The command on the pretrained SmolLM2-135M.

Few windows, so figures are not those of a table; but the order of the methods is, by a wide margin.
"""

from pathlib import Path

import numpy as np
import pytest

from jaxprune.cli import main
from tests.cli import small
from tests.models.real import TEXT, weights_probe


@pytest.mark.slow  # prunes 30 blocks twice: minutes of matrix products
@pytest.mark.real.with_args(weights_probe)  # a mark called with one function decorates it
def test_wanda_loses_less_than_magnitude(tmp_path: Path):
    with np.load(TEXT) as stored:
        windows = stored["windows"].astype(np.int32)
    file = tmp_path / "tokens.npz"
    np.savez(file, calib=windows[4:, :256], eval=windows[:1])
    found = {}
    for method in ("magnitude", "wanda"):
        out = tmp_path / method
        words = ["llm", "--method", method, "--calibration", str(file), "--eval", str(file)]
        assert main([*words, "--out", str(out)]) == 0
        found[method] = small.report(out)["perplexity"]
        assert len(small.tensors(out, "masks.safetensors")) == 210
    assert found["wanda"]["dense"] == pytest.approx(34.603622, rel=1e-4)
    assert 40 < found["wanda"]["pruned"] < found["magnitude"]["pruned"] / 2
