"""The options of a scene are those of `run`, checked; what decides a result has a hash."""

from __future__ import annotations

from typing import Any

import pytest

from mapengine.runtime.errors import InputError
from mapengine.serving.batch.scene_options import SceneOptions, options_digest


def test_options_find_where_they_belong() -> None:
    options = SceneOptions.of(
        {"size": "56x42", "max_views": 3, "ignore": ["intrinsics"], "metric": False, "masks": "m", "mask_edges": None}
    )
    assert options.size == (56, 42)
    assert options.reading.max_views == 3
    assert options.given == {"metric": False, "masks": "m"}
    assert options.files == ["m"]
    assert options.inference == {"ignore_calibration_inputs": True}
    assert SceneOptions.of({"size": [56, 42]}).size == (56, 42)


def test_a_percentile_asks_for_the_mask() -> None:
    assert SceneOptions.of({"confidence_percentile": 10}).inference["apply_confidence_mask"] is True
    assert SceneOptions.of({"confidence_percentile": 0}).inference["apply_confidence_mask"] is False


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_viws": 3}, "there is no option 'max_viws'"),
        ({"max_views": 0}, "max_views is 0"),
        ({"size": [57, 42]}, "size 57x42 is not a multiple of 14 pixels on both sides; the nearest is 56x42"),
        ({"size": 56}, "size is 56; give (width, height)"),
        ({"size": "big"}, "big"),
        ({"frame": "world"}, "world"),
        ({"mask_edges": "yes"}, "mask_edges is 'yes'"),
    ],
)
def test_a_wrong_option_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=None) as error:
        SceneOptions.of(values)
    assert said in str(error.value)


def test_the_hash_depends_on_what_options_mean() -> None:
    assert options_digest({"size": "56x42", "fps": None}, "x") == options_digest({"size": [56, 42]}, "x")
    assert options_digest({}) == options_digest({"frame": "given", "mask_edges": True, "every": 1})
    others = [{}, {"max_views": 1}, {"mask_edges": False}, {"size": "42x56"}, {"masks": "m"}, {"no": 1}, {"no": 2}]
    assert len({options_digest(values) for values in others} | {options_digest({}, "x")}) == len(others) + 1
