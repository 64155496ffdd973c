from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import InputError
from mapengine.runtime.outputs import drawing, preview
from mapengine.runtime.outputs.scene import Scene

Predictions = list[dict[str, Any]]


@pytest.fixture
def scene(predictions: Predictions) -> Scene:
    return Scene.from_predictions(predictions)


def stretch(scene: Scene, views: int) -> Scene:
    index = np.arange(views) % len(scene.names)
    names = ("points", "colors", "depth", "confidence", "mask", "intrinsics", "poses")
    return Scene(**{name: getattr(scene, name)[index] for name in names})


def test_writes_the_same_picture_each_time(scene: Scene, tmp_path: Path) -> None:
    first = scene.preview(tmp_path / "new" / "a.png")
    second = scene.preview(tmp_path / "new" / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_tiles_show_image_depth_and_invalid_pixels(scene: Scene) -> None:
    picture = np.asarray(preview.draw_preview(scene))
    layout = preview.preview_layout(2, 56, 42, 1600)
    width, height = layout.tile
    top = layout.margin + layout.title
    tiles = [
        picture[top : top + height, layout.margin + k * (width + layout.gap) :][:, :width].astype(int) for k in range(3)
    ]
    expected = Image.fromarray(scene.colors[0]).resize((width, height), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(tiles[0], np.asarray(expected))
    # The left eighth of the helper's masks is invalid: dark grey in the depth only.
    grey = (tiles[1] == drawing.INVALID).all(axis=-1)
    assert grey[:, : width // 8 - 1].all()
    assert not grey[:, width // 8 + 1 :].any()
    assert not (tiles[2] == drawing.INVALID).all(axis=-1).any()
    # Near is bright, far is dark.
    depth = np.asarray(Image.fromarray(scene.depth[0]).resize((width, height)))
    valid = np.s_[:, width // 6 :]
    assert np.corrcoef(depth[valid].ravel(), tiles[1][valid].sum(axis=-1).ravel())[0, 1] < -0.9


@pytest.mark.parametrize(("views", "blocks", "rows"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (12, 2, 6), (40, 2, 6)])
def test_many_views_wrap_and_end(scene: Scene, views: int, blocks: int, rows: int) -> None:
    shown = min(views, preview.MAX_VIEWS)
    layout = preview.preview_layout(shown, 56, 42, 1600)
    assert (layout.blocks, layout.rows) == (blocks, rows)
    picture = preview.draw_preview(stretch(scene, views))
    assert picture.size == (layout.width, layout.height)
    assert picture.width <= 1600


def test_says_how_many_views_are_shown(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    real_draw = preview.ImageDraw.Draw

    def draw(image: Image.Image) -> Any:
        result = real_draw(image)
        write = result.text

        def text(at: Any, words: str, **options: Any) -> None:
            texts.append(words)
            write(at, words, **options)

        monkeypatch.setattr(result, "text", text)
        return result

    monkeypatch.setattr(preview.ImageDraw, "Draw", draw)
    preview.draw_preview(stretch(scene, 40))
    assert "first 12 of 40 views" in texts
    assert {"Image", "Depth", "Confidence", "view 0", "view 11"} <= set(texts)
    assert "view 12" not in texts
    metres = [float(text.removesuffix(" m")) for text in texts if text.endswith(" m")]
    assert len(metres) >= 2
    low, high = np.percentile(scene.depth[scene.mask], (1, 99))
    assert all(low <= tick <= high for tick in metres)
    texts.clear()
    scene.mask[:] = False
    preview.draw_preview(scene)
    assert {"no valid depth", "2 views"} <= set(texts)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 300), (300, 2), (518, 168), (252, 518)])
@pytest.mark.parametrize("max_width", [320, 1600])
def test_any_shape_fits(width: int, height: int, max_width: int) -> None:
    shape = (3, height, width)
    scene = Scene(
        points=np.zeros((*shape, 3)),
        colors=np.zeros((*shape, 3), np.uint8),
        depth=np.ones(shape),
        confidence=np.ones(shape),
        mask=np.ones(shape, bool),
        intrinsics=np.stack([np.eye(3)] * 3),
        poses=np.stack([np.eye(4)] * 3),
    )
    picture = preview.draw_preview(scene, max_width)
    assert picture.width <= max_width
    assert picture.height <= 10 * max_width


def test_refuses_a_width_out_of_range(scene: Scene, tmp_path: Path) -> None:
    for width in (0, 100, 100_000):
        with pytest.raises(InputError, match=f"max_width is {width}"):
            scene.preview(tmp_path / "x.png", max_width=width)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_names_are_shortened_and_made_printable(room_predictions: Callable[..., Predictions]) -> None:
    predictions = room_predictions(1, 28, 28)
    short, long, odd = "a.jpg", "x" * 100_000, "a\nb\x00.jpg"
    pictures = {}
    for name in (short, long, odd, "a?b?.jpg"):
        pictures[name] = np.asarray(preview.draw_preview(Scene.from_predictions(predictions, names=[name])))
    assert len({picture.shape for picture in pictures.values()}) == 1
    np.testing.assert_array_equal(pictures[odd], pictures["a?b?.jpg"])
    assert (pictures[short] != pictures[long]).any()
