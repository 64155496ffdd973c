"""A stage in the manifest: its graph, or its chain of graphs, with tensors and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from ..typed_json.codec import Fail
from ..typed_json.fields import FLAT, Bounds, Count, Key, OneOf, Positive
from ..typed_json.text import shorten
from .file_record import FileRecord
from .kernel_attention import KernelAttention
from .requests import Range

STAGES = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")
"""The stages of the network."""
NORMALIZER = "image_normalizer"
"""The stage that normalises images; bundles of older versions have none."""
SCENE = "scene"
"""The stage of post-processing; bundles of older versions have none."""
ADDED_STAGES = (NORMALIZER, SCENE)
"""Stages around the network's, which have no weights and may be missing."""
CHUNKED_LIKE = {NORMALIZER: "image_encoder", SCENE: "dense_head"}
"""The stage of the network whose chunks of views they take."""
EVERY_STAGE = (NORMALIZER, *STAGES, SCENE)
"""In running order."""
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool", "float8_e4m3fn")
MAX_AXIS = 2**40


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; a string in the shape names a dynamic axis."""

    name: str
    dtype: Annotated[str, OneOf(DTYPES)]
    shape: tuple[Annotated[int, Bounds(1, MAX_AXIS)] | str, ...]


@dataclass(frozen=True)
class LayerRecord:
    """The layers of one plan, as the builder reported them.

    Attributes:
        attention: attention blocks of the stage. fused: how many of them run as one fused kernel.
        unfused: module names of the others; their scores of tokens x tokens are held in memory.
        gemms: number of matrix products and convolutions per datatypes, such as ``{"Half x Half -> Half": 96}``.
        macs: their multiplications, per row of what each makes (a token or a pixel).
    """

    attention: Count
    fused: Annotated[int, Bounds(0, "attention")]
    unfused: tuple[str, ...] = ()
    gemms: Mapping[str, Positive] = field(default_factory=dict)
    macs: Mapping[str, Count] = field(default_factory=dict)

    def check_fields(self, fail: Fail) -> None:
        """Refuse counts that do not add up."""
        if self.fused + len(self.unfused) != self.attention:
            fail("unfused", f"must name the {self.attention - self.fused} attention blocks that are not fused")
        if self.macs.keys() != self.gemms.keys():
            fail("macs", "must have the datatypes of gemms")


@dataclass(frozen=True)
class StageSpec:
    """One graph: its file, external data, tensors and the ranges of its dynamic axes. Or a chain of graphs, between
    which our own kernels compute attention.

    Attributes:
        file: the graph; None for a chain. inputs, outputs: of the graph, or of the chain as a whole.
        opset: of ONNX; None for a plan.
        optimization_profiles: ranges per axis. A plan has one or more, each with every dynamic axis of its inputs; a
            request runs in the first that covers it.
        layers: what the plan's builder reported; None for ONNX.
        segments: the graphs of a chain in order, each with its own tensors; empty for one graph. Tensors of the stage
            keep their names; the others lead from one segment to a later one, and have the axis ``tokens`` (L, all
            views' tokens and the scale token).
        attention: what runs behind each segment but the last.
    """

    file: Annotated[FileRecord | None, FLAT]
    data: tuple[FileRecord, ...] = field(default=(), kw_only=True)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: Annotated[int, Bounds(1, 1000)] | None = None
    optimization_profiles: Annotated[
        tuple[Mapping[str, Annotated[Range, Bounds(1, MAX_AXIS)]], ...], Key("profiles")
    ] = ()
    layers: LayerRecord | None = None
    segments: tuple[StageSpec, ...] = ()
    attention: tuple[KernelAttention, ...] = ()

    def check_fields(self, fail: Fail) -> None:
        """Refuse tensors without or with the same names, ranges of no axis, and a chain that does not hold."""
        names: set[str] = set()
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not specs:
                fail(side, "must name at least one tensor")
            for index, spec in enumerate(specs):
                if spec.name in names:
                    fail(f"{side}[{index}]", f"repeats the tensor name {shorten(spec.name)}")
                names.add(spec.name)
        # 14*patch_rows follows from the axis patch_rows
        axes = {str(axis).rpartition("*")[2] for spec in (*self.inputs, *self.outputs) for axis in spec.shape}
        for index, profile in enumerate(self.optimization_profiles):
            for axis in profile:
                if axis not in axes:
                    fail(f"profiles[{index}]", f"names the axis {shorten(axis)}, which no tensor of the stage has")
        if (self.file is None) != bool(self.segments):
            fail("file", "must be null, with sha256 and bytes, for a chain of segments, and only for one")
        self._check_chain(fail)

    def _check_chain(self, fail: Fail) -> None:
        """Refuse a chain that reads what nothing gives, or gives what nothing reads."""
        if len(self.attention) != max(len(self.segments) - 1, 0):
            fail("", "must have one attention between each two segments")
        if any(segment.segments for segment in self.segments):
            fail("", "must not have segments of segments")
        known = {tensor.name: tensor for tensor in self.inputs}
        for index, segment in enumerate(self.segments):
            for tensor in segment.inputs:
                if known.get(tensor.name) != tensor:
                    fail("", f"has a segment {index} that reads {shorten(tensor.name)}, which nothing before it gives")
            known |= {tensor.name: tensor for tensor in segment.outputs}
            if index < len(self.attention):
                between = self.attention[index]
                for name in (between.query, between.key, between.value):
                    if name not in known:
                        fail("", f"has an attention {index} that reads {shorten(name)}, which nothing before it gives")
                behind = {tensor.name: tensor for tensor in self.segments[index + 1].inputs}
                if between.out not in behind or between.out in known:
                    fail("", f"has an attention {index} whose result no segment reads")
                known[between.out] = behind[between.out]
        if self.segments and not all(known.get(tensor.name) == tensor for tensor in self.outputs):
            fail("", "has an output that no segment gives")

    def files(self) -> Iterator[FileRecord]:
        """Every file of the stage."""
        if self.file is not None:
            yield self.file
        yield from self.data
        for segment in self.segments:
            yield from segment.files()


def tensor_shape(spec: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a tensor for values of its axes; ``14*patch_rows`` is 14 times the axis ``patch_rows``."""
    shape = []
    for axis in spec.shape:
        if isinstance(axis, int):
            shape.append(axis)
        else:
            factor, _, name = axis.rpartition("*")
            shape.append(int(factor or 1) * axes[name])
    return tuple(shape)


def axis_sizes(specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of the dynamic axes of tensors, from the shapes that they have; see :func:`tensor_shape`."""
    sizes = {}
    for spec in specs:
        for axis, size in zip(spec.shape, shapes.get(spec.name, ()), strict=False):
            if isinstance(axis, str):
                factor, _, name = axis.rpartition("*")
                sizes[name] = size // int(factor or 1)
    return sizes
