from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.outputs.original_names import image_names, image_type


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("IMG_1.JPG", "IMG_1.JPG"),
        ("hall/größe.jpeg", "hall/größe.jpeg"),
        ("写真/a.b.tif", "写真/a.b.tif"),
        ("two words.png", "two_words.png"),
        ("tab\tline\nno-break\u00a0.png", "tab_line_no-break_.png"),
        ("photo.webp", "photo.webp.png"),
        ("view 3", "view_3.png"),
        ("../../etc/passwd", "etc/passwd.png"),
        ("/absolute/a.png", "absolute/a.png"),
        ("C:\\photos\\a.png", "photos/a.png"),
        ("", "view_0.png"),
        ("../..", "view_0.png"),
        ("\udcff.png", "_.png"),
        ("é" * 200 + ".png", "é" * 98 + ".png"),
    ],
)
def test_names_stay_as_far_as_they_can(name: str, wanted: str) -> None:
    assert image_names([name]) == [wanted]


def test_equal_names_are_told_apart() -> None:
    names = ["a.png", "A.png", "a.png", "a_2.png", "b/x.jpg", "b.jpg", "c.png/x.png", "c.png"]
    assert image_names(names) == [
        *("a.png", "A_3.png", "a_4.png", "a_2.png", "b/x.jpg", "b.jpg", "c.png/x.png", "c_2.png")
    ]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text("aA.é/\\ \n:_2𝔸png\udc80", max_size=12) | st.text(max_size=12), max_size=8))
def test_names_are_safe_and_different(names: list[str]) -> None:
    result = image_names(names)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in result}) == len(names)
    parents = {parent.as_posix().casefold() for name in result for parent in PurePosixPath(name).parents}
    for name in result:
        name.encode()
        assert image_type(name) is not None
        assert len(name.split()) == 1
        assert not name.startswith("/")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert name.casefold() not in parents
