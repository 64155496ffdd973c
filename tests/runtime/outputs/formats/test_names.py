"""Names of files after the names of views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapengine.runtime.outputs.formats.names import file_stems


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["left/0001.jpg", "right/0001.jpg"], ["left_0001", "right_0001"]),
        (["a.jpg", "a.png", "a.gif"], ["a", "a_2", "a_3"]),
        (["a.jpg", "a.png", "a_2.png"], ["a", "a_3", "a_2"]),  # who has a name by itself keeps it
        (["A.jpg", "a.jpg"], ["A", "a_2"]),  # some file systems do not tell them apart
        (["frame 3.tar.png", "Küche 1.jpg", "写真.jpg"], ["frame_3.tar", "Küche_1", "写真"]),
        (["view 0", "view 1"], ["view_0", "view_1"]),
        (["", "...", "/"], ["view_0", "view_1", "view_2"]),
        (["../../etc/passwd", "C:\\photos\\a.jpg", "a\0b\n.png"], ["etc_passwd", "C_photos_a", "a_b"]),
        (["\udcff.jpg"], ["view_0"]),
        (["x" * 400 + "1.png", "x" * 400 + "2.png"], ["x" * 149 + "1", "x" * 149 + "2"]),
    ],
)
def test_stems(names: list[str], stems: list[str]) -> None:
    assert file_stems(names) == stems


@given(st.lists(st.text(max_size=8), max_size=12))
def test_any_names_make_different_stems_in_one_folder(names: list[str]) -> None:
    stems = file_stems(names)
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert all(stem and "/" not in stem and stem[0] not in ".-" and "\0" not in stem for stem in stems)
    assert file_stems(names) == stems
