"""One plan from one ONNX stage, in this process: what the child process of :mod:`.builder` runs.

Every TensorRT call of the builder is here, in one path for ``tensorrt`` 10.3 to 11 and ``tensorrt_rtx``;
``tests/export/tensorrt/test_api.py`` checks that each name exists in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import Range
from mapengine.runtime.errors import BackendError, ExportError
from mapengine.runtime.typed_json.fields import AnyText
from mapengine.runtime.typed_json.text import Document

from .layers import Port, manifest_dtype
from .messages import builder_error, parser_error, useful_line
from .optimization_profiles import shape_ends
from .progress import Fraction, PhaseProgress
from .settings import set_targets
from .timing_cache import read_timings, write_timings

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_PARSED, _BUILT = 0.02, 0.98
"""Fractions of the work after reading the graph and before writing the plan."""
MESSAGE = Document("a message between builder and worker", "this is a bug, report it", ExportError)


@dataclass(frozen=True)
class PlanRequest:
    """What to compile; plain data, so that it can be sent to another process.

    Attributes:
        backend: name of the flavour. name: of the stage.
        onnx: the graph. plan: file to write.
        inputs, outputs: tensors that the plan has to have.
        profiles: ranges of every dynamic axis.
        targets: compute capabilities, checked. memory_limit: bytes of workspace, or None.
        optimization_level: 0 to 5, or None for the library's default.
    """

    backend: str
    name: str
    onnx: AnyText
    plan: AnyText
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Mapping[str, Range], ...]
    targets: tuple[str, ...] = ()
    memory_limit: int | None = None
    optimization_level: int | None = None


@dataclass(frozen=True)
class Compiled:
    """A plan that was written.

    Attributes:
        bytes: its size. activation_memory: device bytes for intermediate tensors at the largest request, if known.
        listing: the builder's listing of layers and tensors, where there is no GPU to load the plan on.
        inspection: the engine inspector's JSON, where there is one; then ``ports`` are the engine's tensors.
    """

    bytes: int
    activation_memory: int | None
    listing: AnyText | None
    inspection: AnyText | None
    ports: tuple[Port, ...] = ()


def compile_plan(flavour: Flavour, request: PlanRequest, report: Fraction) -> Compiled:
    """Parse, build and write a plan. Strongly typed: the graph says in which precision everything runs.

    Args:
        report: called with the fraction that is done and the phase, from the thread that builds.

    Raises:
        ExportError: the parser or the builder refuses, or the graph has other tensors than asked for.
        BackendError: the library cannot start.
        OSError: the plan could not be written.
    """
    trt, logger = flavour.library, _make_logger(flavour)
    report(0.0, "reading the graph")
    builder = trt.Builder(logger)
    if builder is None:
        raise BackendError(f"{flavour.name} cannot start a builder: {useful_line(logger.errors)}; reinstall it")
    network = flavour.create_network(builder)
    parser = trt.OnnxParser(network, logger)
    # From the file, so that the parser finds weights in external files and maps them instead of copying.
    if not parser.parse_from_file(request.onnx):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise parser_error(request.name, flavour.name, flavour.version, errors, logger.errors)
    nodes = [network.get_layer(index).name for index in range(network.num_layers)]
    _check_network(network, request)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_options(flavour, config, request)
    for profile in request.profiles:
        shapes = builder.create_optimization_profile()
        for spec in request.inputs:
            shapes.set_shape(spec.name, *shape_ends(spec, profile))
        if config.add_optimization_profile(shapes) < 0:
            raise builder_error(request.name, flavour.name, logger.errors)
    device = _load_timings(flavour, config)
    config.progress_monitor = _make_monitor(flavour, PhaseProgress(report, _PARSED, _BUILT))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise builder_error(request.name, flavour.name, logger.errors, nodes)
    _save_timings(flavour, config, device)
    report(_BUILT, "writing the plan")
    with Path(request.plan).open("wb") as file:
        file.write(memoryview(plan))
    compiled = _describe(flavour, logger, plan, request)
    report(1.0, "done")
    return compiled


def _set_options(flavour: Flavour, config: Any, request: PlanRequest) -> None:
    if request.memory_limit is not None:
        config.set_memory_pool_limit(flavour.library.MemoryPoolType.WORKSPACE, request.memory_limit)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if flavour.is_rtx:
        # Otherwise layers of a large plan allocate while they run, which a CUDA graph cannot hold and nobody can bound.
        config.set_flag(flavour.library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    set_targets(flavour, config, request.targets)


def _check_network(network: Any, request: PlanRequest) -> None:
    """Compare inputs and outputs with what was asked for; the same network becomes the plan."""
    found = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    for side, tensors in found.items():
        specs: Sequence[TensorSpec] = getattr(request, side)
        have = {tensor.name: (manifest_dtype(tensor.dtype.name), tuple(tensor.shape)) for tensor in tensors}
        want = {spec.name: spec for spec in specs}
        if have.keys() != want.keys():
            raise ExportError(
                f"{request.name}: the graph has the {side} {', '.join(have)} and not {', '.join(want)}; export it again"
            )
        for name, (dtype, shape) in have.items():
            spec = want[name]
            fixed = [(length, axis) for length, axis in zip(shape, spec.shape, strict=False) if isinstance(axis, int)]
            fits = len(shape) == len(spec.shape) and all(length in (axis, -1) for length, axis in fixed)
            if dtype != spec.dtype or not fits:
                raise ExportError(
                    f"{request.name}: the tensor {name} is {dtype} {list(shape)} in the graph and should be "
                    f"{spec.dtype} {list(spec.shape)}; export it again"
                )


def _describe(flavour: Flavour, logger: Any, plan: Any, request: PlanRequest) -> Compiled:
    """Return size, memory and layers of a plan. TensorRT has the GPU to load it on; for TensorRT-RTX the log has to
    do."""
    if flavour.is_rtx:
        return Compiled(plan.nbytes, logger.activation_memory, logger.listing, None)
    runtime = flavour.library.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(memoryview(plan))
    if engine is None:
        raise ExportError(
            f"{request.name}: tensorrt built a plan that it cannot load: {useful_line(logger.errors)}; build with "
            "another --memory-limit, or free memory of the GPU"
        )
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(flavour.library.LayerInformationFormat.JSON)
    ports = tuple(_port(flavour, engine, index, len(request.profiles)) for index in range(engine.num_io_tensors))
    return Compiled(plan.nbytes, int(engine.device_memory_size_v2), None, str(text), ports)


def _port(flavour: Flavour, engine: Any, index: int, profiles: int) -> Port:
    name = engine.get_tensor_name(index)
    is_input = engine.get_tensor_mode(name) == flavour.library.TensorIOMode.INPUT
    ends = [engine.get_tensor_profile_shape(name, profile) for profile in range(profiles)] if is_input else []
    return Port(
        name,
        is_input,
        manifest_dtype(engine.get_tensor_dtype(name).name),
        tuple(engine.get_tensor_shape(name)),
        tuple(tuple(tuple(shape) for shape in shapes) for shapes in ends),
    )


def _load_timings(flavour: Flavour, config: Any) -> str | None:
    """Give the builder what it timed before on this device; the device's name if there is a cache to keep."""
    if flavour.is_rtx:
        return None
    device = _device()
    if device is None:
        return None
    known = read_timings(flavour.name, flavour.version, device)
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        # Not from this device after all: begin anew.
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return device


def _save_timings(flavour: Flavour, config: Any, device: str | None) -> None:
    cache = config.get_timing_cache() if device is not None else None
    if cache is not None and device is not None:
        write_timings(flavour.name, flavour.version, device, bytes(memoryview(cache.serialize())))


def _device() -> str | None:
    """Name, compute capability and driver of the GPU that the builder uses; None if they cannot be read."""
    from mapengine.runtime.backends.cuda.driver import open_device

    try:
        device = open_device()
    except BackendError:
        return None
    return f"{device.name}, {device.compute_capability}, driver for CUDA {device.driver_version}"


def _make_logger(flavour: Flavour) -> Any:
    """Return a logger that keeps errors, the listing of layers and the memory of a plan, and drops the rest."""
    serious = ("INTERNAL_ERROR", "ERROR")

    class Logger(flavour.library.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.listing: str | None = None
            self.activation_memory: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity.name in serious:
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.listing = message
            elif (found := _ACTIVATIONS.search(message)) is not None:
                # One line per profile.
                self.activation_memory = max(self.activation_memory or 0, int(found[1]))

    return Logger()


def _make_monitor(flavour: Flavour, progress: PhaseProgress) -> Any:
    """Make what passes the builder's phases on. An exception must not reach the library: a failure to report ends the
    build."""

    class Monitor(flavour.library.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._alive = True

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._pass_on(progress.begin, name, parent, steps)

        def phase_finish(self, name: str) -> None:
            self._pass_on(progress.end, name)

        def step_complete(self, name: str, step: int) -> bool:
            self._pass_on(progress.step, name, step)
            return self._alive

        def _pass_on(self, call: Any, *arguments: Any) -> None:
            try:
                call(*arguments)
            except BaseException:
                self._alive = False

    return Monitor()
