"""A model's blocks in a row, with the live activations of all calibration batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._core import paths
from jaxprune._core.prunable import Where, select
from jaxprune.graph import Graph
from jaxprune.graph.capture import adding, of_no_tokens, taken
from jaxprune.graph.matrix import Layout, layout_of
from jaxprune.graph.plan import plan_of
from jaxprune.graph.program import arrays_of
from jaxprune.graph.segments import Segment, Segments
from jaxprune.graph.statistics import Statistic, count, gram, sum_of_squares
from jaxprune.posttraining.matrix import Inputs
from jaxprune.types import Tree

Leaves = dict[str, jax.Array]
Counted = Callable[..., jax.Array]
"""``(*inputs) -> bool array`` of the tokens that count."""
Place = tuple[str, int | None]
"""A weight: its path, and its layer if the parameter stacks layers."""

_GATHERED: dict[str, Statistic] = {"squares": sum_of_squares, "gram": gram}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What blocks that do the same share: compiled once."""

    layouts: Mapping[str, Layout]  # of the weights that are pruned, by the block's own names
    zeros: Any  # () -> total of no tokens
    step: Any  # (total, arrays of params, of inputs, of tokens that count) -> total


class Weight(NamedTuple):
    """One weight of a block, as it stands before it is pruned."""

    place: Place
    layout: Layout  # how it makes up matrices
    array: jax.Array  # its present value
    inputs: Inputs  # the sums over its inputs, for each of its matrices


class Blocks:
    """The present parameters and the live values of every batch, segment after segment."""

    def __init__(
        self,
        graph: Graph,
        params: Tree,
        batches: Iterable[Any],
        *,
        where: Where | None,
        needs: Sequence[str],
        gradients: Tree | None = None,
        mask: Counted | None = None,
    ) -> None:
        """Cut the model and start the batches.

        Args:
          graph: of the model.
          params: its parameters.
          batches: each a tuple of the model's inputs, or the only input.
          where: which weights; None for those of repeated blocks.
          needs: fields of `Inputs` that are read.
          gradients: like ``params``, of the loss, where they are read.
          mask: which tokens count; None for all.
        """
        self.params = params
        self.stats = {"tokens": count} | {k: _GATHERED[k] for k in needs if k in _GATHERED}
        self.leaves: Leaves = dict(paths.flatten(params))
        self.masks: Leaves = {}
        self.gradients = _checked_gradients(gradients, needs)
        self.segments: Segments = graph.segments()
        self.last = self.segments.last_read()
        self.sequences = 0
        self.chosen, self.prunable = chosen_of(self.segments, params, where)
        self._check_gradients()
        self.counted: list[jax.Array | None] = []  # by batch
        self.live = self._started(batches, mask)

    def names(self, segment: Segment) -> list[str]:
        """Return the segment's own names of the weights that are pruned in it."""
        return names_in(segment, self.chosen)

    def weights(self, segment: Segment) -> list[Weight]:
        """Gather the statistics of a segment's weights over all batches."""
        params = segment.params(self.leaves)
        kind = self._kind(segment)
        raw = self._gathered(segment, kind, params) if self._gathers else {}
        self._check_finite(segment, kind, raw)
        found = []
        for name, layout in kind.layouts.items():
            place = segment.weights[name]
            inputs = self._inputs(place, layout, raw.get(name, {}))
            found.append(Weight(place, layout, params[name], inputs))
        return found

    @property
    def _gathers(self) -> bool:
        """Whether anything is read of the activations."""
        return len(self.stats) > 1

    def _gathered(
        self, segment: Segment, kind: _Kind, params: Leaves
    ) -> dict[str, dict[str, jax.Array]]:
        """Return the sums over all batches, by the block's own names and by field."""
        leaves = [params[name] for name in segment.program.params]
        total = kind.zeros()
        for values, counted in zip(self.live, self.counted, strict=True):
            total = kind.step(total, leaves, [values[v] for v in segment.reads], counted)
        # Containers are flattened in the order of their keys.
        return {n: dict(zip(sorted(self.stats), raw, strict=True)) for n, raw in total.items()}

    def put(self, place: Place, weight: jax.Array, mask: jax.Array) -> None:
        """Put a pruned weight into the parameters, and remember its mask."""
        path, layer = place
        weight, mask = jnp.asarray(weight), jnp.asarray(mask)  # of a known block from the host
        if layer is None:
            self.leaves[path], self.masks[path] = weight, mask
            return
        whole, before = self.leaves[path], self.masks.get(path)
        # The caller's array stays; from then on the layers are changed in place.
        change = _with_layer if before is None else _in_place
        before = jnp.ones(whole.shape, bool) if before is None else before
        self.leaves[path] = change(whole, weight, layer)
        self.masks[path] = _in_place(before, mask, layer)

    def forward(self, index: int) -> None:
        """Send all batches through a segment, and forget what nothing reads any more."""
        segment = self.segments.segments[index]
        if index + 1 == len(self.segments) or not self._gathers:
            return
        gone = [value for value, last in self.last.items() if last <= index]
        params = segment.params(self.leaves)
        for values in self.live[::-1]:  # the first last: the others take from it what is the same
            found = segment(params, *(values[v] for v in segment.reads))
            values.update(zip(segment.writes, found, strict=True))
        for values in self.live[1:]:
            shared = self.segments.fixed.intersection(values)
            values.update({value: self.live[0][value] for value in shared if value in self.live[0]})
        for values in self.live:
            for value in gone:
                values.pop(value, None)

    def result(self) -> tuple[Tree, Tree]:
        """Return the present parameters and the masks."""
        params = paths.refill(self.params, self.leaves, lambda path, leaf: leaf)
        return params, paths.refill(self.params, self.masks)

    def _check_gradients(self) -> None:
        if self.gradients is None:
            return
        for path in {s.weights[n][0]: n for s in self.prunable for n in self.names(s)}:
            if path not in self.gradients:
                raise ValueError(
                    f"gradients has nothing for {path!r}, which is to be pruned. Give "
                    "scores.gradient_norm a where= that selects it, or leave it out with where=."
                )

    def _started(self, batches: Iterable[Any], mask: Counted | None) -> list[dict[int, Any]]:
        live: list[dict[int, Any]] = []
        shapes = [self.segments.steps.shapes[v] for v in self.segments.steps.inputs]
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            arrays = [jnp.asarray(x) for x in arrays_of((), inputs)[1]]
            if [(x.shape, x.dtype) for x in arrays] != [(s.shape, s.dtype) for s in shapes]:
                raise ValueError(
                    f"batches: batch {len(live)} has inputs {_shown(arrays)}, and the graph was "
                    f"traced with {_shown(shapes)}. Trace with the shapes of the batches, all "
                    "alike."
                )
            counted = None if mask is None else tokens_counted(mask, inputs, arrays)
            self.counted.append(counted)
            self.sequences += _sequences(arrays[0], counted)
            live.append(self.segments.start(arrays))
        if not live:
            raise ValueError("batches is empty. Give at least one batch of the model's inputs.")
        if not self.sequences:
            raise ValueError("mask counts no token in any batch. True is a token that counts.")
        return live

    def _check_finite(self, segment: Segment, kind: _Kind, raw: Mapping[str, Any]) -> None:
        if not raw:
            return
        finite = jax.device_get(_finite(raw))  # of all weights at once: each look waits
        wrong = [name for name in kind.layouts if not finite.get(name, True)]
        if wrong:
            path, layer = segment.weights[wrong[0]]
            raise ValueError(
                f"the input of {path!r}{'' if layer is None else f', layer {layer},'} has NaN "
                "or infinite values. Look at the calibration data, and at the weights of what "
                "comes before it."
            )

    def _kind(self, segment: Segment) -> _Kind:
        names = tuple(self.names(segment))  # where= may choose others in a block that does the same
        known = segment.body.kept
        key = (names, frozenset(self.stats), _shape_of(self.counted[0]))
        if key not in known:
            known[key] = self._made(segment, names)
        return known[key]

    def _made(self, segment: Segment, names: Sequence[str]) -> _Kind:
        program = segment.program
        plan = plan_of(program, lambda name: name in names)
        if plan.skipped:
            skipped = plan.skipped[0]
            raise ValueError(
                f"the input of {segment.weights[skipped.path][0]!r} cannot be gathered at "
                f"{skipped.primitive}: {skipped.reason}. Leave the weight out with where=."
            )

        def take(leaves: Sequence[Any], arrays: Sequence[Any], counted: Any) -> Any:
            mask = None if counted is None else lambda *_: counted
            return taken(program, plan, self.stats, mask, tuple(arrays), leaves, arrays)[1]

        shapes = self._shapes(segment, take)
        layouts = {name: layout_of(program, name) for name in names}
        zeros = jax.jit(functools.partial(of_no_tokens, shapes))
        return _Kind(layouts, zeros, adding(self.stats, take))

    def _shapes(self, segment: Segment, take: Callable[..., Any]) -> Any:
        """Return the shapes of a block's statistics."""
        program, counted = segment.program, self.counted[0]
        given = list(program.params.values()), list(program.inputs), counted
        if counted is None:
            return jax.eval_shape(take, *given)
        try:
            return jax.eval_shape(take, *given)
        except ValueError as error:
            path = next(segment.weights[name][0] for name in self.names(segment))
            raise ValueError(
                f"mask of shape {counted.shape} cannot be followed into the block of {path!r}, "
                f"whose inputs are {_shown(program.inputs)}: one of them must begin with the "
                "mask's axes, in this order, and the weights' inputs must keep them. Prune without "
                "mask=, on windows that are full."
            ) from error

    def _inputs(self, place: Place, layout: Layout, raw: Mapping[str, jax.Array]) -> Inputs:
        path, layer = place
        gradient = None
        if self.gradients is not None:
            leaf = self.gradients[path]
            gradient = layout.matrix(leaf if layer is None else leaf[layer])
        tokens = raw.get("tokens", jnp.zeros(layout.lead, jnp.int32)).astype(jnp.float32)
        sequences = jnp.full(layout.lead, self.sequences, jnp.float32)
        return Inputs(sequences, tokens, raw.get("squares"), raw.get("gram"), gradient)


def chosen_of(
    segments: Segments, params: Tree, where: Where | None
) -> tuple[set[str], list[Segment]]:
    """Return the paths that may be pruned, and the segments that have weights to prune.

    Raises:
      ValueError: there are none.
    """
    if where is None:
        some = [segment for segment in segments if segment.repeats] or list(segments)
        chosen = {path for segment in some for path, _ in segment.weights.values()}
    else:
        chosen = {*select(params, where)}
    prunable = [segment for segment in segments if names_in(segment, chosen)]
    if not prunable:
        raise ValueError(
            "there is nothing to prune: the graph found no weights with input features in "
            f"{'repeated blocks' if where is None else 'where='}. Look at graph.table(), and "
            "name the weights with where=."
        )
    return chosen, prunable


def places_of(graph: Graph, params: Tree, where: Where | None) -> list[list[Place]]:
    """Return the weights of each block that has any to prune.

    Raises:
      ValueError: there are none.
    """
    chosen, prunable = chosen_of(graph.segments(), params, where)
    return [[segment.weights[name] for name in names_in(segment, chosen)] for segment in prunable]


def names_in(segment: Segment, chosen: Set[str]) -> list[str]:
    """Return the segment's own names of its weights that are chosen."""
    names = [name for name, (path, _) in segment.weights.items() if path in chosen]
    return [name for name in names if name in segment.products]


def tokens_counted(
    mask: Counted, inputs: tuple[Any, ...], arrays: Sequence[jax.Array]
) -> jax.Array:
    """Return which tokens of a batch count.

    Raises:
      ValueError: the mask is not boolean, no beginning of an input's shape, or square.
    """
    counted = jnp.asarray(mask(*inputs))
    fits = any(x.shape[: counted.ndim] == counted.shape for x in arrays)
    if counted.dtype != jnp.bool_ or not counted.ndim or not fits:
        raise ValueError(
            f"mask returned {counted.dtype}{list(counted.shape)} for inputs {_shown(arrays)}. It "
            "must be one boolean for each token, such as tokens != padding."
        )
    if len(set(counted.shape)) < counted.ndim:
        raise ValueError(
            f"mask has shape {counted.shape}: inside the model, axes of one size cannot be told "
            "apart. Give batches whose number of sequences is not their length."
        )
    return counted


def _sequences(array: jax.Array, counted: jax.Array | None) -> int:
    """Return how many sequences a batch has in which a token counts."""
    if not array.ndim:
        return 1
    if counted is None:
        return array.shape[0]
    return int(jnp.sum(counted.reshape(counted.shape[0], -1).any(axis=1)))


def _shape_of(counted: jax.Array | None) -> tuple[int, ...] | None:
    return None if counted is None else tuple(counted.shape)


@jax.jit
def _finite(raw: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
    """Return for each weight whether all of its statistics are finite."""
    return {
        name: jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays.values()]).all()
        for name, arrays in raw.items()
    }


def _updated(whole: jax.Array, part: jax.Array, layer: Any) -> jax.Array:
    return lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), layer, 0)


_with_layer = jax.jit(_updated)
_in_place = jax.jit(_updated, donate_argnums=0)


def _shown(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)


def _checked_gradients(gradients: Tree | None, needs: Sequence[str]) -> Leaves | None:
    if "gradient" not in needs:
        return None
    if gradients is None:
        raise ValueError(
            "the method reads gradients of the loss: pass gradients=, as "
            "jaxprune.scores.gradient_norm gives them for the dense model."
        )
    return paths.flatten(gradients)
