"""Measure the memory of a bundle on this machine by a few small calls, and keep the model of it."""

from __future__ import annotations

import json
import subprocess

from ..backend_table import CPU_BACKENDS
from ..backends.registry import make_backend
from ..bundle.requests import AnySize, ServedRequests
from ..bundle.store import Bundle
from ..errors import BackendError, BackendUnavailableError
from ..memory.model import KINDS, MemoryModel, Progress, Sample, remember_model
from ..system.children import child_command, child_environment
from ..system.machine import can_reset_peak

_SECONDS = 1800


def measuring_shapes(requests: ServedRequests) -> list[tuple[int, int, int]]:
    """Return (views, width, height) of the calls that a model is fitted to: few, small, and different."""
    if isinstance(requests.sizes, AnySize):
        sides = sorted({_near(side, requests.sizes) for side in (140, 280)})
        sizes = [(side, side) for side in sides]
    else:
        ordered = sorted(requests.sizes, key=lambda size: size[0] * size[1])
        sizes = list(dict.fromkeys([ordered[0], ordered[-1]] if len(ordered) < 4 else [ordered[0], ordered[1]]))
    counts = sorted({max(requests.views.min, min(count, requests.views.max)) for count in (1, 6, 24)})
    shapes = [(count, *sizes[0]) for count in counts]
    return shapes + [(count, *size) for size in sizes[1:] for count in counts[:2]]


def _near(side: int, sizes: AnySize) -> int:
    steps = round((side - sizes.min) / sizes.multiple)
    return int(min(max(sizes.min + steps * sizes.multiple, sizes.min), sizes.max))


def measure(bundle: Bundle, backend: str = "auto", progress: Progress | None = None) -> MemoryModel:
    """Measure a bundle on this machine and keep the model for later calls.

    Args:
        bundle: opened.
        backend: as ``Engine.load`` takes it.
        progress: called with the calls that were measured and how many there are.

    Raises:
        BackendUnavailableError: the system does not tell a process's peak memory, or the backend runs on a GPU.
        BackendError: a call failed.
    """
    key = model_key(bundle, backend)
    if not can_reset_peak():
        raise BackendUnavailableError(
            "memory is measured through /proc/self/clear_refs, which this system does not have; plan on Linux"
        )
    shapes = [(*shape, *kind) for kind in KINDS for shape in measuring_shapes(bundle.manifest.requests)]
    samples = []
    for done, (views, width, height, geometry, collect) in enumerate(shapes):
        if progress is not None:
            progress(done, len(shapes))
        peaks = probe(bundle, key["backend"], views, width, height, geometry=geometry, collect=collect)
        samples.append(Sample(views, width, height, geometry, collect, peaks))
    if progress is not None:
        progress(len(shapes), len(shapes))
    manifest = bundle.manifest
    most_keys = max((entry.share for entry in manifest.key_shares), default=1.0)
    model = MemoryModel(key, manifest.attention, tuple(samples), most_keys)
    remember_model(model)
    return model


def model_key(bundle: Bundle, backend: str) -> dict[str, str]:
    """Return what identifies a model; raises as :func:`measure` for a backend that has none."""
    library = make_backend(backend, bundle.manifest.fastest_backends, None)
    if library.name not in CPU_BACKENDS:
        raise BackendUnavailableError(
            f"the memory of {library.name} is not planned yet; plan a bundle for {' or '.join(CPU_BACKENDS)}"
        )
    return {"bundle": bundle.digest, "backend": library.name, "version": library.version, "device": library.device}


def probe(
    bundle: Bundle, backend: str, views: int, width: int, height: int, *, geometry: bool = False, collect: bool = False
) -> dict[str, int]:
    """Return the peak bytes of resident memory by stage, of one call in a process of its own
    (:mod:`.memory_child`).

    Args:
        bundle: opened; the process runs no other.
        backend: name of a CPU backend.
        views, width, height: of the call.
        geometry: every view has camera, depth and pose.
        collect: keep all predictions, as ``infer`` does, not one after the other as ``infer_stream``.

    Raises:
        BackendError: the process failed; the message has its last line.
    """
    arguments = [bundle.folder, bundle.digest, backend, views, width, height, int(geometry), int(collect)]
    command = child_command("mapengine.runtime.profiling.memory_child", *arguments)
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise BackendError(f"measuring {views} views of {width}x{height} took more than {_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, probably for memory"])[-1]
        raise BackendError(f"measuring {views} views of {width}x{height} failed: {last}")
    return {name: int(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
