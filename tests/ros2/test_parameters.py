"""Parameters: defaults, bounds, contradictions, and the file that lists them."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime import InputError
from mapengine_ros.parameters import Settings, bounds_of, parameter_defaults
from mapengine_ros.window import WindowSize

FILE = Path(__file__).parents[2] / "ros2" / "mapengine_ros" / "config" / "mapengine.yaml"


def settings(**changes: Any) -> Settings:
    return Settings.of({**parameter_defaults(), "engine": "bundle", **changes})


def test_defaults_are_allowed_but_for_the_engine() -> None:
    assert settings().cameras == ("camera",)
    with pytest.raises(InputError, match="engine is not set"):
        settings(engine="")


def test_the_file_lists_every_parameter_with_its_default_and_meaning() -> None:
    text = FILE.read_text(encoding="utf-8")
    for name, default in parameter_defaults().items():
        found = re.search(rf"    # (.*)\n    (?:# )?{name}: (.*)\n", text)
        assert found, name
        assert found[1].startswith(bounds_of(name).text)
        assert found[1].endswith("start)") == bounds_of(name).fixed
        if default != ():
            shown = {True: "true", False: "false"}.get(default) if isinstance(default, bool) else None
            words = "[" + ", ".join(f'"{one}"' for one in default) + "]" if isinstance(default, tuple) else None
            assert found[2] == (shown or words or (f'"{default}"' if isinstance(default, str) else str(default)))


def test_numbers_outside_their_bounds_are_refused() -> None:
    for option in fields(Settings):
        bounds = bounds_of(option.name)
        if isinstance(parameter_defaults()[option.name], int | float) and bounds.low > float("-inf"):
            for value in (bounds.low - 1, bounds.high + 1):
                with pytest.raises(InputError, match=f"^{option.name} is .*; it must be between"):
                    settings(**{option.name: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_transport": "h264"}, "image_transport is 'h264'; choose raw, compressed"),
        ({"cameras": []}, "cameras is empty"),
        ({"cameras": ["a b"]}, "cameras names 'a b', which is no name of ROS"),
        ({"cameras": ["a", "a"]}, "cameras names one twice: a, a"),
        ({"width": 140}, "width is 140 and height 0; give both, or 0 for both"),
        ({"pose_source": "tf", "frame": "odom"}, "frame and tf_frame are both 'odom'"),
        ({"camera_mounts": [1.0]}, "camera_mounts has 1 numbers"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_contradictions_get_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        settings(**changes)


def test_a_window_fits_the_engine() -> None:
    WindowSize(4, 0, 9).check(2, 8)
    with pytest.raises(InputError, match=r"a window of 4 and 1 keyframes with 2 cameras is 10 views, but .* up to 8"):
        WindowSize(4, 5, 1).check(2, 8)
    with pytest.raises(InputError, match="max_keyframes is 0; give at least 1"):
        WindowSize(1, 5, 0).check(1, 8)
