from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.registry import make_backend
from mapengine.runtime.bundle.build_record import Tolerance
from mapengine.runtime.bundle.bundle_files import BundleFiles
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.checks.golden import check_golden, largest_excess, pack, run_golden, unpack
from mapengine.runtime.errors import IntegrityError, ParityError

from ...random_views import assert_close, mixed_views

Arrays = dict[str, NDArray[Any]]


class ChangedStage:
    """A stage whose outputs are passed through a function."""

    def __init__(self, stage: StageRunner, change: Any) -> None:
        self.stage = stage
        self.change = change

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        return self.change(self.stage.run(inputs))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def stages(bundle: Bundle) -> dict[str, StageRunner]:
    backend = make_backend("onnxruntime", ["onnxruntime"], 1)
    return {name: backend.load_stage(name, bundle.stage_path(name)) for name in bundle.manifest.stages}


def changed(stages: dict[str, StageRunner], name: str, change: Any) -> Pipeline:
    return Pipeline({**stages, name: ChangedStage(stages[name], change)})


# The file


def test_pack_and_unpack_are_inverse() -> None:
    views = mixed_views(3)
    outputs = [{"conf": np.ones((1, 2, 2)) * index, "mask": np.zeros((1, 2), bool)} for index in range(3)]
    found_views, found_outputs = unpack(pack(views, outputs))
    assert [set(view) for view in found_views] == [set(view) - {"data_norm_type"} for view in views]
    for found, want in ((found_views, views), (found_outputs, outputs)):
        for got, expected in zip(found, want, strict=True):
            assert all(np.array_equal(value, expected[key]) for key, value in got.items())


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"in.0.img": np.ones(1)},
        {"out.0.conf": np.ones(1)},
        {"in.0.img": np.ones(1), "out.1.conf": np.ones(1)},
        {"in.1.img": np.ones(1), "out.1.conf": np.ones(1)},
        {"in.0.img": np.ones(1), "out.0.conf": np.ones(1), "extra": np.ones(1)},
        {"in.0.img": np.ones(1), "out.0.conf": np.ones(1), "in.x.img": np.ones(1)},
        {"in.0.img": np.ones(1), "out.0.conf": np.ones(1), "in.-1.img": np.ones(1)},
        {"in.0.img": np.ones(1), "out.0.conf": np.ones(1), "in.0.": np.ones(1)},
        {"in.0.img": np.ones(1), "out.0.conf": np.ones(1), "out.1.conf": np.ones(1)},
    ],
    ids=lambda arrays: ",".join(arrays) or "empty",
)
def test_archive_of_another_form_is_refused(arrays: Arrays) -> None:
    with pytest.raises(IntegrityError, match=r"golden\.npz.*build the bundle again"):
        unpack(arrays)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.just(np.ones(1)), max_size=4))
def test_any_keys_give_views_or_one_error(arrays: Arrays) -> None:
    try:
        views, outputs = unpack(arrays)
    except IntegrityError:
        return
    assert len(views) == len(outputs) > 0


# The tolerance


def test_excess_is_in_units_of_the_tolerance() -> None:
    want = np.array([0.0, 10.0])
    assert largest_excess(np.array([0.0, 10.0]), want, Tolerance(0.1, 0.0)) == 0
    assert largest_excess(np.array([0.05, 10.0]), want, Tolerance(0.1, 0.0)) == pytest.approx(0.5)
    assert largest_excess(np.array([0.0, 12.0]), want, Tolerance(1.0, 0.1)) == 1.0


@settings(max_examples=50, deadline=None)
@given(npst.arrays(np.float32, 5, elements=st.floats(width=32)))
def test_values_that_are_not_finite_never_pass(found: NDArray[np.float32]) -> None:
    excess = largest_excess(found, np.zeros(5, np.float32), Tolerance(1e30, 0.0))
    assert np.isfinite(found).all() == (excess < float("inf"))


# The check


def test_right_results_pass(bundle: Bundle, stages: dict[str, StageRunner]) -> None:
    found, expected = check_golden(bundle, Pipeline(stages), "this test")
    assert len(found) == len(expected) == 3
    assert_close(found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("output", ["ray_directions", "depth_along_ray", "confidence", "mask_logits", "cam_quats"])
def test_one_value_that_is_not_finite_fails(
    output: str, bad: float, bundle: Bundle, stages: dict[str, StageRunner]
) -> None:
    def spoil(outputs: Arrays) -> Arrays:
        value = outputs[output].copy()
        value.flat[-1] = bad
        return {**outputs, output: value}

    with np.errstate(invalid="ignore"), pytest.raises(ParityError, match="inf times its tolerance"):
        check_golden(bundle, changed(stages, "dense_head", spoil), "this test")


@pytest.mark.parametrize(
    ("stage", "output"),
    [
        ("image_encoder", "patch_features"),
        ("image_encoder", "extra_tokens"),
        ("geometry_encoder", "geometry_features"),
        ("aggregator", "view_features_1"),
        ("aggregator", "metric_scaling_factor"),
        ("dense_head", "cam_trans"),
    ],
)
def test_wrong_results_of_any_stage_fail(
    stage: str, output: str, bundle: Bundle, stages: dict[str, StageRunner]
) -> None:
    pipeline = changed(stages, stage, lambda outputs: {**outputs, output: outputs[output] * np.float32(1.05)})
    with pytest.raises(ParityError, match=r"^a device gives wrong results.*differs from the reference by .* times"):
        check_golden(bundle, pipeline, "a device")


def test_swapped_views_fail(bundle: Bundle, stages: dict[str, StageRunner]) -> None:
    def swap(outputs: Arrays) -> Arrays:
        return {name: value if len(value) == 1 else value[[1, 0, 2]] for name, value in outputs.items()}

    with pytest.raises(ParityError):
        check_golden(bundle, changed(stages, "aggregator", swap), "this test")


def as_float16(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.astype(np.float16).astype(np.float32)


def as_bfloat16(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the upper half of a float32."""
    bits = np.ascontiguousarray(value).view(np.uint32).astype(np.uint64) + 0x8000
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("rounded", [as_float16, as_bfloat16])
def test_half_precision_fails(rounded: Any, bundle: Bundle, stages: dict[str, StageRunner]) -> None:
    """Even where it only stores the outputs of the stages."""

    def change(outputs: Arrays) -> Arrays:
        return {name: rounded(value) for name, value in outputs.items()}

    with pytest.raises(ParityError):
        check_golden(bundle, Pipeline({name: ChangedStage(stage, change) for name, stage in stages.items()}), "a test")


@pytest.mark.slow
def test_reduced_precision_of_openvino_fails_where_its_float32_passes(
    bundle: Bundle, stages: dict[str, StageRunner]
) -> None:
    """OpenVINO's own default is bfloat16 on processors that have it; a processor that lacks it keeps float32."""
    import openvino

    core = openvino.Core()
    reduced = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    class Compiled:
        def __init__(self, name: str, hint: str) -> None:
            self.model = core.compile_model(str(bundle.stage_path(name)), "CPU", {"INFERENCE_PRECISION_HINT": hint})

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            results = self.model(dict(inputs))
            return {output.get_any_name(): results[output] for output in self.model.outputs}

    def pipeline(hint: str) -> Pipeline:
        return Pipeline({name: Compiled(name, hint) for name in stages})

    check_golden(bundle, pipeline("f32"), "openvino in float32")
    if reduced:
        with pytest.raises(ParityError, match="openvino in bfloat16 gives wrong results"):
            check_golden(bundle, pipeline("bf16"), "openvino in bfloat16")


# The file of a bundle


def rewrite(folder: Path, change: Any) -> None:
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez_compressed(folder / "golden.npz", **change(arrays))


def test_altered_golden_file_is_refused_at_load(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "engine"))
    rewrite(folder, lambda arrays: {**arrays, "out.0.conf": arrays["out.0.conf"] + 1})
    with pytest.raises(IntegrityError, match=r"golden\.npz"):
        Engine.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "out.1.conf": a["out.1.conf"][:, 1:]}, "conf of view 1 does not fit the network"),
        (lambda a: {**a, "out.1.unknown": np.ones(1)}, "unknown of view 1 does not fit"),
        (lambda a: {k: v for k, v in a.items() if k != "out.2.conf"}, "lacks conf of view 2"),
        (lambda a: {k: v for k, v in a.items() if not k.startswith("in.2")}, "of the same views"),
    ],
    ids=["shape", "extra output", "missing output", "missing view"],
)
def test_golden_file_that_does_not_fit_is_refused(
    change: Any, message: str, stages: dict[str, StageRunner], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "engine"))
    original = Bundle.open(folder)
    rewrite(folder, change)
    record = BundleWriter(folder).record("golden.npz")  # as its author would
    manifest = replace(original.manifest, golden=replace(original.manifest.golden, file=record))
    altered = replace(original, manifest=manifest, files=BundleFiles(folder))
    with pytest.raises(IntegrityError, match=message):
        check_golden(altered, Pipeline(stages), "this test")


def test_run_golden_gives_both_sides(bundle: Bundle, stages: dict[str, StageRunner]) -> None:
    found, expected = run_golden(bundle, Pipeline(stages))
    assert [set(view) for view in found] == [set(view) for view in expected]
