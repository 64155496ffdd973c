"""Recordings, read by Rerun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene, save_views
from mapengine.runtime.errors import BackendUnavailableError, OutputError
from mapengine.runtime.outputs.view_files import view_files, view_scene
from mapengine.runtime.outputs.viewer.recording import record_views

RERUN = pytest.importorskip("rerun.chunk", reason="Rerun has no reader of recordings here")


def entities(path: Path) -> dict[str, dict[str, Any]]:
    """The columns of each entity, by its path."""
    found: dict[str, dict[str, Any]] = {}
    for chunk in RERUN.RrdReader(path).stream().to_chunks():
        columns = chunk.to_record_batch().to_pydict()
        found.setdefault(chunk.entity_path, {}).update({key: values[0] for key, values in columns.items()})
    return found


def column(entity: dict[str, Any], ending: str) -> Any:
    return next(value for key, value in entity.items() if key.endswith(ending))


def test_entities_have_the_paths_and_contents_of_upstreams_demo(scene: Scene, tmp_path: Path) -> None:
    scene.made_by = "preset:tiny, fp32 (bundle b)"
    found = entities(scene.save(tmp_path / "scene.rrd"))
    views = [f"/mapanything/view_{index}" for index in range(2)]
    parts = ("", "/pinhole", "/pinhole/rgb", "/pinhole/depth", "/pinhole/mask")
    wanted = {"/mapanything", *(view + part for view in views for part in parts)}
    wanted |= {f"/mapanything/pointcloud_view_{index}" for index in range(2)}
    assert {path for path in found if not path.startswith("/__")} == wanted
    assert "preset:tiny, fp32 (bundle b)" in str(found)
    for index, view in enumerate(views):
        cloud = found[f"/mapanything/pointcloud_view_{index}"]
        np.testing.assert_array_equal(column(cloud, ":positions"), scene.points[index][scene.mask[index]])
        red, green, blue = scene.colors[index][scene.mask[index]][0].tolist()
        assert column(cloud, ":colors")[0] == red << 24 | green << 16 | blue << 8 | 255
        assert cloud["stable_time"] == 0
        np.testing.assert_array_equal(column(found[view], ":translation")[0], scene.poses[index, :3, 3])
        camera = np.reshape(column(found[f"{view}/pinhole"], ":image_from_camera")[0], (3, 3)).T
        np.testing.assert_array_equal(camera, scene.intrinsics[index])
        assert bytes(column(found[f"{view}/pinhole/rgb"], ":buffer")[0]) == scene.colors[index].tobytes()
        assert bytes(column(found[f"{view}/pinhole/depth"], ":buffer")[0]) == scene.depth[index].tobytes()
        assert bytes(column(found[f"{view}/pinhole/mask"], ":buffer")[0]) == scene.mask[index].tobytes()


def test_points_are_chosen_as_in_other_formats_and_an_older_one_is_replaced(scene: Scene, tmp_path: Path) -> None:
    path = scene.save(tmp_path / "scene.rrd")
    scene.save(path, max_points=100)
    found = entities(path)
    assert sum(len(column(found[f"/mapanything/pointcloud_view_{index}"], ":positions")) for index in range(2)) == 100
    theirs = tmp_path / "theirs.rrd"
    theirs.write_bytes(path.read_bytes().replace(b"mapengine scene recording", b"somebody scene recordings"))
    with pytest.raises(OutputError, match=r"theirs\.rrd: there is a file already, which was not written by mapengine"):
        scene.save(theirs)
    assert sorted(os.listdir(tmp_path)) == ["scene.rrd", "theirs.rrd"]


def test_nothing_of_an_interrupted_recording_stays(scene: Scene, tmp_path: Path) -> None:
    def scenes() -> Any:
        yield scene
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_views(tmp_path / "scene.rrd", scenes(), scene.mask.size, "")
    assert os.listdir(tmp_path) == []


def test_streamed_views_are_recorded_one_by_one(predictions: list[dict[str, Any]], tmp_path: Path) -> None:
    save_views(tmp_path / "views", predictions, ["a", "b"], made_by="somebody")
    files = view_files(tmp_path / "views")
    with pytest.warns(UserWarning, match=r"pixels: one in 3 rows and columns"):
        record_views(tmp_path / "scene.rrd", map(view_scene, files), 9 * 2**26, "somebody")
    found = entities(tmp_path / "scene.rrd")
    whole = view_scene(files[1])
    points = whole.points[0, ::3, ::3][whole.mask[0, ::3, ::3]]
    np.testing.assert_array_equal(column(found["/mapanything/pointcloud_view_1"], ":positions"), points)
    camera = np.reshape(column(found["/mapanything/view_1/pinhole"], ":image_from_camera")[0], (3, 3)).T
    np.testing.assert_allclose(camera[:2], whole.intrinsics[0, :2] / 3, rtol=1e-6)


def test_large_coordinates_are_relative_to_a_place_that_is_said(scene: Scene, tmp_path: Path) -> None:
    near = entities(scene.save(tmp_path / "near.rrd"))
    scene.points = scene.points.astype(np.float64) + [5e5, 4e6, 0] * scene.mask[..., None]
    scene.poses = scene.poses.astype(np.float64)
    scene.poses[:, :3, 3] += [5e5, 4e6, 0]
    with pytest.warns(UserWarning, match=r"relative to \[499999\.0, 3999999\.0, 1\.0\]"):
        far = entities(scene.save(tmp_path / "far.rrd"))
    places = [column(found["/mapanything/pointcloud_view_1"], ":positions") for found in (near, far)]
    np.testing.assert_allclose(places[1], np.add(places[0], [1, 1, -1]), atol=1e-6)


PROGRAM = """
import json, os, socket, sys, threading
from pathlib import Path
server = socket.create_server(("127.0.0.1", 0))
callers = []
threading.Thread(target=lambda: [callers.append(str(server.accept()[1])) for _ in range(9)], daemon=True).start()
port = server.getsockname()[1]
os.environ |= {"FORCE_RERUN_ANALYTICS": "1", "TELEMETRY_ENABLED": "true",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
os.environ.pop("CI", None)
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "rerun":
            seen.append({key: os.environ.get(key) for key in ("FORCE_RERUN_ANALYTICS", "TELEMETRY_ENABLED", "CI")})
sys.meta_path.insert(0, Watch())
from mapengine.runtime import Scene
scene = Scene.load(sys.argv[1])
scene.save(sys.argv[2])
after = [os.environ.get(key) for key in ("FORCE_RERUN_ANALYTICS", "TELEMETRY_ENABLED", "CI")]
print(json.dumps([seen, callers, after]))
"""


@pytest.mark.slow  # Rerun is imported anew
def test_nothing_is_sent_and_nothing_written_about_the_user(scene: Scene, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    scene.save(tmp_path / "scene.npz")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "scene.npz"), str(tmp_path / "scene.rrd")]
    xdg = {f"XDG_{kind}_HOME": str(home) for kind in ("CONFIG", "DATA", "CACHE", "STATE")}
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **xdg, "HOME": str(home)}
    )
    seen, callers, after = json.loads(result.stdout.splitlines()[-1])
    assert seen[-1] == {
        "FORCE_RERUN_ANALYTICS": None,
        "TELEMETRY_ENABLED": "false",
        "CI": "true",
    }  # before it, mapengine looks whether it is there
    assert (callers, after) == ([], ["1", "true", None])
    assert list(home.rglob("*.json")) == []
    assert (tmp_path / "scene.rrd").stat().st_size > 1000


def test_a_missing_package_is_named(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"rrd needs rerun; .*'mapengine\[rerun\]'"):
        scene.save(tmp_path / "scene.rrd")
