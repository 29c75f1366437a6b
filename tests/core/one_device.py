"""Select on a single device and print what came out: run by `test_select` in its own process."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core.select import global_top_k_mask, top_k_mask
from tests.core import reference

SHAPE = (50, 7, 30)
SIZE = 10_500
COUNTS = (0, 1, 1700, SIZE // 2, SIZE - 1, SIZE)


def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of one shape, easy and hard."""
    normal = rng.standard_normal(SHAPE).astype(np.float32)
    return {
        "normal": normal,
        "bfloat16": normal.astype(jnp.bfloat16),
        "equal": np.full(SHAPE, 0.5, np.float32),
        "few values": rng.integers(0, 7, SHAPE).astype(np.float32),
        "neighbours": (1.0 + rng.integers(0, 4, SHAPE) * 2.0**-23).astype(np.float32),
        "denormal": (rng.standard_normal(SHAPE) * 1e-42).astype(np.float32),
        "heavy": np.exp(15.0 * rng.standard_normal(SHAPE)).astype(np.float32),
        "ends": rng.choice(np.float32([-np.inf, -0.0, 0.0, np.inf, np.nan]), SHAPE),
        "integers": rng.integers(-(2**31), 2**31, SHAPE).astype(np.int32),
    }


def programs() -> dict[str, Any]:
    """The programs under test, compiled; each takes scores and k."""
    leaves = (jnp.float32, jnp.bfloat16, jnp.int32)
    shapes = {jnp.dtype(d).name: jax.ShapeDtypeStruct(SHAPE, d) for d in leaves}
    tree = [shapes["float32"], shapes["bfloat16"]]
    compiled = {name: build(top_k_mask, shape) for name, shape in shapes.items()}
    along = functools.partial(top_k_mask, axis=(0, 2))
    return compiled | {
        "axes": build(along, shapes["float32"]),
        "tree": build(global_top_k_mask, tree),
    }


def build(function: Any, scores: Any) -> Any:
    """Compile a selection with a traced k."""
    return jax.jit(function).lower(scores, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def selections(
    compiled: dict[str, Any], rng: np.random.Generator
) -> Iterator[tuple[str, Any, Any]]:
    """Yield a name, our mask and the reference's."""
    arrays = inputs(rng)
    for name, scores in arrays.items():
        for k in COUNTS:
            mask = compiled[scores.dtype.name](scores, np.int32(k))
            yield f"{name}, k={k}", mask, reference.top_k(scores, k)
    few = arrays["few values"]
    for k in (0, 4, 1500):
        mask = compiled["axes"](few, np.int32(k))
        yield f"axes, k={k}", mask, reference.top_k_along(few, k, (0, 2))
    leaves = [few, arrays["bfloat16"]]
    for k in (0, 20, 100, 20_000):
        found = compiled["tree"](leaves, np.int32(k))
        pairs = zip(found, reference.global_top_k(leaves, k), strict=True)
        yield from ((f"leaf {i}, k={k}", *pair) for i, pair in enumerate(pairs))


def bytes_per_score(program: Any) -> float:
    """Return what a program stores besides its arguments and results."""
    sizes = program.memory_analysis()
    # A mask has one byte for each score.
    return sizes.temp_size_in_bytes / sizes.output_size_in_bytes


def reads_of_several(platform: str) -> int:
    """Count the reductions of several operands in a selection that is lowered for a platform."""
    scores = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    traced = jax.jit(top_k_mask).trace(scores, jax.ShapeDtypeStruct((), jnp.int32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return len(re.findall(r"stablehlo\.reduce\([^)]*\), \(", text))


def main() -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    compiled = programs()
    found = list(selections(compiled, np.random.default_rng(0)))
    report = {
        "devices": jax.device_count(),
        "selections": len(found),
        "wrong": [name for name, mask, want in found if not np.array_equal(mask, want)],
        "bytes_per_score": {name: bytes_per_score(p) for name, p in compiled.items()},
        "reads_of_several": {name: reads_of_several(name) for name in ("cpu", "tpu")},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
