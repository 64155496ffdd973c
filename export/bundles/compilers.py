"""What a stage becomes in a bundle for a GPU: a compiled plan, or the graph itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mapengine.runtime.backend_table import BACKENDS_BY_NAME, TENSORRT_BACKENDS
from mapengine.runtime.backends.cuda.driver import driver_problem, open_device
from mapengine.runtime.backends.libraries import installed_version
from mapengine.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from mapengine.runtime.bundle.backend_info import BackendInfo
from mapengine.runtime.bundle.manifest import StageSpec
from mapengine.runtime.bundle.requests import Range, ServedRequests
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.errors import InputError, warn

from ..model.config import ModelConfig
from ..tensorrt import build_plan, check_limits, check_settings, check_targets
from ..tensorrt.progress import Fraction
from ..tensorrt.settings import PlanSettings

Profiles = Sequence[Mapping[str, Range]]
Report = Callable[[str], None]

KERNEL_ARCHITECTURES = (80, 86, 89, 90, 120)
"""Kernels beside graphs, which run on any GPU; newer ones take the PTX."""


class StageCompiler(Protocol):
    """Writes the stages of one bundle.

    Attributes:
        backend: name of the backend that runs them. format: of the bundle. version: of the library.
    """

    backend: str
    format: str
    version: str

    def check(
        self, precision: str, attention: str, requests: ServedRequests, config: ModelConfig, weights_only: bool = False
    ) -> None:
        """Refuse what cannot be written, before anything is exported.

        Raises:
            InputError: the message names the option.
            BackendUnavailableError: it needs the GPU that the bundle is for, and there is none.
        """
        ...

    def architectures(self) -> tuple[int, ...]:
        """Compute capabilities, times ten, that the stages are for; none for a range that the library decides."""
        ...

    def compile(
        self,
        writer: BundleWriter,
        graph: Path,
        spec: StageSpec,
        profiles: Profiles,
        fraction: Fraction | None = None,
    ) -> StageSpec:
        """Write what the graph becomes, under the graph's name, into the bundle.

        Args:
            spec: its tensors. fraction: called with how much is done (0 to 1) and what it does.

        Raises:
            ExportError, OutputError: the graph cannot be compiled, or the result not be written.
        """
        ...

    def info(self) -> BackendInfo:
        """Return which versions and devices run what was written, after the last stage."""
        ...


class PlanCompiler:
    """TensorRT plans; see :class:`StageCompiler`."""

    format = "plan"

    def __init__(self, flavour: Flavour, settings: PlanSettings) -> None:
        self.backend = flavour.name
        self.version = flavour.version
        self._flavour = flavour
        self._settings = settings
        self._targets: tuple[str, ...] | None = None

    def check(
        self, precision: str, attention: str, requests: ServedRequests, config: ModelConfig, weights_only: bool = False
    ) -> None:
        """See :class:`StageCompiler`."""
        targets = check_targets(self._flavour, self._settings.targets)
        check_settings(self._settings)
        found = check_limits(
            self._flavour,
            precision=precision,
            attention=attention,
            requests=requests,
            heads={
                "image_encoder": config.image_encoder.block.num_heads,
                "aggregator": config.aggregator.block.num_heads,
            },
            targets=targets,
            weights_only=weights_only,
        )
        if precision == "int8":  # what else it warns of, the build of the stage warns of too
            for warning in found:
                warn(warning)

    def architectures(self) -> tuple[int, ...]:
        """See :class:`StageCompiler`. TensorRT compiles for the GPU that is here, TensorRT-RTX for those named."""
        named = check_targets(self._flavour, self._settings.targets)
        if not self._flavour.is_rtx:
            named = (open_device().compute_capability,)
        return tuple(int(target.replace(".", "")) for target in named)

    def compile(
        self,
        writer: BundleWriter,
        graph: Path,
        spec: StageSpec,
        profiles: Profiles,
        fraction: Fraction | None = None,
    ) -> StageSpec:
        """See :class:`StageCompiler`."""
        path = writer.folder / f"{graph.stem}.plan"
        plan = build_plan(
            self._flavour,
            graph,
            path,
            name=graph.stem,
            inputs=spec.inputs,
            outputs=spec.outputs,
            profiles=profiles,
            settings=self._settings,
            progress=fraction,
        )
        for warning in plan.warnings:
            warn(warning)
        self._targets = plan.targets or self._targets
        return StageSpec(
            writer.record(path.name),
            spec.inputs,
            spec.outputs,
            optimization_profiles=tuple(profiles),
            layers=plan.layers.record(),
        )

    def info(self) -> BackendInfo:
        """See :class:`StageCompiler`. A plan is for the version that made it. Without targets TensorRT-RTX makes one
        for a range of GPUs, and says itself, before it loads it, whether this GPU is one of them."""
        devices = self._targets if self._flavour.is_rtx else (open_device().compute_capability,)
        return BackendInfo(self.backend, self.version, self.version, self.version, devices)


class GraphWriter:
    """ONNX graphs for ONNX Runtime on a GPU; see :class:`StageCompiler`."""

    backend = "onnxruntime-cuda"
    format = "onnx-cuda"

    def __init__(self) -> None:
        self.version = installed_version(self.backend)

    def check(
        self, precision: str, attention: str, requests: ServedRequests, config: ModelConfig, weights_only: bool = False
    ) -> None:
        """See :class:`StageCompiler`."""
        if attention == "attention":
            raise InputError(
                f"{self.backend} has no kernel for the operator Attention that was checked; use --attention native"
            )

    def architectures(self) -> tuple[int, ...]:
        """See :class:`StageCompiler`. Graphs are for every GPU; kernels beside them for usual ones, and this."""
        here = () if driver_problem() is not None else (int(open_device().compute_capability.replace(".", "")),)
        return tuple(sorted({*KERNEL_ARCHITECTURES, *here}))

    def compile(
        self,
        writer: BundleWriter,
        graph: Path,
        spec: StageSpec,
        profiles: Profiles,
        fraction: Fraction | None = None,
    ) -> StageSpec:
        """See :class:`StageCompiler`."""
        beside = graph.with_name(f"{graph.name}.data")
        data = (beside,) if beside.exists() else ()
        for path in (graph, *data):
            shutil.copyfile(path, writer.folder / path.name)
        return replace(
            spec,
            file=writer.record(graph.name),
            data=tuple(writer.record(path.name) for path in data),
            optimization_profiles=tuple(profiles),
        )

    def info(self) -> BackendInfo:
        """See :class:`StageCompiler`."""
        return BackendInfo(self.backend, self.version, BACKENDS_BY_NAME[self.backend].minimum_version)


def open_compiler(backend: str, settings: PlanSettings) -> StageCompiler:
    """Open what writes stages for a backend that runs on a GPU.

    Raises:
        BackendUnavailableError: its library is not installed.
    """
    if backend in TENSORRT_BACKENDS:
        return PlanCompiler(load_flavour(backend), settings)
    return GraphWriter()
