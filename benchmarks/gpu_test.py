"""Compare every installed GPU backend with the reference on this machine. Writes JSON; `make gpu-test` runs it.

    python benchmarks/gpu_test.py --model preset:tiny --json benchmarks/results/gpu_test.json

For each backend, precision and attention a bundle is built, loaded, and compared with the float32 PyTorch reference:
the golden input, the parity cases (every input modality), every view count, chunk sizes, the order of the views,
repeated calls (which run as CUDA graphs) with the same and with other numbers, and two threads at once. A failure is
recorded with the library's own words; the exit code is 1 if there was one, or if there is no GPU to test.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime import Engine
from mapengine.runtime.backend_table import GPU_BACKENDS
from mapengine.runtime.backends.cuda.driver import driver_problem
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.errors import MapEngineError
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

CASES = ("fp32", "fp16", "bf16", "fp16 flash", "bf16 flash", "fp16 int8", "fp16 sparse:1")
"""Precision, and the kernels of ours that compute attention over all views, if any."""
PACKAGES = (
    "mapengine", "torch", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "cuda-bindings", "triton", "numpy",
)  # fmt: skip
SIZE = (140, 112)
MOST_VIEWS = 8
Views = list[dict[str, Any]]
Predictions = list[dict[str, Any]]


def difference(found: Predictions, expected: Predictions) -> float:
    """Return the largest difference of an output, relative to its largest value; infinite when not finite."""
    worst = 0.0
    for key in expected[0]:
        if expected[0][key].dtype.kind != "f":
            continue
        pairs = [(got[key], want[key]) for got, want in zip(found, expected, strict=True)]
        largest = max(float(np.abs(want).max()) for _, want in pairs)
        gap = max(float(np.abs(got - want).max()) for got, want in pairs)
        worst = max(worst, gap / largest if np.isfinite(gap) else float("inf"))
    return worst


def checks(engine: Engine, model: Any) -> dict[str, Callable[[], float]]:
    """Return named checks; each gives a relative difference from the reference."""
    from mapengine.export.bundles.onnx import measure
    from mapengine.export.bundles.parity_cases import sample_inputs

    most = min(MOST_VIEWS, engine.manifest.requests.views.max)

    def views(count: int, geometry: bool = True) -> Views:
        return sample_inputs(SIZE, ["kdp" if geometry else ""] * count, model.data_norm_type)

    def against_reference(inputs: Views, predict: Callable[[Views], Predictions] = engine.predict) -> float:
        return difference(predict(inputs), model.predict(inputs, use_amp=False))

    def reordered() -> float:
        inputs = views(most)
        order = [0, *range(most - 1, 0, -1)]  # the reference view stays
        swapped = engine.predict([inputs[i] for i in order])
        return difference([swapped[order.index(i)] for i in range(most)], engine.predict(inputs))

    def mixed() -> Views:
        given = views(most)
        return [bare if i % 2 else full for i, (full, bare) in enumerate(zip(given, views(most, False), strict=True))]

    def threads() -> float:
        jobs: Sequence[Views] = [views(2), views(3), views(2, False), mixed()] * 2
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(engine.predict, jobs))
        return max(difference(got, model.predict(job, use_amp=False)) for got, job in zip(found, jobs, strict=True))

    def chunked(size: int) -> float:
        inputs = views(most)
        raw = [engine.infer(inputs, minibatch_size=chunk, apply_mask=False) for chunk in (size, None)]
        return difference(*raw)

    def repeated() -> float:
        inputs = mixed()
        others = views(most, geometry=False)
        mixes = [inputs, inputs, inputs, [*inputs[:1], *others[1:2], *inputs[2:]], inputs]
        return max(against_reference(mix) for mix in mixes)

    return {
        "golden": lambda: max(output.max_rel for output in engine.verify().outputs.values()),
        "parity cases": lambda: max(output.max_rel for output in measure(engine, model).outputs.values()),
        **{f"{count} views": lambda count=count: against_reference(views(count)) for count in range(1, most + 1)},
        "images only": lambda: against_reference(views(most, geometry=False)),
        "mixed inputs": lambda: against_reference(mixed()),
        "order of views": reordered,
        "chunks of 1": lambda: chunked(1),
        "chunks of 3": lambda: chunked(3),
        "repeated calls": repeated,
        "two threads": threads,
    }


def run(backend: str, case: str, model: Any, folder: Path) -> dict[str, Any]:
    """Build, load and check one combination."""
    from mapengine.export import build_engine
    from mapengine.export.bundles.tolerances import TOLERANCE

    precision, _, attention = case.partition(" ")
    result: dict[str, Any] = {"status": "passed", "tolerance": TOLERANCE[precision]}
    bundle = folder / f"{backend}-{case}".replace(" ", "-").replace(":", "-")
    try:
        if not bundle.exists():
            start = time.perf_counter()
            build_engine(
                model,
                bundle,
                backend=backend,
                precision=precision,
                attention=attention or "native",
                views=(1, 4, MOST_VIEWS),
                resolutions=[SIZE],
            )
            result["build_s"] = round(time.perf_counter() - start, 1)
        engine = Engine.load(bundle, backend)
        manifest = engine.manifest
        if attention:  # whose rounding the build measured
            result["tolerance"] = max(limit.rtol for limit in manifest.golden.tolerance.values())
        result["fused"] = {k: f"{s.layers.fused}/{s.layers.attention}" for k, s in manifest.stages.items() if s.layers}
        result["checks"] = {}
        for check, call in checks(engine, model).items():
            value = call()
            result["checks"][check] = value
            if not value <= result["tolerance"]:
                result["status"] = f"failed: {check} differs by {value:.1e}"
    except Exception as error:  # whatever went wrong is a result
        kind = "" if isinstance(error, MapEngineError) else f"{type(error).__name__}: "
        result["status"] = f"failed: {kind}{error}"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:tiny")
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="precision, or precision and attention")
    parser.add_argument("--bundles", type=Path, help="keep the bundles there, and use those that are there already")
    parser.add_argument("--json", type=Path, default=Path("build/gpu_test.json"), help="where to write the record")
    args = parser.parse_args()
    problem = driver_problem()
    if problem is not None:
        print(f"Nothing to test: {problem}; run this on a machine with an NVIDIA GPU.", file=sys.stderr)
        return 1
    names = [name for name in available_backends() if name in GPU_BACKENDS]
    if not names:
        print(
            "Nothing to test: no library for GPUs is installed; run: pip install 'mapengine[rtx]' or 'mapengine[cuda]'",
            file=sys.stderr,
        )
        return 1
    from mapengine.export import load_model
    from mapengine.runtime.backends.cuda.driver import open_device

    device = open_device()
    model = load_model(args.model)
    results: dict[str, dict[str, Any]] = {}
    record = {
        "benchmark": "gpu_test",
        "what": "largest difference from the float32 PyTorch reference, relative to the largest value of an output",
        "model": args.model,
        "size": "{}x{}".format(*SIZE),
        **record_origin(*PACKAGES),
        "results": results,
    }
    record["machine"]["gpu"] = {
        "name": device.name,
        "compute_capability": device.compute_capability,
        "driver": device.driver_version,
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            for case in args.cases:
                print(f"{name} {case} ...", flush=True)
                results[f"{name} {case}"] = run(name, case, model, args.bundles or Path(scratch))
                print(f"{name} {case}: {results[f'{name} {case}']['status']}", flush=True)
                write_record(args.json, record)  # as far as it is: the next one may take the process with it
    return 0 if all(result["status"] == "passed" for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
