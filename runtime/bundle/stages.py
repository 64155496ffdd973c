"""A stage in the manifest: its graph, or its chain of graphs, with tensors and ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .build_record import LayerRecord
from .codec import Reader, shorten
from .file_record import FileRecord
from .kernel_attention import KernelAttention
from .requests import Range

__all__ = ["DTYPES", "FileRecord", "StageSpec", "TensorSpec"]

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool", "float8_e4m3fn")
MAX_AXIS = 2**40
_MEMBERS = (
    "file", "sha256", "bytes", "data", "inputs", "outputs", "opset", "profiles", "layers", "segments", "attention",
)  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; a string in the shape names a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def read(cls, reader: Reader) -> TensorSpec:
        """Read ``{"name", "dtype", "shape"}``."""
        fields = reader.fields("name", "dtype", "shape")
        axes: list[int | str] = []
        for axis in fields["shape"].items():
            axes.append(axis.text() if type(axis.value) is str else axis.integer(1, MAX_AXIS))
        return cls(fields["name"].text(), fields["dtype"].choice(DTYPES), tuple(axes))

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class StageSpec:
    """One graph: its file, external data, tensors and the ranges of its dynamic axes. Or a chain of graphs, between
    which our own kernels compute attention.

    Attributes:
        file: the graph; None for a chain. inputs, outputs: of the graph, or of the chain as a whole.
        opset: of ONNX; None for a plan.
        profiles: ranges per axis. A plan has one or more, each with every dynamic axis of its inputs; a request runs
            in the first that covers it.
        layers: what the plan's builder reported; None for ONNX.
        segments: the graphs of a chain in order, each with its own tensors; empty for one graph. Tensors of the stage
            keep their names; the others lead from one segment to a later one, and have the axis ``tokens`` (L, all
            views' tokens and the scale token).
        attention: what runs behind each segment but the last.
    """

    file: FileRecord | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: tuple[FileRecord, ...] = ()
    opset: int | None = None
    profiles: tuple[Mapping[str, Range], ...] = ()
    layers: LayerRecord | None = None
    segments: tuple[StageSpec, ...] = ()
    attention: tuple[KernelAttention, ...] = ()

    @classmethod
    def read(cls, reader: Reader) -> StageSpec:
        """Read one member of ``stages``, or one of its segments."""
        fields = reader.fields(*_MEMBERS)
        tensors: dict[str, tuple[TensorSpec, ...]] = {}
        names: set[str] = set()
        for side in ("inputs", "outputs"):
            specs = []
            for item in fields[side].items():
                spec = TensorSpec.read(item)
                if spec.name in names:
                    item.fail(f"repeats the tensor name {shorten(spec.name)}")
                names.add(spec.name)
                specs.append(spec)
            if not specs:
                fields[side].fail("must name at least one tensor")
            tensors[side] = tuple(specs)
        axes = {axis for specs in tensors.values() for spec in specs for axis in spec.shape if isinstance(axis, str)}
        profiles = []
        for item in fields["profiles"].items():
            profiles.append({name: Range.read(member, MAX_AXIS) for name, member in item.members().items()})
            for name in profiles[-1]:
                if name not in axes:
                    item.fail(f"names the axis {shorten(name)}, which no tensor of the stage has")
        layers = None if fields["layers"].is_null() else LayerRecord.read(fields["layers"])
        data = tuple(FileRecord.read(item.fields("file", "sha256", "bytes")) for item in fields["data"].items())
        opset = None if fields["opset"].is_null() else fields["opset"].integer(1, 1000)
        segments = tuple(cls.read(item) for item in fields["segments"].items())
        attention = tuple(KernelAttention.read(item) for item in fields["attention"].items())
        if segments and not all(fields[name].is_null() for name in ("file", "sha256", "bytes")):
            fields["file"].fail("must be null, with sha256 and bytes, for a chain of segments")
        file = None if segments else FileRecord.read(fields)
        sides = tensors["inputs"], tensors["outputs"]
        stage = cls(file, *sides, data, opset, tuple(profiles), layers, segments, attention)
        _check_chain(reader, stage)
        return stage

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {
            **(dict.fromkeys(("file", "sha256", "bytes")) if self.file is None else self.file.to_json()),
            "data": [record.to_json() for record in self.data],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "opset": self.opset,
            "profiles": [{axis: limits.to_json() for axis, limits in profile.items()} for profile in self.profiles],
            "layers": None if self.layers is None else self.layers.to_json(),
            "segments": [segment.to_json() for segment in self.segments],
            "attention": [attention.to_json() for attention in self.attention],
        }

    def files(self) -> Iterator[FileRecord]:
        """Every file of the stage."""
        if self.file is not None:
            yield self.file
        yield from self.data
        for segment in self.segments:
            yield from segment.files()


def _check_chain(reader: Reader, spec: StageSpec) -> None:
    """Refuse a chain that reads what nothing gives, or gives what nothing reads."""
    if len(spec.attention) != max(len(spec.segments) - 1, 0):
        reader.fail("must have one attention between each two segments")
    if any(segment.segments for segment in spec.segments):
        reader.fail("must not have segments of segments")
    known = {tensor.name: tensor for tensor in spec.inputs}
    for index, segment in enumerate(spec.segments):
        for tensor in segment.inputs:
            if known.get(tensor.name) != tensor:
                reader.fail(f"has a segment {index} that reads {shorten(tensor.name)}, which nothing before it gives")
        known |= {tensor.name: tensor for tensor in segment.outputs}
        if index < len(spec.attention):
            between = spec.attention[index]
            for name in (between.query, between.key, between.value):
                if name not in known:
                    reader.fail(f"has an attention {index} that reads {shorten(name)}, which nothing before it gives")
            behind = {tensor.name: tensor for tensor in spec.segments[index + 1].inputs}
            if between.out not in behind or between.out in known:
                reader.fail(f"has an attention {index} whose result no segment reads")
            known[between.out] = behind[between.out]
    if spec.segments and not all(known.get(tensor.name) == tensor for tensor in spec.outputs):
        reader.fail("has an output that no segment gives")
