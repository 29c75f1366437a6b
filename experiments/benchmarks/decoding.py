"""Text generation by a model of Llama 7B's shape: 2:4 weights against the same weights dense.

python -m experiments.benchmarks.decoding [--layers N] [--tokens N] [--batch N] [--output FOLDER]

Weights are random, made on the device, and pruned to 2:4 in all layers; embedding and output layer
stay dense. `jaxprune.execute` runs `models.generate` on the packed weights. Both programs begin
with one token and add the rest in one compiled loop, so that nothing waits for the host. Their
logits after one token are compared, and so are the tokens.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from experiments.benchmarks import timing, tuned
from experiments.benchmarks.kernels import RUNS
from jaxprune import formats, kernels, models
from jaxprune.execute import execute, pack
from jaxprune.kernels import autotune

N, M = 2, 4
PATTERN = jaxprune.NM(N, M)
LLAMA_7B = models.LlamaConfig(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32, head_dim=128,
)  # fmt: skip
TINY = models.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, head_dim=16,
)  # fmt: skip
SHAPES = {"llama-7b": LLAMA_7B, "tiny": TINY}
EFFORT = timing.Effort(least=0.05, total=4.0, rounds=(5, 15))


def main(argv: Sequence[str] | None = None) -> None:
    """Generate with both, and keep tokens a second."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--layers", type=int, help="instead of those of the shape")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--table", type=Path, default=RUNS / "tuning-decoding.json")
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    given = parser.parse_args(words)
    config = SHAPES[given.shape]
    if given.layers is not None:
        config = dataclasses.replace(config, num_hidden_layers=given.layers)
    cases = [one for batch in given.batch for one in products(config, batch)]
    tuned.ensure(cases, given.table)
    timing.said("products are known")
    model = prepare(config, max(given.batch))
    timing.said("weights are packed")
    rows: dict[int, dict[str, Any]] = {}
    for batch in given.batch:
        for row in measure(model, batch, given.tokens):
            timing.said(str(row))
            rows[batch] = row
            content = {"model": dataclasses.asdict(config), "bytes": model.bytes}
            timing.save("decoding", words, content | {"rows": [*rows.values()]}, given.output)


def table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of the page's table."""
    header = ("batch", "tokens", "dense tokens/s", "2:4 tokens/s", "speed-up", "equal tokens",
              "logits error")  # fmt: skip
    return header, [
        [
            str(row["batch"]), str(row["tokens"]), f"{row['dense tokens/s']:.0f}",
            f"{row['sparse tokens/s']:.0f}", f"{row['speedup']:.2f}x", str(row["equal tokens"]),
            "-" if error is None else f"{error:.1e}",
        ]
        for row in rows
        for error in [row["logits error"]]
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """The same weights twice.

    Attributes:
      config: the model's shape.
      dense: pruned parameters, as arrays.
      packed: the same, compressed.
      bytes: of both.
    """

    config: models.LlamaConfig
    dense: Any
    packed: Any
    bytes: dict[str, int]


def products(config: models.LlamaConfig, rows: int) -> list[autotune.Case]:
    """Return the products of a layer."""
    width, wide = config.hidden_size, config.intermediate_size
    return [
        autotune.case(f"{N}:{M}", rows, k, n_out, dtype=dtype_here())
        for k, n_out in ((width, width), (width, wide), (wide, width))
    ]


def dtype_here() -> Any:
    """Return bfloat16, or float32 on a CPU, which computes in it."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def prepare(config: models.LlamaConfig, rows: int) -> Model:
    """Make random pruned weights, and compress them."""
    dtype = dtype_here()
    shapes = jax.eval_shape(functools.partial(models.init_llama, config), jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))
    dense, masks = [], {}
    for key, (path, leaf) in zip(keys, leaves, strict=True):
        name = "/".join(str(part.key) for part in path)
        if len(leaf.shape) == 1:
            dense.append(jnp.ones(leaf.shape, dtype))
        elif name.startswith("layers"):
            weight, masks[name] = drawn(key, leaf.shape, dtype, True)
            dense.append(weight)
        else:
            dense.append(drawn(key, leaf.shape, dtype, False)[0])
    params = jax.tree.unflatten(tree, dense)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    graph = jaxprune.trace(models.llama(config), params, tokens)
    packed = pack(params, masks, graph=graph, format=functools.partial(compress, rows), rows=rows)
    left = {path for path in packed.dense if path.startswith("layers")}
    assert not left, f"these layers were not packed: {left}"
    sizes = {
        "dense": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "packed": sum(leaf.nbytes for leaf in jax.tree.leaves(packed.params)),
    }
    return Model(config, params, packed.params, sizes)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def drawn(key: jax.Array, shape: tuple[int, int], dtype: Any, pruned: bool) -> Any:
    """Return a random weight and its mask; the largest of each group are kept."""
    w = (0.02 * jax.random.normal(key, shape)).astype(dtype)
    if not pruned:
        return w, None
    mask = PATTERN.mask(jnp.abs(w), N)
    return jnp.where(mask, w, jnp.zeros_like(w)), mask


def compress(rows: int, matrix: Any, mask: Any, *, path: str) -> formats.NMSparse:
    """Pack a weight at once as the kernel wants it that is fastest for the rows."""
    make = functools.partial(formats.NMSparse.from_dense, n=N, m=M, path=path)
    layout = kernels.layout_of(rows, jax.eval_shape(make, matrix, mask))
    return make(matrix, mask, layout=layout)


def measure(model: Model, batch: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield times and equal tokens, and then the same with the error of the logits."""
    prompt = np.full((batch, 1), 5, np.int32)

    def generate(params: Any) -> jax.Array:
        return models.generate(model.config, params, prompt, max_new_tokens=count, stop_at=())

    def logits(params: Any) -> jax.Array:
        return models.llama(model.config)(params, jnp.asarray(prompt))

    run = both(model, generate)
    timing.said("generation is compiled")
    tokens = {name: np.asarray(one()) for name, one in run.items()}
    timing.said("tokens are generated")
    same = int(np.cumprod(tokens["dense"] == tokens["sparse"], axis=-1).sum(-1).min())
    times = timing.medians(run, EFFORT)
    dense, sparse = times["dense"], times["sparse"]
    assert dense is not None and sparse is not None
    row = {
        "batch": batch,
        "tokens": count,
        "dense tokens/s": batch * count / dense,
        "sparse tokens/s": batch * count / sparse,
        "speedup": dense / sparse,
        "equal tokens": same,
        "logits error": None,
    }
    yield row
    found = {name: np.asarray(one()) for name, one in both(model, logits).items()}
    want, got = found["dense"], found["sparse"]
    yield row | {"logits error": float(np.linalg.norm(got - want) / np.linalg.norm(want))}


def both(model: Model, function: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """Compile a function of parameters for both, at a time."""
    jobs = {
        "dense": (function, model.dense),
        "sparse": (execute(function, model.packed), model.packed),
    }
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        started = {name: pool.submit(compiled, *job) for name, job in jobs.items()}
        return {name: future.result() for name, future in started.items()}


def compiled(function: Any, params: Any) -> Any:
    """Compile a function of parameters; the result takes nothing."""
    return functools.partial(jax.jit(function).lower(params).compile(), params)


if __name__ == "__main__":
    main()
