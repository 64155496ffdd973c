"""Uploads: what is taken, what is refused with a sentence, and that nothing is left."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import InputError, OutputError
from mapengine.serving.app.limits import UploadLimits
from mapengine.serving.app.uploads import Uploads, accepted_suffixes, safe_name, unread_kinds

from ...image_bytes import png
from .conftest import photograph

LIMITS = UploadLimits(files=3, size=100_000, pixels=20_000)


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, LIMITS)


def receive(uploads: Uploads, name: str, content: bytes) -> Any:
    return uploads.receive(name, len(content), io.BytesIO(content))


def depth_map() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30), 1500, np.uint16)).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_kept_until_it_is_removed(uploads: Uploads, tmp_path: Path) -> None:
    upload = receive(uploads, "photo.png", photograph())
    assert (upload.kind, upload.width, upload.height, upload.frames) == ("image", 112, 84, 1)
    (path,) = uploads.paths([upload.number])
    assert (path.name, path.read_bytes()) == ("photo.png", photograph())
    uploads.remove([upload.number])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no longer there"):
        uploads.paths([upload.number])


def test_a_photograph_of_a_phone_is_upright(uploads: Uploads) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.new("RGB", (112, 84)).save(file, "JPEG", exif=exif)
    upload = receive(uploads, "photo.JPG", file.getvalue())
    assert (upload.width, upload.height) == (84, 112)


def test_files_are_used_in_the_order_of_their_names(uploads: Uploads) -> None:
    numbers = [receive(uploads, name, photograph()).number for name in ("b10.png", "b9.png", "a.png")]
    assert [path.name for path in uploads.paths(numbers)] == ["a.png", "b9.png", "b10.png"]


def test_equal_names_do_not_meet(uploads: Uploads) -> None:
    numbers = [receive(uploads, "a.png", photograph((shade, 0, 0))).number for shade in (1, 2)]
    first, second = uploads.paths(numbers)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"hello", "neither an image nor a video"),
        ("views.json", b"{}", "neither an image nor a video"),
        ("noending", photograph(), "without an ending"),
        ("empty.png", b"", "is empty"),
        ("broken.jpg", b"\xff\xd8\xff nothing", "broken.jpg: "),
        ("text.png", b"not an image at all", "is not an image"),
        ("depth.png", depth_map(), "is a depth map"),
        ("bomb.png", png(60_000, 60_000, 8, 2, b"\0" * 180_000), "60000x60000 pixels"),
        ("large.png", photograph(size=(200, 101)), "200x101 pixels, and at most 0.02 million"),
        ("heavy.png", photograph() + b"\0" * 100_000, "at most"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a video"),
        ("list.avi", b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video"),
    ],
)
def test_what_cannot_be_used_is_refused_and_not_kept(
    uploads: Uploads, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        receive(uploads, name, content)
    assert name in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_is_cut_off_is_not_kept(uploads: Uploads, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10 of 1000 bytes arrived"):
        uploads.receive("a.png", 1000, io.BytesIO(photograph()[:10]))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_a_sentence(uploads: Uploads, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"^a\.png: could not be written: the file is too large"):
            receive(uploads, "a.png", b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_photograph_in_heic_is_read(uploads: Uploads) -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (128, 96), (200, 60, 40))).save(file)
    upload = receive(uploads, "IMG_0001.HEIC", file.getvalue())
    assert (upload.kind, upload.width, upload.height) == ("image", 128, 96)


def test_there_are_no_more_files_than_allowed(uploads: Uploads) -> None:
    for index in range(3):
        receive(uploads, f"{index}.png", photograph())
    with pytest.raises(InputError, match="there are 3 files, and at most 3 are taken"):
        receive(uploads, "4.png", photograph())


def test_a_file_that_is_too_large_is_refused_before_it_is_read(uploads: Uploads) -> None:
    class Unread(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("it was read")

    with pytest.raises(InputError, match="at most"):
        uploads.receive("a.png", 100_001, Unread())


def test_what_is_cleared_while_it_comes_is_not_kept(uploads: Uploads, tmp_path: Path) -> None:
    class Leaving(io.BytesIO):
        def read(self, *sizes: Any) -> bytes:
            uploads.clear()
            return super().read(*sizes)

    with pytest.raises(InputError, match="was removed"):
        uploads.receive("a.png", len(photograph()), Leaving(photograph()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\photos\\x\\a.jpg", "a.jpg"),
        ("a\0b\n.png", "a_b_.png"),
        ("con.png", "_con.png"),
        ("größe 1.jpg", "größe 1.jpg"),
        ("..png", "file.png"),
        ("x" * 300 + ".png", "x" * 56 + ".png"),
        ("", "file"),
    ],
)
def test_names_are_those_of_files(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_without_its_packages_the_app_says_so(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "videos" in unread_kinds()
    assert ".mp4" not in accepted_suffixes()
    with pytest.raises(InputError, match=r"pip install 'mapengine\[app\]'"):
        receive(uploads, "film.mp4", b"\0\0\0\x18ftypmp42")
