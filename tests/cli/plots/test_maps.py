"""The picture of a map: what is drawn, where, and that an odd map is drawn as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.cli.plots import maps
from mapengine.cli.plots.maps import MapPicture, draw_map
from mapengine.runtime.mapping.breaks import Break
from mapengine.runtime.mapping.loops.closing import Loop

FRAMES = 12
AXES = {"down is y": np.eye(3), "down is -z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}
"""Camera to world."""


def a_map(turned: np.ndarray = AXES["down is y"], **changes: Any) -> MapPicture:
    """A walk on a circle with a blank frame, a loop that is closed and one that is not."""
    angles = np.linspace(0, 6, FRAMES)
    path = np.stack([np.cos(angles), 0 * angles, 2 * np.sin(angles)], axis=1) @ turned.T
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turned, path
    poses[6] = np.nan
    submaps = np.array([0] * 6 + [-1] + [1] * 5)
    check: Any = None  # nothing of it is drawn
    loops = [Loop(0, 11, 0.9, check), Loop(2, 9, 0.8, check, believed=False)]
    points = np.concatenate([(path * 1.5).repeat(20, axis=0), [[900.0, 0, 0]]])
    values: dict[str, Any] = {
        "poses": poses,
        "submaps": submaps,
        "loops": loops,
        "breaks": [Break(7, 1, "blank")],
        "points": points,
        "colors": np.full((len(points), 3), 128, np.uint8),
        "true_positions": path * 1.1,
        "title": "a walk",
    }
    return MapPicture(**{**values, **changes})


@pytest.fixture
def axis(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes that the next picture is drawn on, once it is."""
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []

    @contextmanager
    def watched(*arguments: Any) -> Iterator[Any]:
        with real(*arguments) as grid:
            drawn.append(grid[0, 0])
            yield grid

    real = maps.figure
    monkeypatch.setattr(maps, "figure", watched)
    return lambda: drawn[-1]


def lines(axis: Any) -> dict[str, np.ndarray]:
    """The points of each line in the legend."""
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def test_paths_loops_and_breaks_are_drawn_from_above(axis: Any, tmp_path: Path) -> None:
    picture = a_map()
    draw_map(picture, tmp_path / "map.png")
    flat = picture.poses[:, [0, 2], 3]
    found = lines(axis())
    np.testing.assert_allclose(found["true path"], picture.true_positions[:, [0, 2]])  # type: ignore[index]
    np.testing.assert_allclose(found["estimated path, submap 0"], flat[:6])
    np.testing.assert_allclose(found["estimated path, submap 1"], flat[7:])
    np.testing.assert_allclose(found["loop, closed"], flat[[0, 11]])
    np.testing.assert_allclose(found["loop, found but not believed"], flat[[2, 9]])
    np.testing.assert_allclose(found["break: a submap begins"], flat[[7]])
    np.testing.assert_allclose([found["start"][0], found["end"][0]], flat[[0, 11]])
    np.testing.assert_allclose(axis().collections[0].get_offsets(), picture.points[:, [0, 2]])
    assert axis().get_aspect() == 1
    whole = axis().figure.bbox
    for part in (axis().get_tightbbox(), axis().figure.legends[0].get_window_extent()):
        assert whole.x0 <= part.x0 < part.x1 <= whole.x1  # nothing is cut off
        assert whole.y0 <= part.y0 < part.y1 <= whole.y1
    assert axis().get_xlim()[1] < 10  # the point far away is left out
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(2**20) or []) > 50


def test_every_world_is_looked_at_from_above_and_not_mirrored(axis: Any, tmp_path: Path) -> None:
    shown = []
    for turned in AXES.values():
        draw_map(a_map(turned), tmp_path / "map.png")
        positions = axis().transData.transform(lines(axis())["true path"])
        shown.append(positions - positions.mean(axis=0))
    np.testing.assert_allclose(shown[0], shown[1], atol=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"true_positions": None, "loops": [], "breaks": []},
        {"poses": np.full((FRAMES, 4, 4), np.nan), "submaps": np.full(FRAMES, -1), "true_positions": None},
        {"points": np.zeros((0, 3)), "colors": np.zeros((0, 3), np.uint8)},
        {"submaps": np.arange(FRAMES), "points": np.zeros((1, 3)), "colors": np.zeros((1, 3), np.uint8)},
    ],
    ids=["nothing known", "nothing seen", "no points", "many submaps"],
)
@pytest.mark.filterwarnings("error")
def test_an_odd_map_is_drawn(axis: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    if np.isnan(changes.get("poses", 0)).all():
        changes = {**changes, "loops": [], "breaks": []}
    draw_map(a_map(**changes), tmp_path / "map.png")
    labels = [text.get_text() for legend in axis().figure.legends for text in legend.get_texts()]
    assert ("true path" in labels) == (changes.get("true_positions", True) is not None)
    assert ("and 4 more submaps" in labels) == (changes.get("submaps", [])[-1:] == [FRAMES - 1])
