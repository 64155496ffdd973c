"""Graphs that are not what the manifest says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.bundle.file_record import FileRecord
from mapengine.runtime.bundle.manifest import Manifest, StageSpec, TensorSpec
from mapengine.runtime.bundle.stage_graphs import graph_problem
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle
from mapengine.runtime.errors import IntegrityError, ManifestError
from mapengine.runtime.typed_json.codec import encode

from ...stage_files import change_manifest, graph_bytes

INPUTS = (TensorSpec("x", "float32", ("views", 3)), TensorSpec("flags", "bool", ("views",)))
OUTPUTS = (TensorSpec("y", "float32", ("views", 48)),)
DATA = FileRecord("stage.onnx.data", "a" * 64, 10)
SPEC = StageSpec(FileRecord("stage.onnx", "a" * 64, 10), INPUTS, OUTPUTS, opset=20, data=(DATA,))


def content(**changes: Any) -> bytes:
    return graph_bytes(**{"inputs": INPUTS, "outputs": OUTPUTS, **changes})


def test_a_graph_as_it_is_described() -> None:
    assert graph_problem(content(), SPEC) is None
    assert graph_problem(content(data="stage.onnx.data"), SPEC) is None


@pytest.mark.parametrize(
    "location",
    ["other.data", "/etc/passwd", "../stage.onnx.data", "./stage.onnx.data", "a/../stage.onnx.data", "STAGE.onnx.data",
     "stage.onnx", "stage.onnx.data\0", "*/_ORT_MEM_ADDR_/*", "C:\\x", "\\\\host\\share", "stage.onnx.data/"],
)  # fmt: skip
def test_files_that_are_not_listed(location: str) -> None:
    problem = graph_problem(content(data=location), SPEC)
    assert problem is not None
    assert "refers to weights in" in problem
    assert problem.isprintable()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"opset": 19}, "has opset 19, but its manifest says 20"),
        ({"inputs": INPUTS[:1]}, "has 1 inputs, but its manifest says 2"),
        ({"outputs": OUTPUTS + INPUTS[:1]}, "has 2 outputs, but its manifest says 1"),
        ({"inputs": INPUTS[::-1]}, "has the input 'flags' bool (views), but its manifest says 'x' float32 (views, 3)"),
        ({"outputs": (replace(OUTPUTS[0], name="z"),)}, "has the output 'z' float32"),
        ({"outputs": (replace(OUTPUTS[0], dtype="bool"),)}, "has the output 'y' bool (views, 48)"),
        ({"outputs": (replace(OUTPUTS[0], shape=("views", 47)),)}, "has the output 'y' float32 (views, 47)"),
        ({"outputs": (replace(OUTPUTS[0], shape=("rows", 48)),)}, "has the output 'y' float32 (rows, 48)"),
        ({"outputs": (replace(OUTPUTS[0], shape=(48,)),)}, "has the output 'y' float32 (48)"),
    ],
)
def test_other_tensors_than_the_manifest_says(changes: dict[str, Any], problem: str) -> None:
    found = graph_problem(content(**changes), SPEC)
    assert found is not None
    assert problem in found


def test_what_is_no_graph() -> None:
    assert graph_problem(b"no graph", SPEC) is not None


def replace_graph(folder: Path, graph: bytes) -> None:
    """Replace a graph, and its hash in the manifest with it."""
    (folder / "dense_head.onnx").write_bytes(graph)
    record = encode(BundleWriter(folder).record("dense_head.onnx"))
    change_manifest(folder, lambda document: document["stages"]["dense_head"].update(record))


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_is_refused_before_a_backend_reads_it(bundle_folder: Path, manifest: Manifest, verify: bool) -> None:
    head = manifest.stages["dense_head"]
    (bundle_folder / "more.data").write_bytes(b"weights that nobody hashed")
    replace_graph(bundle_folder, graph_bytes(head.inputs, head.outputs, data="more.data"))
    with pytest.raises(IntegrityError, match=r"dense_head\.onnx refers to weights in 'more\.data'.*; copy the whole"):
        Bundle.open(bundle_folder, verify=verify)
    # What another stage lists is not this stage's.
    replace_graph(bundle_folder, graph_bytes(head.inputs, head.outputs, data="aggregator.onnx.data"))
    with pytest.raises(IntegrityError, match=r"dense_head\.onnx refers to weights in 'aggregator\.onnx\.data'"):
        Bundle.open(bundle_folder, verify=verify)
    replace_graph(bundle_folder, graph_bytes(head.inputs, head.outputs, 21))
    with pytest.raises(IntegrityError, match=r"dense_head\.onnx has opset 21, but its manifest says 20"):
        Bundle.open(bundle_folder, verify=verify)


def test_a_bundle_with_such_a_graph_is_not_written(
    tmp_path: Path, fill_bundle: Callable[[BundleWriter], Manifest]
) -> None:
    def fill(writer: BundleWriter) -> None:
        manifest = fill_bundle(writer)
        head = manifest.stages["dense_head"]
        (writer.folder / "dense_head.onnx").write_bytes(graph_bytes(head.inputs, head.outputs, data="more.data"))
        stage = replace(head, file=writer.record("dense_head.onnx"))
        writer.write_manifest(replace(manifest, stages={**manifest.stages, "dense_head": stage}))

    def write() -> None:
        with write_bundle(tmp_path / "bundle") as writer:
            fill(writer)

    with pytest.raises(IntegrityError, match=r"dense_head\.onnx refers to weights in 'more\.data'"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_formats_are_refused_by_name(bundle_folder: Path) -> None:
    """OpenVINO reads the weights of ``stage.xml`` from ``stage.bin``."""
    (bundle_folder / "dense_head.onnx").rename(bundle_folder / "dense_head.xml")
    change_manifest(bundle_folder, lambda document: document["stages"]["dense_head"].update(file="dense_head.xml"))
    with pytest.raises(ManifestError, match=r"stages\.dense_head must have a file that ends in \.onnx"):
        Bundle.open(bundle_folder)
