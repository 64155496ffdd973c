"""The pipeline with stages written in NumPy: what is run, on which views, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.backends.host_pipeline import Pipeline, geometry_inputs
from mapengine.runtime.errors import BackendError
from mapengine.runtime.inputs.prepared import ViewGeometry, prepare_views
from mapengine.runtime.options import InferOptions

from ...random_views import Views, assert_close, mixed_views, random_views

Arrays = dict[str, NDArray[np.float32]]
GEOMETRY_INPUTS = ("ray_directions", "depth", "depth_log_scale", "rotation", "translation", "translation_log_scale")
SCALE = 2.0


class FakeStage:
    """A stage that remembers the leading dimension of every call."""

    def __init__(self, function: Callable[[Mapping[str, NDArray[Any]]], Arrays]) -> None:
        self.function = function
        self.calls: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in inputs.values())
        lengths = {len(value) for value in inputs.values()}
        assert len(lengths) == 1
        self.calls += lengths
        return self.function(inputs)


def encode_images(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """One channel per patch: the mean of its pixels. The extra token is the mean of the image."""
    images = inputs["images"]
    n, c, height, width = images.shape
    patches = images.reshape(n, c, height // 14, 14, width // 14, 14).mean(axis=(1, 3, 5))[..., None]
    return {"patch_features": patches, "extra_tokens": images.mean(axis=(1, 2, 3))[:, None, None]}


def encode_geometry(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    flags = inputs["modality_flags"]
    n, height, width, _ = inputs["ray_directions"].shape
    assert inputs["depth"].shape == (n, height, width, 1)
    value = flags @ np.array([1, 2, 4, 8, 16], np.float32) + inputs["translation"].sum(axis=1)
    return {"geometry_features": np.tile(value[:, None, None, None], (1, height // 14, width // 14, 1))}


def aggregate(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Every view sees the mean over all views and the tokens of the first."""
    features, tokens = inputs["features"], inputs["extra_tokens"]
    maps = {
        "view_features_0": features,
        "view_features_1": features - features.mean(axis=0),
        "view_features_2": features + tokens[:1, :, None],
        "view_features_3": features * 2,
    }
    return {**maps, "metric_scaling_factor": np.array([SCALE + features.mean()], np.float32)}


def decode(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    fused, first, second, final = (inputs[f"view_features_{i}"] for i in range(4))
    pixels = [np.repeat(np.repeat(x[..., 0], 14, axis=1), 14, axis=2) for x in (fused, first, second, final)]
    rays = np.stack([pixels[0], pixels[1], np.ones_like(pixels[0])], axis=-1)
    return {
        "ray_directions": rays / np.linalg.norm(rays, axis=-1, keepdims=True),
        "depth_along_ray": np.exp(pixels[2])[..., None],
        "confidence": 1 + np.exp(pixels[3]),
        "mask_logits": pixels[3],
        "cam_trans": final.mean(axis=(1, 2))[:, [0, 0, 0]],
        "cam_quats": np.tile(np.array([0, 0, 0, 1], np.float32), (len(fused), 1)),
    }


@pytest.fixture
def stages() -> dict[str, FakeStage]:
    functions = {
        "image_encoder": encode_images,
        "geometry_encoder": encode_geometry,
        "aggregator": aggregate,
        "dense_head": decode,
    }
    return {name: FakeStage(function) for name, function in functions.items()}


def forward(stages: dict[str, FakeStage], views: Views, chunks: ChunkSizes | None = None) -> list[dict[str, Any]]:
    return Pipeline(stages).forward(prepare_views(views), chunks)


def test_chunks_are_those_asked_for(stages: dict[str, FakeStage]) -> None:
    forward(stages, random_views(7), ChunkSizes(image_encoder=3, geometry_encoder=5, dense_head=2))
    assert stages["image_encoder"].calls == [3, 3, 1]
    assert stages["geometry_encoder"].calls == [5, 2]
    assert stages["aggregator"].calls == [7]
    assert stages["dense_head"].calls == [2, 2, 2, 1]


def test_chunks_of_the_pipeline_are_the_default(stages: dict[str, FakeStage]) -> None:
    pipeline = Pipeline(stages, ChunkSizes(4, 4, 4))
    pipeline.forward(prepare_views(random_views(5)))
    assert stages["image_encoder"].calls == [4, 1]
    assert Pipeline(stages).chunks == ChunkSizes(1, 1, 1)


def test_a_batch_multiplies_the_leading_dimension_but_not_the_aggregators(stages: dict[str, FakeStage]) -> None:
    forward(stages, random_views(3, batch=2), ChunkSizes(2, 2, 2))
    assert stages["image_encoder"].calls == [4, 2]
    assert stages["geometry_encoder"].calls == [4, 2]
    assert stages["aggregator"].calls == [3, 3]  # one call per sample
    assert stages["dense_head"].calls == [4, 2]


def test_geometry_is_encoded_for_the_views_that_have_it(stages: dict[str, FakeStage]) -> None:
    views = mixed_views(5)  # the second has its image only
    forward(stages, views, ChunkSizes(geometry_encoder=9))
    assert stages["geometry_encoder"].calls == [4]


def test_geometry_is_skipped_when_no_view_has_any(stages: dict[str, FakeStage]) -> None:
    del stages["geometry_encoder"]
    assert len(forward(stages, random_views(3, ""))) == 3


def test_ignored_geometry_is_skipped_too(stages: dict[str, FakeStage]) -> None:
    ignored = InferOptions(ignore_calibration_inputs=True, ignore_pose_inputs=True)
    prepared = prepare_views(random_views(3, "kp"), ignored)
    Pipeline(stages).forward(prepared)
    assert stages["geometry_encoder"].calls == []


def test_geometry_lands_on_its_own_view(stages: dict[str, FakeStage]) -> None:
    seen: list[NDArray[Any]] = []

    def spy(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        seen.append(inputs["features"])
        return aggregate(inputs)

    stages["aggregator"] = FakeStage(spy)
    views = mixed_views(4)
    forward(stages, views, ChunkSizes(geometry_encoder=2))
    forward(stages, [{key: view[key] for key in ("img", "data_norm_type")} for view in views])
    added = (seen[0] - seen[1])[:, 0, 0, 0]
    assert added[1] == 0
    # Camera only: the flag of the rays. The first view has all five, the last has pose and metric pose and moved.
    assert added[2] == pytest.approx(1, abs=1e-5)
    assert added[0] == pytest.approx(31, abs=1e-5)
    assert added[3] != 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 6),
    batch=st.integers(1, 2),
    chunks=st.builds(ChunkSizes, st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    given_inputs=st.sampled_from(["", "k", "kdp"]),
)
def test_chunk_sizes_never_change_the_numbers(count: int, batch: int, chunks: ChunkSizes, given_inputs: str) -> None:
    functions = (encode_images, encode_geometry, aggregate, decode)
    names = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")
    stages = {name: FakeStage(function) for name, function in zip(names, functions, strict=True)}
    views = random_views(count, given_inputs, batch=batch)
    assert_close(forward(stages, views, chunks), forward(stages, views))


def test_samples_of_a_batch_do_not_mix(stages: dict[str, FakeStage]) -> None:
    views = random_views(3, batch=2)
    together = forward(stages, views)
    for sample in range(2):
        alone = forward(
            stages,
            [{key: value if key == "data_norm_type" else value[[sample]] for key, value in v.items()} for v in views],
        )
        assert_close([{key: value[[sample]] for key, value in view.items()} for view in together], alone)


def test_metric_scale_multiplies_points_and_translation(stages: dict[str, FakeStage]) -> None:
    prediction = forward(stages, random_views(1, ""))[0]
    scale = prediction["metric_scaling_factor"]
    assert scale.shape == (1, 1)
    along = prediction["ray_directions"] * prediction["depth_along_ray"]
    assert np.allclose(prediction["pts3d_cam"], along)
    assert np.allclose(prediction["pts3d"], along + prediction["cam_trans"][:, None, None])
    image = random_views(1, "")[0]["img"]
    assert np.allclose(prediction["cam_trans"], 2 * image.mean() * scale, atol=1e-5)


def test_network_without_extra_tokens(stages: dict[str, FakeStage]) -> None:
    """v1 passes no class token on."""

    def encode(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return {"patch_features": encode_images(inputs)["patch_features"]}

    def mix(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        assert set(inputs) == {"features"}
        return aggregate({**inputs, "extra_tokens": np.zeros((len(inputs["features"]), 1, 1), np.float32)})

    stages |= {"image_encoder": FakeStage(encode), "aggregator": FakeStage(mix)}
    assert len(forward(stages, random_views(3))) == 3


def test_progress_ends_every_stage_at_its_total(stages: dict[str, FakeStage]) -> None:
    calls: list[tuple[str, int, int]] = []
    prepared = prepare_views(mixed_views(5))
    Pipeline(stages, ChunkSizes(2, 3, 5)).forward(prepared, progress=lambda *call: calls.append(call))
    assert calls == [
        *(("image_encoder", done, 5) for done in (2, 4, 5)),
        *(("geometry_encoder", done, 4) for done in (3, 4)),
        ("aggregator", 5, 5),
        ("dense_head", 5, 5),
    ]


def test_inputs_are_not_changed(stages: dict[str, FakeStage]) -> None:
    views = random_views(2)
    before = [view["img"].copy() for view in views]
    forward(stages, views)
    assert all(np.array_equal(view["img"], old) for view, old in zip(views, before, strict=True))


def test_error_of_a_stage_passes_through(stages: dict[str, FakeStage]) -> None:
    def fail(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        raise BackendError("onnxruntime failed in the stage dense_head: out of memory")

    stages["dense_head"] = FakeStage(fail)
    with pytest.raises(BackendError, match="dense_head: out of memory"):
        forward(stages, random_views(1))


def test_geometry_inputs_are_view_major_and_zero_where_absent() -> None:
    flags = np.zeros((2, 5), bool)
    flags[1, 3] = True
    rotation = np.arange(8, dtype=np.float32).reshape(2, 4)
    posed = ViewGeometry(flags, rotation=rotation, translation=np.ones((2, 3), np.float32))
    rays = ViewGeometry(np.ones((2, 5), bool), ray_directions=np.ones((2, 14, 28, 3), np.float32))
    inputs = geometry_inputs([posed, rays], 2, 14, 28)
    assert tuple(inputs) == (*GEOMETRY_INPUTS, "modality_flags")
    assert inputs["ray_directions"].shape == (4, 14, 28, 3)
    assert inputs["depth"].shape == (4, 14, 28, 1)
    assert np.array_equal(inputs["rotation"], np.concatenate([rotation, np.zeros((2, 4))]))
    assert (inputs["ray_directions"][:2] == 0).all()
    assert (inputs["ray_directions"][2:] == 1).all()
    assert np.array_equal(inputs["modality_flags"], np.concatenate([flags, np.ones((2, 5))]))
    assert {value.dtype for value in inputs.values()} == {np.dtype(np.float32)}
    assert geometry_inputs([posed], 2, 14, 28, "float64")["rotation"].dtype == np.float64
