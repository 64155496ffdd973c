"""Videos: frames in order, upright, chosen by number and rate, and decoded from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.errors import BackendUnavailableError, ImageReadError
from mapengine.runtime.inputs.formats import video
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.sources import open_views, read_views

av = pytest.importorskip("av")
COUNT, RATE = 40, 10


def write_video(path: Path, group: int = 12) -> Path:
    """Frame i is a grey of 5 i + 20, with a white corner at the upper left."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size, stream.bit_rate = group, 4_000_000
        for index in range(COUNT):
            pixels = np.full((48, 64, 3), 5 * index + 20, np.uint8)
            pixels[:16, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "film.mp4")


def number(image: Any) -> int:
    return round((float(np.asarray(image)[24:, 24:].mean()) - 20) / 5)


def test_all_frames_in_order(film: Path) -> None:
    views = read_views(film)
    assert [number(view.image) for view in views] == list(range(COUNT))
    assert views[3].name == "film.mp4#000003"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"every": 15}, [0, 15, 30]),
        ({"fps": 1}, [0, 10, 20, 30]),
        ({"fps": 2, "max_views": 3}, [0, 20, 35]),
        ({"max_views": 4}, [0, 13, 26, 39]),
    ],
)
def test_chosen_frames(film: Path, options: dict[str, Any], wanted: list[int]) -> None:
    views = open_views(film, options=ReadOptions(**options))
    assert [view.size for view in views] == [(64, 48)] * len(wanted)
    assert [number(view.read().image) for view in views] == wanted
    with ThreadPoolExecutor(4) as pool:  # again, and in any order
        assert list(pool.map(lambda view: number(view.read().image), reversed(views))) == wanted[::-1]


def test_the_rotation_of_a_phone_is_applied(film: Path, tmp_path: Path) -> None:
    """A track header whose matrix turns by 90 degrees: the picture is as wide as it was high."""
    content = bytearray(film.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    turned = [b"\0" * 4, one, b"\0" * 4, (-(1 << 16)).to_bytes(4, "big", signed=True), *[b"\0" * 4] * 4]
    content[place : place + 32] = b"".join(turned)
    (tmp_path / "turned.mp4").write_bytes(content)
    (view, *_) = open_views(tmp_path / "turned.mp4", options=ReadOptions(max_views=1))
    image = np.asarray(view.read().image)
    assert view.size == (48, 64)
    assert image.shape == (64, 48, 3)
    assert image[:12, -12:].mean() > 240  # turned clockwise: the upper left corner is at the upper right
    assert number(image) == 0


def test_videos_that_are_none(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageReadError, match=r"text.mp4: cannot be read as a video"):
        open_views(tmp_path / "text.mp4")
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"cut.mp4"):
        read_views(tmp_path / "cut.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'mapengine\[video\]'"):
        open_views(film)
    assert video.VIDEO.name == "video"
