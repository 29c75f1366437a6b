"""A kernel for N:M weights as `_candidates` describes one, of plain jax: it counts its calls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

CALLS: list[Any] = []


class Config(NamedTuple):
    width: int = 1


class Packed(NamedTuple):
    stream: jax.Array
    words: jax.Array


def supports(
    rows: int, k: int, n_out: int, dtype: Any, n: int, m: int, *, device_kind: str
) -> str | None:
    del k, dtype, n, m
    assert device_kind == "cpu"
    if rows > 8:
        return f"takes 1 to 8 rows, not {rows}. Use implementation='xla'."
    return None if n_out % 2 == 0 else f"needs an even number of outputs, not {n_out}."


def pack(values: jax.Array, positions: jax.Array, *, m: int) -> Packed:
    del m
    return Packed(values[:, ::-1], positions[:, ::-1].astype(jnp.int32))


def unpack(packed: Packed, *, n: int, m: int, k: int, n_out: int) -> tuple[jax.Array, jax.Array]:
    assert packed.stream.shape == (n_out, k // m, n)
    return packed.stream[:, ::-1], packed.words[:, ::-1].astype(jnp.uint8)


def matmul(
    x: jax.Array, packed: Packed, *, n: int, m: int, n_out: int, config: Config | None = None
) -> jax.Array:
    assert x.ndim == 2
    assert not isinstance(x, Tracer) or x.shape[0] <= 8
    CALLS.append(config)
    values, positions = unpack(packed, n=n, m=m, k=x.shape[1], n_out=n_out)
    groups = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :, None] * m
    taken = x[:, groups + positions.astype(jnp.int32)]
    return jnp.sum(taken * values.astype(x.dtype)[None], (-1, -2))
