"""How one product is measured: the programs that are compiled, then checked and timed."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.kernels import _trials as trials
from jaxprune.kernels import tuning
from jaxprune.kernels._stopwatch import Effort, medians

_COLD = {"gpu": 400 << 20}  # bytes of weights that no cache of a platform holds
_FEW = 256  # rows up to which reading the weights is what counts
_COPIES = 32
_SHORT = 2e-4  # seconds; shorter programs would be bound by being started
_SAME = 1e-2  # relative difference of errors: a race may change a few entries only
_KEPT = 4  # results of many rows, all of which are kept
_GENERATOR = "rbg"  # compiles and runs faster than jax's default
_FAST = 1e15, 4e12  # operations and bytes a second of a fast device, for a guess only


class Outcome(NamedTuple):
    """What one way came to; the fields are those of `autotune.Timing`."""

    way: trials.Way
    seconds: float | None
    error: float | None
    failure: str | None


class Plan:
    """A product, its ways, and how often a program computes it."""

    def __init__(
        self, product: tuning.Product, direction: str, most: int | None, only: Sequence[str] | None
    ):
        """Choose what is measured.

        Args:
          product: which product.
          direction: ``"forward"``, or which gradient.
          most: settings of a kernel.
          only: names of implementations; None for all.
        """
        self.product, self.direction = product, direction
        found = trials.ways(product, direction, most)
        ways = [way for way in found if only is None or way.name in only]
        self.exact = trials.exact(direction)
        self.ways = (trials.baseline(direction), *ways)
        few = product.rows <= _FEW and direction == "forward"
        backend = jax.default_backend()
        plain = jax.eval_shape(self._drawing(trials.PLAIN), _key())
        self.stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plain))
        cold = _COLD.get(backend, 0) if few else 0
        self.copies = max(1, min(-(-cold // self.stored), _COPIES))
        turns = 1
        if backend != "cpu":  # where starting a program takes longer than many a product
            guess = max(self.flops / _FAST[0], self.stored / _FAST[1]) * self.copies
            turns = max(1, round(_SHORT / guess))
        self.calls = self.copies * (turns if few else min(turns, _KEPT))
        self.summed = few

    @property
    def flops(self) -> float:
        """Operations on stored weights."""
        p = self.product
        return 2.0 * p.rows * p.k * p.n_out * p.density

    @property
    def bytes(self) -> int:
        """Bytes that are read and written at least."""
        p = self.product
        return self.stored + p.rows * (p.k + p.n_out) * jnp.dtype(p.dtype).itemsize

    def programs(self) -> dict[Any, Callable[[], Any]]:
        """Return what has to be compiled, by a key that equal programs share."""
        found: dict[Any, Callable[[], Any]] = {}
        found |= {self._key(way): functools.partial(self._compile, way) for way in self._all}
        for form in self._forms:
            found[self._drawing_key(form)] = functools.partial(_compiled, self._drawing(form))
        found["operands", self._operands_key] = functools.partial(_compiled, self._operands)
        found["compare", self._compare_key] = self._compile_comparison
        return found

    def run(self, compiled: Mapping[Any, Any], effort: Effort, seed: int) -> list[Outcome]:
        """Check and time every way, the dense product first.

        Args:
          compiled: what `programs` compiled to, or the exceptions.
          effort: how long is measured.
          seed: of the random operands.
        """
        keys = jax.random.split(jax.random.key(seed, impl=_GENERATOR), self.copies + 1)
        given = _needed(compiled["operands", self._operands_key])(keys[0])
        weights = {form: self._draw(compiled, form, keys[1:]) for form in self._forms}
        runs: dict[trials.Way, Callable[[], Any]] = {}
        failures: dict[trials.Way, str] = {}
        errors: dict[trials.Way, float] = {}
        want = _needed(compiled[self._key(self.exact)])(given, weights[self.exact.form])
        compare = _needed(compiled["compare", self._compare_key])

        def check(way: trials.Way) -> None:
            if self.direction == "weight_gradient" and way.form == trials.ARRAY:
                jax.block_until_ready(runs[way]())  # the gradient of a whole matrix, not of blocks
                return
            error = float(compare(runs[way](), want))
            before = errors.get(way, error)
            errors[way] = max(error, before) if error == error else error
            if not error <= trials.TOLERANCE[self.product.dtype]:
                failures[way] = f"wrong: the relative error is {error:.2g}"
            elif abs(error - before) > _SAME * before:
                failures[way] = f"not the same in every run: errors of {before:.5g}, {error:.5g}"

        for way in self.ways:
            program = compiled[self._key(way)]
            if isinstance(program, Exception):
                failures[way] = said(program)
                continue
            runs[way] = functools.partial(program, given, weights[way.form])
            try:
                check(way)
            except Exception as error:
                failures[way] = said(error)
                del runs[way]
        times = {way: total / self.calls for way, total in medians(runs, effort).items()}
        for way in runs:
            check(way)  # again after many runs: a race shows as an error that changes
        return [
            Outcome(way, times.get(way), errors.get(way), failures.get(way)) for way in self.ways
        ]

    @property
    def _all(self) -> tuple[trials.Way, ...]:
        return (self.exact, *self.ways)

    @property
    def _forms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(way.form for way in self._all))

    def _drawing(self, form: str) -> Callable[..., Any]:
        return functools.partial(trials.weight, self._weight, form)

    @property
    def _weight(self) -> tuning.Product:
        return dataclasses.replace(self.product, rows=1)

    def _drawing_key(self, form: str) -> Any:
        return "weight", self._weight, form

    def _draw(self, compiled: Mapping[Any, Any], form: str, keys: Any) -> list[Any]:
        draw = _needed(compiled[self._drawing_key(form)])
        return [draw(key) for key in keys]

    @property
    def _operands(self) -> Callable[..., Any]:
        return functools.partial(trials.operands, self.product, self.direction)

    @property
    def _operands_key(self) -> Any:
        p = self.product
        return self.direction, p.dtype, p.rows, p.k, p.n_out

    def _key(self, way: trials.Way) -> Any:
        """Return what two programs have in common that are the same."""
        if way.form == trials.ARRAY:  # any format is an array then
            what: Any = self.direction, self.product.dtype
            what = (*what, self.product.rows, self.product.k, self.product.n_out)
        else:
            what = self.direction, self.product
        return way.name, way.form, way.config, what, self.calls, self.copies

    def _compile(self, way: trials.Way) -> Any:
        """Compile a program that computes the product ``calls`` times."""

        def run(given: Any, weights: Sequence[Any]) -> Any:
            results = []
            for i in range(self.calls):
                y = way.call(given, weights[i % self.copies])
                # One after the other, and none left out for being equal.
                given, y = lax.optimization_barrier((given, y))
                results.append(y)
            if not self.summed:
                return results
            return functools.reduce(jnp.add, [y.astype(jnp.float32) for y in results])

        given, weight = self._shapes(way)
        # What is not timed need not be tuned by XLA.
        untuned = way is self.exact and jax.default_backend() == "gpu"
        options = {"xla_gpu_autotune_level": 0} if untuned else None
        return _compiled(run, given, [weight] * self.copies, options=options)

    def _shapes(self, way: trials.Way) -> tuple[Any, Any]:
        given = jax.eval_shape(self._operands, _key())
        return given, jax.eval_shape(self._drawing(way.form), _key())

    @property
    def _compare_key(self) -> Any:
        p = self.product
        slots = trials.slots_of(p) if self.direction == "weight_gradient" else 0
        return self._operands_key, slots, p.format if slots else "", self.calls

    def _compile_comparison(self) -> Any:
        one = jax.eval_shape(self.exact.call, *self._shapes(self.exact))
        want = jax.ShapeDtypeStruct(one.shape, jnp.float32)
        if self.summed:
            return _compiled(_distance, want, want)
        got = jax.ShapeDtypeStruct(one.shape, self.product.dtype)
        return _compiled(_distance, [got] * self.calls, [want] * self.calls)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl=_GENERATOR))


def _compiled(function: Callable[..., Any], *args: Any, options: Any = None) -> Any:
    return jax.jit(function).lower(*(args or (_key(),))).compile(compiler_options=options)


def _needed(program: Any) -> Any:
    if isinstance(program, Exception):
        raise program
    return program


def said(error: Exception) -> str:
    """Return an exception's type and first line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _distance(got: Any, want: Any) -> jax.Array:
    """Return the largest relative distance, in the norm, of pairs of arrays."""

    def one(got: jax.Array, want: jax.Array) -> jax.Array:
        apart = jnp.linalg.norm((got.astype(jnp.float32) - want).reshape(-1))
        return apart / jnp.linalg.norm(want.reshape(-1))

    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return jnp.max(jnp.stack([one(*pair) for pair in pairs]))
