"""A real Triton server in a process of its own, and clients for it; for tests and benchmarks."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from mapengine.serving.triton.tensors import ARRAY_INPUTS, FILE_INPUTS
from mapengine.serving.triton.watch import Instance, instance_of

_TYPES = {tensor.name: tensor.dtype for tensor in (*ARRAY_INPUTS, *FILE_INPUTS)}
_SECONDS_TO_START = 90


@dataclass
class RealServer:
    """A server that runs.

    Attributes:
        process: the program that started it. ports: of HTTP, gRPC and metrics. log: what both print.
    """

    process: subprocess.Popen[bytes]
    ports: tuple[int, int, int]
    log: Path

    def url(self, path: str, port: int = 0) -> str:
        return f"http://127.0.0.1:{self.ports[port]}/{path}"

    def processes(self) -> dict[int, Instance]:
        """The processes of models by their ids."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                instance = instance_of(child.cmdline())
                if instance is not None:
                    found[child.pid] = instance
        return found

    def resident_bytes(self) -> int:
        """Memory of the server and the processes of its models, without what they share."""
        total = 0
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                memory = child.memory_info()
                total += memory.rss - memory.shared
        return total

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all its series that have these labels."""
        with urllib.request.urlopen(self.url("metrics", 2), timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"{name}{{") and all(label in line for label in wanted)
        )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8", errors="replace")
            with suppress(OSError), urllib.request.urlopen(self.url("v2/health/ready"), timeout=5):
                return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text(encoding="utf-8", errors="replace"))


@contextmanager
def running(repository: Path, log: Path, *options: str, **environment: str) -> Iterator[RealServer]:
    """Yield a server of a repository, which ends with the block."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
        http, grpc, metrics = (each.getsockname()[1] for each in (one, two, three))
    command = [
        *(sys.executable, "-m", "mapengine.serving.triton", str(repository)),
        *(f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--exit-timeout-secs=1", *options),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        server = RealServer(process, (http, grpc, metrics), log)
        server.wait_until_ready()
        yield server
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Client:
    """A client of one protocol. Threads need one each.

    Attributes:
        protocol: ``tritonclient.http`` or ``tritonclient.grpc``. client: of it.
    """

    protocol: Any
    client: Any

    @classmethod
    def of(cls, server: RealServer, protocol: str) -> Client:
        import tritonclient.grpc
        import tritonclient.http

        if protocol == "grpc":
            return cls(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports[1]}"))
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.ports[0]}", network_timeout=120)
        return cls(tritonclient.http, client)

    def inputs(self, tensors: Mapping[str, Any]) -> list[Any]:
        """Tensors as the protocol carries them."""
        made = []
        for name, values in tensors.items():
            tensor = self.protocol.InferInput(name, list(values.shape), _TYPES[name])
            made.append(tensor.set_data_from_numpy(np.ascontiguousarray(values)))
        return made

    def infer(
        self, model: str, tensors: Mapping[str, Any], outputs: Sequence[str] = (), **parameters: Any
    ) -> dict[str, Any]:
        """Ask a model, and return the arrays of its answer by name."""
        wanted = [self.protocol.InferRequestedOutput(name) for name in outputs] or None
        given = {"parameters": parameters} if parameters else {}
        answer = self.client.infer(model, self.inputs(tensors), outputs=wanted, **given)
        return {name: answer.as_numpy(name) for name in names_of(answer)}


def names_of(answer: Any) -> list[str]:
    """The names of the tensors that an answer of either protocol has."""
    response = answer.get_response()
    tensors = response["outputs"] if isinstance(response, dict) else response.outputs
    return [tensor["name"] if isinstance(tensor, dict) else tensor.name for tensor in tensors]


def image_file(pixels: Any, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form)
    return target.getvalue()
