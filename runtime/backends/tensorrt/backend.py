"""The backends ``tensorrt`` and ``tensorrt-rtx``: plans on an NVIDIA GPU."""

from __future__ import annotations

from typing import Any

from ...bundle.store import Bundle
from ..contract import ChunkSizes
from ..cuda.attention import AttentionKernels
from ..cuda.chain import SegmentChain
from ..cuda.driver import driver_problem, no_gpu, open_device
from ..cuda.pipeline import DevicePipeline
from .flavour import load_flavour
from .plans import Plan, make_logger
from .runtime_cache import RuntimeCaches


class TensorRtBackend:
    """Runs ``.plan`` stages on the first GPU that the process sees (``CUDA_VISIBLE_DEVICES`` chooses)."""

    def __init__(self, name: str) -> None:
        """Find the GPU and load the library.

        Raises:
            BackendUnavailableError: the package is not installed, or there is no GPU to run on.
        """
        problem = driver_problem()  # first: without a driver the library may crash the process
        if problem is not None:
            raise no_gpu(name, problem)
        self.name = name
        self._flavour = load_flavour(name)
        self.version = self._flavour.version
        self._device = open_device()
        self.compute_capability: str | None = self._device.compute_capability
        self.device = self._device.description

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> DevicePipeline:
        """See :class:`..contract.Backend`. Hashes are compared whatever was asked for: plans and kernels are code."""
        bundle.check_hashes()
        with self._device.current():
            logger = make_logger(self._flavour)
            runtime: Any = self._flavour.library.Runtime(logger)
            loaded: dict[str, Plan] = {}  # no closures here: a plan that is refused has to free those before it at once
            stages: dict[str, Plan | SegmentChain] = {}
            for name, spec in bundle.manifest.stages.items():
                segments = {f"{name}_{index}": part for index, part in enumerate(spec.segments)} or {name: spec}
                for part, one in segments.items():
                    loaded[part] = Plan(self._flavour, runtime, logger, part, bundle.files, one)
                stages[name] = loaded[part]
                if spec.segments:
                    kernels = AttentionKernels(
                        self._device, bundle.files.place, bundle.manifest.kernels, spec.attention
                    )
                    stages[name] = SegmentChain(name, spec, [loaded[part] for part in segments], kernels)
            caches = RuntimeCaches(loaded, bundle.folder, bundle.digest, f"{self.device} {self.name} {self.version}")
        return DevicePipeline(self._device, stages, chunks, caches)
