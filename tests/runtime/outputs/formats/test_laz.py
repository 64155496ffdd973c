"""LAZ, read by laspy."""

from __future__ import annotations

import warnings
from pathlib import Path

import laspy
import numpy as np
import pytest

from mapengine.runtime import Scene
from mapengine.runtime.errors import BackendUnavailableError, OutputError


def test_points_colors_confidence_and_names(scene: Scene, tmp_path: Path) -> None:
    cloud = laspy.read(scene.save(tmp_path / "scene.laz"))
    points, colors = scene.point_cloud()
    assert cloud.header.are_points_compressed
    assert cloud.header.generating_software == "mapengine point cloud"
    np.testing.assert_allclose(cloud.xyz, points, rtol=0, atol=0.5001e-4)
    stored = np.stack([cloud.red, cloud.green, cloud.blue], axis=-1)
    np.testing.assert_array_equal(stored >> 8, colors)
    np.testing.assert_array_equal(stored, colors.astype(np.uint16) * 257)
    np.testing.assert_array_equal(cloud.confidence, scene.confidence[scene.mask])
    np.testing.assert_array_equal(cloud.point_source_id, np.nonzero(scene.mask)[0] + 1)
    names = {vlr.record_id: vlr.record_data_bytes() for vlr in cloud.header.vlrs if vlr.user_id == "mapengine"}
    assert names == {1: b"a.jpg", 2: b"b.jpg"}
    assert scene.save(tmp_path / "scene.laz", max_points=50) == tmp_path / "scene.laz"  # an older one of ours
    assert len(laspy.read(tmp_path / "scene.laz").x) == 50


def test_the_precision_is_a_choice(scene: Scene, tmp_path: Path) -> None:
    coarse = laspy.read(scene.save(tmp_path / "coarse.laz", laz_precision=0.01))
    assert coarse.header.scales.tolist() == [0.01] * 3
    points = scene.point_cloud()[0]
    assert 0.001 < np.abs(coarse.xyz - points).max() <= 0.005001
    fine = laspy.read(scene.save(tmp_path / "fine.laz", laz_precision=1e-6))
    np.testing.assert_allclose(fine.xyz, points, rtol=0, atol=0.51e-6)


def test_points_that_32_bits_do_not_hold_are_coarser_and_that_is_said(scene: Scene, tmp_path: Path) -> None:
    scene.points[0, 20, 20, 2] = 3e6
    with pytest.warns(UserWarning, match=r"saved to 0\.01 m, not to 0\.0001 m"):
        cloud = laspy.read(scene.save(tmp_path / "far.laz"))
    np.testing.assert_allclose(cloud.xyz, scene.point_cloud()[0], rtol=0, atol=0.00501)
    assert cloud.z.max() == pytest.approx(3e6)


def test_steps_that_are_coarse_for_the_scene_are_said(scene: Scene, tmp_path: Path) -> None:
    scene.points *= np.float32(1e-4)
    with pytest.warns(UserWarning, match=r"only, .* steps of 0\.0001; give a smaller laz_precision"):
        scene.save(tmp_path / "a.laz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene.save(tmp_path / "a.laz", laz_precision=1e-9)
    points = scene.points[scene.mask]
    np.testing.assert_allclose(laspy.read(tmp_path / "a.laz").xyz, points, atol=1e-9)


def test_las_is_not_packed_and_no_point_is_valid(scene: Scene, empty: Scene, tmp_path: Path) -> None:
    assert not laspy.read(Scene.save(scene, tmp_path / "scene.las")).header.are_points_compressed
    empty.mask[:] = False
    assert len(laspy.read(empty.save(tmp_path / "empty.laz")).x) == 0


def test_what_another_program_wrote_stays(scene: Scene, tmp_path: Path) -> None:
    laspy.LasData(laspy.LasHeader(version="1.4", point_format=7)).write(str(tmp_path / "theirs.laz"))
    before = (tmp_path / "theirs.laz").read_bytes()
    with pytest.raises(OutputError, match="not written by mapengine"):
        scene.save(tmp_path / "theirs.laz")
    assert (tmp_path / "theirs.laz").read_bytes() == before


def test_without_its_packages_the_extra_is_named(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lazrs" else name)
    with pytest.raises(BackendUnavailableError, match=r"needs lazrs; install with: pip install 'mapengine\[geo\]'"):
        scene.save(tmp_path / "scene.laz")
    assert not list(tmp_path.iterdir())
