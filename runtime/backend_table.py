"""The backends: what each is called, needs, runs and builds. Every other list of backends is made from this one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""Number formats of an engine."""
EIGHT_BIT = ("int8", "fp8")
"""Those whose products are in 8 bits. They need a calibration, but for weights alone."""


@dataclass(frozen=True)
class BackendSpec:
    """A backend, without importing it.

    Attributes:
        name: as users write it.
        what: the library and what it runs on, in a few words.
        extra: of mapengine, installs the library. package, module: of the library, on a package index and in Python.
        format: of the bundles that it runs: ``onnx`` (graphs, for any processor), ``onnx-cuda`` (graphs with the
            shapes and kernels that a GPU needs) or ``plan`` (compiled for one kind of TensorRT).
        precisions: that are built for it. ONNX Runtime's CPU has no bfloat16 kernels for these graphs, no CPU backend
            FP8 ones, and on a GPU ONNX Runtime multiplies nothing of an 8-bit graph in 8 bits.
        minimum_version: of the library: the oldest that serves the exported operators.
        provider: of the library, has to be in the installed one; None where the library has only one.
    """

    name: str
    what: str
    extra: str
    package: str
    module: str
    format: str
    precisions: tuple[str, ...]
    minimum_version: str
    provider: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU, where kernels of our own can run between its graphs or plans; else on the
        processor."""
        return self.format != "onnx"

    @property
    def install_command(self) -> str:
        """What installs its library."""
        return f"pip install 'mapengine[{self.extra}]'"


BACKENDS = (
    BackendSpec(
        name="onnxruntime",
        what="ONNX Runtime on the processor",
        extra="cpu",
        package="onnxruntime",
        module="onnxruntime",
        format="onnx",
        precisions=("fp32", "fp16", "int8"),
        minimum_version="1.22",
    ),
    BackendSpec(
        name="openvino",
        what="OpenVINO on the processor",
        extra="openvino",
        package="openvino",
        module="openvino",
        format="onnx",
        precisions=("fp32", "fp16", "bf16", "int8"),
        minimum_version="2026.0",
    ),
    BackendSpec(
        name="onnxruntime-cuda",
        what="ONNX Runtime on an NVIDIA GPU",
        extra="cuda",
        package="onnxruntime-gpu",
        module="onnxruntime",
        format="onnx-cuda",
        precisions=("fp32", "fp16", "bf16"),
        minimum_version="1.22",
        provider="CUDAExecutionProvider",
    ),
    BackendSpec(
        name="tensorrt",
        what="plans of TensorRT for the GPU of the machine that builds them",
        extra="tensorrt",
        package="tensorrt",
        module="tensorrt",
        format="plan",
        precisions=PRECISIONS,
        minimum_version="10.3",
    ),
    BackendSpec(
        name="tensorrt-rtx",
        what="plans of TensorRT for RTX, for RTX GPUs",
        extra="rtx",
        package="tensorrt-rtx",
        module="tensorrt_rtx",
        format="plan",
        precisions=PRECISIONS,
        minimum_version="1.7",
    ),
)
"""Slowest first, for most networks: see :func:`fastest_first`."""

NAMES = tuple(spec.name for spec in BACKENDS)
BACKENDS_BY_NAME = {spec.name: spec for spec in BACKENDS}
BACKENDS_BY_FORMAT = {
    form: tuple(spec.name for spec in BACKENDS if spec.format == form)
    for form in dict.fromkeys(spec.format for spec in BACKENDS)
}
"""Of a plan, and of graphs for a GPU, a stage has profiles, and may be a chain."""
CPU_BACKENDS = tuple(spec.name for spec in BACKENDS if not spec.on_gpu)
GPU_BACKENDS = tuple(spec.name for spec in BACKENDS if spec.on_gpu)
"""Backends whose stages our own attention kernels can run between."""
TENSORRT_BACKENDS = BACKENDS_BY_FORMAT["plan"]
SMALL_PARAMETERS = 20_000_000
"""Networks of fewer are small: in float32 ONNX Runtime is the faster one on a processor. Measured with 6 million, see
``docs/results/cpu-small.md``; with 1.2 billion OpenVINO is."""
PACKAGES = tuple(dict.fromkeys(("mapengine", "numpy", "pillow", *(spec.package for spec in BACKENDS), "torch")))
"""Whose versions belong to a record of what an engine did."""


def fastest_first(names: Collection[str], precision: str, parameters: int) -> list[str]:
    """Return backends in the order in which ``auto`` takes them for a network in ``precision`` of so many parameters.

    ``names`` are of :data:`NAMES`.
    """
    order = [name for name in reversed(NAMES) if name in names]
    if precision == "fp32" and parameters < SMALL_PARAMETERS:
        order.sort(key=lambda name: name == "openvino")
    return order
