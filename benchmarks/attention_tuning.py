"""Time the attention kernels with every number of warps and pipeline stages on this GPU. Writes JSON.

    python benchmarks/attention_tuning.py --json benchmarks/results/attention-tuning.json

For each kernel, head size and choice: the median of runs at L = 1370 V tokens, in turn, after a warm-up. With
``--store`` the best ones go into ``kernels/tuned.json``. Compiling takes longest, so it is shared out over processes
first; the timed process finds the results in Triton's cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attention import HEADS, TOKENS, gpu, median_ms, reason

from mapengine.kernels.costs import attention_cost
from mapengine.kernels.tuning import KEY_BLOCK, KINDS, QUERY_BLOCK, TUNED, Tile
from mapengine.runtime.system.children import WorkerPool
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record, write_text

HEAD_DIM = 64
KERNELS = ("dense", "int8", "int8-fp8", "sparse", "sparse-int8", "sparse-int8-fp8")
CHOICES = [Tile(QUERY_BLOCK, KEY_BLOCK, warps, stages) for warps in (4, 8) for stages in (2, 3, 4)]
WIDE = [Tile(QUERY_BLOCK, 2 * KEY_BLOCK, warps, stages) for warps in (4, 8) for stages in (2, 3)]
"""For the dense kernel, whose blocks of keys are tied to nothing."""

Job = tuple[str, int, Tile]


def jobs(head_dims: list[int], kernels: list[str]) -> list[Job]:
    """Return everything that is timed."""
    return [
        (kernel, dim, tile)
        for kernel, dim in itertools.product(kernels, head_dims)
        for tile in (CHOICES + WIDE if kernel == "dense" else CHOICES)
    ]


def runner(job: Job) -> Callable[[Any, Any, Any], Any]:
    """Return a function of queries, keys and values (B, L, H, D)."""
    from mapengine.kernels import Selection, dense, int8, sparse

    kernel, _, tile = job
    for module in (dense, int8, sparse):
        module.tile_for = lambda *_: tile
    if kernel == "dense":
        return dense.dense_attention
    fp8 = kernel.endswith("fp8")
    if kernel.startswith("int8"):
        return lambda q, k, v: int8.int8_attention(q, k, v, fp8_values=fp8)
    selection = Selection(0.9, 0.1, view_tokens=TOKENS, extra_tokens=1)
    quantized = "int8" in kernel
    return lambda q, k, v: sparse.sparse_attention(q, k, v, selection, int8=quantized, fp8_values=fp8)[0]


def inputs(length: int, dim: int) -> tuple[Any, Any, Any]:
    """Return random queries, keys and values of one packed tensor."""
    import torch

    from mapengine.kernels import split_qkv

    generator = torch.Generator("cuda").manual_seed(0)
    heads = HEADS * HEAD_DIM // dim
    qkv = torch.randn(1, length, 3 * heads * dim, device="cuda", dtype=torch.float16, generator=generator)
    return split_qkv(qkv, heads)


def compile_only(job: Job) -> str | None:
    """Compile into Triton's cache and return what went wrong."""
    import torch

    try:
        runner(job)(*inputs(TOKENS, job[1]))
        torch.cuda.synchronize()
    except Exception as error:  # a choice that does not fit this GPU is a result
        return reason(error)
    return None


def timed(all_jobs: list[Job], views: int, rounds: int) -> list[dict[str, Any]]:
    """Return median milliseconds and TFLOP/s of the dense count, one record per job."""
    tensors = {dim: inputs(TOKENS * views, dim) for _, dim, _ in all_jobs}
    runs = {str(job): lambda job=job: runner(job)(*tensors[job[1]]) for job in all_jobs}  # type: ignore[misc]
    medians = median_ms(runs, rounds)
    results = []
    for kernel, dim, tile in all_jobs:
        flops = attention_cost(1, HEADS * HEAD_DIM // dim, TOKENS * views, dim, block_m=QUERY_BLOCK).flops
        median = medians[str((kernel, dim, tile))]
        chosen = {"keys": tile.block_n, "warps": tile.warps, "stages": tile.stages}
        results.append(
            {"kernel": kernel, "head_dim": dim, **chosen, "median_ms": median, "tflops": flops / median / 1e9}
        )
    return sorted(results, key=lambda r: (r["kernel"], r["head_dim"], r["median_ms"]))


def store(results: list[dict[str, Any]], capability: str) -> None:
    """Keep the fastest warps and stages of each kind of kernel, with blocks as the ahead-of-time kernels have them."""
    tuned = json.loads(TUNED.read_text(encoding="utf-8"))
    for result in sorted(results, key=lambda r: r["median_ms"], reverse=True):  # the fastest is written last
        if result["kernel"] in KINDS and result["keys"] == KEY_BLOCK:
            of_size = tuned.setdefault(capability.replace(".", ""), {}).setdefault(str(result["head_dim"]), {})
            of_size[result["kernel"]] = {"warps": result["warps"], "stages": result["stages"]}
    write_text(TUNED, None, json.dumps(tuned, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[HEAD_DIM])
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS, metavar="KERNEL")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", action="store_true", help="keep the best in kernels/tuned.json, for this GPU's kind")
    parser.add_argument("--workers", type=int, default=usable_processors(), help="processes that compile")
    parser.add_argument(
        "--json", type=Path, default=Path("build/attention_tuning.json"), help="where to write the record"
    )
    args = parser.parse_args()
    device = gpu()
    if device is None:
        print("Nothing was timed: there is no NVIDIA GPU that PyTorch can use.", file=sys.stderr)
        return 1
    wanted = jobs(args.head_dims, args.kernels)
    with WorkerPool(args.workers) as pool:
        compiled = {job: pool.submit(compile_only, job) for job in wanted}
        problems = {job: problem.result() for job, problem in compiled.items()}
    usable = [job for job in wanted if problems[job] is None]
    record = {
        "benchmark": "attention_tuning",
        "what": f"attention of {TOKENS * args.views} tokens, {HEADS * HEAD_DIM} channels, FP16",
        **record_origin("mapengine", "torch", "triton", "numpy"),
        "views": args.views,
        "rounds": args.rounds,
        "refused": [
            {"kernel": kernel, "head_dim": dim, **vars(tile), "error": problems[kernel, dim, tile]}
            for kernel, dim, tile in wanted
            if problems[kernel, dim, tile] is not None
        ],
        "results": timed(usable, args.views, args.rounds),
    }
    record["machine"]["gpu"] = device
    write_record(args.json, record)
    if args.store:
        store(record["results"], device["compute_capability"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
