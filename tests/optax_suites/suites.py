"""optax's own tests, which its wheel carries, run on optimizers that a transform wraps."""

import contextlib
import dataclasses
import functools
import importlib
import os
import re
import unittest
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import optax
from optax import contrib
from optax._src import alias

from jaxprune.transforms import State
from tests import third_party
from tests.members import TransformRow

Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A class of tests in a module of optax.

    Attributes:
      module: where it is.
      name: of the class.
      tests: its methods; absl makes a case of each set of arguments.
      others: its methods that are not about optimizers.
    """

    module: str
    name: str
    tests: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The module's file in the wheel."""
        return f"{self.module.replace('.', '/')}.py"

    def load(self) -> ModuleType:
        """Import the module; the environment stays as it is, which `sharding_test` would change."""
        with mock.patch.dict(os.environ), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(self.module)

    def cases(self, test: str) -> list["Case"]:
        """Return the cases of one method, in its own order."""
        found = [case for case in self._all() if case.test == test]
        return sorted(found, key=lambda case: _in_order(case.name))

    def tests_of_optimizers(self) -> set[str]:
        """Return all methods whose cases are of optimizers."""
        return {case.test for case in self._all()} - set(self.others)

    def _all(self) -> list["Case"]:
        module = self.load()
        tests = getattr(module, self.name)
        names = [name for name in dir(tests) if name.startswith("test")]
        return [Case(module, tests, name) for name in names]


ALIAS = Suite(
    "optax._src.alias_test",
    "AliasTest",
    (
        "test_optimization",
        "test_optimizers_accept_extra_args",
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "test_explicit_dtype",
        "test_preserve_dtype",
        "test_state_shape_dtype_shard_stability",
        "test_gradient_accumulation",
    ),
)
CONTRIB = Suite(
    "optax.contrib._common_test",
    "ContribTest",
    (
        "test_optimizers_accept_extra_args",
        "test_optimizers",
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "test_preserve_dtype",
        "test_gradient_accumulation",
        "test_state_shape_dtype_shard_stability",
        "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such",
    ),
)
SHARDING = Suite(
    "optax._src.sharding_test",
    "ShardingTest",
    (
        "test_init_with_abstract_input",
        "test_state_sharding_type_init_match_update",
        "test_state_sharding_type_preserved_with_jit",
    ),
    others=("test_microbatch_with_explicit_sharding",),
)
SUITES = (ALIAS, CONTRIB, SHARDING)


def _in_order(name: str) -> tuple[str, int]:
    digits = len(name) - len(name.rstrip("0123456789"))
    return (name[: len(name) - digits], int(name[-digits:]) if digits else -1)


class Outcome(NamedTuple):
    """What became of a case: why it was skipped, and the errors of its parts."""

    skipped: str | None
    errors: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One of optax's cases."""

    module: ModuleType
    tests: type[unittest.TestCase]
    name: str

    def __str__(self) -> str:
        """Its arguments, or the end of its name."""
        return str(self.tests(self.name)).rpartition(" (")[0]

    @property
    def function(self) -> Callable[..., None]:
        """The method that absl gives its arguments."""
        return getattr(self.tests, self.name).__wrapped__

    @property
    def test(self) -> str:
        """The name of the method."""
        return self.function.__name__

    @property
    def is_complex(self) -> bool:
        """Tell whether its parameters are complex numbers."""
        return re.search(r"\b(params_)?dtype=[^,)]*complex", str(self)) is not None

    def run(self, wrap: Wrap) -> Outcome:
        """Run it with every optimizer wrapped."""
        case, result = self.tests(self.name), unittest.TestResult()
        if (optimizers := getattr(self.module, "OPTIMIZERS", None)) is not None:
            optimizer = optimizers[self.name.removeprefix(f"{self.test}_")]
            setattr(case, self.name, functools.partial(self.function, case, wrap(optimizer)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(third_party.lenient())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default")
            # Versions are compared as texts, by which 0.10 is before 0.7.
            stack.enter_context(mock.patch.object(jax, "__version__", "9"))
            for name, real in (("alias", alias), ("contrib", contrib)):
                if hasattr(self.module, name):
                    stack.enter_context(mock.patch.object(self.module, name, _Wrapping(real, wrap)))
            case.run(result)
        errors = tuple(text for _, text in result.errors + result.failures)
        return Outcome(result.skipped[0][1] if result.skipped else None, errors)


class _Wrapping:
    """A module of optax whose optimizers come wrapped."""

    def __init__(self, module: ModuleType, wrap: Wrap) -> None:
        self._module, self._wrap = module, wrap

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, type) or not callable(found):  # nadam is a partial
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            made = found(*map(_bare, args), **kwargs)
            return self._wrap(made) if isinstance(made, optax.GradientTransformation) else made

        return call


def _bare(value: Any) -> Any:
    """Return what a transform wraps: an optimizer around another one is wrapped as a whole."""
    if isinstance(value, State):
        return value.inner_state
    return value.inner if isinstance(value, Around) else value


class Around(optax.GradientTransformationExtraArgs):
    """A transform that knows its optimizer."""

    inner: optax.GradientTransformation


def around(row: TransformRow, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the row's transform at sparsity 0, made when the parameters are known."""
    made: list[optax.GradientTransformationExtraArgs] = []

    def transform(params: Any) -> optax.GradientTransformationExtraArgs:
        if jax.tree.leaves(params) or not made:  # optax maps over a state without parameters
            made[:] = [row.dense(inner, params)]
        return made[0]

    def init(params: Any) -> Any:
        return transform(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return transform(params).update(updates, state, params, **extra_args)

    found = Around(init, update)
    found.inner = inner
    return found
