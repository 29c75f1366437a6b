"""Where each parameter lies: in our tree, stacked or not, and in a Hugging Face checkpoint."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core import paths
from jaxprune.models.config import LlamaConfig
from jaxprune.models.llama import Llama
from jaxprune.types import Tree

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_LAYER = re.compile(r"layers_(\d+)/")


def hf_name(path: str) -> str:
    """Return a parameter's name in a Hugging Face checkpoint."""
    *parts, leaf = _LAYER.sub(r"layers/\1/", path).split("/")
    prefix = "" if parts[0] == "lm_head" else "model."
    return prefix + ".".join([*parts, _LEAVES[leaf]])


def is_transposed(path: str) -> bool:
    """Tell whether the checkpoint holds the transpose: (out, in) where a kernel is (in, out)."""
    return path.endswith("/kernel")


@functools.lru_cache
def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by path, in the order of computation."""
    one = dataclasses.replace(config, num_hidden_layers=1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Llama(one).init, jax.random.key(0), tokens)["params"]
    found = {path: tuple(leaf.shape) for path, leaf in paths.flatten(tree).items()}
    block = {path: shape for path, shape in found.items() if _LAYER.match(path)}
    shapes = {"embed_tokens/embedding": found["embed_tokens/embedding"]}
    for i in range(config.num_hidden_layers):
        shapes |= {_LAYER.sub(f"layers_{i}/", path): shape for path, shape in block.items()}
    return shapes | {path: shape for path, shape in found.items() if path not in shapes}


def from_hf(
    config: LlamaConfig, read: Callable[[str], np.ndarray], *, dtype: Any, stacked: bool
) -> Tree:
    """Return the parameters, on the default device.

    Args:
      config: shape of the model.
      read: ``name -> array`` of a tensor of the checkpoint, on the host.
      dtype: of the parameters; None for the checkpoint's.
      stacked: whether to stack the blocks.

    Raises:
      ValueError: if a tensor has another shape than the configuration says, or is of integers.
    """
    shapes = parameter_shapes(config)
    if not stacked:
        return _nested({path: _leaf(path, shapes[path], read, dtype) for path in shapes})
    leaves: dict[str, jax.Array] = {}
    for path in shapes:
        if _LAYER.match(path) is None:
            leaves[path] = _leaf(path, shapes[path], read, dtype)
        elif path.startswith("layers_0/"):
            every = [path.replace("layers_0/", f"layers_{i}/", 1) for i in _layers(config)]
            each = [_host(p, shapes[p], read, dtype) for p in every]
            leaves[path.replace("layers_0/", "layers/", 1)] = jnp.array(np.stack(each))
    return _nested(leaves)


def to_hf(config: LlamaConfig, params: Tree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a checkpoint by name, one at a time, from either layout.

    Raises:
      ValueError: if a parameter is missing, unknown, or of another shape than the configuration's.
    """
    named = paths.flatten(params)
    shapes = parameter_shapes(config)
    for path, (source, layer) in _sources(config, named).items():
        array = named[source] if layer is None else named[source][layer]
        _check_shape(path, tuple(array.shape), shapes[path], "the parameter")
        host = np.asarray(array)
        # Contiguous: safetensors writes the buffer as it lies.
        yield hf_name(path), np.ascontiguousarray(host.T if is_transposed(path) else host)


def init_llama(config: LlamaConfig, key: jax.Array, *, stacked: bool = False) -> Tree:
    """Return random parameters: normal with standard deviation 0.02, norms of one, float32.

    Args:
      config: shape of the model.
      key: random key.
      stacked: whether the blocks' parameters are stacked along a leading layer axis.

    Returns:
      A dict of dicts. Kernels are (in, out); the embedding is (vocab_size, hidden_size).

    Example:
      >>> import jax
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> params = models.init_llama(config, jax.random.key(0))
      >>> sorted(params)
      ['embed_tokens', 'layers_0', 'layers_1', 'lm_head', 'norm']
      >>> params["layers_0"]["self_attn"]["k_proj"]["kernel"].shape
      (64, 32)
    """
    shapes = parameter_shapes(config)
    leaves: dict[str, jax.Array] = {
        path: jnp.full(shape, 0.0 if path.endswith("/bias") else 1.0, jnp.float32)
        for path, shape in shapes.items()
        if len(shape) == 1
    }
    matrices = [path for path, shape in shapes.items() if len(shape) == 2]
    parts = [[path for path in matrices if _LAYER.match(path) is None]]
    parts += [[p for p in matrices if p.startswith(f"layers_{i}/")] for i in _layers(config)]
    for part, one in zip(parts, jax.random.split(key, len(parts)), strict=True):
        drawn = _drawn(one, tuple(shapes[path] for path in part))
        leaves |= dict(zip(part, drawn, strict=True))
    return stack_layers(_nested(leaves)) if stacked else _nested(leaves)


def stack_layers(params: Tree) -> Tree:
    """Return the parameters with the blocks stacked along a leading layer axis.

    A stacked model is compiled once for all its blocks.

    Args:
      params: of a ``Llama``, with trees ``layers_0``, ``layers_1`` ... or stacked already.

    Returns:
      A dict of dicts with one tree ``layers``.

    Example:
      >>> import jax
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> params = models.init_llama(config, jax.random.key(0))
      >>> stacked = models.stack_layers(params)
      >>> stacked["layers"]["mlp"]["up_proj"]["kernel"].shape
      (2, 64, 128)
      >>> models.unstack_layers(stacked).keys() == params.keys()
      True
    """
    if "layers" in params:
        return params
    names = sorted((n for n in params if _LAYER.match(f"{n}/")), key=lambda n: int(n[7:]))
    layers = jax.tree.map(lambda *each: jnp.stack(each), *(params[name] for name in names))
    return {name: tree for name, tree in params.items() if name not in names} | {"layers": layers}


def unstack_layers(params: Tree) -> Tree:
    """Return the parameters with one tree per block: the inverse of ``stack_layers``.

    Args:
      params: of a ``Llama``, stacked or not.

    Returns:
      A dict of dicts with trees ``layers_0``, ``layers_1`` ...

    Example:
      See ``stack_layers``.

      >>> from jaxprune import models
      >>> import jax.numpy as jnp
      >>> list(models.unstack_layers({"layers": {"scale": jnp.ones((2, 3))}}))
      ['layers_0', 'layers_1']
    """
    if "layers" not in params:
        return params
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    each = {f"layers_{i}": jax.tree.map(lambda leaf: leaf[i], layers) for i in range(count)}
    return {name: tree for name, tree in params.items() if name != "layers"} | each


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key: jax.Array, shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
    """Return arrays cut from one draw: a draw for each would compile as many generators."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = 0.02 * jax.random.normal(key, (sum(sizes),), jnp.float32)
    ends = list(itertools.accumulate(sizes))
    pieces = zip(ends, sizes, shapes, strict=True)
    return [flat[end - size : end].reshape(shape) for end, size, shape in pieces]


def _layers(config: LlamaConfig) -> range:
    return range(config.num_hidden_layers)


def _sources(config: LlamaConfig, named: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    """Return for each path of the unstacked tree the leaf that holds it, and the layer in it."""
    stacked = any(path.startswith("layers/") for path in named)
    found: dict[str, tuple[str, int | None]] = {}
    for path in parameter_shapes(config):
        layer = _LAYER.match(path)
        inside = stacked and layer is not None
        source = _LAYER.sub("layers/", path) if inside else path
        found[path] = (source, int(layer[1]) if inside and layer else None)
    want = {source for source, _ in found.values()}
    missing, unknown = sorted(want - set(named)), sorted(set(named) - want)
    if missing or unknown:
        raise ValueError(
            f"params do not fit the configuration: missing {paths.listed(missing) or 'nothing'}; "
            f"unknown {paths.listed(unknown) or 'nothing'}. Pass the configuration that they were "
            "made for."
        )
    return found


def _leaf(
    path: str, shape: tuple[int, ...], read: Callable[[str], np.ndarray], dtype: Any
) -> jax.Array:
    return jnp.array(_host(path, shape, read, dtype))  # a copy: the host's may be a mapped file


def _host(
    path: str, shape: tuple[int, ...], read: Callable[[str], np.ndarray], dtype: Any
) -> np.ndarray:
    name = hf_name(path)
    array = read(name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype}; weights have to be floating-point. A quantised "
            "checkpoint has to be dequantised first."
        )
    _check_shape(name, array.shape, shape[::-1] if is_transposed(path) else shape, "the checkpoint")
    array = array if dtype is None else array.astype(dtype)
    return array.T if is_transposed(path) else array


def _check_shape(name: str, got: tuple[int, ...], want: tuple[int, ...], holder: str) -> None:
    if got != want:
        raise ValueError(
            f"{name} has shape {got} in {holder}, but {want} by the configuration; they belong to "
            "different models."
        )


def _nested(leaves: dict[str, jax.Array]) -> Tree:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = leaf
    return tree
