"""A stage's graph compared with what the manifest says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..typed_json.text import shorten
from .file_record import FileRecord
from .onnx_files import GraphTensor, OnnxError, OnnxFile, read_onnx
from .stages import StageSpec, TensorSpec

MAX_GRAPH_BYTES = 2**31 - 1
"""The most that protocol buffers can be; weights of large stages are in files of their own."""


def graphs(spec: StageSpec) -> Iterator[tuple[FileRecord, StageSpec]]:
    """Yield the graphs of a stage: one, or those of its segments."""
    if spec.file is not None:
        yield spec.file, spec
    for segment in spec.segments:
        yield from graphs(segment)


def graph_problem(content: bytes, spec: StageSpec) -> str | None:
    """Return what is wrong with the graph ``content`` of a stage, to stand behind the name of its file, or None.

    It refers to no file but those that the manifest lists with it, and has the opset and tensors of the manifest.
    """
    try:
        found = read_onnx(content)
    except OnnxError as error:
        return str(error)
    listed = {record.file for record in spec.data}
    for location in sorted(found.locations - listed):
        return f"refers to weights in {shorten(location)}, which its manifest does not list with it"
    return _difference(found, spec)


def _difference(found: OnnxFile, spec: StageSpec) -> str | None:
    opset = found.opsets.get("", found.opsets.get("ai.onnx"))
    if opset != spec.opset:
        return f"has opset {opset or 'none'}, but its manifest says {spec.opset or 'none'}"
    sides: tuple[tuple[str, Sequence[GraphTensor], Sequence[TensorSpec]], ...] = (
        ("input", found.inputs, spec.inputs),
        ("output", found.outputs, spec.outputs),
    )
    for side, tensors, wanted in sides:
        if len(tensors) != len(wanted):
            return f"has {len(tensors)} {side}s, but its manifest says {len(wanted)}"
        for tensor, want in zip(tensors, wanted, strict=True):
            if (tensor.name, tensor.dtype, tensor.shape) != (want.name, want.dtype, want.shape):
                return (
                    f"has the {side} {_text(tensor.name, tensor.dtype, tensor.shape)}, but its manifest says "
                    f"{_text(want.name, want.dtype, want.shape)}"
                )
    return None


def _text(name: str, dtype: str, shape: Sequence[int | str | None] | None) -> str:
    sides = "?" if shape is None else ", ".join("?" if side is None else str(side) for side in shape)
    return f"{shorten(name)} {dtype} ({shorten(sides, 120)[1:-1]})"
