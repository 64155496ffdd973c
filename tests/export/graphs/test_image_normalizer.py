"""The stage that normalises images as a file: what is in it, and its bits on the backends that run without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mapengine.export.graphs.tracing import export_added_stages
from mapengine.runtime.backends.host_pipeline import HostBackend
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.inputs.normalization import NORM_TYPES, normalize_image

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_traces")]


@pytest.fixture(scope="module", params=NORM_TYPES)
def stage_file(request: pytest.FixtureRequest, shared_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    written = export_added_stages(folder, request.param)
    assert [stage.name for stage in written] == ["image_normalizer", "scene"]
    return written[0].path


def test_takes_bytes_and_gives_float32_with_operators_of_every_parser(stage_file: Path) -> None:
    model = onnx.load(stage_file)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [18]
    assert {node.op_type for node in model.graph.node} == {"Cast", "Add", "Transpose", "Gather"}
    kinds = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("backend", [OnnxRuntimeBackend, OpenVinoBackend])
def test_gives_the_bits_of_the_host(backend: Any, stage_file: Path) -> None:
    library: HostBackend = backend(1)
    stage = library.load_stage("image_normalizer", stage_file)
    every = np.arange(256, dtype=np.uint8)
    pixels = np.stack([every, every[::-1], np.roll(every, 77)], axis=-1)  # each value in each channel
    for shape in ((1, 14, 28), (3, 28, 14)):
        images = np.resize(pixels, (*shape, 3))
        expected = np.concatenate([normalize_image(image, stage_file.parent.name[:-1]) for image in images])
        np.testing.assert_array_equal(stage.run({"pixels": images})["images"], expected)
