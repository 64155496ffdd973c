"""Measure the launch of attention kernels as an engine does it, and compare their results. Needs a GPU.

    python benchmarks/studies/attention_launch.py --json benchmarks/results/attention-launch-h200.json

The compiled kernels go through the runtime's own launcher (no PyTorch, no Triton in the timed part): directly, and
recorded in a CUDA graph. Between two segments of an engine there is one such attention. With one token the kernels have
nothing to do, so their time in a graph bounds what a cut costs the GPU; the host's time to queue them matters only
for the first call of a shape, which is not a graph yet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.export.bundles.chains import with_launches
from mapengine.kernels.compile import build, chosen, read_manifest
from mapengine.runtime.backends.cuda.attention import AttentionKernels
from mapengine.runtime.backends.cuda.driver import Device
from mapengine.runtime.bundle.kernel_attention import KERNELS, KernelAttention, KernelCode
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

HEADS, DIM, VIEW_TOKENS = 24, 64, 1370
CASES: tuple[tuple[str, float | None], ...] = (
    ("flash", None),
    ("int8", None),
    ("int8-fp8", None),
    ("sparse", 0.9),
    ("sparse", 1.0),
    ("sparse-int8", 0.9),
    ("sparse-int8-fp8", 0.9),
)
CALLS = 16
"""Attentions in a graph: as many as the giant network has layers."""


def entry(kernel: str, threshold: float | None) -> KernelAttention:
    return with_launches(
        KernelAttention("layer", kernel, threshold, HEADS, DIM, "float16", "qkv", "qkv", "qkv", "out", 1)
    )


def compiled(folder: Path, architecture: int) -> tuple[KernelCode, ...]:
    """Compile the kernels of the cases for the GPU that is there."""
    names = sorted({name for case in CASES for launch in entry(*case).launches for name in launch})
    build(folder, chosen([architecture], [DIM], names), workers=8)
    found = read_manifest(folder)["kernels"].values()
    return tuple(
        KernelCode.from_compiled(BundleWriter(folder).record(kernel["cubin"]["file"]), kernel) for kernel in found
    )


def reference(qkv: np.ndarray, kernel: str, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the same attention exactly, and as Triton launches our kernel: (L, H * D) each."""
    import torch

    from mapengine.kernels import Selection, dense_attention, int8_attention, sparse_attention, split_qkv

    packed = torch.from_numpy(qkv).cuda()[None]
    query, key, value = split_qkv(packed, HEADS)
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2).float() for part in (query, key, value))
    ).transpose(1, 2)
    kind = KERNELS[kernel]
    if threshold is not None:
        choice = Selection(threshold, view_tokens=VIEW_TOKENS, extra_tokens=1)
        ours, _ = sparse_attention(query, key, value, choice, int8=kind.int8, fp8_values=kind.fp8)
    elif kind.int8:
        ours = int8_attention(query, key, value, fp8_values=kind.fp8)
    else:
        ours = dense_attention(query, key, value)
    shape = len(qkv), HEADS * DIM
    return exact.reshape(shape).cpu().numpy(), ours.reshape(shape).cpu().numpy()


class Bench:
    """One attention over random tokens, in GPU memory."""

    def __init__(self, device: Device, kernels: AttentionKernels, attention: KernelAttention, length: int) -> None:
        self.device, self.stream = device, device.stream()
        self.qkv = np.random.default_rng(0).standard_normal((length, 3 * HEADS * DIM), np.float32).astype(np.float16)
        source = device.pinned(self.qkv.shape, np.float16)
        source.array[...] = self.qkv
        self.input, self.output = device.allocate(self.qkv.nbytes), device.allocate(self.qkv.nbytes // 3)
        self.workspace = device.allocate(kernels.workspace(attention, length))
        self.stream.upload(source, self.input.address)
        self.stream.synchronize()
        source.free()

        def enqueue() -> None:
            kernels.enqueue(
                attention,
                self.stream.handle,
                length=length,
                view_tokens=VIEW_TOKENS,
                addresses={"qkv": self.input.address, "out": self.output.address},
                workspace=self.workspace.address,
            )

        self.enqueue: Callable[[], None] = enqueue

    def result(self) -> np.ndarray:
        """Return (L, H * D) of one run."""
        self.enqueue()
        target = self.device.pinned((len(self.qkv), HEADS * DIM), np.float16)
        self.stream.download(self.output.address, target)
        self.stream.synchronize()
        return target.array.copy()

    def times(self, rounds: int) -> dict[str, float]:
        """Return medians per attention in microseconds: GPU, in a graph and queued one by one, and host, to queue."""
        start, end = self.device.event(), self.device.event()
        with self.stream.capture() as graph:
            for _ in range(CALLS):
                self.enqueue()
        found: dict[str, list[float]] = {"graph_us": [], "queued_us": [], "host_us": []}
        for _ in range(rounds + 2):
            for name in ("graph_us", "queued_us"):
                start.record(self.stream)
                begin = time.perf_counter()
                if name == "graph_us":
                    self.stream.launch(graph)
                else:
                    for _ in range(CALLS):
                        self.enqueue()
                    found["host_us"].append((time.perf_counter() - begin) * 1e6 / CALLS)
                end.record(self.stream)
                end.wait()
                found[name].append(end.milliseconds_since(start) * 1e3 / CALLS)
        graph.free()
        return {name: round(statistics.median(times[2:]), 2) for name, times in found.items()}


def measure(device: Device, kernels: AttentionKernels, views: list[int], rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kernel, threshold in CASES:
        attention = entry(kernel, threshold)
        name = kernel if threshold is None else f"{kernel}:{threshold:g}"
        results[name] = {}
        for count in views:
            length = VIEW_TOKENS * count + 1
            bench = Bench(device, kernels, attention, length)
            found = bench.result()
            exact, ours = reference(bench.qkv, kernel, threshold)
            results[name][str(length)] = {
                "relative_error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
                "equals_triton_launch": bool(np.array_equal(found, ours)),
                **bench.times(rounds),
            }
            print(name, length, results[name][str(length)], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 8, 32], help="0 is a single token")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--json", type=Path, default=Path("build/attention_launch.json"), help="where to write the record"
    )
    args = parser.parse_args()
    device = Device()
    with tempfile.TemporaryDirectory() as scratch, device.current():
        codes = compiled(Path(scratch), int(device.compute_capability.replace(".", "")))
        kernels = AttentionKernels(device, Path(scratch), codes, [entry(*case) for case in CASES])
        results = measure(device, kernels, args.views, args.rounds)
    record = {
        "benchmark": "attention_launch",
        "what": f"attention of {HEADS} heads of {DIM} channels in FP16, {CALLS} in a CUDA graph, as engines launch it",
        **record_origin("mapengine", "torch", "triton", "numpy", "cuda-bindings"),
        "rounds": args.rounds,
        "results": results,
    }
    record["machine"]["gpu"] = {"name": device.name, "compute_capability": device.compute_capability}
    record["machine"]["gpu"]["cuda"] = device.driver_version
    write_record(args.json, record)


if __name__ == "__main__":
    main()
