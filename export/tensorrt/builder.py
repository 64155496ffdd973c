"""TensorRT plans from ONNX stages, for ``tensorrt`` 10.3 and later and ``tensorrt_rtx``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import Range
from mapengine.runtime.errors import ExportError
from mapengine.runtime.writing.files import atomic_write

from .compile import Compiled, PlanRequest
from .graph import StageGraph, read_graph
from .layers import LayerReport, Port, parse_inspector, parse_listing, report_layers
from .limits import check_gpu, check_graph
from .optimization_profiles import shape_ends
from .process import compile_elsewhere
from .progress import Fraction
from .settings import PlanSettings, check_settings, check_targets


@dataclass(frozen=True)
class BuiltPlan:
    """A plan that was built, and what is known of it.

    Attributes:
        bytes: size of the file. seconds: how long the build took.
        peak_memory: most bytes of host memory that the building process used; None where the system does not say.
        activation_memory: bytes of device memory for intermediate tensors at the largest request; None if unknown.
        targets: compute capabilities that it was compiled for; empty for the flavour's default.
        layers: what it is made of.
        warnings: one sentence each.
    """

    bytes: int
    seconds: float
    peak_memory: int | None
    activation_memory: int | None
    targets: tuple[str, ...]
    layers: LayerReport
    warnings: tuple[str, ...]


def build_plan(
    flavour: Flavour,
    onnx_path: Path,
    plan_path: Path,
    *,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profiles: Sequence[Mapping[str, Range]],
    settings: PlanSettings | None = None,
    progress: Fraction | None = None,
) -> BuiltPlan:
    """Compile one stage. The plan appears complete, or not at all; an interrupt ends the build within a second.

    Args:
        flavour: from :func:`mapengine.runtime.backends.tensorrt.flavour.load_flavour`.
        onnx_path: the graph, in the precision that it shall run in. plan_path: file to write.
        name: of the stage, for messages.
        inputs, outputs: tensors that the plan must have; their dynamic axes are those of the profiles.
        profiles: from :func:`.optimization_profiles.stage_profiles`.
        settings: targets, memory limit (bytes of workspace for the largest request: TensorRT chooses kernels that need
            no more, TensorRT-RTX too, where it is all memory of the plan but the weights), optimisation level.
        progress: called with the fraction of steps that is done and the phase.

    Raises:
        InputError: a setting that this flavour does not have.
        BackendUnavailableError: ``tensorrt`` without a GPU.
        ExportError: the graph cannot be built, with the library's first useful message and what to do.
        OutputError: the plan could not be written.
    """
    settings = settings or PlanSettings()
    targets = check_targets(flavour, settings.targets)
    check_settings(settings)
    check_gpu(flavour)
    graph = read_graph(onnx_path)
    warnings = check_graph(name, flavour, graph, profiles)
    report = progress or (lambda fraction, phase: None)
    start = time.perf_counter()
    with atomic_write(plan_path, "plan") as temporary:
        request = PlanRequest(
            backend=flavour.name,
            name=name,
            onnx=str(onnx_path.absolute()),
            plan=str(temporary.absolute()),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            profiles=tuple(dict(profile) for profile in profiles),
            targets=targets,
            memory_limit=settings.memory_limit,
            optimization_level=settings.optimization_level,
        )
        found, peak_memory = compile_elsewhere(request, report)
        layers = _read_layers(request, found, graph)
    return BuiltPlan(
        bytes=found.bytes,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory,
        activation_memory=found.activation_memory,
        targets=targets,
        layers=layers,
        warnings=(*warnings, *_layer_warnings(name, layers)),
    )


def _read_layers(request: PlanRequest, found: Compiled, graph: StageGraph) -> LayerReport:
    if found.inspection is not None:
        _check_ports(request, found.ports)
        return report_layers(parse_inspector(found.inspection), graph)
    if found.listing is None:
        raise ExportError(
            f"{request.name}: {request.backend} listed no layers, so the plan cannot be checked; build it again"
        )
    layers, ports = parse_listing(found.listing)
    _check_ports(request, ports)
    return report_layers(layers, graph)


def _check_ports(request: PlanRequest, ports: Sequence[Port]) -> None:
    """Compare the finished plan's tensors and profiles, with what was asked for."""
    for is_input, specs in ((True, request.inputs), (False, request.outputs)):
        found = {port.name: port for port in ports if port.is_input == is_input}
        for spec in specs:
            port = found.pop(spec.name, None)
            wanted = tuple(shape_ends(spec, profile) for profile in request.profiles) if is_input else ()
            if port is None or port.dtype != spec.dtype or port.profiles != wanted:
                raise ExportError(
                    f"{request.name}: the plan's tensor {spec.name} is {port or 'missing'}, not {spec.dtype} with the "
                    "profiles that were asked for; build it again, or with another version of the library"
                )
        if found:
            raise ExportError(f"{request.name}: the plan has tensors that nobody asked for ({', '.join(found)})")


def _layer_warnings(name: str, layers: LayerReport) -> list[str]:
    warnings = []
    if layers.unfused:
        total = len(layers.fused) + len(layers.unfused)
        shown = ", ".join(layers.unfused[:3]) + (" ..." if len(layers.unfused) > 3 else "")
        warnings.append(f"{name}: {len(layers.unfused)} of {total} attention blocks are not fused: {shown}")
    return warnings
