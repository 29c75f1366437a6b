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
from collections.abc import Callable, Iterator
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
    def tx(params: Any) -> Transform:
        masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.bool_), params)
        return jaxprune.static(bare, masks)

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
    # One module makes its optimizers when it is imported, and sets XLA_FLAGS.
    with mock.patch.dict(os.environ), _wrapped(optax, wrap):
        spec.loader.exec_module(loaded)
    for name in ("alias", "contrib"):
        if wrap is not None and hasattr(loaded, name):
            setattr(loaded, name, _Wrapped(getattr(loaded, name), WRAPS[wrap]))
    return loaded


class _Wrapped(types.SimpleNamespace):
    """A module whose optimizers come wrapped."""

    def __init__(self, module: types.ModuleType, wrap: Wrap) -> None:
        bare_of: dict[int, Transform] = {}
        names = vars(module)
        super().__init__(**names | _factories(module, wrap, bare_of))
        if module is contrib:
            self.schedule_free_eval_params = _eval_params


@contextlib.contextmanager
def _wrapped(module: types.ModuleType, wrap: str | None) -> Iterator[None]:
    """Wrap the optimizers of a module, for a while."""
    with contextlib.ExitStack() as stack:
        for name, factory in _factories(module, WRAPS[wrap]).items() if wrap else ():
            stack.enter_context(mock.patch.object(module, name, factory))
        yield


def _factories(module: types.ModuleType, wrap: Wrap) -> dict[str, Callable[..., Any]]:
    """Return the optimizers of a module, each as a function that makes a wrapped one."""
    return {
        name: _wrapping(value, wrap)
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and _makes_optimizers(value)
    }


def _makes_optimizers(function: types.FunctionType) -> bool:
    """Whether a function makes an optimizer: from hyperparameters, or from another optimizer."""
    if function.__name__ in ("reduce_on_plateau", "sam", "opaque_sam", "normalize"):
        return False  # links and outer loops
    home, returns = function.__module__, function.__annotations__.get("return")
    ours = home == "optax._src.alias" or home.startswith("optax.contrib.")
    return ours and "GradientTransformation" in str(returns)
