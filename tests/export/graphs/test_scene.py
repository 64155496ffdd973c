"""The stage of post-processing as a file: what is in it, and its numbers on the backends that run without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mapengine.export.graphs.tracing import export_added_stages
from mapengine.export.model.postprocessing import PostProcessed
from mapengine.runtime.backends.host_pipeline import HostBackend
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.options import InferOptions
from mapengine.runtime.postprocessing.predictions import finish_view
from mapengine.runtime.postprocessing.scene_stage import READS, option_values

from ...heads import Outputs, make_heads
from ...postprocess_cases import CASES, FLIPS, golden_mask, golden_scene

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_traces")]

GIVES = tuple(PostProcessed.__annotations__)
UNKNOWN_SIZES = {"NonZero", "Compress", "Unique", "TopK", "If", "Loop", "Scan", "NonMaxSuppression"}
"""Operators whose results have a size that depends on values, or that TensorRT 10.3 limits or does not have."""
OPENVINO_FLIPS = 0.015
"""Share of the pixels of a case that OpenVINO's rounding flips, at most: it decides whether a dot product of two equal
normals exceeds 1. Over all cases together the limit of the reference's vectors holds. The engine does not run the stage
there."""


@pytest.fixture(scope="module")
def scene_file(shared_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_added_stages(tmp_path_factory.mktemp("scene"), "dinov2", metadata={"mapengine.model": "x"})[-1].path


def inputs(heads: Outputs, image: np.ndarray, options: InferOptions, sample: int = 0) -> dict[str, Any]:
    part = slice(sample, sample + 1)
    shape = heads["confidence"][part].shape
    return {name: heads[head][part] for name, head in READS.items()} | {
        "metric_scaling_factor": heads["scale"][sample],
        "images": image[part],
        "kept": np.ones(shape, bool),
        "options": option_values(options, shape[1] * shape[2]),
    }


def test_has_operators_of_every_parser_and_float32_alone(scene_file: Path) -> None:
    model = onnx.load(scene_file)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [18]
    assert not {node.op_type for node in model.graph.node} & UNKNOWN_SIZES
    assert all(node.domain == "" for node in model.graph.node)
    kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL}
    floats = {tensor.data_type for tensor in model.graph.initializer} - {onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    assert floats == {onnx.TensorProto.FLOAT}
    assert tuple(output.name for output in model.graph.output) == GIVES
    assert {entry.key: entry.value for entry in model.metadata_props}["mapengine.stage"] == "scene"
    assert all(node.name.startswith("scene/") for node in model.graph.node)


@pytest.mark.parametrize("backend", [OnnxRuntimeBackend, OpenVinoBackend])
def test_masks_of_the_reference(backend: Any, scene_file: Path) -> None:
    library: HostBackend = backend(1)
    stage = library.load_stage("scene", scene_file)
    flipped = pixels = 0
    for case in CASES:
        options = InferOptions(**case["kwargs"])
        if options.use_multiview_confidence:
            continue
        for view, (heads, image) in enumerate(zip(*golden_scene(case), strict=True)):
            parts = [stage.run(inputs(heads, image, options, sample)) for sample in range(case["batch"])]
            found = {name: np.concatenate([part[name] for part in parts]) for name in GIVES}
            expected = finish_view(heads, image, options)
            for name in set(GIVES) & set(expected) - {"mask"}:
                want, same = expected[name], True
                if name in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z") and "mask" in expected:
                    same = found["mask"] == expected["mask"]  # a flipped pixel is counted once, in the mask
                difference = np.abs(found[name].astype(np.float64) - want) * same
                assert difference.max() <= 1e-5 * np.abs(want).max(), name
            wanted = golden_mask(case, view)
            if wanted is not None:
                differ = int((found["mask"] != wanted).sum())
                assert differ <= (FLIPS if backend is OnnxRuntimeBackend else OPENVINO_FLIPS) * wanted.size
                flipped, pixels = flipped + differ, pixels + wanted.size
    assert pixels > 0
    assert flipped <= FLIPS * pixels


@pytest.mark.parametrize(("views", "height", "width"), [(1, 14, 14), (4, 28, 70), (2, 126, 98)])
def test_any_number_of_views_of_any_size(views: int, height: int, width: int, scene_file: Path) -> None:
    heads = make_heads(3, views, height, width)
    heads["scale"][...] = heads["scale"][:1]
    image = np.random.default_rng(0).standard_normal((views, 3, height, width)).astype(np.float32)
    for options in (InferOptions(), InferOptions(apply_confidence_mask=True, confidence_percentile=25)):
        given = inputs(heads, image, options)
        given |= {name: heads[head] for name, head in READS.items()}
        given |= {"images": image, "kept": np.ones((views, height, width), bool)}
        found = OnnxRuntimeBackend(1).load_stage("scene", scene_file).run(given)
        expected = finish_view(heads, image, options)
        for name in GIVES:
            limit = 1e-4 if name == "intrinsics" else 2e-6
            assert np.abs(found[name].astype(np.float64) - expected[name]).max() <= limit * np.abs(
                expected[name].astype(np.float64)
            ).max(initial=1)
