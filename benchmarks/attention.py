"""Measure speed and error of the attention kernels on a GPU, or without one describe the compiled code. Writes JSON.

    make kernels
    python benchmarks/attention.py --json benchmarks/results/attention.json

Always: which share of the key blocks the selection keeps on inputs of a trained network of a rendered scene.
With a GPU: TFLOP/s (of the dense count, so that sparse kernels show their gain) and the error against float64 of some
queries, for our kernels and for every backend of PyTorch's SDPA, flash-attn and SageAttention where they are
installed, at L = 1370 V tokens. Each time is the median of runs in turn, after a warm-up, with the preparation of
inputs (quantisation, selection) included. Without a GPU nothing is timed: the record has FLOPs, bytes and the
occupancy that registers and shared memory of the compiled kernels allow, and says that speed was not measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mapengine.export.attention.twins import select_blocks
from mapengine.kernels.compile import read_manifest
from mapengine.kernels.costs import attention_cost
from mapengine.kernels.tuning import ARCHITECTURES, QUERY_BLOCK
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

TOKENS = 1370
"""Tokens of a view of 518 x 518 pixels: 37 x 37 patches and the class token."""
HEADS, HEAD_DIM = 24, 64
MODEL = "preset:nano"
"""The trained network whose inputs decide how much a sparse kernel may drop."""
VIEWS = (1, 2, 4, 8, 16, 32, 64)
TRAINED_SIDE = 518
THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
KERNELS = ("dense-fp16", "int8-fp16", "int8-fp8-fp16", "sparse-fp16", "sparse-int8-fp16", "sparse-int8-fp8-fp16")

# Per compute capability: threads that a multiprocessor holds, and KiB of shared memory it has for them. (Its limit of
# programs does not bind: these have 256 threads.) Source: CUDA programming guide, "Compute Capabilities".
LIMITS = {
    80: (2048, 164),
    86: (1536, 100),
    87: (1536, 164),
    89: (1536, 100),
    90: (2048, 228),
    100: (2048, 228),
    110: (1536, 228),
    120: (1536, 100),
}
_HOLD_CYCLES = 1_000_000
"""Clock cycles that the GPU waits while the host queues the launches that are timed: half a millisecond."""
REGISTERS = 65536
REGISTER_UNIT = 256
"""Registers of a multiprocessor, and how many a warp's share is rounded up to."""
RESERVED_SHARED = 1024
"""Bytes of shared memory that the driver takes per program."""


def programs_per_multiprocessor(architecture: int, threads: int, registers: int, shared: int) -> int:
    """Return how many programs run on one multiprocessor at a time."""
    most_threads, kibibytes = LIMITS[architecture]
    warps = threads // 32
    per_warp = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    return min(
        most_threads // threads,
        REGISTERS // (per_warp * warps),
        kibibytes * 1024 // (shared + RESERVED_SHARED),
    )


def compiled(folder: Path) -> dict[str, dict[str, Any]]:
    """Return registers, spills, shared memory and occupancy of the compiled kernels of head size 64, by name and
    architecture."""
    entries = read_manifest(folder)["kernels"]
    result: dict[str, dict[str, Any]] = {}
    for kernel in KERNELS:
        for architecture in ARCHITECTURES:
            entry = entries.get(f"{kernel}-d{HEAD_DIM}.sm_{architecture}")
            if entry is None:
                continue
            used = entry["resources"]
            programs = programs_per_multiprocessor(
                architecture, entry["threads"], used["registers"], entry["shared_bytes"]
            )
            result.setdefault(kernel, {})[str(architecture)] = {
                "registers": used["registers"],
                "spilled_bytes": used["spill_stores"] + used["spill_loads"],
                "shared_bytes": entry["shared_bytes"],
                "warps_per_multiprocessor": programs * entry["threads"] // 32,
                "occupancy": round(programs * entry["threads"] / LIMITS[architecture][0], 3),
                "tensor_cores": entry["tensor_cores"],
            }
    return result


def work(views: int, kernel: str) -> dict[str, float]:
    """Return FLOPs and bytes of one layer of global attention; sparse kernels with every block kept."""
    cost = attention_cost(
        1,
        HEADS,
        TOKENS * views,
        HEAD_DIM,
        block_m=QUERY_BLOCK,
        score_bytes=1 if "int8" in kernel else 2,
        value_bytes=1 if "fp8" in kernel else 2,
    )
    return {
        "length": TOKENS * views,
        "tflop": cost.flops / 1e12,
        "dram_mb": cost.dram / 1e6,
        "l2_gb": cost.tiles / 1e9,
        "flop_per_l2_byte": cost.flops / cost.tiles,
    }


def candidates(threshold: float, tokens: int) -> dict[str, Callable[..., Any]]:
    """Return everything that can be timed here, each taking (B, L, H, D) tensors."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from mapengine.kernels import Selection, dense_attention, int8_attention, sparse_attention

    selection = Selection(threshold, 0.1, view_tokens=tokens, extra_tokens=1)

    def sdpa(backend: SDPBackend) -> Callable[..., Any]:
        def run(query: Any, key: Any, value: Any) -> Any:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
            return out.transpose(1, 2)

        return run

    found: dict[str, Callable[..., Any]] = {
        "torch flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "torch cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "torch efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "dense": dense_attention,
        "int8": int8_attention,
        "int8, FP8 values": lambda q, k, v: int8_attention(q, k, v, fp8_values=True),
        f"sparse {threshold}": lambda q, k, v: sparse_attention(q, k, v, selection)[0],
        f"sparse {threshold}, int8": lambda q, k, v: sparse_attention(q, k, v, selection, int8=True)[0],
    }
    try:
        from flash_attn import flash_attn_func

        found["flash-attn"] = flash_attn_func
    except ImportError:
        pass
    try:
        from sageattention import sageattn

        found["SageAttention"] = lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD")
    except ImportError:
        pass
    return found


def timed(views: int, threshold: float, rounds: int) -> dict[str, dict[str, Any]]:
    """Return median time, TFLOP/s and error of every candidate at ``views`` views. Needs a GPU."""
    import torch

    from mapengine.kernels import split_qkv

    length = TOKENS * views
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(1, length, 3 * HEADS * HEAD_DIM, device="cuda", dtype=torch.float16, generator=generator)
    query, key, value = split_qkv(qkv, HEADS)
    rows = torch.arange(0, length, max(length // 256, 1), device="cuda")
    heads = []
    for head in range(HEADS):  # one at a time, for the memory of small GPUs
        weights = query[0, rows, head].double() @ key[0, :, head].double().T / math.sqrt(HEAD_DIM)
        heads.append(weights.softmax(-1) @ value[0, :, head].double())
    exact = torch.stack(heads, 1)[None]  # (1, rows, HEADS, HEAD_DIM)
    flops = attention_cost(1, HEADS, length, HEAD_DIM, block_m=QUERY_BLOCK).flops
    results: dict[str, dict[str, Any]] = {}
    running: dict[str, Callable[[], Any]] = {}
    for name, run in candidates(threshold, TOKENS).items():
        try:
            out = run(query, key, value)  # also compiles
            torch.cuda.synchronize()
        except Exception as error:  # a backend that refuses is a result
            results[name] = {"refused": reason(error)}
            continue
        error = (out[:, rows].double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        results[name] = {"relative_error": float(error)}
        running[name] = lambda run=run: run(query, key, value)  # type: ignore[misc]
    for name, median in median_ms(running, rounds).items():
        results[name] |= {"median_ms": median, "tflops": flops / median / 1e9}
    return results


def reason(error: Exception) -> str:
    """Return what an exception says, in a line; the cause of a compiler's."""
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return f"{type(error.__cause__ or error).__name__}: {lines[-1].strip()[:160] if lines else 'no message'}"


def trained_qkv(views: int, side: int) -> tuple[Any, Any, Any]:
    """Return queries, keys and values of all global layers of :data:`MODEL`: (1, L, layers * heads, D) float16.

    L is ``views`` * ((``side`` / 14)^2 + 1) + 1: patches and class token of each view, then the scale token.
    """
    import torch

    from mapengine.calibration.scenes import render_scene
    from mapengine.export import load_model
    from mapengine.runtime import preprocess_inputs

    model = load_model(MODEL)
    scene = render_scene(1_700_000, views, side, side)
    layers: list[Any] = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda _, __, output: layers.append(output))
        for block in model.info_sharing.self_attention_blocks[::2]
    ]
    inputs = [{"img": image} for image in scene.images]
    model.predict(preprocess_inputs(inputs, resize_mode="fixed_size", size=(side, side)), use_amp=False)
    for hook in hooks:
        hook.remove()
    heads = model.config.aggregator.block.num_heads
    parts = [x.reshape(1, x.shape[1], 3, heads, -1) for x in layers]
    query, key, value = (torch.cat([p[:, :, i] for p in parts], 2).half().contiguous() for i in range(3))
    return query, key, value


def trained(views: int, rounds: int) -> dict[str, Any]:
    """Return what sparse attention keeps on the inputs of a trained network, and with a GPU its times."""
    import torch

    from mapengine.kernels import Selection, dense_attention, sparse_attention

    qkv = trained_qkv(views, TRAINED_SIDE)
    choices = {t: Selection(t, 0.0, view_tokens=TOKENS, extra_tokens=1) for t in THRESHOLDS}
    query, key = (part[0].transpose(0, 1).float().numpy() for part in qkv[:2])
    kept = {t: float(select_blocks(query, key, t, TOKENS, 1, 0.0).mean()) for t in THRESHOLDS}
    result: dict[str, Any] = {
        "model": MODEL,
        "views": views,
        "length": qkv[0].shape[1],
        "heads": qkv[0].shape[2],
        "thresholds": {str(t): {"kept": share} for t, share in kept.items()},
    }
    if torch.cuda.is_available():
        on_gpu = [x.cuda() for x in qkv]
        runs: dict[str, Callable[[], Any]] = {"dense": lambda: dense_attention(*on_gpu)}
        runs |= {str(t): lambda c=choice: sparse_attention(*on_gpu, c) for t, choice in choices.items()}  # type: ignore[misc]
        medians = median_ms(runs, rounds)
        result["dense_ms"] = medians.pop("dense")
        for threshold, median in medians.items():
            result["thresholds"][threshold]["median_ms"] = median
    return result


def median_ms(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median times of runs in turn on the GPU, after one round that is not counted."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    for attempt in range(rounds + 1):
        for name, run in runs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(_HOLD_CYCLES)  # all launches are queued before the first runs, as in a CUDA graph
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if attempt:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(samples) for name, samples in times.items()}


def gpu() -> dict[str, Any] | None:
    """Return the GPU that would be timed, or None."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return {"name": torch.cuda.get_device_name(), "compute_capability": f"{major}.{minor}", "cuda": torch.version.cuda}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, default=Path("build/kernels"), help="folder of `make kernels`")
    parser.add_argument("--views", type=int, nargs="+", default=list(VIEWS))
    parser.add_argument("--trained-views", type=int, default=8, help="views of the scene that the trained network sees")
    parser.add_argument("--threshold", type=float, default=0.9, help="of the sparse kernels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("build/attention.json"), help="where to write the record")
    args = parser.parse_args()
    device = gpu()
    kernels = compiled(args.kernels)
    if not kernels and device is None:
        print(f"Nothing to report: {args.kernels} has no compiled kernels; run `make kernels` first.", file=sys.stderr)
        return 1
    record = {
        "benchmark": "attention",
        "what": f"global attention of {HEADS} heads of {HEAD_DIM} channels, {TOKENS} tokens per view, FP16",
        **record_origin("mapengine", "torch", "triton", "numpy", "flash-attn", "sageattention"),
        "compiler": read_manifest(args.kernels).get("versions", {}),
        "compiled": kernels,
        "work": {str(v): {kernel: work(v, kernel) for kernel in KERNELS[:3]} for v in args.views},
        "trained": trained(args.trained_views, args.rounds),
        "speed": "not measured: there is no GPU",
    }
    record["machine"]["gpu"] = device
    if device is not None:
        record["threshold"], record["rounds"] = args.threshold, args.rounds
        record["speed"] = {str(v): timed(v, args.threshold, args.rounds) for v in args.views}
    write_record(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
