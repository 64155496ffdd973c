from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mapengine.runtime.checks.parity import measure_parity
from mapengine.runtime.errors import InputError, ParityError
from mapengine.runtime.postprocessing.predictions import forward_outputs

Prediction = dict[str, NDArray[Any]]


HERE = "onnxruntime on a CPU"


def rotation_about_y(degrees: float) -> NDArray[np.float64]:
    """Unit quaternion xyzw."""
    half = np.radians(degrees) / 2
    return np.array([[0, np.sin(half), 0, np.cos(half)]])


def predictions(
    count: int = 2,
    depth_factor: float = 1.0,
    ray_degrees: float = 0.0,
    rotation_degrees: float = 0.0,
    shift: float = 0.0,
    scale: float = 2.0,
) -> list[Prediction]:
    """Views one metre apart on a line, in float64, changed by known amounts; ``shift`` moves the last view's centre."""
    numbers = np.random.default_rng(3)
    views = []
    for index in range(count):
        angle = numbers.uniform(-0.4, 0.4, (1, 4, 5)) + np.radians(ray_degrees)
        rays = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1)
        centre = np.array([[float(index), 0, 0]])
        centre[:, 2] += shift if index == count - 1 else 0
        views.append(
            forward_outputs(
                ray_directions=rays,
                depth_along_ray=numbers.uniform(1, 4, (1, 4, 5, 1)) * depth_factor,
                confidence=numbers.uniform(1, 9, (1, 4, 5)),
                mask_logits=numbers.normal(size=(1, 4, 5)),
                cam_trans=centre,
                cam_quats=rotation_about_y(10 * index + rotation_degrees),
                scale=np.array([[scale]]),
            )
        )
    return views


def test_equal_predictions_differ_by_nothing() -> None:
    parity = measure_parity({"a": predictions()}, {"a": predictions()}, HERE)
    assert parity.cases == ("a",)
    assert all(output.max_abs == output.max_rel == 0 for output in parity.outputs.values())
    geometry = parity.geometry
    assert geometry.depth_abs_rel == geometry.ray_degrees == geometry.rotation_degrees == 0
    assert geometry.translation == geometry.metric_scale == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-5, 20))
def test_angles_are_in_degrees_and_exact_when_small(degrees: float) -> None:
    found = predictions(ray_degrees=degrees, rotation_degrees=degrees)
    geometry = measure_parity({"a": found}, {"a": predictions()}, HERE).geometry
    assert geometry.ray_degrees == pytest.approx(degrees, rel=1e-6)
    assert geometry.rotation_degrees == pytest.approx(degrees, rel=1e-6)


def test_opposite_rotation_is_180_degrees() -> None:
    geometry = measure_parity({"a": predictions(rotation_degrees=180)}, {"a": predictions()}, HERE).geometry
    assert geometry.rotation_degrees == pytest.approx(180)


def test_sign_of_a_quaternion_does_not_matter() -> None:
    found = predictions()
    for view in found:
        view["cam_quats"] = -view["cam_quats"]
    assert measure_parity({"a": found}, {"a": predictions()}, HERE).geometry.rotation_degrees == 0


def test_depth_is_a_mean_of_relative_errors() -> None:
    found = predictions(depth_factor=1.25)
    assert measure_parity({"a": found}, {"a": predictions()}, HERE).geometry.depth_abs_rel == pytest.approx(0.25)


def test_translation_is_relative_to_the_spread_of_the_cameras() -> None:
    # The cameras of three views span two units; scale 2 cancels out.
    geometry = measure_parity({"a": predictions(3, shift=0.5)}, {"a": predictions(3)}, HERE).geometry
    assert geometry.translation == pytest.approx(0.25)


def test_translation_of_a_single_view_is_relative_to_its_size() -> None:
    reference = predictions(1)
    reference[0]["cam_trans"] = np.array([[0.0, 0.0, 4.0]])
    found = [{**reference[0], "cam_trans": np.array([[0.0, 0.0, 5.0]])}]
    assert measure_parity({"a": found}, {"a": reference}, HERE).geometry.translation == pytest.approx(0.25)


def test_metric_scale_is_relative() -> None:
    geometry = measure_parity({"a": predictions(scale=2.2)}, {"a": predictions(scale=2.0)}, HERE).geometry
    assert geometry.metric_scale == pytest.approx(0.1)


def test_outputs_are_the_worst_over_views_and_cases() -> None:
    reference = {"a": predictions(), "b": predictions(3)}
    found = {"a": predictions(), "b": predictions(3)}
    found["b"][2]["conf"] = found["b"][2]["conf"] + 0.5
    found["a"][0]["conf"] = found["a"][0]["conf"] - 0.25
    parity = measure_parity(found, reference, HERE)
    assert parity.cases == ("a", "b")
    largest = reference["b"][2]["conf"].max()
    assert parity.outputs["conf"].max_abs == pytest.approx(0.5)
    assert parity.outputs["conf"].max_rel == pytest.approx(0.5 / largest)
    assert parity.outputs["pts3d"].max_abs == 0
    assert "non_ambiguous_mask" not in parity.outputs  # booleans have no distance


def test_float32_differences_are_taken_in_double_precision() -> None:
    reference, found = predictions(), predictions()
    reference[0]["conf"] = np.full((1, 4, 5), 16777216.0, np.float32)
    found[0]["conf"] = np.full((1, 4, 5), 16777218.0, np.float32)
    assert measure_parity({"a": found}, {"a": reference}, HERE).outputs["conf"].max_abs == 2


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match="no cases"):
        measure_parity({}, {}, HERE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("key", [key for key, value in predictions(1)[0].items() if value.dtype.kind == "f"])
def test_values_that_are_not_finite_never_look_like_parity(key: str, view: int, bad: float) -> None:
    found = predictions()
    found[view][key].flat[-1] = bad
    with pytest.raises(ParityError, match=f"^{key} of view {view} in the case 'second' is not finite"):
        measure_parity(
            {"first": predictions(), "second": found},
            {"first": predictions(), "second": predictions()},
            HERE,
        )
