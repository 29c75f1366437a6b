"""The experiment on one-shot pruning of a language model: cells, a tiny run, verdicts."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.llm_oneshot import experiment, report, retraining, text, verdicts
from experiments.llm_oneshot.settings import METHODS, RATES, RECOVERIES, Settings
from experiments.runner import catalogue
from experiments.runner.api import Context, Result
from tests.third_party import lenient

TOKENS = np.random.default_rng(0).integers(0, 49152, 4000).astype(np.uint16)
DATA = {text.NAME: {"train": TOKENS, "test": TOKENS[:1000]}}


def tiny(method: str, pattern: str | None = None, **others: Any) -> Settings:
    return dataclasses.replace(Settings(method, pattern), **experiment.QUICK, **others)


def test_the_catalogue_finds_it() -> None:
    assert catalogue.find("llm_oneshot").seeds == 3


def test_cells_have_names_of_their_own_and_the_first_claims_come_first() -> None:
    cells = experiment.cells(False)
    names = [cell.name for cell in cells]
    assert len({*names}) == len(names) == 1 + 6 * 4 + 4 + 4 * 3 + 4 + 4
    assert names[0] == "dense"
    first = {f"{m}-{p}" for m in ("magnitude", "wanda", "sparsegpt") for p in ("2-4", "50")}
    assert {*names[1:7]} == first
    assert "wanda-2-4-perp-0.002" in names
    assert json.loads(json.dumps(cells[5].settings)) == cells[5].settings


def test_settings_tell_sparsity_and_name() -> None:
    found = {pattern: Settings("wanda", pattern).sparsity for pattern in ("50", "60", "4-8")}
    assert found == {"50": 0.5, "60": 0.6, "4-8": 0.5}
    owl = Settings("wanda", "60", "owl", "perp", RATES["perp"])
    assert owl.name == "owl-wanda-60-perp"
    assert not Settings("magnitude", "2-4").calibrated()
    assert Settings("dense", recovery="perp").calibrated()


def test_entries_are_as_many_as_mask_lora_trains() -> None:
    width, inner, kv, rank, blocks = 576, 1536, 192, 16, 30
    sums = 2 * (width + width) + 2 * (width + kv) + 3 * (width + inner)
    assert Settings("wanda").entries == sums * rank * blocks


def test_windows_are_drawn_by_seed_and_use() -> None:
    context = Context(DATA, (0,))
    kind = {"count": 3, "length": 16, "vocabulary": 49152}
    one, again = (text.drawn(context, 0, use=1, **kind) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert (one != text.drawn(context, 1, use=1, **kind)).any()
    assert (one != text.drawn(context, 0, use=2, **kind)).any()
    assert one.dtype == np.int32
    held_out = text.held_out(context, count=2, length=5, vocabulary=49152)
    np.testing.assert_array_equal(held_out.ravel(), TOKENS[:10])


def test_the_rate_rises_and_falls() -> None:
    rate = retraining.rate_of(Settings("wanda", learning_rate=1.0))
    found = [round(float(rate(jnp.int32(step))), 3) for step in (0, 10, 20, 110, 200)]
    assert found == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_a_pruned_model_is_retrained_at_its_masks() -> None:
    """One cell from end to end; both seeds share all programs."""
    context, told = Context(DATA, (0, 1)), []
    context = context.for_cell(lambda done, total, note: told.append((done, total)))
    settings = tiny("wanda", "2-4", recovery="norms", learning_rate=0.01)
    with lenient():  # optax mixes types
        found = experiment.run(settings, context)
    assert found["sparsity"] == [0.5, 0.5]
    assert found["trained"] == [5 * 16] * 2  # two norms of two blocks, and the last
    assert all(np.isfinite(found["perplexity"]))
    assert found["perplexity"][0] != found["perplexity"][1]
    assert (2, 2) in told
    start = experiment.pruned(settings, context, 0)
    assert {*start.masks} == {path for path in start.masks if path.endswith("_proj/kernel")}
    before = experiment.run(dataclasses.replace(settings, recovery=None), context)
    assert before["perplexity"][0] != found["perplexity"][0]


def test_mirrored_sparsities_are_owls_about_the_same_mean() -> None:
    context = Context(DATA, (0,))
    with lenient():
        owl, mirrored = (
            np.asarray(
                experiment.pruned(tiny("magnitude", "60", allocation=kind), context, 0).shares
            )
            for kind in ("owl", "mirrored")
        )
    np.testing.assert_allclose(owl + mirrored, 1.2, atol=1e-5)
    assert owl[0] != owl[1]


def test_its_import_needs_neither_the_command_line_nor_tfds() -> None:
    absent = "tyro", "tensorflow_datasets", "tokenizers"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from experiments.runner import cli, catalogue\n"
        "print(catalogue.find('llm_oneshot').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "llm_oneshot\n"


def result(name: str, perplexity: float, spread: float = 0.0) -> Result:
    settings = next(c.settings for c in experiment.cells(False) if c.name == name)
    values = [perplexity - spread, perplexity, perplexity + spread]
    kept = {"perplexity": values, "perplexity_first": [46.08] * 3}
    return Result(name, settings, (0, 1, 2), "CPU", "0", "run", kept)


def results(**perplexities: float) -> dict[str, Result]:
    named = {name.replace("_", "-"): value for name, value in perplexities.items()}
    return {name: result(name, value, spread=0.1) for name, value in named.items()}


GOOD = results(
    dense=40.0,
    magnitude_50=400.0,
    magnitude_2_4=4000.0,
    wanda_50=100.0,
    wanda_2_4=400.0,
    sparsegpt_50=80.0,
    sparsegpt_2_4=200.0,
    wanda_60=300.0,
    owl_wanda_60=250.0,
    ecoflap_wanda_60=350.0,
    wanda_2_4_perp=50.0,
    dense_perp=30.0,
)


def test_verdicts_follow_the_figures() -> None:
    found = {claim.published.split(" ")[0]: claim for claim in verdicts.claims_of(GOOD)}
    said = {name: claim.verdict for name, claim in found.items()}
    assert said["Wanda"] == said["SparseGPT"] == said["OWL's"] == said["PERP"] == "reproduced"
    assert said["ECoFLaP's"] == "not reproduced at Wanda"
    assert said["SFT-MA"] == "not run"
    assert found["Wanda"].measured.startswith("50%: +1.386 ± ")  # ln 4
    # ln(400 / 50) of ln(400 / 40), and of ln(400 / 30)
    assert found["PERP"].measured == "2:4: 90% (80%)"


@pytest.mark.parametrize(("after", "verdict"), [(110.0, "not reproduced"), (109.0, "reproduced")])
def test_a_large_part_is_half_of_the_gap_to_the_model_trained_alike(
    after: float, verdict: str
) -> None:
    changed = {**GOOD, "wanda-2-4-perp": result("wanda-2-4-perp", after)}
    share = verdicts.share_of(changed, "2-4", "perp")
    assert share is not None
    assert share[0] > 0.5
    claim = next(c for c in verdicts.claims_of(changed) if c.published.startswith("PERP"))
    assert claim.verdict == verdict


def test_the_section_has_a_row_for_all_that_was_run() -> None:
    other = {"wanda-2-4-perp-0.002": result("wanda-2-4-perp-0.002", 45.0)}
    section = report.section(GOOD | other)
    assert "| dense | 40.00 ± 0.10 | 40.00 ± 0.10 | 40.00 ± 0.10 | 40.00 ± 0.10 |" in section
    assert "| Wanda, OWL allocation | - | 250.0 ± 0.1 | - | - |" in section
    assert "| Wanda, then MaskLoRA and norms (PERP) | - | - | - | 50.00 ± 0.10 |" in section
    assert "RIA |" not in section
    assert "the dense model has 46.08" in section
    assert "(PERP) at 0.0005: 50.00 ± 0.10, 0.002: 45.00" in section
    assert "32,768 tokens" in section


def test_the_section_tells_where_allocations_prune() -> None:
    shares = {"owl": [0.7, 0.6, 0.5], "ecoflap": [0.5, 0.6, 0.7], "mirrored": [0.5, 0.6, 0.7]}
    found = GOOD | results(owl_wanda_60=350.0, mirrored_wanda_60=250.0)
    assert "mirrored" not in report.section(GOOD)
    for kind, blocks in shares.items():
        found[f"{kind}-wanda-60"].values["shares"] = [blocks] * 3
    section = " ".join(report.section(found).split())
    assert "the first and the last 1 blocks by 70% and 50%; ECoFLaP" in section
    assert "asks the loss, by 50% and 70%. The correlation" in section
    assert "over blocks is -1.00." in section
    assert "come to 250.0 ± 0.1, the same sparsity everywhere to 300.0 ± 0.1, and OWL" in section
    better = found | results(owl_wanda_60=240.0)
    better["owl-wanda-60"].values["shares"] = [shares["owl"]] * 3
    assert "outliers do not tell" not in report.section(better)
    assert "| Wanda, mirrored OWL allocation | - | 250.0 ± 0.1 | - | - |" in section


def test_what_draws_nothing_has_no_deviation() -> None:
    assert "| dense | 40.00 |" in report.section({"dense": result("dense", 40.0)})


def test_all_methods_and_recoveries_have_names() -> None:
    assert {*METHODS, *RECOVERIES} <= {*report.NAMES}
