"""Reading ONNX files without ``onnx``: what they say, and that no bytes do any harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mapengine.runtime.bundle import onnx_files
from mapengine.runtime.bundle.onnx_files import NESTED, GraphTensor, OnnxError, OnnxFile, read_onnx

FUZZ = settings(deadline=None, max_examples=100)


def outside(name: str, location: str | None) -> TensorProto:
    """A tensor whose numbers are in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    return tensor


def graph(*stored: TensorProto, nodes: Any = (), inputs: Any = ("x",)) -> onnx.GraphProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in (*inputs, "y")]
    return helper.make_graph(list(nodes), "stage", ends[:-1], ends[-1:], list(stored))


def model(body: onnx.GraphProto, **more: Any) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10, **more)


def everywhere() -> tuple[onnx.ModelProto, set[str]]:
    """A model that refers to a file from every kind of place, and the names of the files."""
    inner = graph(
        outside("w", "then.data"), nodes=[helper.make_node("Loop", ["y"], ["z"], body=graph(outside("w", "loop.data")))]
    )
    sparse = onnx.SparseTensorProto(values=outside("s", "values.data"), indices=outside("i", "indices.data"), dims=[4])
    attributes = [
        helper.make_attribute("value", outside("t", "value.data")),
        helper.make_attribute("more", [outside("t", "first.data"), outside("t", "second.data")]),
        helper.make_attribute("sparse_value", sparse),
        helper.make_attribute("graphs", [graph(outside("g", "graphs.data"))]),
    ]
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.extend(attributes)
    body = graph(
        outside("w", "weights.data"), nodes=[helper.make_node("If", ["x"], ["y"], then_branch=inner), constant]
    )
    body.sparse_initializer.add().values.CopyFrom(outside("s", "sparse.data"))
    function = helper.make_function("own", "F", ["a"], ["b"], [constant], [helper.make_opsetid("", 20)])
    function.node[0].attribute[0].t.external_data[1].value = "function.data"
    function.attribute_proto.add(name="d", type=onnx.AttributeProto.TENSOR).t.CopyFrom(outside("d", "default.data"))
    whole = model(body, functions=[function])
    training = whole.training_info.add()
    training.initialization.CopyFrom(graph(outside("w", "initialization.data")))
    training.algorithm.CopyFrom(graph(outside("w", "algorithm.data")))
    names = (
        "then loop values indices value first second graphs weights sparse function default initialization algorithm"
    )
    return whole, {f"{name}.data" for name in names.split()}


def tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor in a message, by the descriptions of ``onnx`` itself."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                yield from tensors(part)


def locations(whole: onnx.ModelProto) -> set[str]:
    values = (entry.value for tensor in tensors(whole) for entry in tensor.external_data if entry.key == "location")
    # Bytes, where it is no text.
    return {value if isinstance(value, str) else value.decode("utf-8", "backslashreplace") for value in values}


def test_every_place_that_holds_a_tensor_is_known() -> None:
    """Whatever a new version of ONNX adds."""
    kinds, queue = {}, [onnx.ModelProto.DESCRIPTOR]
    while queue:
        kind = queue.pop()
        if kind.name not in kinds:
            kinds[kind.name] = {field.number: field.message_type for field in kind.fields if field.message_type}
            queue.extend(kinds[kind.name].values())
    holding = {"TensorProto"}
    while more := {k for k, fields in kinds.items() if any(f.name in holding for f in fields.values())} - holding:
        holding |= more
    found = {k: {n: f.name for n, f in kinds[k].items() if f.name in holding} for k in holding}
    assert found == NESTED


def test_what_a_graph_says(tiny_bundle: Path) -> None:
    for path in sorted(tiny_bundle.glob("*.onnx")):
        found, whole = read_onnx(path.read_bytes()), onnx.load(path, load_external_data=False)
        assert found.opsets == {entry.domain: entry.version for entry in whole.opset_import}
        for tensors_found, values in ((found.inputs, whole.graph.input), (found.outputs, whole.graph.output)):
            assert [tensor.name for tensor in tensors_found] == [value.name for value in values]
            for tensor, value in zip(tensors_found, values, strict=True):
                axes = value.type.tensor_type.shape.dim
                assert tensor.shape == tuple(axis.dim_param or axis.dim_value for axis in axes)
                assert tensor.dtype == onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        assert found.locations == set()


def test_types_shapes_and_inputs_with_values() -> None:
    body = graph(TensorProto(name="w", data_type=1, dims=[1], raw_data=b"1234"), inputs=("x", "w"))
    body.output.append(helper.make_tensor_value_info("half", TensorProto.BFLOAT16, [None, 3]))
    body.output.append(helper.make_tensor_value_info("any", TensorProto.INT4, None))
    body.output.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, ["n"]))
    found = read_onnx(model(body).SerializeToString())
    assert found.inputs == (GraphTensor("x", "float32", ("n", 2)),)
    assert found.outputs[1:] == (
        GraphTensor("half", "bfloat16", (None, 3)),
        GraphTensor("any", "type 22", None),
        GraphTensor("many", "none", None),
    )


def test_files_are_found_wherever_a_tensor_may_be() -> None:
    whole, names = everywhere()
    assert locations(whole) == names  # the test itself
    assert read_onnx(whole.SerializeToString()).locations == names


def test_a_tensor_in_a_file_without_a_name() -> None:
    assert read_onnx(model(graph(outside("w", None))).SerializeToString()).locations == {""}


def test_a_name_that_is_no_text() -> None:
    content = model(graph(outside("w", "abcd"))).SerializeToString().replace(b"abcd", b"a\xff\0d")
    assert read_onnx(content).locations == {"a\\xff\0d"}


def test_nesting_and_work_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, length = bytearray(), len(content)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *size, length]) + content

    def deep(levels: int) -> bytes:  # by hand: what protobuf nests depends on its version
        body = graph().SerializeToString()
        for _ in range(levels):
            branch = field(1, b"then_branch") + field(6, body) + b"\xa0\x01\x05"  # its type, a graph
            body = field(1, field(4, b"If") + field(5, branch))
        return field(7, body)

    read_onnx(deep(30))
    with pytest.raises(OnnxError, match="more than 100 levels"):
        read_onnx(deep(40))
    monkeypatch.setattr(onnx_files, "MAX_FIELDS", 100)
    with pytest.raises(OnnxError, match="more than 100 fields"):
        read_onnx(b"\x08\x01" * 101)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no ONNX graph"),
        (b"\x08\x0a", "holds no ONNX graph"),
        (b"<?xml version='1.0'?>", "no ONNX file"),
        (b"\x0b\x0c", "no ONNX file"),  # a group
        (b"\x00\x01", "no ONNX file"),  # field 0
        (b"\x0e\x01", "no ONNX file"),  # wire type 6
        (b"\x3a\x05ab", "is cut off"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "is cut off"),
        (b"\x3a" + b"\xff" * 20, "no ONNX file"),
        (b"\x80", "is cut off"),
        (b"\x0d\x01", "is cut off"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, problem: str) -> None:
    with pytest.raises(OnnxError, match=problem):
        read_onnx(content)


def outcome(content: bytes) -> OnnxFile | str:
    """What is read, or why it is refused."""
    try:
        return read_onnx(content)
    except OnnxError as error:
        return str(error)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    found = outcome(content)
    assert isinstance(found, OnnxFile) or found.isprintable()


WHOLE = everywhere()[0].SerializeToString()


@pytest.mark.slow
@FUZZ
@given(
    places=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=3),
    length=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
def test_a_damaged_file_hides_nothing_that_onnx_would_read(places: list[tuple[int, int]], length: int) -> None:
    content = bytearray(WHOLE)
    for place, byte in places:
        content[place] = byte
    damaged = bytes(content[:length])
    found = outcome(damaged)
    try:
        whole = onnx.ModelProto.FromString(damaged)
    except DecodeError:
        return
    assert isinstance(found, str) or locations(whole) <= found.locations
