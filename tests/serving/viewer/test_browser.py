"""The page of `mapengine view` in a real browser; one server and one browser for all of it."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mapengine.runtime import Scene
from mapengine.serving.viewer.reading import read_scene
from mapengine.serving.viewer.server import ViewServer

from ...chromium import MISSING, browser, chromium_path, lowest_contrast, unnamed_controls
from ..app.conftest import HEIGHT, WIDTH, wall

pytestmark = pytest.mark.slow  # a browser takes seconds to start

TOTAL = 2 * (WIDTH * HEIGHT - 1)
FIRST = TOTAL // 2


def red_wall() -> Scene:
    """A wall, two metres ahead, seen by two cameras half a metre apart."""
    scene = wall([np.full((HEIGHT, WIDTH, 3), (200, 40, 40), np.uint8)] * 2, ["a.jpg", "b.jpg"])
    scene.poses[1, 0, 3] = 0.5
    scene.points[1, ..., 0][scene.mask[1]] += 0.5
    return scene


@contextmanager
def served(scene: Scene, name: str, first_points: int = FIRST) -> Iterator[str]:
    """The address of a page."""
    with ViewServer("127.0.0.1", 0) as server:
        server.prepare(scene, name, first_points)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = chromium_path()
    if path is None:
        pytest.skip(MISSING)
    with browser(path) as opened:
        yield opened


AS_IF_BY_A_GPU = """(() => {
    const ask = WebGL2RenderingContext.prototype.getParameter;
    WebGL2RenderingContext.prototype.getParameter = function (name) {
        const says = ask.call(this, name);
        return typeof says === "string" ? says.replace(/swiftshader|llvmpipe|software/gi, "GPU") : says;
    };
})()"""


class Shown:
    """An open page, and everything that it asked for; ``script`` runs before its own."""

    def __init__(self, chromium: Any, url: str, script: str = "") -> None:
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = chromium.new_page(viewport={"width": 1000, "height": 600})
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.add_init_script(script)
        self.page.goto(url)
        self.frame = self.page.frame_locator("#viewer")
        self.frame.locator("html[data-level='1']").wait_for(state="attached")

    def picture(self) -> NDArray[np.uint8]:
        """What is drawn of the scene."""
        self.frame.locator("html").evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        image = Image.open(io.BytesIO(self.frame.locator("#canvas").screenshot())).convert("RGB")
        return np.asarray(image)[4:-4, 4:-4]

    def red(self) -> int:
        """Pixels of the wall."""
        picture = self.picture()
        return int(((picture[..., 0] > 150) & (picture[..., 1:] < 90).all(axis=-1)).sum())

    def drawn(self) -> str:
        self.picture()
        return str(self.frame.locator("#drawn").inner_text())


@pytest.fixture(scope="module")
def opened(chromium: Any) -> Iterator[Shown]:
    with served(red_wall(), "wall.npz") as url:
        yield Shown(chromium, url)


@pytest.fixture
def shown(opened: Shown) -> Shown:
    """The page as it begins, but without frustums."""
    opened.page.click("#tab-scene")
    opened.frame.locator("#controls").evaluate("form => form.reset()")
    for control in ("confidence", "size"):
        opened.frame.locator(f"#{control}").dispatch_event("input")
    opened.frame.get_by_role("button", name="Show all").click()
    opened.frame.locator("#cameras").uncheck()
    for key in ("Escape", "r"):
        opened.frame.locator("#canvas").press(key)
    return opened


def test_it_draws_the_scene_and_all_points_are_one_click_away(shown: Shown) -> None:
    """The others hold with all points, too."""
    assert shown.page.title() == shown.page.inner_text("h1") == "preset:wall, fp32 (bundle bricks)"
    shown.page.reload()
    shown.frame.locator("html[data-level='1']").wait_for(state="attached")
    shown.frame.locator("#cameras").uncheck()
    first = re.fullmatch(rf"Drawn: ([\d,]+) of {TOTAL:,} points, at most one per cube of [\d.]+ cm\.", shown.drawn())
    assert first
    assert 0.5 * FIRST < int(first[1].replace(",", "")) <= FIRST
    assert shown.red() > 5_000
    button = shown.frame.get_by_role("button", name=f"Load all {TOTAL:,} points")
    button.press("Enter")
    shown.frame.locator("html[data-level='2']").wait_for(state="attached")
    assert shown.drawn() == f"Drawn: {TOTAL:,} of {TOTAL:,} points."
    assert shown.frame.locator("#rest").is_hidden()
    assert shown.red() > 5_000


def test_loading_that_fails_is_tried_again_by_the_same_button(chromium: Any) -> None:
    with served(red_wall(), "wall.npz") as url:
        shown = Shown(chromium, url)
        before = shown.drawn()
        button = shown.frame.get_by_role("button", name=f"Load all {TOTAL:,} points")
        problem = shown.frame.locator("#load-problem")
        shown.page.route("**/points/*/2", lambda route: route.abort())
        button.click()
        problem.get_by_text("Not all points are here: the server does not answer; is it still running?").wait_for()
        shown.page.unroute("**/points/*/2")

        def half(route: Any) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.body()[: len(answer.body()) // 2])

        shown.page.route("**/points/*/2", half)
        button.click()
        problem.get_by_text("the server ended before the scene was whole; try it again").wait_for()
        assert shown.drawn() == before
        shown.page.unroute("**/points/*/2")
        button.click()
        shown.frame.locator("html[data-level='2']").wait_for(state="attached")
        assert shown.drawn() == f"Drawn: {TOTAL:,} of {TOTAL:,} points."
        assert problem.is_hidden()
        assert shown.complaints == []
        shown.page.close()


def test_points_look_alike_with_a_graphics_processor_and_without_one(chromium: Any) -> None:
    """Without one they are drawn by the page itself; WebGL without one stands in for a graphics processor here."""
    pictures = []
    with served(red_wall(), "wall.npz") as url:
        for script in ("", AS_IF_BY_A_GPU):
            shown = Shown(chromium, url, script)
            shown.frame.locator("#confidence").fill("30")
            shown.frame.get_by_role("checkbox", name="b.jpg").uncheck()
            shown.frame.locator("#cameras").uncheck()
            pictures.append(shown.picture().astype(int))
            assert shown.complaints == []
            shown.page.close()
    differ = (np.abs(pictures[0] - pictures[1]) > 60).any(axis=-1)
    assert (pictures[0][..., 0] > 150).sum() > 2_000
    assert differ.mean() < 0.02  # WebGL smooths the edges of points


def test_sliders_and_views_change_what_is_drawn(shown: Shown) -> None:
    before = shown.red()
    shown.frame.locator("#confidence").fill("60")
    assert 0.2 * before < shown.red() < 0.8 * before
    shown.frame.locator("#confidence").fill("0")
    shown.frame.locator("#size").fill("3")
    assert shown.red() > before
    shown.frame.get_by_role("checkbox", name="b.jpg").uncheck()
    assert shown.red() < before * 1.5
    shown.frame.get_by_role("checkbox", name="a.jpg").uncheck()
    assert shown.red() == 0
    assert shown.drawn().startswith("Drawn: 0 of")
    shown.frame.get_by_role("button", name="Show all").click()
    without = shown.picture()
    shown.frame.locator("#cameras").check()  # and their images
    assert (shown.picture() != without).any()


def test_a_distance_is_measured_in_metres_in_the_scene_and_in_its_depth(shown: Shown) -> None:
    shown.frame.locator("#canvas").focus()
    for key in ("1", "m"):  # from the first camera, whose middle is the cross
        shown.page.keyboard.press(key)
    box = shown.frame.locator("#canvas").bounding_box()
    for shift in (-60, 60):
        shown.page.mouse.click(box["x"] + box["width"] / 2 + shift, box["y"] + box["height"] / 2)
    found = re.fullmatch(r"Distance: ([\d.]+) (m|cm)", shown.frame.locator("#measured").inner_text())
    assert found
    metres = 2 * 2 * np.tan(np.radians(25)) / box["height"]  # of a pixel, on the wall
    assert float(found[1]) * (0.01 if found[2] == "cm" else 1) == pytest.approx(120 * metres, abs=0.09)
    shown.page.click("#tab-views")
    shown.page.locator("#depth").evaluate("image => image.decode()")
    assert shown.page.locator("#depth").evaluate("image => image.naturalWidth") == WIDTH
    shown.page.focus("#at-depth")
    for key in ("Enter", *["ArrowRight"] * 10, "Enter"):
        shown.page.keyboard.press(key)
    shown.page.locator("#measured", has_text="Distance: 40.0 cm").wait_for()
    assert "depth 2.000 m" in shown.page.inner_text("#measured")


def test_it_turns_by_mouse_and_keys(shown: Shown) -> None:
    before = shown.picture().astype(int)
    shown.page.mouse.move(300, 300)
    shown.page.mouse.down()
    shown.page.mouse.move(380, 330, steps=3)
    shown.page.mouse.up()
    turned = shown.picture().astype(int)
    assert (np.abs(turned - before) > 60).any(axis=-1).sum() > 1_000
    shown.frame.locator("#canvas").press("r")
    assert (np.abs(shown.picture() - before) > 60).any(axis=-1).sum() < 200


def test_everything_has_a_name_contrast_and_a_key(shown: Shown) -> None:
    assert unnamed_controls(shown.page) == []
    for place in ("#tab-scene", "#tab-views", "#tab-save"):
        shown.page.click(place)
    shown.page.focus("#tab-scene")
    for name in ("views", "save", "scene"):
        shown.page.keyboard.press("ArrowRight")
        assert shown.page.locator(f"#{name}").is_visible()
    assert lowest_contrast(shown.page.frames[1]) >= 4.5
    assert lowest_contrast(shown.page) >= 4.5


def test_nothing_leaves_this_machine(shown: Shown) -> None:
    shown.page.click("#tab-views")
    shown.page.click("#tab-save")
    local = (shown.url, "data:", f"blob:{shown.url}", "about:")
    assert [url for url in shown.requests if not url.startswith(local)] == []
    assert sum("/points/" in url for url in shown.requests) >= 2
    assert shown.complaints == []


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_points_alone_are_shown_without_cameras(chromium: Any, tmp_path: Path, suffix: str) -> None:
    scene = red_wall()
    path = scene.save(tmp_path / f"wall.{suffix}")
    with served(read_scene(path), path.name, 10_000) as url:
        shown = Shown(chromium, url)
        assert shown.drawn() == f"Drawn: {TOTAL:,} of {TOTAL:,} points."
        assert shown.red() > 5_000
        assert shown.page.title() == scene.made_by
        assert shown.frame.locator("#camera-controls").is_hidden()
        assert shown.frame.locator("#confidence").is_disabled()
        assert shown.page.locator("#tab-views").is_hidden()
        assert shown.page.locator("#tab-save").is_hidden()
        assert shown.complaints == []
        shown.page.close()
