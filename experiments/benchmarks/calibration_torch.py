"""Wanda and SparseGPT written plainly in torch, as published: what jaxprune is timed beside.

Hooks add up what is known of each linear layer's input, then layer after layer is pruned: Wanda by
sorted rows, SparseGPT column by column within blocks of columns. The block is that of
`jaxprune.models`, with torch's own attention.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.models import LlamaConfig


def import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the benchmark compares with torch, which is not installed. Install torch, or pass "
            "--without-torch to time jaxprune alone."
        ) from error


torch = import_torch()


class Target(NamedTuple):
    """What is pruned: a share of zeros, or ``group = (kept, m)``."""

    sparsity: float
    group: tuple[int, int] | None


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def restart_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def set_tf32(on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")


class Block(torch.nn.Module):
    """A block of a Llama, from the parameters of one layer by path, kernels (in, out)."""

    def __init__(self, config: LlamaConfig, layer: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.config = config
        self.norms = {
            path.removesuffix("/scale"): _tensor(array)
            for path, array in layer.items()
            if path.endswith("/scale")
        }
        self.linears = torch.nn.ModuleDict(
            {
                path.removesuffix("/kernel"): _linear(array)
                for path, array in layer.items()
                if path.endswith("/kernel")
            }
        )
        self.turns: dict[int, tuple[Any, Any]] = {}

    def forward(self, x: Any) -> Any:
        c, linears = self.config, self.linears
        normed = self._norm(x, "input_layernorm")
        query = self._turned(_heads(linears["self_attn/q_proj"](normed), c.num_attention_heads))
        key = self._turned(_heads(linears["self_attn/k_proj"](normed), c.num_key_value_heads))
        value = _heads(linears["self_attn/v_proj"](normed), c.num_key_value_heads)
        groups = c.num_attention_heads // c.num_key_value_heads
        if groups > 1:
            key, value = (a.repeat_interleave(groups, dim=1) for a in (key, value))
        attend = torch.nn.functional.scaled_dot_product_attention
        read = attend(query, key, value, is_causal=True)
        x = x + linears["self_attn/o_proj"](read.transpose(1, 2).flatten(2))
        normed = self._norm(x, "post_attention_layernorm")
        gate = torch.nn.functional.silu(linears["mlp/gate_proj"](normed))
        return x + linears["mlp/down_proj"](gate * linears["mlp/up_proj"](normed))

    def _norm(self, x: Any, name: str) -> Any:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.config.rms_norm_eps) * self.norms[name]

    def _turned(self, x: Any) -> Any:
        """Turn the two halves of each head, (batch, heads, length, head_dim), by position."""
        length, width = x.shape[-2:]
        if length not in self.turns:
            steps = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
            angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None]
            angles = angles * self.config.rope_theta**-steps
            self.turns[length] = angles.cos(), angles.sin()
        cos, sin = self.turns[length]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _tensor(array: np.ndarray) -> Any:
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device=device())


def _linear(kernel: np.ndarray) -> Any:
    layer = torch.nn.Linear(*kernel.shape, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(_tensor(kernel.T), requires_grad=False)
    return layer


def _heads(x: Any, count: int) -> Any:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def embedded(embedding: np.ndarray, batches: Sequence[np.ndarray]) -> list[Any]:
    """Return what enters the first block."""
    table = _tensor(embedding)
    return [table[torch.tensor(batch, dtype=torch.int64, device=device())] for batch in batches]


class Norms:
    """Wanda's statistic: the squared norm of each input, over the number of sequences."""

    def __init__(self, linear: Any) -> None:
        self.squares = torch.zeros(linear.in_features, device=linear.weight.device)
        self.sequences = 0

    def add(self, x: Any) -> None:
        count = x.shape[0]
        rows = x.reshape(-1, x.shape[-1])
        self.squares *= self.sequences / (self.sequences + count)
        self.sequences += count
        self.squares += torch.norm(rows, dim=0) ** 2 / self.sequences


class Hessian:
    """SparseGPT's statistic: ``2 / sequences · Σ x xᵀ``, always in full float32."""

    def __init__(self, linear: Any) -> None:
        size = linear.in_features
        self.matrix = torch.zeros((size, size), device=linear.weight.device)
        self.sequences = 0

    def add(self, x: Any) -> None:
        count = x.shape[0]
        rows = x.reshape(-1, x.shape[-1])
        self.matrix *= self.sequences / (self.sequences + count)
        self.sequences += count
        rows = math.sqrt(2 / self.sequences) * rows
        precision = torch.get_float32_matmul_precision()
        set_tf32(False)
        self.matrix += rows.t() @ rows
        torch.set_float32_matmul_precision(precision)


@torch.no_grad()
def forward(block: Block, inputs: Sequence[Any]) -> None:
    """Send all batches through a block."""
    for x in inputs:
        block(x)


@torch.no_grad()
def outputs(block: Block, inputs: Sequence[Any]) -> list[Any]:
    """Return what all batches become in a block."""
    return [block(x) for x in inputs]


@torch.no_grad()
def collect(block: Block, inputs: Sequence[Any], kind: Callable[[Any], Any]) -> dict[str, Any]:
    """Send all batches through a block, with hooks on its linear layers; by name."""
    stats = {name: kind(linear) for name, linear in block.linears.items()}
    hooks = [
        linear.register_forward_pre_hook(lambda _, given, stat=stats[name]: stat.add(given[0]))
        for name, linear in block.linears.items()
    ]
    forward(block, inputs)
    for hook in hooks:
        hook.remove()
    return stats


@torch.no_grad()
def solve(block: Block, stats: Mapping[str, Any], prune: Any, target: Target) -> dict[str, Any]:
    """Return the pruned weights (out, in) of a block by name."""
    return {
        name: prune(linear.weight, stats[name], target) for name, linear in block.linears.items()
    }


@torch.no_grad()
def put(block: Block, weights: Mapping[str, Any]) -> None:
    """Put pruned weights into a block."""
    for name, weight in weights.items():
        block.linears[name].weight.copy_(weight)


def wanda(weight: Any, stat: Norms, target: Target) -> Any:
    scores = weight.abs() * stat.squares.sqrt()
    gone = torch.zeros_like(scores, dtype=torch.bool)
    if target.group is None:
        order = torch.sort(scores, dim=-1, stable=True).indices
        gone.scatter_(1, order[:, : int(scores.shape[1] * target.sparsity)], True)
    else:
        kept, m = target.group
        for i in range(0, scores.shape[1], m):
            lowest = torch.topk(scores[:, i : i + m], m - kept, dim=1, largest=False).indices
            gone.scatter_(1, i + lowest, True)
    pruned = weight.clone()
    pruned[gone] = 0
    return pruned


def sparsegpt(
    weight: Any, stat: Hessian, target: Target, *, blocksize: int = 128, damping: float = 0.01
) -> Any:
    weight, hessian = weight.clone(), stat.matrix
    diagonal = hessian.diagonal()
    before = diagonal.clone()  # put back at the end: the statistic serves several runs
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    del inverse
    diagonal.copy_(before)
    for first in range(0, weight.shape[1], blocksize):
        last = min(first + blocksize, weight.shape[1])
        corner = upper[first:last, first:last]
        done, errors = _columns(weight[:, first:last].clone(), corner, target)
        weight[:, first:last] = done
        weight[:, last:] -= errors @ upper[first:last, last:]
    return weight


def _columns(block: Any, upper: Any, target: Target) -> tuple[Any, Any]:
    """Prune the columns of a block one after another; return them, and the errors to pass on."""
    done, errors = torch.zeros_like(block), torch.zeros_like(block)
    pivots = upper.diagonal()
    if target.group is None:
        scores = block**2 / pivots**2
        limit = torch.sort(scores.flatten()).values[int(scores.numel() * target.sparsity)]
        gone = scores <= limit
    else:
        gone = torch.zeros_like(block, dtype=torch.bool)
    for i in range(block.shape[1]):
        if target.group is not None and i % target.group[1] == 0:
            kept, m = target.group
            scores = block[:, i : i + m] ** 2 / pivots[i : i + m] ** 2
            lowest = torch.topk(scores, m - kept, dim=1, largest=False).indices
            gone.scatter_(1, i + lowest, True)
        column = block[:, i]
        pruned = column.clone()
        pruned[gone[:, i]] = 0
        error = (column - pruned) / pivots[i]
        done[:, i], errors[:, i] = pruned, error
        block[:, i:] -= error[:, None] @ upper[i, i:][None]
    return done, errors


METHODS = {"wanda": (Norms, wanda), "sparsegpt": (Hessian, sparsegpt)}
