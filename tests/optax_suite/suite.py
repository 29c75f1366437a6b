"""optax's own tests, which its wheel carries, with every optimizer wrapped by a transform.

At sparsity 0 a wrapped optimizer must be the bare one: same optimum, dtypes, state types,
shardings, extra arguments, injected hyperparameters and accumulation.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import types
import unittest
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax
from optax import contrib

import jaxprune
from tests.third_party import inner, lenient

MODULES = ("optax._src.alias_test", "optax._src.sharding_test", "optax.contrib._common_test")

Transform = optax.GradientTransformationExtraArgs
Wrap = Callable[[Transform], Transform]


def _gradual(bare: Transform) -> Transform:
    return jaxprune.gradual(bare, 0.0, where=lambda path, leaf: True)


def _static(bare: Transform) -> Transform:
    made: list[Transform] = []

    def tx(params: Any) -> Transform:
        if not made:  # masks that fit the first parameters; other ones after that are an error
            masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.bool_), params)
            made.append(jaxprune.static(bare, masks))
        return made[0]

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return tx(params).update(updates, state, params, **extra_args)

    return Transform(lambda params: tx(params).init(params), update)


WRAPS: dict[str, Wrap] = {"gradual": _gradual, "static": _static}
"""Each transform, at sparsity 0 and with everything prunable."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One of optax's tests.

    Attributes:
      module: where it stands.
      suite: its class.
      name: its method, numbered by the parameters.
      text: the parameters.
    """

    module: str
    suite: str
    name: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.suite}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case: passed, or the reasons why not."""

    skipped: str | None = None
    failed: str | None = None


def cases(module: str) -> list[Case]:
    """Return the tests of a module, in the order of their parameters."""
    found = []
    for suite in _suites(load(module, None)).values():
        names = unittest.defaultTestLoader.getTestCaseNames(suite)
        for name in sorted(names, key=lambda name: (name.rstrip("0123456789"), len(name), name)):
            text = getattr(getattr(suite, name), "__x_params_repr__", "")
            found.append(Case(module, suite.__name__, name, text))
    return found


def run(case: Case, wrap: str | None) -> Outcome:
    """Run a test with every optimizer wrapped, or bare."""
    result = unittest.TestResult()
    with lenient(), warnings.catch_warnings(), _newer_jax():
        warnings.simplefilter("ignore")
        _suites(load(case.module, wrap))[case.suite](case.name).run(result)
    skipped = [reason for _, reason in result.skipped]
    failed = [text for _, text in (*result.failures, *result.errors)]
    return Outcome(skipped[0] if skipped else None, "\n".join(failed) or None)


@functools.cache
def load(module: str, wrap: str | None) -> types.ModuleType:
    """Execute a test module of optax, with the optimizers that it sees wrapped."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    # One of them makes its optimizers when it is imported, and sets XLA_FLAGS.
    with mock.patch.dict(os.environ), contextlib.ExitStack() as stack:
        for name, factory in _factories(optax, wrap).items():
            stack.enter_context(mock.patch.object(optax, name, factory))
        spec.loader.exec_module(loaded)
    for name in {"alias", "contrib"} & vars(loaded).keys():
        imported = getattr(loaded, name)
        patched = vars(imported) | _factories(imported, wrap)
        setattr(loaded, name, types.SimpleNamespace(**patched))
    if wrap is not None and hasattr(loaded, "contrib"):
        loaded.contrib.schedule_free_eval_params = _eval_params
    return loaded


def _suites(module: types.ModuleType) -> dict[str, type[unittest.TestCase]]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, unittest.TestCase)
    }


@functools.cache
def _optimizers() -> frozenset[str]:
    """Return the names of the optimizers in optax's tables, those around another included."""
    rows = [
        *load("optax._src.alias_test", None)._OPTIMIZERS_UNDER_TEST,
        *load("optax.contrib._common_test", None)._ALL_OPTIMIZERS_UNDER_TEST,
    ]
    names = {row["opt_name"] for row in rows} | {row.get("wrapper_name") for row in rows}
    return frozenset(names - {None, "reduce_on_plateau"} | {"lbfgs"})  # the former is a link


def _factories(module: types.ModuleType, wrap: str | None) -> dict[str, Callable[..., Any]]:
    """Return the optimizers of a module, each as a function that makes a wrapped one."""
    if wrap is None:
        return {}
    names = _optimizers() & vars(module).keys()
    return {name: _wrapping(getattr(module, name), WRAPS[wrap]) for name in names}


class _Wrapped(Transform):
    """A wrapped optimizer that knows the bare one."""

    bare: Transform


def _wrapping(factory: Callable[..., Transform], wrap: Wrap) -> Callable[..., Transform]:
    @functools.wraps(factory)  # inject_hyperparams reads the signature
    def make(*args: Any, **kwargs: Any) -> Transform:
        # An optimizer around another is wrapped once, as a whole.
        bare = factory(*(getattr(arg, "bare", arg) for arg in args), **kwargs)
        tx = wrap(inner(bare))
        wrapped = _Wrapped(_strictly(tx.init), _strictly(tx.update))
        wrapped.bare = bare
        return wrapped

    return make


def _strictly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace ours as strictly as everywhere, though optax's tests run leniently."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return function(*args, **kwargs)

    return call


def _eval_params(state: Any, params: Any) -> Any:
    return contrib.schedule_free_eval_params(state.inner_state, params)


def _newer_jax() -> Any:
    """Pretend a version: the tests compare it as text, in which 0.10 is older than 0.7."""
    return mock.patch.object(jax, "__version__", "0.9")
