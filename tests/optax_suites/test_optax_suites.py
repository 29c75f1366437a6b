"""At sparsity 0 a wrapped optimizer is the bare one: optax's own tests pass.

The same optimum, dtypes, state types and shardings, extra arguments, injected hyperparameters and
accumulation, for each of optax's optimizers. In the fast suite some cases meet one transform each.
"""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.members import TRANSFORMS, TransformRow
from tests.optax_suites.suites import SUITES, Case, Suite, around

TESTS = [(suite, test) for suite in SUITES for test in suite.tests]
FEW = 2  # cases of a test in the fast suite, but for one that compiles four programs
FOUR_PROGRAMS = "test_optimizers_can_be_wrapped_in_inject_hyperparams"

# optax's lbfgs mixes arrays that are split by explicit mesh axes with some that are not.
FAIL_BARE = {
    "test_state_sharding_type_init_match_update_lbfgs",
    "test_state_sharding_type_preserved_with_jit_lbfgs",
}


def carried(suite: Suite) -> Suite:
    """The suite, if the wheel has it."""
    if importlib.util.find_spec(suite.module) is None:
        pytest.skip(f"optax {optax.__version__} does not carry its tests: no {suite.file}")
    return suite


def problem(case: Case, row: TransformRow | None) -> str | None:
    """What is wrong with how a case ended: it passes, is skipped by optax, or is known to fail."""
    outcome = case.run(lambda tx: tx if row is None else around(row, tx))
    errors = outcome.errors
    if case.name in FAIL_BARE:
        return None if errors else "passes: take it out of FAIL_BARE"
    known = None if row is None else known_error(case, row)
    if known is None or (outcome.skipped is not None and not errors):
        return "\n".join(errors) or None
    as_known = errors and all(known in error for error in errors)
    return None if as_known else f"expected {known!r}, got {errors}"


def known_error(case: Case, row: TransformRow) -> str | None:
    """What a transform cannot do around any optimizer, as its error says."""
    if case.is_complex:
        return "only floating-point parameters can be pruned"
    if "values" in row.needs and case.test == "test_init_with_abstract_input":
        return "is not a valid JAX type"
    return None


def name_of(value: Suite | str | TransformRow) -> str:
    return value.name if isinstance(value, Suite) else str(value)


@pytest.mark.parametrize(("suite", "test"), TESTS, ids=name_of)
def test_some_cases_with_one_transform_each(suite: Suite, test: str):
    cases = [case for case in carried(suite).cases(test) if not case.is_complex]
    few = 1 if test == FOUR_PROGRAMS else FEW
    first = FEW * TESTS.index((suite, test))
    rows = itertools.islice(itertools.cycle(TRANSFORMS), first, first + few)
    spread = [cases[place * len(cases) // few] for place in range(few)]
    found = {f"{case}, {row}": problem(case, row) for case, row in zip(spread, rows, strict=True)}
    _assert_none(found)


@pytest.mark.slow(
    reason="every case of optax, each with one transform in turn: 1,200, some minutes"
)
@pytest.mark.parametrize("row", TRANSFORMS, ids=name_of)
@pytest.mark.parametrize(("suite", "test"), TESTS, ids=name_of)
def test_each_case_with_one_transform(suite: Suite, test: str, row: TransformRow):
    mine = carried(suite).cases(test)[TRANSFORMS.index(row) :: len(TRANSFORMS)]
    _assert_none({str(case): problem(case, row) for case in mine})


@pytest.mark.slow(reason="every case of optax: 1,200, some minutes")
@pytest.mark.parametrize(("suite", "test"), TESTS, ids=name_of)
def test_all_cases_bare(suite: Suite, test: str):
    """What fails here says nothing of transforms."""
    _assert_none({str(case): problem(case, None) for case in carried(suite).cases(test)})


@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_no_test_of_optimizers_is_forgotten(suite: Suite):
    assert carried(suite).tests_of_optimizers() == set(suite.tests)


SHAPED = [row for row in TRANSFORMS if "values" not in row.needs]


@pytest.mark.parametrize("row", SHAPED, ids=name_of)
def test_a_state_made_of_shapes_is_like_that_of_arrays(row: TransformRow):
    """optax's own test asks for no more than a state."""
    params = {"kernel": jnp.ones((16, 32))}
    tx = row.make(optax.sgd(0.1), params)
    found = tx.init(jax.eval_shape(lambda: params))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, tx.init(params))
    assert found.masks["kernel"].dtype == bool


def _assert_none(found: dict[str, str | None]) -> None:
    wrong = [f"{name}:\n{text}" for name, text in found.items() if text is not None]
    assert not wrong, f"{len(wrong)} of {len(found)} cases:\n\n" + "\n\n".join(wrong)
