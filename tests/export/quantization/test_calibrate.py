"""Calibrations are deterministic, resumable, keep special tokens apart, and buy what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapengine.calibration.data.cases import FIRST_SEED, Cases, folder_cases, make_cases, rendered_cases
from mapengine.calibration.evaluation import evaluate
from mapengine.calibration.ranges import FORMATS, Calibration, Histogram, quantize, weight_scales
from mapengine.calibration.scenes import render_scene
from mapengine.export.model.network.model import shared_copy
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import (
    CalibrationOptions,
    GeometryQuality,
    OutputQuality,
    calibrate,
    fold_calibration,
    keep_accuracy,
    simulate_rounding,
)
from mapengine.export.quantization.budget import quantized_share
from mapengine.export.quantization.calibrate import choose_token_range
from mapengine.export.quantization.fake_quantization import fake_quantize
from mapengine.export.quantization.layers import find_layers, linear
from mapengine.export.quantization.observe import Observer
from mapengine.export.quantization.quality import FIRST_SEED as FIRST_SCENE
from mapengine.export.quantization.quality import TASKS
from mapengine.runtime.errors import CalibrationError, InputError, OutputError

from ...seven_scenes import write_seven_scenes

pytestmark = pytest.mark.slow  # its fixtures take seconds

INT8 = FORMATS["int8"]


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_same_data_same_calibration_also_after_an_interruption(
    network: MapAnything, cases: Cases, calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "unfinished.npz"

    def stop(part: float, phase: str) -> None:
        if phase.startswith("2 of"):
            raise Interrupted

    with pytest.raises(Interrupted):
        calibrate(network, cases, fraction=stop, unfinished=path)
    with np.load(path) as stored:
        assert len(stored["done"]) == 2
    assert calibrate(network, cases, unfinished=path) == calibration
    assert not path.exists()


def test_unfinished_work_of_another_model_is_not_used(network: MapAnything, cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.npz"
    layers = find_layers(network)
    Observer(layers, 1, True).run(network, cases, checkpoint=path, key="a")
    broken = shared_copy(network)
    broken.encoder = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="unpack"):  # nothing of it is done for "b", and the network runs
        Observer({}, 1, True).run(broken, cases, checkpoint=path, key="b")
    Observer({}, 1, True).run(broken, cases, checkpoint=path, key="a")  # everything is done, nothing runs
    path.write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="remove it and calibrate again"):
        Observer(layers, 1, True).run(network, cases, checkpoint=path, key="a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Observer(layers, 1, True).run(network, cases, checkpoint=tmp_path / "file" / "x.npz", key="a")


def test_tokens_are_kept_apart(network: MapAnything, cases: Cases, calibration: Calibration) -> None:
    """Counts follow from the layout: views with P patches and a class token, and one scale token."""
    patches = 3 * 4
    shapes = [len(views) for views in cases.views.values()]
    for layer in calibration.layers:
        inputs = linear(network, layer.name).in_features
        found = {kind: statistics.count // inputs for kind, statistics in layer.tokens.items()}
        wanted = {"patch": sum(shapes) * patches, "class": sum(shapes)}
        if layer.stage == "aggregator":
            wanted["patch"] -= len(shapes) * patches
            wanted["reference"] = len(shapes) * patches
            if find_layers(network)[layer.name].index % 2 == 0:
                wanted["scale"] = len(shapes)
        assert found == wanted


def test_an_outlier_of_the_class_token_does_not_choose_the_range() -> None:
    rng = np.random.default_rng(0)
    tokens = {"patch": Histogram(), "class": Histogram()}
    tokens["patch"].add(rng.standard_normal(50_000).astype(np.float32))
    plain, widened = choose_token_range(tokens, "mse", INT8)
    assert not widened
    tokens["class"].add(rng.standard_normal(500).astype(np.float32) * 1.2)
    assert choose_token_range(tokens, "mse", INT8) == (plain, False)
    tokens["class"].add(np.full(50, 9.0, np.float32))  # clipped to a third, the token would be lost
    wider, widened = choose_token_range(tokens, "mse", INT8)
    assert widened
    assert 6 < wider < 10


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_emulation_is_the_arithmetic_of_the_files(precision: str, network: MapAnything) -> None:
    form = FORMATS[precision]
    values = torch.linspace(-3, 3, 1001)
    np.testing.assert_array_equal(
        fake_quantize(values, 0.01, form).numpy(), quantize(values.numpy(), np.float32(0.01), form)
    )
    weight = linear(network, "encoder.model.blocks.0.attn.proj").weight
    scales = weight_scales(weight.numpy().T, form)
    found = fake_quantize(weight, torch.from_numpy(scales)[:, None], form).numpy()
    np.testing.assert_array_equal(found.T, quantize(weight.numpy().T, scales, form))


def test_recovery_buys_accuracy_where_channels_are_outliers(
    network: MapAnything, cases: Cases, calibration: Calibration
) -> None:
    naive = calibrate(network, cases, CalibrationOptions("int8", "max", False, False, False))
    quality = OutputQuality(network, cases.views)
    with simulate_rounding(network, naive.layers, "int8"):
        quality(network)
        before = min(quality.decibels.values())
    recovered = fold_calibration(network, calibration.layers)
    with simulate_rounding(recovered, calibration.layers, "int8"):
        quality(recovered)
    assert min(quality.decibels.values()) >= 25 > before
    quality(network)  # nothing of the emulation is left
    assert min(quality.decibels.values()) > 100


@pytest.mark.slow
def test_budget_keeps_the_accuracy_and_most_of_the_work(
    network: MapAnything, cases: Cases, calibration: Calibration
) -> None:
    model = fold_calibration(network, calibration.layers)
    quality = OutputQuality(network, cases.views)
    with simulate_rounding(model, calibration.layers, "int8"):
        full = quality(model)
    accuracy = 100 * (1 - (1 - full) / 2)  # half of the error
    kept, sensitivities = keep_accuracy(model, calibration, accuracy, quality)
    assert kept.kept_layers
    assert kept.report["every layer"] == full
    assert kept.report["kept accuracy"] >= accuracy / 100
    with simulate_rounding(model, kept.quantized, "int8"):
        assert quality(model) == kept.report["kept accuracy"]
    assert 0 < quantized_share(model, kept) < 1
    assert all(entry.loss > 0 for entry in sensitivities)
    assert [entry.layer for entry in sensitivities] == list(find_layers(model))
    everything, none = keep_accuracy(model, calibration, 100 * full - 0.1, quality)
    assert (everything.kept_layers, none) == ((), [])
    with pytest.raises(CalibrationError, match=r"int8 cannot keep 99.999 % of the accuracy in any layer"):
        keep_accuracy(model, calibration, 99.999, quality)


@pytest.mark.slow
def test_geometry_is_what_is_kept_of_every_metric(network: MapAnything) -> None:
    quality = GeometryQuality(network, 2, (56, 42))
    assert quality.description == "geometry, beyond chance, over the rendered scenes 600000 to 600001, 56x42"
    assert quality(network) == 1
    assert {task for task, _ in quality.retention} == set(TASKS)
    assert set(quality.retention.values()) == {1.0}
    assert quality.loss(network) == 0
    worse = shared_copy(network)
    head = worse.pose_head.fc_rot
    head.bias = torch.nn.Parameter(head.bias + torch.tensor([2.0, 0.0, 0.0, 0.0]), requires_grad=False)
    value = quality(worse)
    assert min(quality.retention.values()) <= value < 0.99
    far, near = quality.loss(worse), shared_copy(network)
    near.scale_head.output_proj.bias = torch.nn.Parameter(near.scale_head.output_proj.bias + 1e-4, requires_grad=False)
    assert far > 0.1 > quality.loss(near) > 0
    # One view is its own frame: there its pose is in no metric.
    assert all(part == pytest.approx(1) for (task, _), part in quality.retention.items() if task == "image-only-1")
    evaluated = {
        name: evaluate(model, [render_scene(FIRST_SCENE + i, 4, 56, 42) for i in range(2)], tasks=["mixed"])
        for name, model in (("float32", network), ("worse", worse))
    }
    before, after = (evaluated[name].tasks[0].metrics["rotation_degrees"] for name in ("float32", "worse"))
    assert before is not None
    assert after is not None
    assert quality.retention["mixed", "rotation_degrees"] == pytest.approx(before / after)
    with pytest.raises(InputError, match="give at least 1"):
        GeometryQuality(network, 0)


def test_bad_activations_and_options(network: MapAnything, cases: Cases) -> None:
    broken = shared_copy(network)
    norm = broken.get_submodule("info_sharing.self_attention_blocks.1.norm2")
    norm.bias = torch.nn.Parameter(norm.bias * float("nan"), requires_grad=False)
    with pytest.raises(InputError, match=r"self_attention_blocks.1.mlp.w12 reads NaN or infinity in the calibration"):
        calibrate(broken, cases)
    for options, said in (
        (CalibrationOptions("int4"), "use int8 or fp8"),
        (CalibrationOptions(method="best"), "use max, percentile"),  # type: ignore[arg-type]
        (CalibrationOptions(accuracy=100), "between 0 and 100"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate(network, cases, options)


def write_recording(folder: Path, views: int, width: int, height: int) -> list[Path]:
    """Images of a scene with a ``views.json`` that knows everything."""
    (folder / "depth").mkdir(parents=True)
    scene, entries, images = render_scene(7, views, width, height), [], []
    for index in range(views):
        images.append(folder / f"{index}.png")
        Image.fromarray(scene.images[index]).save(images[-1])
        Image.fromarray(np.rint(scene.depth_z[index] * 1000).astype(np.uint16)).save(folder / f"depth/{index}.png")
        entries.append(
            {
                "image": f"{index}.png",
                "depth": f"depth/{index}.png",
                "intrinsics": scene.intrinsics[index].tolist(),
                "pose": scene.poses[index].tolist(),
            }
        )
    (folder / "views.json").write_text(json.dumps({"views": entries}))
    return images


def test_rendered_cases() -> None:
    found = rendered_cases(4, (56, 42))
    assert found.description == f"4 rendered scenes from seed {FIRST_SEED}, 56x42"
    assert found.sha256 == rendered_cases(4, (56, 42)).sha256 != rendered_cases(3, (56, 42)).sha256
    assert [len(views) for views in found.views.values()] == [2, 4, 1, 3]
    shapes = {view["img"].shape for views in found.views.values() for view in views}
    assert shapes == {(1, 3, 42, 56)}
    assert ["depth_z" in view for view in list(found.views.values())[3]] == [True, False, True]


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        folder_cases(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no images"):
        folder_cases(tmp_path)
    images = write_recording(tmp_path / "room", 3, 70, 56)
    found = folder_cases(tmp_path, count=7, size=(70, 56))
    assert len(found.views) == 7
    assert found.sha256 == folder_cases(tmp_path, count=7, size=(70, 56)).sha256
    assert found.sha256 != folder_cases(tmp_path, count=6, size=(70, 56)).sha256
    assert {len(views) for views in found.views.values()} == {1, 2, 3}
    keys = {key for views in found.views.values() for view in views for key in view}
    assert keys >= {"intrinsics", "depth_z", "camera_poses"}
    assert folder_cases(tmp_path / "room", count=7, size=(70, 56)).sha256 == found.sha256
    for path in images[1:]:
        path.unlink()
    (tmp_path / "room" / "views.json").unlink()
    with pytest.raises(InputError, match="holds one image"):
        folder_cases(tmp_path / "room")


def test_a_recording_has_geometry_and_its_depth_maps_are_no_photos(tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "kitchen", 3, (70, 56))
    found = folder_cases(tmp_path, count=7, size=(70, 56))
    assert found.description == "7 cases of 3 images in " + tmp_path.name
    keys = {key for views in found.views.values() for view in views for key in view}
    assert keys >= {"intrinsics", "depth_z", "camera_poses"}
    depth = next(view["depth_z"] for views in found.views.values() for view in views if "depth_z" in view)
    assert 0.3 < np.median(depth[depth > 0]) < 20  # metres
    (folder / "camera-intrinsics.txt").unlink()
    with pytest.raises(InputError, match=r"has no camera-intrinsics\.txt"):
        folder_cases(folder)
    for path in folder.glob("*.depth.png"):
        path.unlink()
    plain = folder_cases(folder, count=7, size=(70, 56))  # images whose names end alike
    assert {key for views in plain.views.values() for view in views for key in view} == {"img", "data_norm_type"}


def test_black_images_are_refused(cases: Cases) -> None:
    black = [{**view, "img": np.zeros_like(view["img"])} for view in cases.views["mixed"]]
    with pytest.raises(InputError, match="all black"):
        make_cases({"black": black}, "black")
    with pytest.raises(InputError, match="nothing to calibrate with"):
        make_cases({}, "nothing")
    assert make_cases({"black": black, "mixed": cases.views["mixed"]}, "both").views


def test_a_layer_without_range_is_not_rounded(network: MapAnything, calibration: Calibration, cases: Cases) -> None:
    quality = OutputQuality(network, cases.views)
    zero = [replace(layer, largest=0.0) for layer in calibration.layers]
    with simulate_rounding(network, zero, "int8"):
        assert quality(network) > 1 - 1e-6
