"""Colour maps, scales and text of the project's pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from mapengine.runtime.outputs import drawing


def test_colours_run_along_the_stops_and_invalid_pixels_are_grey() -> None:
    stops = ((0, 0, 0), (100, 0, 0), (100, 200, 0))
    values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 99.0, -99.0, 2.0]], np.float32)
    valid = np.array([[True] * 7 + [False]])
    found = drawing.colorize(values, valid, (1.0, 5.0), stops)
    expected = [(0, 0, 0), (50, 0, 0), (100, 0, 0), (100, 100, 0), (100, 200, 0), (100, 200, 0), (0, 0, 0)]
    np.testing.assert_array_equal(found, [[*expected, drawing.INVALID]])
    assert (drawing.colorize(values, valid, None, stops) == drawing.INVALID).all()


def test_ranges_leave_outliers_out_and_have_two_ends() -> None:
    values = np.arange(1001, dtype=np.float32)
    assert drawing.robust_range(values) == (10.0, 990.0)
    low, high = drawing.robust_range(np.full(5, 2.0, np.float32)) or (0.0, 0.0)
    assert low < 2 < high
    assert drawing.robust_range(np.array([np.nan, np.inf], np.float32)) is None


def test_tiles_are_pasted_smooth_or_sharp() -> None:
    tile = np.zeros((2, 2, 3), np.uint8)
    tile[:, 1] = 200
    pictures = []
    for smooth in (False, True):
        canvas = Image.new("RGB", (12, 12), (9, 9, 9))
        drawing.paste_tile(canvas, tile, (2, 3), (8, 8), smooth)
        pictures.append(np.asarray(canvas)[..., 0])
    assert set(np.unique(pictures[0])) == {0, 9, 200}
    assert (pictures[0][3:11, 2:6] == 0).all()
    assert (pictures[0][3:11, 6:10] == 200).all()
    assert len(np.unique(pictures[1])) > 3


def test_a_scale_has_the_colours_of_its_ends_and_numbers_below() -> None:
    canvas = Image.new("RGB", (200, 60), drawing.BACKGROUND)
    drawing.draw_scale(canvas, (0, 0), 200, 12, (0.0, 10.0), drawing.DEPTH_STOPS, " m", "nothing")
    picture = np.asarray(canvas)
    assert tuple(picture[5, 0]) == drawing.DEPTH_STOPS[0]
    assert tuple(picture[5, -1]) == drawing.DEPTH_STOPS[-1]
    assert (picture[16:36] != drawing.BACKGROUND).any()
    empty = Image.new("RGB", (200, 60), drawing.BACKGROUND)
    drawing.draw_scale(empty, (0, 0), 200, 12, None, drawing.DEPTH_STOPS, " m", "nothing")
    assert tuple(np.asarray(empty)[5, -1]) == drawing.BACKGROUND
    assert (np.asarray(empty) != drawing.BACKGROUND).any()


def test_text_is_shortened_in_the_middle_and_printable() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (10, 10))), ImageFont.load_default(12)
    assert drawing.fit_text(draw, "a.jpg", font, 100) == "a.jpg"
    assert drawing.fit_text(draw, "a\nb", font, 100) == "a?b"
    short = drawing.fit_text(draw, "begin" + "x" * 1000 + "end", font, 100)
    assert draw.textlength(short, font=font) <= 100
    assert short.startswith("begin")
    assert short.endswith("end")
    assert drawing.fit_text(draw, "begin", font, 1) == "..."


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(low=st.floats(-1e4, 1e4), span=st.floats(1e-3, 1e5), count=st.integers(2, 12))
def test_ticks_are_round_numbers_in_range(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = drawing.ticks(low, high, count)
    assert 1 <= len(ticks) <= count + 1
    margin = 1e-6 * max(span, abs(low))
    assert all(low - margin <= tick <= high + margin for tick in ticks)
    assert len({drawing.tick_label(tick, span) for tick in ticks}) == len(ticks)
    for tick in ticks:
        assert float(drawing.tick_label(tick, span)) == pytest.approx(tick, abs=0.01 * span, rel=0.01)
