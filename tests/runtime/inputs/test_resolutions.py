from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.resolutions import RESOLUTION_TABLES, target_size

DATA = Path(__file__).parents[2] / "data" / "preprocess"
PATCH = {518: 14, 512: 16, 504: 14}

ratios = st.floats(0.02, 50)


def test_upstream_table() -> None:
    for row in json.loads((DATA / "aspect_ratio_table.json").read_text()):
        for name in RESOLUTION_TABLES:
            assert target_size([row["ratio"]], resolution_set=name) == tuple(row[str(name)]), row


@pytest.mark.parametrize("name", list(RESOLUTION_TABLES))
def test_tables_are_sorted_multiples_close_to_their_key(name: int) -> None:
    table = RESOLUTION_TABLES[name]
    assert list(table) == sorted(table)  # target_size breaks ties by this order
    for ratio, (width, height) in table.items():
        assert max(width, height) == name
        assert width % PATCH[name] == height % PATCH[name] == 0
        assert width / height == pytest.approx(ratio, abs=2e-3)


@settings(deadline=None, max_examples=60)
@given(st.lists(ratios, min_size=1, max_size=5), st.sampled_from(list(RESOLUTION_TABLES)))
def test_table_mode_takes_the_key_nearest_to_the_mean(values: list[float], name: int) -> None:
    size = target_size(values, resolution_set=name)
    mean = sum(values) / len(values)
    chosen = next(key for key, value in RESOLUTION_TABLES[name].items() if value == size)
    assert abs(chosen - mean) == min(abs(key - mean) for key in RESOLUTION_TABLES[name])
    assert size[0] % PATCH[name] == size[1] % PATCH[name] == 0


def test_tie_takes_the_smaller_key() -> None:
    # 0.875 lies exactly between 0.75 and 1, also in binary.
    assert target_size([0.875], resolution_set=512) == (384, 512)
    assert target_size([0.875], resolution_set=504) == (378, 504)
    assert target_size([0.8750001], resolution_set=512) == (512, 512)


@settings(deadline=None, max_examples=60)
@given(ratios, st.integers(14, 4000), st.integers(14, 4000), st.integers(1, 32))
def test_other_modes(ratio: float, width: int, height: int, patch: int) -> None:
    if min(width, height) >= patch:
        assert target_size([ratio], "fixed_size", (width, height), patch) == (
            width - width % patch,
            height - height % patch,
        )
        assert target_size([ratio], "square", width, patch) == (width - width % patch,) * 2
    try:
        size = target_size([ratio], "longest_side", width, patch)
    except InputError:
        assert width // patch / max(ratio, 1 / ratio) <= 0.5  # the shorter side rounds to no patch at all
        return
    longer, shorter = size if ratio >= 1 else size[::-1]
    assert longer == width
    assert shorter % patch == 0
    assert abs(shorter - width // patch * patch / max(ratio, 1 / ratio)) <= patch / 2 + 1e-6


def test_longest_side_rounds_half_to_even_and_keeps_the_size_itself() -> None:
    assert target_size([4.0], "longest_side", 140) == (140, 28)  # 2.5 patches
    assert target_size([4 / 3], "longest_side", 150) == (150, 112)
    assert target_size([0.75], "longest_side", 112) == (84, 112)


def test_numpy_integers_are_sizes() -> None:
    sizes: Any = [np.int32(87), 61]
    assert target_size([1.0], "square", np.int64(100)) == (98, 98)
    assert target_size([1.0], "fixed_size", sizes) == (84, 56)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aspect_ratios": []}, "no views"),
        ({"aspect_ratios": [float("nan")]}, "positive and finite"),
        ({"aspect_ratios": [0.0]}, "positive and finite"),
        ({"resolution_set": 300}, "choose one of 518, 512, 504"),
        ({"resolution_set": [518]}, "resolution_set"),
        ({"resize_mode": "stretch"}, "unknown resize_mode 'stretch'"),
        ({"resize_mode": "square"}, "needs a size"),
        ({"resize_mode": "square", "size": (100, 100)}, "size must be a positive whole number"),
        ({"resize_mode": "square", "size": 100.0}, "size must be a positive whole number"),
        ({"resize_mode": "square", "size": True}, "size must be a positive whole number"),
        ({"resize_mode": "square", "size": 13}, "leaves no pixel"),
        ({"resize_mode": "fixed_size", "size": 100}, r"needs size=\(width, height\)"),
        ({"resize_mode": "fixed_size", "size": (100, 50, 3)}, r"needs size=\(width, height\)"),
        ({"resize_mode": "fixed_size", "size": (100, -14)}, r"size\[1\]"),
        ({"resize_mode": "fixed_size", "size": (100, 9)}, "leaves no pixel"),
        ({"resize_mode": "longest_side", "size": 140, "aspect_ratios": [100.0]}, "leaves no pixel"),
        ({"resize_mode": "longest_side", "size": "140"}, "size must be a positive whole number"),
        ({"patch_size": 0}, "patch_size"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        target_size(**{"aspect_ratios": [1.5], **arguments})
