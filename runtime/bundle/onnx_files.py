"""What an ONNX file says of itself: its opsets, its inputs and outputs, and the files that its tensors refer to.

The runtime has no ``onnx``, and a backend that has read a graph has followed its references already. So this reads the
wire format of protocol buffers itself, and of it only what leads to a tensor. Whatever the bytes are, it either reads
them as the libraries do or refuses them: work and nesting are bounded, and contents of tensors are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_FIELDS = 5_000_000
"""Fields that are looked at: a graph of ten thousand nodes has a few hundred thousand."""
MAX_LEVELS = 100
"""Nesting of messages, as in the protocol buffers' own library."""

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8_e4m3fn",
}
"""Names of ONNX's numbers of types (onnx.proto, ``TensorProto.DataType``)."""

NESTED: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
"""The messages that hold a tensor at any depth, by the number of the field that holds them (onnx.proto)."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types; groups (3 and 4) are in no version of ONNX."""
_LAST_FIELD = 2**29 - 1


class OnnxError(ValueError):
    """The bytes are no ONNX file; the message goes behind the name of the file."""


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph.

    Attributes:
        dtype: as NumPy names it, ``type 23`` for a number that is not known here, ``none`` for what is no tensor.
        shape: sizes, names of dynamic axes, and None for an axis without either; None where the graph does not say.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """What a file says.

    Attributes:
        opsets: version by domain; the standard operators have the domain ``""``.
        inputs, outputs: of the graph, without inputs that have a stored value.
        locations: what its tensors name as the file that holds them, at any depth; ``""`` for one that is said to be in
            a file and names none.
    """

    opsets: Mapping[str, int]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    locations: frozenset[str]


def read_onnx(content: bytes | memoryview) -> OnnxFile:
    """Read a serialised ``ModelProto``.

    Raises:
        OnnxError: ``content`` is none, or has more fields or levels than one has.
    """
    wire = _Wire(memoryview(content))
    opsets: dict[str, int] = {}
    inputs: list[GraphTensor] = []
    outputs: list[GraphTensor] = []
    stored: set[str] = set()
    locations: set[str] = set()
    has_graph = False
    queue = [("ModelProto", 0, len(content), 1)]
    while queue:
        kind, start, end, level = queue.pop()
        if level > MAX_LEVELS:
            raise OnnxError(f"is nested more than {MAX_LEVELS} levels deep")
        if kind == "TensorProto":
            name, places = _read_tensor(wire, start, end)
            locations |= places
            if level == 3:  # of the graph itself
                stored.add(name)
            continue
        inside = NESTED[kind]
        for number, wire_type, first, last in wire.fields(start, end):
            if wire_type != _BYTES:
                continue
            if number in inside:
                queue.append((inside[number], first, last, level + 1))
                has_graph |= kind == "ModelProto" and number == 7
            elif kind == "ModelProto" and number == 8:
                domain, version = wire.text_and_number(first, last, 1, 2)
                opsets[domain] = version
            elif kind == "GraphProto" and level == 2 and number in (11, 12):
                (inputs if number == 11 else outputs).append(_read_value(wire, first, last))
    if not has_graph:
        raise OnnxError("holds no ONNX graph")
    free = tuple(tensor for tensor in inputs if tensor.name not in stored)
    return OnnxFile(opsets, free, tuple(outputs), frozenset(locations))


def _read_tensor(wire: _Wire, start: int, end: int) -> tuple[str, set[str]]:
    """The name of a tensor, and the files that it names; ``""`` among them for one that is in a file without a name."""
    name, is_outside, locations = "", False, set()
    for number, kind, first, last in wire.fields(start, end):
        if number == 8 and kind == _BYTES:
            name = wire.text(first, last)
        elif number == 14 and kind == _VARINT:
            is_outside = first != 0
        elif number == 13 and kind == _BYTES:
            key, value = wire.two_texts(first, last)
            if key == "location":
                locations.add(value)
    if is_outside and not locations:
        locations.add("")
    return name, locations


def _read_value(wire: _Wire, start: int, end: int) -> GraphTensor:
    """A ``ValueInfoProto``."""
    name, dtype, shape = "", "none", None
    for number, first, last in wire.messages(start, end):
        if number == 1:
            name = wire.text(first, last)
        elif number == 2:
            for inner, low, high in wire.messages(first, last):
                if inner == 1:  # of the kinds of types only tensors
                    dtype, shape = _read_tensor_type(wire, low, high)
    return GraphTensor(name, dtype, shape)


def _read_tensor_type(wire: _Wire, start: int, end: int) -> tuple[str, tuple[int | str | None, ...] | None]:
    element, shape = 0, None
    for number, kind, first, last in wire.fields(start, end):
        if number == 1 and kind == _VARINT:
            element = first
        elif number == 2 and kind == _BYTES:
            shape = tuple(_read_axis(wire, low, high) for n, low, high in wire.messages(first, last) if n == 1)
    return DTYPES.get(element, f"type {element}"), shape


def _read_axis(wire: _Wire, start: int, end: int) -> int | str | None:
    axis: int | str | None = None
    for number, kind, first, last in wire.fields(start, end):
        if number == 1 and kind == _VARINT:
            axis = first
        elif number == 2 and kind == _BYTES:
            axis = wire.text(first, last)
    return axis


class _Wire:
    """Bytes in the wire format of protocol buffers, and how many fields of them may still be looked at."""

    def __init__(self, content: memoryview) -> None:
        self._content = content.cast("B") if content.format != "B" else content
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number and wire type of every field; then where its bytes begin and end, or a number and 0."""
        content, position = self._content, start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise OnnxError(f"has more than {MAX_FIELDS} fields")
            # Most tags and lengths are of one byte; a bundle's graphs have tens of thousands of them.
            tag = content[position]
            position += 1
            if tag >= 0x80:
                tag, position = self._varint(position - 1, end)
            number, kind = tag >> 3, tag & 7
            if not 0 < number <= _LAST_FIELD:
                raise OnnxError("is no ONNX file, or a damaged one")
            if kind == _VARINT:
                value, position = self._varint(position, end)
                yield number, kind, value, 0
                continue
            if kind == _BYTES:
                if position < end and content[position] < 0x80:
                    length = content[position]
                    position += 1
                else:
                    length, position = self._varint(position, end)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                length = 8 if kind == _EIGHT_BYTES else 4
            else:
                raise OnnxError("is no ONNX file, or a damaged one")
            first, position = position, position + length
            if position > end:
                raise OnnxError("is cut off, or damaged")
            yield number, kind, first, position

    def messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, start and end of every field that holds bytes: a message or a text."""
        return ((number, first, last) for number, kind, first, last in self.fields(start, end) if kind == _BYTES)

    def text(self, start: int, end: int) -> str:
        """The text between two places; what is not UTF-8 in it is escaped."""
        return bytes(self._content[start:end]).decode("utf-8", "backslashreplace")

    def two_texts(self, start: int, end: int) -> tuple[str, str]:
        """The fields 1 and 2 of a message of two texts."""
        found = {number: self.text(first, last) for number, first, last in self.messages(start, end)}
        return found.get(1, ""), found.get(2, "")

    def text_and_number(self, start: int, end: int, text: int, number: int) -> tuple[str, int]:
        """The fields ``text`` and ``number`` of a message; an absent one is empty or 0."""
        words, count = "", 0
        for field, kind, first, last in self.fields(start, end):
            if field == text and kind == _BYTES:
                words = self.text(first, last)
            elif field == number and kind == _VARINT:
                count = first
        return words, count

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise OnnxError("is cut off, or damaged")
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise OnnxError("is no ONNX file, or a damaged one")
