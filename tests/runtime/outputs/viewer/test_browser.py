"""The page in a real browser, whose pictures are drawn in software."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.outputs.viewer.page import write_layers

from ....chromium import MISSING, browser, chromium_path, lowest_contrast, unnamed_controls

pytestmark = pytest.mark.slow  # a browser takes seconds to start

HEIGHT, WIDTH, FOCAL, DISTANCE = 42, 56, 50.0, 2.0
FIELD = math.radians(50)  # vertical field of view of the page


def wall(color: tuple[int, int, int]) -> Scene:
    """Two views of a wall, two metres ahead and parallel to their images; their lower half is less confident."""
    rows, columns = np.indices((HEIGHT, WIDTH)).astype(np.float32)
    rays = np.stack([(columns - 27.5) / FOCAL, (rows - 20.5) / FOCAL, np.ones_like(rows)], axis=-1)
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    poses[1, 0, 3] = 0.5
    points = rays * DISTANCE + poses[:, None, None, :3, 3]
    return Scene(
        points=points,
        colors=np.full((2, HEIGHT, WIDTH, 3), color, np.uint8),
        depth=np.full((2, HEIGHT, WIDTH), DISTANCE, np.float32),
        confidence=np.tile(np.where(rows < HEIGHT / 2, 2, 1).astype(np.float32), (2, 1, 1)),
        mask=np.ones((2, HEIGHT, WIDTH), bool),
        intrinsics=np.tile(np.array([[FOCAL, 0, 27.5], [0, FOCAL, 20.5], [0, 0, 1]], np.float32), (2, 1, 1)),
        poses=poses,
        names=["a.jpg", "b.jpg"],
        made_by="preset:wall, fp32 (bundle bricks)",
    )


class Shown:
    """A page, and everything that it asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-state]", state="attached")

    def picture(self) -> NDArray[np.uint8]:
        """What is drawn of the scene, (H, W, 3), without the ring of the focus around it."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        image = Image.open(io.BytesIO(self.page.locator("#canvas").screenshot())).convert("RGB")
        return np.asarray(image)[4:-4, 4:-4]

    def slide(self, control: str, value: float) -> None:
        self.page.locator(f"#{control}").fill(str(value))

    def press(self, *keys: str) -> None:
        self.page.locator("#canvas").focus()
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, element: str) -> str:
        self.picture()
        return str(self.page.inner_text(element))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    path = chromium_path()
    if path is None:
        pytest.skip(MISSING)
    file = tmp_path_factory.mktemp("page") / "wände.html"
    write_layers(file, {"Prediction": wall((200, 40, 40)), "Truth": wall((40, 200, 40))})
    with browser(path) as chromium:
        page = chromium.new_page(viewport={"width": 900, "height": 500})
        page.set_default_timeout(60_000)
        yield Shown(page, file)


@pytest.fixture
def shown(opened: Shown) -> Shown:
    """The page as it begins, but without frustums."""
    opened.page.evaluate("document.getElementById('controls').reset()")
    for control in ("confidence", "size"):
        opened.page.locator(f"#{control}").dispatch_event("input")
    opened.page.get_by_role("button", name="Show all").click()
    opened.page.get_by_label("Prediction").dispatch_event("input")
    opened.page.locator("#cameras").uncheck()
    opened.press("Escape", "r")
    return opened


def count(picture: NDArray[np.uint8], channel: int) -> int:
    """Pixels of a colour, red or green."""
    others = [other for other in range(3) if other != channel]
    return int(((picture[..., channel] > 150) & (picture[..., others] < 90).all(axis=-1)).sum())


def test_it_draws_the_scene_and_says_of_what(shown: Shown) -> None:
    assert count(shown.picture(), 0) > 5_000
    assert shown.page.title() == "preset:wall, fp32 (bundle bricks)"
    assert shown.text("h1") == "preset:wall, fp32 (bundle bricks)"
    total = 2 * HEIGHT * WIDTH
    assert shown.text("#drawn") == f"Drawn: {total:,} of {total:,} points."


def test_the_slider_hides_the_least_confident(shown: Shown) -> None:
    before = count(shown.picture(), 0)
    shown.slide("confidence", 60)
    after = count(shown.picture(), 0)
    assert 0.3 * before < after < 0.7 * before
    assert shown.text("#drawn").startswith(f"Drawn: {HEIGHT * WIDTH:,} of {2 * HEIGHT * WIDTH:,} points")
    shown.slide("confidence", 0)
    assert count(shown.picture(), 0) == before


def test_points_grow(shown: Shown) -> None:
    shown.slide("size", 0.5)
    small = count(shown.picture(), 0)
    shown.slide("size", 3)
    assert count(shown.picture(), 0) > 1.3 * small


def test_views_and_cameras_are_switched(shown: Shown) -> None:
    both = count(shown.picture(), 0)
    shown.page.get_by_role("checkbox", name="b.jpg").uncheck()
    assert shown.text("#drawn").startswith(f"Drawn: {HEIGHT * WIDTH:,} of")
    assert count(shown.picture(), 0) < both
    shown.page.get_by_role("button", name="Hide all").click()
    assert count(shown.picture(), 0) == 0
    shown.page.get_by_role("button", name="Show all").click()
    without = shown.picture()
    shown.page.locator("#cameras").check()
    assert (shown.picture() != without).any()


def test_layers_are_switched(shown: Shown) -> None:
    assert count(shown.picture(), 1) == 0
    shown.page.get_by_label("Truth").check()
    picture = shown.picture()
    assert (count(picture, 0), count(picture, 1) > 5_000) == (0, True)
    shown.press("l")
    assert count(shown.picture(), 1) == 0


@pytest.mark.parametrize(
    ("keys", "back"),
    [
        (["ArrowLeft", "ArrowLeft"], ["ArrowRight", "ArrowRight"]),
        (["ArrowUp"], ["ArrowDown"]),
        (["Shift+ArrowRight"], ["Shift+ArrowLeft"]),
        (["+", "+"], ["-", "-"]),
        (["+", "ArrowLeft", "Shift+ArrowUp"], ["r"]),
    ],
)
def test_keys_move_the_scene_and_back(shown: Shown, keys: list[str], back: list[str]) -> None:
    shown.press()
    before = shown.picture().astype(int)
    shown.press(*keys)
    moved = shown.picture().astype(int)
    shown.press(*back)
    returned = shown.picture().astype(int)
    assert (np.abs(moved - before) > 60).any(axis=-1).sum() > 1_000
    assert (np.abs(returned - before) > 60).any(axis=-1).sum() < 200


@pytest.mark.parametrize("button", ["left", "right"])
def test_the_mouse_moves_the_scene(shown: Shown, button: Any) -> None:
    before = shown.picture().astype(int)
    shown.page.mouse.move(200, 200)
    shown.page.mouse.down(button=button)
    shown.page.mouse.move(260, 230, steps=3)
    shown.page.mouse.up(button=button)
    moved = shown.picture().astype(int)
    assert (np.abs(moved - before) > 60).any(axis=-1).sum() > 1_000
    shown.page.mouse.wheel(0, -400)
    assert (np.abs(shown.picture() - moved) > 60).any(axis=-1).sum() > 1_000


def test_a_distance_is_in_metres(shown: Shown) -> None:
    shown.press("1", "m")
    box = shown.page.locator("#canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    metres = 2 * DISTANCE * math.tan(FIELD / 2) / box["height"]  # of a pixel, on the wall
    for shift in (-120, 80):
        shown.page.mouse.click(middle[0] + shift, middle[1])
    found = re.fullmatch(r"Distance: ([\d.]+) (m|cm)", shown.text("#measured"))
    assert found
    length = float(found[1]) * (0.01 if found[2] == "cm" else 1)
    assert abs(length - 200 * metres) < 2 * DISTANCE / FOCAL  # points are so far apart
    shown.press("Escape", "m", "Enter")  # the point at the cross
    assert shown.text("#measured") == "Choose the second point."


def test_it_asks_for_nothing_outside_itself(shown: Shown) -> None:
    shown.page.locator("#cameras").check()
    shown.press("1", "r")
    outside = [url for url in shown.requests if not url.startswith(("data:", "blob:", "file:"))]
    pages = {url for url in shown.requests if url.startswith("file:")}
    assert (outside, len(pages)) == ([], 1)
    assert shown.complaints == []


def test_controls_have_names_and_words_have_contrast(shown: Shown) -> None:
    assert unnamed_controls(shown.page) == []
    assert lowest_contrast(shown.page) >= 4.5


def test_a_small_screen_shows_the_scene_and_its_controls(shown: Shown) -> None:
    shown.page.set_viewport_size({"width": 390, "height": 700})
    try:
        picture = shown.picture()
        assert picture.shape[1] == 382
        assert count(picture, 0) > 1_000
        assert shown.page.locator("#confidence").bounding_box()["width"] > 150
    finally:
        shown.page.set_viewport_size({"width": 900, "height": 500})
