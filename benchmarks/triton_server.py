"""Measure what a Triton server costs beside the same engine in one process. Writes JSON.

    .venv-triton/bin/python -m benchmarks.triton_server --bundle build/engine --json benchmarks/results/triton-nano.json

Run it from the root of a checkout, in the environment that `make triton` makes. Three things take turns, each at every
number of concurrent clients: the engine in one process, which as many threads share; both models behind a server; and
a model behind the same server that computes nothing and returns arrays of the same shapes, which is serialisation: what
moving such tensors takes whatever is computed. Clients are threads of one process, with a connection each.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime import Engine
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record
from mapengine.serving.triton.repository import RepositoryOptions, config_text, write_repository
from mapengine.serving.triton.requests import engine_views
from mapengine.serving.triton.settings import Limits, Settings
from mapengine.serving.triton.tensors import ARRAY_INPUTS
from tests.serving.triton.real_server import Client, RealServer, image_file, running

OUTPUTS = ("pts3d", "conf", "mask", "intrinsics", "camera_poses")
NOTHING = "nothing"
_MODEL = '''"""Returns arrays of the right shapes, and computes nothing."""

import numpy as np
import triton_python_backend_utils as triton

TRAILING = {"pts3d": (3,), "mask": (1,)}


class TritonPythonModel:
    def execute(self, requests):
        return [triton.InferenceResponse(list(self.tensors(request))) for request in requests]

    def tensors(self, request):
        views, height, width, _ = triton.get_input_tensor_by_name(request, "images").as_numpy().shape
        for name in request.requested_output_names():
            shape = {"intrinsics": (views, 3, 3), "camera_poses": (views, 4, 4)}.get(name)
            shape = shape or (views, height, width, *TRAILING.get(name, ()))
            yield triton.Tensor(name, np.zeros(shape, bool if name == "mask" else np.float32))
'''

Call = Callable[[], Any]
Start = Callable[[], Call]
"""Gives a thread its call, with a connection of its own."""


def add_nothing(repository: Path) -> None:
    """Write the model that computes nothing into a repository."""
    limits = Limits(1, 1, 1)
    (repository / NOTHING / "1").mkdir(parents=True)
    (repository / NOTHING / "1" / "model.py").write_text(_MODEL, encoding="utf-8")
    text = config_text(NOTHING, ARRAY_INPUTS, Settings(limits), [{"count": 1}])
    (repository / NOTHING / "config.pbtxt").write_text(text, encoding="utf-8")


def time_calls(start_thread: Start, threads_in_all: int, seconds: float) -> tuple[float, list[float]]:
    """Let threads call again and again; return requests per second and their latencies in seconds."""
    latencies: list[list[float]] = [[] for _ in range(threads_in_all)]
    failures: list[BaseException] = []
    gate = threading.Barrier(threads_in_all + 1)

    def work(index: int) -> None:
        call = start_thread()
        call()
        gate.wait(60)
        end = time.perf_counter() + seconds
        try:
            while (start := time.perf_counter()) < end:
                call()
                latencies[index].append(time.perf_counter() - start)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(threads_in_all)]
    for thread in threads:
        thread.start()
    gate.wait(60)
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    every = [latency for each in latencies for latency in each]
    return len(every) / (time.perf_counter() - start), every


def contenders(engine: Engine, server: RealServer, images: Any) -> dict[str, Start]:
    """Return what takes turns, by name."""
    limits = Limits(len(images), images[0].size, images.nbytes)

    def in_process() -> Any:
        return engine.infer(engine_views({"images": images}, limits, engine.data_norm_type), outputs=OUTPUTS)

    files = np.array([image_file(image, "JPEG") for image in images], dtype=object)

    def client(protocol: str, model: str, tensors: dict[str, Any]) -> Call:
        connected = Client.of(server, protocol)
        return lambda: connected.infer(model, tensors, OUTPUTS)

    result: dict[str, Start] = {"one process": lambda: in_process}
    for protocol in ("grpc", "http"):
        for label, model, tensors in (
            ("arrays", "mapanything", {"images": images}),
            ("serialisation", NOTHING, {"images": images}),
            ("files", "mapanything_files", {"files": files}),
        ):
            result[f"{protocol} {label}"] = partial(client, protocol, model, tensors)
    return result


def summary(rounds: Sequence[tuple[float, list[float]]]) -> dict[str, float]:
    """Return requests per second (the median of the rounds) and latencies of all of them, in milliseconds."""
    every = np.array([latency for _, latencies in rounds for latency in latencies]) * 1e3
    return {
        "requests": len(every),
        "requests_per_s": statistics.median(rate for rate, _ in rounds),
        "p50_ms": float(np.percentile(every, 50)),
        "p99_ms": float(np.percentile(every, 99)),
    }


def beyond(results: dict[str, dict[str, dict[str, float]]], protocol: str, clients: str) -> float:
    """Return the share of the engine's time that the server adds to engine and serialisation, by seconds a request."""
    seconds = {name: 1 / figures[clients]["requests_per_s"] for name, figures in results.items()}
    alone = seconds["one process"]
    return (seconds[f"{protocol} arrays"] - seconds[f"{protocol} serialisation"] - alone) / alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="an engine for a processor")
    parser.add_argument("--size", default="140x112", type=parse_pixels, help="one that the bundle serves")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of the engine, in the server and in one process")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each turn")
    parser.add_argument("--json", type=Path, default=Path("build/triton.json"), help="where to write the record")
    args = parser.parse_args()
    width, height = args.size
    images = np.random.default_rng(0).integers(0, 256, (args.views, height // 4, width // 4, 3), np.uint8)
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    engine = Engine.load(args.bundle, "onnxruntime", threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_repository(args.bundle, repository, RepositoryOptions(backend="onnxruntime", threads=args.threads))
        add_nothing(repository)
        with running(repository, Path(folder) / "log") as server:
            every = contenders(engine, server, images)
            for start in every.values():
                time_calls(start, 1, 1)
            rounds: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
            for index in range(args.rounds):
                for count in args.clients:
                    for name, start in every.items():
                        rounds.setdefault((name, count), []).append(time_calls(start, count, args.seconds))
                print(f"round {index + 1} of {args.rounds}", flush=True)
        shutil.rmtree(repository)
    results = {name: {str(count): summary(rounds[name, count]) for count in args.clients} for name in every}
    record = {
        "benchmark": "triton",
        "what": "requests per second and latency of a Triton server, beside the same engine in one process",
        "model": engine.manifest.model.id,
        "precision": engine.manifest.precision,
        "size": f"{width}x{height}",
        "views": args.views,
        "threads": args.threads,
        "rounds": args.rounds,
        "outputs": OUTPUTS,
        **record_origin("mapengine", "nvidia-pytriton", "tritonclient", "onnxruntime", "numpy"),
        "results": results,
        "beyond_serialisation": {
            protocol: {str(count): beyond(results, protocol, str(count)) for count in args.clients}
            for protocol in ("grpc", "http")
        },
    }
    write_record(args.json, record)
    print(record["beyond_serialisation"])


if __name__ == "__main__":
    main()
