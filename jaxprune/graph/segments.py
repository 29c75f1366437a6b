"""``segments``: a model cut into its blocks, to be run and pruned one after the other."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxprune.graph.axes import products
from jaxprune.graph.periods import cuts_of
from jaxprune.graph.program import Program, read
from jaxprune.graph.steps import Literal, Place, Step, Steps, Value, flatten, run

Arrays = Sequence[jax.Array]


class _Body:
    """What segments that do the same share: one function, traced and compiled once."""

    def __init__(
        self,
        steps: Sequence[Step],
        params: Sequence[Value],
        reads: Sequence[Value],
        writes: Sequence[Value],
        shapes: Mapping[Value, jax.ShapeDtypeStruct],
    ) -> None:
        self.steps, self.reads, self.writes = steps, reads, writes
        self.params = {_named(value): shapes[value] for value in params}
        self.inputs = [shapes[value] for value in reads]
        self.jitted = jax.jit(self.call)
        self.kept: dict[Any, Any] = {}  # what others compile for it, so that it is found again

    @functools.cached_property
    def program(self) -> Program:
        return read(self.call, self.params, *self.inputs)

    def call(self, params: Mapping[str, jax.Array], *inputs: jax.Array) -> list[Any]:
        known: dict[Value, Any] = {_value(name): array for name, array in params.items()}
        known = run(self.steps, known | dict(zip(self.reads, inputs, strict=True)))
        return [known[value] for value in self.writes]


def _named(value: Value) -> str:
    return f"{value:08d}"  # dicts are flattened in the order of their keys


def _value(name: str) -> Value:
    return int(name)


@dataclasses.dataclass(frozen=True, repr=False)
class Segment:
    """Some consecutive equations of a model, as a function of its parameters and of live values.

    Attributes:
      weights: for the parameters of the segment, by its own names: path and layer of each.
      reads: live values that it takes.
      writes: live values that it returns.
      body: shared by segments that do the same.
      repeats: whether it is one of several that do the same.
    """

    weights: Mapping[str, tuple[str, int | None]]
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    body: _Body
    repeats: bool

    def __repr__(self) -> str:
        return f"Segment({', '.join(dict.fromkeys(path for path, _ in self.weights.values()))})"

    def params(self, leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the segment's parameters, by its own names, from all parameters by path."""
        found = {name: leaves[path] for name, (path, _) in self.weights.items()}
        layers = {name: at for name, (_, at) in self.weights.items() if at is not None}
        if layers:
            parts = _layers(
                [found[name] for name in layers], np.array([*layers.values()], np.int32)
            )
            found.update(zip(layers, parts, strict=True))
        return found

    def __call__(self, params: Mapping[str, jax.Array], *inputs: jax.Array) -> list[jax.Array]:
        """Run it: parameters by its own names, the values that it reads -> those that it writes."""
        return self.body.jitted(params, *inputs)

    @property
    def program(self) -> Program:
        """What it does with its parameters, under its own names."""
        return self.body.program

    @property
    def products(self) -> frozenset[str]:
        """Its own names of the weights that a product with data sums over."""
        return products(self.program, of_parameters=False).chosen if self.weights else frozenset()


@dataclasses.dataclass(frozen=True, repr=False)
class Segments:
    """A model as a row of segments; `Graph.segments` makes it.

    Attributes:
      segments: in order.
      steps: the model as steps.
      cuts: between which steps it is cut; they can be given to `Graph.segments`.
      fixed: live values that depend on no input.
    """

    segments: tuple[Segment, ...]
    steps: Steps
    cuts: tuple[int, ...]
    fixed: frozenset[Value]

    def __repr__(self) -> str:
        return f"Segments({len(self.segments)}, {len({s.body for s in self.segments})} different)"

    def __iter__(self) -> Any:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    def start(self, inputs: Arrays) -> dict[Value, Any]:
        """Return the live values before the first segment: inputs, and constants."""
        return dict(self.steps.constants) | dict(zip(self.steps.inputs, inputs, strict=True))

    def results(self, live: Mapping[Value, Any]) -> list[Any]:
        """Return the model's outputs from the live values after the last segment."""
        return [r.value if isinstance(r, Literal) else live[r] for r in self.steps.outputs]

    def last_read(self) -> dict[Value, int]:
        """Return for each live value the last segment that reads it; outputs outlast them."""
        last = {value: i for i, s in enumerate(self.segments) for value in s.reads}
        return last | dict.fromkeys(self.steps.results, len(self.segments))

    def __call__(self, leaves: Mapping[str, jax.Array], *inputs: jax.Array) -> list[jax.Array]:
        """Run all segments in a row: parameters by path and inputs -> the model's outputs."""
        live = self.start(inputs)
        for segment in self.segments:
            found = segment(segment.params(leaves), *(live[value] for value in segment.reads))
            live.update(zip(segment.writes, found, strict=True))
        return self.results(live)


@jax.jit
def _layers(stacks: Sequence[jax.Array], layers: jax.Array) -> list[jax.Array]:
    """Return a layer of each stack: one program for all of a block, whichever block it is."""
    return [
        lax.dynamic_index_in_dim(stack, layers[i], 0, keepdims=False)
        for i, stack in enumerate(stacks)
    ]


def segments_of(program: Program, cuts: Sequence[int] | None = None) -> Segments:
    """Cut a traced function at its repeated blocks, or where the caller says."""
    steps = flatten(program.body, len(program.params))
    kinds = _Kinds.of(steps)
    rows = [s for s in steps.steps if not kinds.derived(s) or steps.returned(s)]
    if cuts is None:
        runs = cuts_of(rows, functools.partial(_live_bytes, steps, kinds, rows))
        cuts = list({cut for one in runs for cut in one.cuts()} - {0, len(rows)})
    edges = [0, *_checked(cuts, len(rows)), len(rows)]
    slices = [rows[a:b] for a, b in itertools.pairwise(edges)]
    made = _Making(program, steps, kinds)
    return Segments(tuple(made.segments(slices)), steps, tuple(edges[1:-1]), made.fixed)


def _checked(cuts: Sequence[int], steps: int) -> list[int]:
    found = sorted(set(cuts))
    if found and (found[0] < 1 or found[-1] >= steps):
        raise ValueError(
            f"cuts={tuple(cuts)} must be between 1 and {steps - 1}, the places between the model's "
            f"{steps} steps. Take some of graph.segments().cuts."
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Kinds:
    """What values depend on."""

    of_params: frozenset[Value]
    of_data: frozenset[Value]
    makers: Mapping[Value, Step]

    @classmethod
    def of(cls, steps: Steps) -> "_Kinds":
        of_params, of_data = set(steps.params), set(steps.inputs)
        makers: dict[Value, Step] = {}
        for step in steps.steps:
            for kind in (of_params, of_data):
                if kind.intersection(step.values()):
                    kind.update(step.writes)
            makers.update(dict.fromkeys(step.writes, step))
        return cls(frozenset(of_params), frozenset(of_data), makers)

    def derived(self, step: Step) -> bool:
        """Tell whether a step computes from parameters alone: each segment then does so itself."""
        return all(map(self.is_derived, step.writes))

    def is_derived(self, value: Value) -> bool:
        return value in self.of_params and value not in self.of_data

    def with_makers(self, steps: Sequence[Step]) -> list[Step]:
        """Return steps with those before them that compute from parameters alone."""
        seen: dict[int, Step] = {}

        def need(step: Step) -> None:
            if id(step) in seen:
                return
            for value in step.values():
                if self.is_derived(value) and value in self.makers:
                    need(self.makers[value])
            seen[id(step)] = step

        for step in steps:
            need(step)
        return list(seen.values())


def _live_bytes(steps: Steps, kinds: _Kinds, rows: Sequence[Step], cut: int) -> int:
    """Return the size of what is alive between two steps."""
    after = steps.results.union(*(step.values() for step in rows[cut:]))
    before = set(steps.inputs).union(*(step.writes for step in rows[:cut]))
    return sum(steps.nbytes(v) for v in before & after if not kinds.is_derived(v))


class _Making:
    """Makes segments, and one body for all that do the same."""

    def __init__(self, program: Program, steps: Steps, kinds: _Kinds) -> None:
        self.paths = list(program.params)
        self.steps, self.kinds = steps, kinds
        self.bodies: dict[Any, _Body] = {}
        self.fixed = frozenset(
            v for v in steps.shapes if v not in kinds.of_data and v not in kinds.of_params
        )

    def segments(self, slices: Sequence[Sequence[Step]]) -> list[Segment]:
        wanted = set(self.steps.results)  # what is read after a slice
        made: list[Segment] = []
        for rows in reversed(slices):
            made.append(self.one(rows, wanted))
            wanted.update(v for step in rows for v in step.values())
        counts = collections.Counter(segment.body for segment in made)
        return [dataclasses.replace(s, repeats=counts[s.body] > 1) for s in reversed(made)]

    def one(self, rows: Sequence[Step], wanted: Set[Value]) -> Segment:
        steps = self.kinds.with_makers(rows)
        own = {value for step in steps for value in step.writes}
        outside = dict.fromkeys(v for step in steps for v in step.values() if v not in own)
        params = [v for v in outside if v in self.steps.params]
        reads = tuple(v for v in outside if v not in self.steps.params)
        writes = tuple(v for step in rows for v in step.writes if v in wanted)
        key = _canonical(steps, params, reads, writes)
        if key not in self.bodies:
            self.bodies[key] = _Body(steps, params, reads, writes, self.steps.shapes)
        body = self.bodies[key]
        places = [self.place(self.steps.params[v]) for v in params]
        return Segment(dict(zip(body.params, places, strict=True)), reads, writes, body, False)

    def place(self, place: Place) -> tuple[str, int | None]:
        return self.paths[place.number], place.layer


def _canonical(
    steps: Sequence[Step], params: Sequence[Value], reads: Sequence[Value], writes: Sequence[Value]
) -> Any:
    """Return what is equal for two lists of steps that do the same."""
    names: dict[Value, int] = {}
    for value in (*params, *reads):
        names[value] = len(names)
    lines = []
    for step in steps:
        operands = tuple(None if isinstance(r, Literal) else names[r] for r in step.reads)
        for value in step.writes:
            names[value] = len(names)
        lines.append((step.key, operands))
    return tuple(lines), len(params), tuple(names[v] for v in writes)
