"""The page without a browser: what is in the file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene
from mapengine.runtime.errors import OutputError
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.viewer.page import page_text, write_layers
from mapengine.runtime.outputs.viewer.quantization import BYTES_PER_POINT
from mapengine.runtime.writing.recognition import kind_of

ROOT = Path(__file__).parents[4]


def parts(page: str) -> tuple[dict[str, Any], bytes]:
    """The description of a page, and the bytes of its points."""
    found = [re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL) for name in ("scene", "data")]
    description, data = (match[1] for match in found if match)
    return json.loads(description), gzip.decompress(base64.b64decode(data))


def test_a_page_holds_every_point_and_says_so(scene: Scene, tmp_path: Path) -> None:
    file = scene.save(tmp_path / "scene.html")
    description, content = parts(file.read_text(encoding="utf-8"))
    (layer,) = description["layers"]
    assert layer["total"] == layer["stored"] == scene.mask.sum()
    assert sum(block["count"] for block in layer["blocks"]) * BYTES_PER_POINT == len(content)
    assert [view["name"] for view in layer["views"]] == scene.names
    assert description["about"].startswith("2 views of 56x42")
    pose = np.reshape(layer["views"][1]["pose"], (4, 4)).T
    pose[:3, 3] += description["origin"]
    np.testing.assert_allclose(pose, scene.poses[1], atol=1e-6)


def test_a_page_replaces_a_page_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    file = scene.save(tmp_path / "scene.html")
    assert kind_of(file) == "scene page"
    scene.save(file)
    other = tmp_path / "mine.html"
    other.write_text("<!doctype html><title>mine</title>", encoding="utf-8")
    with pytest.raises(OutputError, match="was not written by mapengine"):
        scene.save(other)


def test_the_title_says_what_made_the_scene(scene: Scene) -> None:
    scene = replace(scene, made_by="a <b>, int8 (bundle x)")
    page = page_text({"": scene}, SaveOptions())
    assert page.count("a &lt;b&gt;, int8 (bundle x)") == 2
    assert "not recorded" not in parts(page)[0]["about"]
    assert "not recorded" in parts(page_text({"": replace(scene, made_by="")}, SaveOptions()))[0]["about"]


def test_what_made_a_scene_is_kept_in_its_file(scene: Scene, tmp_path: Path) -> None:
    scene = replace(scene, made_by="größe, fp16")
    assert Scene.load(scene.save(tmp_path / "scene.npz")).made_by == "größe, fp16"


def test_names_cannot_leave_their_place(scene: Scene) -> None:
    scene.names = ["</script><script>alert(1)</script>", "{{DATA}}\u2028<!--"]
    page = page_text({"": scene}, SaveOptions())
    assert page.count("<script") == 3
    assert [view["name"] for view in parts(page)[0]["layers"][0]["views"]] == scene.names


def test_a_scene_over_the_limit_is_thinned_and_says_so(scene: Scene) -> None:
    whole = page_text({"": scene}, SaveOptions())
    most = len(whole.encode()) - 8_000
    page = page_text({"": scene}, SaveOptions(), most=most)
    assert len(page.encode()) <= most
    (layer,) = parts(page)[0]["layers"]
    assert 0.3 * layer["total"] < layer["stored"] < layer["total"] == scene.mask.sum()
    assert re.fullmatch(r"at most one per cube of [\d.]+ (mm|cm|m)", layer["thinned"])


def test_options_leave_points_out(scene: Scene) -> None:
    (layer,) = parts(page_text({"": scene}, SaveOptions(max_points=100)))[0]["layers"]
    assert (layer["stored"], layer["total"], layer["thinned"]) == (100, scene.mask.sum(), "")


def test_a_scene_without_points_or_with_a_camera_that_is_none(empty: Scene) -> None:
    empty.poses[0] = np.nan
    description, content = parts(page_text({"": empty}, SaveOptions()))
    assert content == b""
    assert np.isfinite(description["start"]["position"]).all()
    assert "NaN" not in json.dumps(description)


def test_map_coordinates_keep_their_digits(scene: Scene) -> None:
    far = replace(scene)
    shift = np.array([4_500_000.0, 5_400_000.0, 300.0])
    far.points = scene.points.astype(np.float64) + shift
    far.poses = scene.poses.astype(np.float64)
    far.poses[:, :3, 3] += shift
    here, there = (parts(page_text({"": each}, SaveOptions())) for each in (scene, far))
    for near, moved in zip(here[0]["layers"][0]["blocks"], there[0]["layers"][0]["blocks"], strict=True):
        np.testing.assert_allclose(
            np.add(near["low"], here[0]["origin"]) + shift, np.add(moved["low"], there[0]["origin"]), atol=1e-6
        )


def test_layers_are_drawn_in_one_frame(scene: Scene, tmp_path: Path) -> None:
    moved = replace(scene, points=scene.points + np.float32(1))
    write_layers(tmp_path / "both.html", {"Prediction": scene, "Truth": moved}, title="both")
    description, content = parts((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert [layer["name"] for layer in description["layers"]] == ["Prediction", "Truth"]
    assert len(content) == 2 * BYTES_PER_POINT * scene.mask.sum()
    first, second = (layer["blocks"][0]["low"] for layer in description["layers"])
    assert np.abs(np.subtract(second, first)).max() > 0.1


def test_the_built_page_is_that_of_its_sources() -> None:
    """`make viewer` builds it; its sources are those that build.js lists."""
    folder = ROOT / "runtime/outputs/viewer/source"
    listed = re.findall(
        r'"([\w./-]+)"', (folder / "build.js").read_text().partition("SOURCES = [")[2].partition("]")[0]
    )
    there = {path.relative_to(folder).as_posix() for path in [*folder.glob("*.*"), *folder.glob("src/*")]}
    assert set(listed) == {*there, "../colors.css"}
    text = "".join(f"{name}\n{(folder / name).read_text(encoding='utf-8')}\n" for name in listed)
    page = (ROOT / "runtime/outputs/viewer/page.html").read_text(encoding="utf-8")
    assert f'<meta name="sources" content="{hashlib.sha256(text.encode()).hexdigest()}">' in page


def test_the_licence_of_what_is_inside_is_inside() -> None:
    licence = (ROOT / "runtime/outputs/viewer/LICENSE-three.txt").read_text(encoding="utf-8")
    assert licence.strip() in (ROOT / "runtime/outputs/viewer/page.html").read_text(encoding="utf-8")
