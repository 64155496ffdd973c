"""What a backend is to the rest of the runtime."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..pipeline import ChunkSizes, StagePipeline

LOOSE_STAGES = ("image_encoder", "aggregator")
"""What a bundle whose ``arithmetic`` is BF16 runs in bfloat16, though its files are float32: the transformers, as
upstream's autocast does. What turns numbers into features and features into numbers stays in float32."""

Arrays = Mapping[str, NDArray[Any]]


class StageRunner(Protocol):
    """One loaded graph. ``run`` may be called from several threads at once."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run the graph on named inputs and return its named outputs.

        Raises:
            BackendError: the backend failed, with its own words and the stage's name.
        """
        ...


class Backend(Protocol):
    """An inference library on one device."""

    name: str
    version: str
    device: str
    """Name of the device, as shown to people and recorded by the golden check."""
    compute_capability: str | None

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> StagePipeline:
        """Load the stages of a checked bundle.

        Raises:
            BackendError: the library refuses a file.
        """
        ...


class HostBackend(ABC):
    """A backend whose stages take and give NumPy arrays."""

    name: str
    version: str
    device: str
    compute_capability: str | None = None

    @abstractmethod
    def load_stage(self, name: str, path: Path, arithmetic: str = "fp32") -> StageRunner:
        """Load a checked stage file.

        Args:
            name: of the stage.
            path: its file.
            arithmetic: of the bundle (:attr:`..manifest.Manifest.arithmetic`), see :data:`LOOSE_STAGES`.

        Raises:
            BackendError: the library refuses the file.
        """

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> StagePipeline:
        """See :class:`Backend`."""
        from ..pipeline import Pipeline  # which needs this module

        manifest = bundle.manifest
        stages = {name: self.load_stage(name, bundle.stage_path(name), manifest.arithmetic) for name in manifest.stages}
        return Pipeline(stages, chunks)


def default_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Name of the processor, as far as the system tells.

    With family and model where there are such numbers: virtual machines call processors of several generations alike,
    and one may multiply twice as fast as the other.
    """
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "model name" in facts:
        numbers = ", ".join(f"{name.split()[-1]} {facts[name]}" for name in ("cpu family", "model") if name in facts)
        return f"{facts['model name']} ({numbers})" if numbers else facts["model name"]
    import platform

    return platform.processor() or platform.machine() or "CPU"


def cannot_import(package: str, extra: str, error: ImportError) -> BackendUnavailableError:
    """The error for a backend whose package is missing, or there but broken: the remedies differ."""
    command = f"pip install 'mapengine[{extra}]'"
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return BackendUnavailableError(f"the backend {package} is not installed; run: {command}")
    return BackendUnavailableError(
        f"the backend {package} is installed but cannot be imported ({one_line(error)}); "
        f"reinstall it: {command} --force-reinstall"
    )


def one_line(error: BaseException) -> str:
    """The first line of a library's message, for a one-sentence error."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
