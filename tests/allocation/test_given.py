"""Uniform and per layer."""

from typing import Any

import pytest

from jaxprune import allocation

SHAPES = {"a/kernel": (4, 4), "b/kernel": (8, 8), "c/kernel": (2, 2)}


def test_uniform_gives_every_layer_the_same():
    assert allocation.uniform(SHAPES, 0.75) == dict.fromkeys(SHAPES, 0.25)
    assert repr(allocation.uniform) == "uniform"


def test_the_first_rule_that_is_found_wins_and_the_rest_take_the_argument():
    rules = {"^a": 0.25, "[ab]/": 0.5}
    found = allocation.per_layer(rules)(SHAPES, 0.875)
    assert found == {"a/kernel": 0.75, "b/kernel": 0.5, "c/kernel": 0.125}


def test_rules_ramp_with_the_sparsity_they_are_meant_for():
    ramped = allocation.per_layer({"^a": 0.5, "^b": 0.0}, of=0.8)
    assert ramped(SHAPES, 0.4) == pytest.approx(
        {"a/kernel": 0.75, "b/kernel": 1.0, "c/kernel": 0.6}
    )
    assert ramped(SHAPES, 0.8) == pytest.approx({"a/kernel": 0.5, "b/kernel": 1.0, "c/kernel": 0.2})


def test_a_rule_for_no_layer_is_named():
    with pytest.raises(ValueError) as error:
        allocation.per_layer({"kernel": 0.5, "decoder": 0.9})(SHAPES, 0.5)
    assert str(error.value) == (
        "per_layer: the regex 'decoder' is found in none of the paths 'a/kernel', 'b/kernel', "
        "'c/kernel'. Correct it or leave it out."
    )


def test_a_scaled_sparsity_that_reaches_1_is_named():
    with pytest.raises(ValueError) as error:
        allocation.per_layer({"^a": 0.75}, of=0.5)(SHAPES, 0.75)
    assert str(error.value) == (
        "per_layer: at sparsity 0.75, of=0.5 scales the 0.75 of '^a' to 1.125, which must stay "
        "below 1. Set of= to the final sparsity of the schedule."
    )


SHARE = "A sparsity is the share of zeros: 0.9 prunes 90% of the weights."


@pytest.mark.parametrize(
    ("rules", "of", "text"),
    [
        (
            {},
            None,
            "rules must hold at least one {regex: sparsity}, got none. For one sparsity "
            "everywhere, use allocation.uniform.",
        ),
        (
            {"a": 1.0},
            None,
            f"rules['a'] must be a finite number in [0, 1), got 1.0. {SHARE}",
        ),
        (
            {"(": 0.5},
            None,
            "rules: '(' is not a valid regular expression (missing ), unterminated subpattern at "
            "position 0). A rule is {regex: sparsity}; the regex is searched in the path.",
        ),
        (
            {"a": 0.5},
            1.5,
            f"of must be a finite number in [0, 1), got 1.5. {SHARE}",
        ),
        (
            {"a": 0.5},
            0.0,
            "of must be above 0, got 0.0: it is the overall sparsity for which rules are meant. "
            "Set it to the final sparsity of the schedule, or leave it out.",
        ),
    ],
    ids=["no rules", "sparsity", "regex", "of too large", "of 0"],
)
def test_bad_rules_are_refused(rules: Any, of: Any, text: str):
    with pytest.raises(ValueError) as error:
        allocation.per_layer(rules, of=of)
    assert str(error.value) == text


def test_a_rule_must_be_a_number():
    rules: Any = {"a": "0.5"}
    with pytest.raises(TypeError) as error:
        allocation.per_layer(rules)
    assert (
        str(error.value) == f"rules['a'] must be a number in [0, 1), got '0.5' of type str. {SHARE}"
    )
