"""Ask a Triton server for ten minutes in every way at once, and say what differs and what grows.

    .venv-triton/bin/python -m benchmarks.triton_soak --bundle build/engine --json benchmarks/results/triton-soak.json

Run it from the root of a checkout, in the environment that `make triton` makes. Clients of both protocols ask both
models, for everything or for parts, and send requests that are refused. Every answer is compared with the first one to
the same request, to the bit. Between rounds all clients leave, and the memory and descriptors of the server and of the
processes of its models are counted. The exit code is 1 where an answer differs, one fails, or something grows beyond
its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record
from mapengine.serving.triton.repository import RepositoryOptions, write_repository
from tests.serving.triton.real_server import Client, RealServer, image_file, running

ROUNDS = 10
BOUNDS = {"resident_bytes": 32 * 2**20, "descriptors": 4, "processes": 0}
"""Growth from the end of the first round to that of the last that is still none: allocators keep some memory."""

Ask = Callable[[Client], Any]


class Different(Exception):
    """An answer differs from the first one."""


def make_requests(width: int, height: int) -> dict[str, Ask]:
    """Return what clients ask, by name."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (3, height, width, 3), np.uint8)
    camera = np.float32([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
    known = {"intrinsics": np.stack([camera] * 3), "depth_z": np.ones((3, height, width), np.float32)}
    files = {"files": np.array([image_file(image, "JPEG") for image in images], dtype=object)}
    bad = {"images": images, "depth_z": -known["depth_z"], "intrinsics": known["intrinsics"]}

    def refused(client: Client, model: str, tensors: dict[str, Any]) -> dict[str, Any]:
        from tritonclient.utils import InferenceServerException

        try:
            client.infer(model, tensors)
        except InferenceServerException as error:
            return {"sentence": np.array(error.message())}
        raise Different("a request that has no meaning was answered")

    return {
        "arrays": lambda client: client.infer("mapanything", {"images": images}),
        "one view": lambda client: client.infer("mapanything", {"images": images[:1]}),
        "arrays with geometry": lambda client: client.infer("mapanything", {"images": images, **known}),
        "parts": lambda client: client.infer("mapanything", {"images": images}, ("pts3d", "camera_poses")),
        "files": lambda client: client.infer("mapanything_files", files),
        "options": lambda client: client.infer("mapanything_files", files, apply_confidence_mask=True),
        "refused arrays": lambda client: refused(client, "mapanything", bad),
        "refused files": lambda client: refused(
            client, "mapanything_files", {"files": np.array([b"none"], dtype=object)}
        ),
    }


class Soak:
    """A server, what it is asked, and the first answers."""

    def __init__(self, server: RealServer, requests: dict[str, Ask]) -> None:
        self.server = server
        self.requests = requests
        self.done: Counter[str] = Counter()
        client = Client.of(server, "grpc")
        self.first = {name: ask(client) for name, ask in requests.items()}

    def use(self, draws: random.Random, client: Client) -> None:
        """Ask once, in any way, and compare."""
        name = draws.choice(list(self.requests))
        found = self.requests[name](client)
        if found.keys() != self.first[name].keys():
            raise Different(f"{name}: other outputs")
        for key, value in self.first[name].items():
            if value.dtype != found[key].dtype or value.tobytes() != found[key].tobytes():
                raise Different(f"{name}: {key} differs")
        self.done[name] += 1

    def round(self, callers: int, seconds: float, seed: str) -> str | None:
        """Let threads ask for some seconds; returns the first difference."""
        first: list[str] = []

        def work(index: int) -> None:
            draws = random.Random(f"{seed} {index}")
            client = Client.of(self.server, ("http", "grpc")[index % 2])
            end = time.monotonic() + seconds
            try:
                while time.monotonic() < end and not first:
                    self.use(draws, client)
            except Exception as error:
                first.append(f"{type(error).__name__}: {error} (round {seed}, client {index})")
            finally:
                client.client.close()

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 120)
        if any(thread.is_alive() for thread in threads):
            first.append(f"a client of round {seed} hangs")
        return first[0] if first else None

    def state(self) -> dict[str, int]:
        """Count what the server and the processes of its models hold."""
        time.sleep(2)  # connections end
        descriptors, processes = 0, 0
        for child in psutil.Process(self.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                descriptors, processes = descriptors + child.num_fds(), processes + 1
        return {
            "resident_bytes": self.server.resident_bytes(),
            "descriptors": descriptors,
            "processes": processes,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="an engine for a processor")
    parser.add_argument("--size", default="140x112", type=parse_pixels, help="one that the bundle serves")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("build/triton_soak.json"), help="where to write the record")
    args = parser.parse_args()
    origin = record_origin("mapengine", "nvidia-pytriton", "tritonclient", "onnxruntime", "numpy")
    with tempfile.TemporaryDirectory() as folder:
        options = RepositoryOptions(backend="onnxruntime", threads=1)
        bundle: Bundle = write_repository(args.bundle, Path(folder) / "models", options)
        with running(Path(folder) / "models", Path(folder) / "log") as server:
            soak = Soak(server, make_requests(*args.size))
            states, difference = [], None
            for index in range(ROUNDS):
                difference = soak.round(args.clients, args.seconds / ROUNDS, str(index))
                states.append(soak.state())
                print(f"round {index + 1} of {ROUNDS}: {soak.done.total()} requests, {states[-1]}", flush=True)
                if difference is not None:
                    break
    grown = {name: states[-1][name] - states[0][name] for name in BOUNDS}
    record = {
        "benchmark": "triton_soak",
        "seconds": args.seconds,
        "callers": args.clients,
        "model": bundle.manifest.model.id,
        **origin,
        "results": {name: soak.done[name] for name in soak.requests},
        "first_difference": difference,
        "first_round": states[0],
        "last_round": states[-1],
        "growth": grown,
        "bounds": BOUNDS,
    }
    write_record(args.json, record)
    print(f"first difference: {difference or 'none'}; growth: {grown} (at most {BOUNDS})")
    return 1 if difference is not None or any(grown[name] > BOUNDS[name] for name in BOUNDS) else 0


if __name__ == "__main__":
    sys.exit(main())
