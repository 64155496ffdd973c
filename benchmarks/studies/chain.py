"""Time the aggregator on this GPU as one graph, and as a chain with our attention kernels between its segments.

    python benchmarks/studies/chain.py --model preset:giant --views 2 8 32 --json benchmarks/results/chain-h200.json

The aggregator alone is exported in FP16, once, and made into a stage for ONNX Runtime per kind of attention, as a build
does. All run on the same random features; the results are compared with those of native attention, on the GPU. Random
features say nothing of a choice of blocks, so ``sparse`` is not among the cases unless it is asked for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.export import load_model
from mapengine.export.attention.choice import AttentionChoice
from mapengine.export.bundles.chains import compile_chain
from mapengine.export.bundles.compilers import open_compiler
from mapengine.export.graphs.tracing import export_stages
from mapengine.export.options import served_requests
from mapengine.export.precision import lower_precision
from mapengine.export.tensorrt import stage_profiles
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.backends.cuda.driver import Buffer, Device, Pinned, open_device
from mapengine.runtime.backends.cuda.stage import DeviceStage, tensor_bytes
from mapengine.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from mapengine.runtime.bundle.manifest import StageSpec
from mapengine.runtime.bundle.requests import PATCH_SIZE
from mapengine.runtime.bundle.stages import tensor_shape
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

STAGE, BACKEND = "aggregator", OnnxRuntimeCudaBackend.name
WARM_UP = 2


def write_stages(args: argparse.Namespace, folder: Path) -> dict[str, tuple[StageSpec, Any]]:
    """Write the aggregator per kind of attention; returns its description, and the code of its kernels."""
    model = load_model(args.model)
    (full,) = export_stages(model, folder, stages=(STAGE,))
    half = folder / "fp16" / full.path.name
    half.parent.mkdir()
    stage = lower_precision(full.path, half, stage=STAGE, precision="fp16", magnitudes=None)
    spec = StageSpec(None, stage.inputs, stage.outputs, opset=stage.opset)
    views = min(args.views), max(args.views), max(args.views)
    profiles = stage_profiles(served_requests(views, [tuple(args.size)], {}), STAGE, BACKEND)
    compiler = open_compiler(BACKEND, PlanSettings())
    found = {}
    for attention in args.attention:
        out, scratch = folder / attention, folder / f"{attention}-scratch"
        out.mkdir()
        scratch.mkdir()
        writer = BundleWriter(out)
        kernels = AttentionChoice.parse(attention).layers(model.config)
        extra = int(model.config.use_class_token)
        if kernels:
            found[attention] = compile_chain(compiler, writer, half, scratch, spec, profiles, kernels, extra)
        else:
            found[attention] = compiler.compile(writer, half, spec, profiles), ()
        print(f"wrote {attention}", flush=True)
    return found


class Bench:
    """A stage on random features of one shape, in GPU memory."""

    def __init__(self, device: Device, stage: DeviceStage, axes: Mapping[str, int]) -> None:
        self.device, self.stage, self.axes = device, stage, axes
        self.stream = device.lasting_stream()
        self._owned: list[Buffer | Pinned] = []
        self.buffers = {name: self._own(device.allocate(tensor_bytes(spec, axes))) for name, spec in self._tensors()}
        numbers = np.random.default_rng(0)
        for name, spec in stage.inputs.items():
            pinned = self._own(device.pinned(tensor_shape(spec, axes), spec.dtype))
            pinned.array[...] = numbers.standard_normal(pinned.array.shape, np.float32)
            self.stream.upload(pinned, self.buffers[name].address)
        self.stream.synchronize()
        self.context, size = stage.context(self.stream.handle, axes)
        for name, buffer in self.buffers.items():
            assert self.context.set_tensor_address(name, buffer.address)
        memory = self._own(device.allocate(size))
        self.context.set_device_memory(memory.address, memory.size)

    def _tensors(self) -> Any:
        return self.stage.tensors.items()

    def _own(self, resource: Any) -> Any:
        self._owned.append(resource)
        return resource

    def milliseconds(self, rounds: int) -> list[float]:
        """Return the milliseconds of each run, between marks in the queue before and behind it."""
        start, end = self.device.event(), self.device.event()
        found = []
        for _ in range(WARM_UP + rounds):
            start.record(self.stream)
            with self.stream.turn:
                self.stage.enqueue(self.context, self.stream.handle)
            end.record(self.stream)
            end.wait()
            found.append(end.milliseconds_since(start))
        return found[WARM_UP:]

    def results(self) -> dict[str, np.ndarray]:
        """Return the results of the last run."""
        found = {}
        for name, spec in self.stage.outputs.items():
            pinned = self._own(self.device.pinned(tensor_shape(spec, self.axes), spec.dtype))
            self.stream.download(self.buffers[name].address, pinned)
            self.stream.synchronize()
            found[name] = pinned.array.astype(np.float32)
        return found

    def close(self) -> None:
        for resource in self._owned:
            resource.free()


def difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """Return the largest root-mean-square difference of an output, relative to its own root mean square."""
    return max(float(np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name])) for name in wanted)


def measure(args: argparse.Namespace, device: Device, stages: Mapping[str, DeviceStage]) -> dict[str, Any]:
    width, height = args.size
    results: dict[str, Any] = {name: {} for name in stages}
    for views in args.views:
        axes = {"views": views, "patch_rows": height // PATCH_SIZE, "patch_columns": width // PATCH_SIZE}
        native: dict[str, np.ndarray] | None = None
        for name, stage in stages.items():
            bench = Bench(device, stage, axes)
            times = bench.milliseconds(args.rounds)
            found = bench.results()
            native = native or found
            results[name][str(views)] = {
                "milliseconds": round(statistics.median(times), 3),
                "fastest": round(min(times), 3),
                "difference_from_first": difference(found, native),
            }
            bench.close()
            print(name, views, results[name][str(views)], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--attention", nargs="+", default=["native", "flash", "int8"])
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--size", type=int, nargs=2, default=[518, 392], metavar=("W", "H"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, default=Path("build/chain.json"), help="where to write the record")
    args = parser.parse_args()
    backend, device = OnnxRuntimeCudaBackend(), open_device()
    with tempfile.TemporaryDirectory() as scratch:
        written = write_stages(args, Path(scratch))
        with device.current():
            stages = {
                name: backend.load_stage(STAGE, Path(scratch) / name, spec, codes)
                for name, (spec, codes) in written.items()
            }
            results = measure(args, device, stages)
    record = {
        "benchmark": "chain",
        "what": "the aggregator in FP16 in ONNX Runtime on a GPU, as one graph or a chain with our attention kernels",
        **record_origin("mapengine", "torch", "onnxruntime-gpu", "triton", "numpy", "cuda-bindings"),
        "model": args.model,
        "size": "{}x{}".format(*args.size),
        "rounds": args.rounds,
        "results": results,
    }
    record["machine"]["gpu"] = {"name": device.name, "compute_capability": device.compute_capability}
    write_record(args.json, record)


if __name__ == "__main__":
    main()
