"""What is made of a scene on disk."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.errors import InputError
from mapengine.serving.pages.shown_scene import DOWNLOADS, ShownScene

from ..app.conftest import HEIGHT, WIDTH, wall


@pytest.fixture
def result(tmp_path: Path) -> ShownScene:
    images = [np.full((HEIGHT, WIDTH, 3), shade, np.uint8) for shade in (60, 180)]
    return ShownScene(tmp_path / "result", wall(images, ["a.jpg", "b.jpg"]))


def test_every_download_is_a_valid_file(result: ShownScene) -> None:
    points = 2 * (WIDTH * HEIGHT - 1)
    glb = result.download("glb").read_bytes()
    assert (glb[:4], struct.unpack("<I", glb[8:12])[0]) == (b"glTF", len(glb))
    mesh = result.download("mesh").read_bytes()
    assert (mesh[:4], mesh != glb) == (b"glTF", True)
    assert f"element vertex {points}".encode() in result.download("ply").read_bytes()[:400]
    with zipfile.ZipFile(result.download("colmap")) as archive:
        assert archive.testzip() is None
        assert {"scene-colmap/sparse/0/cameras.bin", "scene-colmap/images/a.jpg"} <= set(archive.namelist())
    scene = Scene.load(result.download("npz"))
    assert (scene.names, int(scene.mask.sum())) == (["a.jpg", "b.jpg"], points)
    assert scene.made_by == "preset:wall, fp32 (bundle bricks)"
    assert result.download("html").read_text(encoding="utf-8").startswith("<!-- ")
    assert {result.download(name).name for name in DOWNLOADS} == {form.file for form in DOWNLOADS.values()}


def test_a_download_leaves_out_the_least_confident(result: ShownScene) -> None:
    whole = result.download("ply")
    size = whole.stat().st_size
    part = result.download("ply", 60)
    assert 0.4 * size < part.stat().st_size < 0.7 * size
    assert not whole.exists()  # one file of each kind is kept


def test_pictures_are_of_their_views(result: ShownScene) -> None:
    for view, shade in enumerate((60, 180)):
        image = Image.open(io.BytesIO(result.picture(view, "image")))
        assert image.size == (WIDTH, HEIGHT)
        assert abs(float(np.asarray(image).mean()) - shade) < 3
    depth = np.asarray(Image.open(io.BytesIO(result.picture(0, "depth"))))
    assert len(np.unique(depth.reshape(-1, 3), axis=0)) == 2  # one depth, and where there is none
    confidence = np.asarray(Image.open(io.BytesIO(result.picture(0, "confidence"))))
    assert (confidence[0, 0] != confidence[0, -1]).any()


def test_a_pixel_has_its_point(result: ShownScene) -> None:
    known = result.point(0, WIDTH // 2 + 10, HEIGHT // 2)
    assert known == {"depth": 2.0, "confidence": 2.0, "point": pytest.approx([0.4, 0, 2])}
    assert result.point(0, 0, 0) == {"depth": None, "confidence": 1.0, "point": None}


def test_what_is_not_there_is_a_sentence(result: ShownScene) -> None:
    with pytest.raises(InputError, match="there is no view 2"):
        result.picture(2, "depth")
    with pytest.raises(InputError, match="no pixel 56, 0"):
        result.point(0, WIDTH, 0)
    with pytest.raises(InputError, match="no download 'obj'"):
        result.download("obj")
    with pytest.raises(InputError, match="confidence_percentile"):
        result.download("ply", 101)


def test_a_page_asks_for_the_points_of_its_scene(result: ShownScene) -> None:
    page = result.page.read_text(encoding="utf-8")
    found = re.search(r'id="scene">(.*?)</script>', page, re.DOTALL)
    assert found
    description = json.loads(found[1])
    (layer,) = description["layers"]
    assert description["source"] == f"points/{result.identity}"
    assert "connect-src 'self'" in page
    assert sum(layer["counts"]) == layer["total"] == 2 * (WIDTH * HEIGHT - 1)
    assert all(bool(b"".join(result.level(level))) == (layer["counts"][level] > 0) for level in range(3))


def test_a_scene_that_stays_in_memory_is_not_written(tmp_path: Path) -> None:
    scene = wall([np.zeros((HEIGHT, WIDTH, 3), np.uint8)], ["a.jpg"])
    ShownScene(tmp_path / "shown", scene, in_memory=True)
    assert list(tmp_path.rglob("*.npy")) == []


def test_deleting_leaves_nothing(result: ShownScene, tmp_path: Path) -> None:
    result.download("colmap")
    result.delete()
    assert list(tmp_path.iterdir()) == []
