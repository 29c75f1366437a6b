"""torch's products with compressed weights on this GPU: cuSPARSELt's 2:4, and blocks.

python -m experiments.benchmarks.kernels_torch BENCH.JSON [--output FOLDER]

It measures the products of a file that `kernels` wrote; ``kernels --peers`` does so in its own
process. Times are of CUDA graphs, by events; the dense product is torch's own. Products of few rows
go round as many weights as no cache holds.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as nnf  # pyright: ignore[reportMissingImports]

from experiments.benchmarks import timing

_COLD = 400 << 20  # bytes of weights that no cache holds
_FEW = 256
Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the products of a file, and keep what is known after each."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="bench.json")
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    given = parser.parse_args(words)
    rows = []
    for line in measure(json.loads(given.file.read_text())["products"]):
        rows.append(line)
        print(line, flush=True)
        command = [given.file.name, "--output", str(given.output)]
        timing.save("kernels_torch", command, {"rows": rows}, given.output)


def measure(products: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield torch's times of the products that it has a kernel for.

    Args:
      products: as in bench.json; those of 2:4 and of blocks, forward, are measured.

    Yields:
      The product's sizes, ``dense`` in seconds, and for each peer its name with seconds, error and
      speed-up, or the reason why it failed.
    """
    warnings.filterwarnings("ignore")
    for line in products:
        known = line["format"] == "2:4" or "x" in line["format"]
        if not known or line["direction"] != "forward" or line["dtype"] != "bfloat16":
            continue
        sizes = {key: line[key] for key in ("format", "rows", "k", "n_out", "density")}
        try:
            yield {**sizes, "torch": torch.__version__, **_measured(**sizes)}
        except Exception as error:  # the rest is measured all the same
            yield {**sizes, "failure": f"{type(error).__name__}: {str(error)[:200]}"}
        torch.cuda.empty_cache()


def _measured(format: str, rows: int, k: int, n_out: int, density: float) -> dict[str, Any]:
    few = rows <= _FEW
    copies = max(1, _COLD // int(k * n_out * 2 * density)) if few else 1
    # Its own: the default one is of no use after a CUDA graph that could not be captured.
    random = torch.Generator("cuda").manual_seed(0)
    drawn = {"generator": random, "device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(rows, k, **drawn)
    pruned = _groups if format == "2:4" else _blocks(int(format.split("x")[0]), density, random)
    scale = k**0.5
    weights = [pruned(torch.randn(n_out, k, **drawn) / scale) for _ in range(copies)]
    want = x.float() @ weights[0].float().T
    dense = _seconds([lambda w=w: nnf.linear(x, w) for w in weights])
    peers = _semi_structured if format == "2:4" else _block_rows(int(format.split("x")[0]))
    found = {}
    for name, calls in peers(x, weights):
        try:
            made = calls()
            error = float((made[0]().float() - want).norm() / want.norm())
            seconds = _seconds(made)
            found[name] = {"seconds": seconds, "speedup": dense / seconds, "error": error}
        except Exception as error:
            found[name] = {"failure": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"dense": dense, "peers": found}


def _groups(w: Any) -> Any:
    groups = w.abs().reshape(w.shape[0], -1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return w * kept.scatter_(-1, groups.topk(2, dim=-1).indices, True).reshape(w.shape)


def _blocks(side: int, density: float, random: Any) -> Callable[[Any], Any]:
    def pruned(w: Any) -> Any:
        grid = (w.shape[0] // side, w.shape[1] // side)
        order = torch.rand(grid[0] * grid[1], device="cuda", generator=random).argsort()
        kept = (order < round(density * order.numel())).reshape(grid)
        return w * kept.repeat_interleave(side, 0).repeat_interleave(side, 1)

    return pruned


def _semi_structured(x: Any, weights: Sequence[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield cuSPARSELt as torch calls it, and with its fastest algorithm, searched for."""

    torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = False

    def plain() -> list[Call]:
        made = [torch.sparse.to_sparse_semi_structured(w) for w in weights]
        return [lambda w=w: nnf.linear(x, w) for w in made]

    def searched() -> list[Call]:
        across = x.t()
        packed = [torch._cslt_compress(w) for w in weights]
        best = torch._cslt_sparse_mm_search(packed[0], across)
        number = int(best[0] if isinstance(best, tuple | list) else best)
        return [lambda w=w: torch._cslt_sparse_mm(w, across, alg_id=number).t() for w in packed]

    yield "cuSPARSELt", plain
    yield "cuSPARSELt, searched", searched


def _block_rows(side: int) -> Any:
    def peers(x: Any, weights: Sequence[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
        def made() -> list[Call]:
            rows = [w.to_sparse_bsr(side) for w in weights]
            return [lambda w=w: nnf.linear(x, w) for w in rows]

        yield "BSR", made

    return peers


def _seconds(calls: Sequence[Call], samples: int = 9) -> float:
    """Return the median seconds of a call, all in one CUDA graph; where that fails, one by one.

    The reason is printed: starting the calls one by one takes time, too.
    """
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    turns = max(1, 10 // len(calls))

    def eager() -> None:
        for _ in range(turns):
            for call in calls:
                call()

    run = eager
    try:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            eager()
        run = graph.replay
    except RuntimeError as error:
        print(f"no CUDA graph, so that calls are started one by one: {error}", file=sys.stderr)
        torch.cuda.synchronize()
    times = []
    for _ in range(samples + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / (turns * len(calls)))
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
