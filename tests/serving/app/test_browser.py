"""The app in a real browser, with a real engine of a small network; one server and one browser for all of it."""

from __future__ import annotations

import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mapengine.calibration.data.samples import write_samples
from mapengine.runtime import Engine, Scene
from mapengine.serving.app.limits import UploadLimits
from mapengine.serving.app.server import AppServer
from mapengine.serving.app.visits import Visits

from ...chromium import MISSING, browser, chromium_path, lowest_contrast, unnamed_controls

pytestmark = pytest.mark.slow  # a browser takes seconds to start

SIZE = "112x84"
FRAMES = 24


class App:
    """A server that runs, a browser, and what was asked for by both."""

    def __init__(self, server: AppServer, visits: Visits, chromium: Any) -> None:
        self.server = server
        self.visits = visits
        self.chromium = chromium
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def open(self) -> Any:
        """A new page, which is ready."""
        page = self.chromium.new_page(viewport={"width": 1200, "height": 760})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.server.url)
        page.locator("html[data-state=ready]").wait_for(state="attached")
        page.fill("#size", SIZE)
        return page

    def files(self) -> list[str]:
        """Names of the uploads that there are."""
        found = os.walk(self.visits.folder)  # which minds no folder that goes meanwhile
        return sorted(name for folder, _, names in found if Path(folder).parent.name == "uploads" for name in names)


@pytest.fixture(scope="module")
def connections() -> Iterator[list[Any]]:
    """Addresses that this process, in which the server runs, connects to."""
    made: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        made.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield made


@pytest.fixture(scope="module")
def app(tiny_bundle: Path, connections: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    path = chromium_path()
    if path is None:
        pytest.skip(MISSING)
    engine = Engine.load(tiny_bundle, "onnxruntime", threads=1, verify=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
        visits = Visits(engine, UploadLimits(files=4, visits=20), absent_seconds=5)
    with AppServer("127.0.0.1", 0) as server, browser(path) as chromium:
        thread = threading.Thread(target=server.serve, args=(visits,))
        thread.start()
        yield App(server, visits, chromium)
        server.shutdown()
        thread.join()
        visits.close()


@pytest.fixture
def page(app: App) -> Iterator[Any]:
    page = app.open()
    yield page
    page.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, 2, 112, 84)
    return [str(folder / f"sample_{index}.png") for index in range(2)]


@pytest.fixture(scope="module")
def done(app: App, images: list[str]) -> Iterator[Any]:
    """A page that has reconstructed the images, for tests that look at the result and start no other."""
    page = app.open()
    reconstruct(page, images)
    yield page
    page.close()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    pattern = np.random.default_rng(0).integers(0, 256, (84, 112 + FRAMES, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for index in range(FRAMES):
            pixels = np.ascontiguousarray(pattern[:, index : index + 112])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def reconstruct(page: Any, files: list[str]) -> Any:
    """Upload and reconstruct; returns the frame of the scene, without frustums."""
    page.set_input_files("#choose", files)
    page.locator("#go:enabled").click()
    page.locator("html[data-state=done]").wait_for(state="attached")
    scene = page.frame_locator("#viewer")
    scene.locator("html[data-state=ready]").wait_for(state="attached")
    scene.locator("#cameras").uncheck()
    return scene


def drawn(scene: Any) -> int:
    """Pixels of the scene that are not background."""
    picture = Image.open(io.BytesIO(scene.locator("#canvas").screenshot())).convert("RGB")
    pixels: NDArray[np.int_] = np.asarray(picture).astype(int)[4:-4, 4:-4]
    return int((np.abs(pixels - pixels[0, 0]) > 24).any(axis=-1).sum())


def test_an_upload_gives_a_scene_that_the_slider_changes(app: App, page: Any, images: list[str]) -> None:
    scene = reconstruct(page, images)
    assert page.title() == page.inner_text("h1") == app.visits.engine.label
    assert re.fullmatch(r"Done in \d+\.\d\d s: [\d,]+ points from 2 views\.", page.inner_text("#status"))
    assert re.fullmatch(r"Drawn: ([\d,]+) of \1 points\.", scene.locator("#drawn").inner_text())
    assert app.files() == []  # they were used
    before = drawn(scene)
    assert before > 1_000
    scene.locator("#confidence").fill("80")
    assert drawn(scene) < 0.9 * before
    page.click("#tab-cost")
    costs = page.inner_text("#cost")
    for words in ("reading and resizing the files", "aggregator", "post-processing", "at most during the call"):
        assert words in costs
    page.locator("#go").click()  # once more with the same files, which go up again
    page.locator("#status", has_text="Done in").wait_for()
    assert app.files() == []


def test_depth_is_shown_per_view_and_measured_in_metres(done: Any) -> None:
    page = done
    page.click("#tab-views")
    page.click("#next")
    assert page.locator("#view").input_value().startswith("2: sample_1.png")
    page.locator("#depth").evaluate("image => image.decode()")
    assert page.locator("#depth").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [112, 84]
    visit = page.locator("#depth").evaluate("image => image.src").split("/views/")[0]
    points = []
    for x in range(2, 112, 4):  # two pixels that have points
        if len(points) < 2:
            known = page.request.get(f"{visit}/views/1/point?x={x}&y=40").json()
            if known["point"]:
                points.append((x, known["point"]))
    assert len(points) == 2
    place = page.locator("#at-depth")
    for x, _ in points:
        box = place.bounding_box()
        place.click(position={"x": (x + 0.5) / 112 * box["width"], "y": 40.5 / 84 * box["height"]})
        page.locator("#measured", has_text=f"Pixel {x}, 40").wait_for()
    found = re.search(r"Distance: ([\d.]+) (cm|m)$", page.inner_text("#measured"))
    assert found
    length = float(found[1]) * (0.01 if found[2] == "cm" else 1)
    assert length == pytest.approx(float(np.linalg.norm(np.subtract(points[0][1], points[1][1]))), rel=6e-3)
    page.keyboard.press("Escape")  # and by keyboard
    page.keyboard.press("Enter")
    page.locator("#measured", has_text="Choose the second place").wait_for()
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    page.locator("#measured", has_text=f"Pixel {points[1][0]}, 30").wait_for()


def test_a_video_gives_a_scene_of_the_frames_that_were_chosen(app: App, page: Any, film: str) -> None:
    page.fill("#every", "6")
    page.fill("#most", "3")
    page.set_input_files("#choose", film)
    page.locator("#views-note", has_text=f"Uses 3 of {FRAMES}").wait_for()
    assert f"112x84, {FRAMES} frames" in re.sub(r", \d+ kB", "", page.inner_text("#files"))
    page.click("#go")
    page.locator("html[data-state=done]").wait_for(state="attached")
    names = page.locator("#view option").all_inner_texts()
    assert names == ["1: film.mp4#000000", "2: film.mp4#000012", "3: film.mp4#000018"]
    assert app.files() == []


def test_what_cannot_be_used_is_a_sentence_and_the_next_works(
    app: App, page: Any, images: list[str], tmp_path: Path
) -> None:
    whole = Path(images[0]).read_bytes()
    for name, content in (("text.png", b"no image"), ("half.png", whole[: len(whole) // 2]), ("notes.txt", b"words")):
        (tmp_path / name).write_bytes(content)
    page.set_input_files("#choose", [str(tmp_path / "text.png"), str(tmp_path / "notes.txt")])
    page.locator("#files .problem", has_text=re.compile(r"^text\.png: is not an image .*\.$")).wait_for()
    assert page.inner_text("#upload-problem") == "notes.txt: is neither an image nor a video that can be read here."
    assert page.locator("#go").is_disabled()
    page.click("#clear")
    page.set_input_files("#choose", str(tmp_path / "half.png"))
    page.locator("#go:enabled").click()
    page.locator("#problem", has_text="half.png").wait_for()
    assert str(app.visits.folder) not in page.inner_text("#problem")
    assert app.files() == []
    page.click("#clear")
    page.set_input_files("#choose", [*images, *images, images[0]])
    assert page.inner_text("#upload-problem") == "sample_1.png: at most 4 files are taken."
    page.click("#clear")
    page.fill("#size", "100x100")
    page.set_input_files("#choose", images)
    page.locator("#views-note.problem", has_text="98").wait_for()
    page.fill("#size", SIZE)
    page.locator("#go:enabled").click()
    page.locator("html[data-state=done]").wait_for(state="attached")
    assert page.inner_text("#problem") == ""


def test_only_ticked_files_are_used(page: Any, images: list[str]) -> None:
    page.set_input_files("#choose", images)
    page.locator("#views-note", has_text="Uses 2 of 2").wait_for()
    page.get_by_role("button", name="Use none").click()
    assert page.locator("#go").is_disabled()
    page.get_by_role("checkbox", name="sample_1.png").check()
    page.locator("#views-note", has_text="Uses 1 of 1: sample_1.png.").wait_for()
    page.locator("#go:enabled").click()
    page.locator("html[data-state=done]").wait_for(state="attached")
    assert page.locator("#view option").all_inner_texts() == ["1: sample_1.png"]


def test_the_percentage_and_the_edges_that_are_left_out_reach_the_result(page: Any, images: list[str]) -> None:
    points = {}
    for percentage, edges in (("0", False), ("60", False), ("0", True)):
        page.fill("#percentile", percentage)
        page.locator("#edges").set_checked(edges)
        page.evaluate("document.documentElement.dataset.state = 'ready'")
        if not points:
            page.set_input_files("#choose", images)
        page.locator("#go:enabled").click()
        page.locator("html[data-state=done]").wait_for(state="attached")
        page.locator("#status", has_text="Done in").wait_for()
        found = re.search(r": ([\d,]+) points from 2 views", page.inner_text("#status"))
        assert found
        points[percentage, edges] = int(found[1].replace(",", ""))
    all_of_them = points["0", False]
    assert 0.3 * all_of_them < points["60", False] < 0.5 * all_of_them
    assert 0 < points["0", True] < all_of_them


def test_several_people_take_turns(app: App, page: Any, images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = app.visits.engine, threading.Event()
    reconstruct_views, names = engine.reconstruct_views, []

    def waiting(views: Any, **options: Any) -> Any:
        names.append([view.name for view in views])
        assert gate.wait(60)
        return reconstruct_views(views, **options)

    monkeypatch.setattr(engine, "reconstruct_views", waiting)
    other = app.open()
    for each, files in ((page, images[:1]), (other, images[1:])):
        each.set_input_files("#choose", files)
        each.locator("#go:enabled").click()
        each.locator("#stop").wait_for()
    other.locator("#status", has_text="Waiting: 1 before you").wait_for()
    gate.set()
    for each, name in ((page, "sample_0.png"), (other, "sample_1.png")):
        each.locator("html[data-state=done]").wait_for(state="attached")
        assert each.locator("#view option").all_inner_texts() == [f"1: {name}"]
    assert names == [["sample_0.png"], ["sample_1.png"]]
    other.close()


def test_files_are_saved(done: Any, tmp_path: Path) -> None:
    page = done
    page.click("#tab-save")
    points = []
    for leave_out in ("0", "50"):
        page.fill("#leave-out", leave_out)
        page.locator("#leave-out").press("Tab")
        with page.expect_download() as started:
            page.get_by_role("link", name="NPZ" if leave_out == "0" else "PLY", exact=True).click()
        path = tmp_path / started.value.suggested_filename
        started.value.save_as(path)
        if path.suffix == ".npz":
            points.append(int(Scene.load(path).mask.sum()))
        else:
            found = re.search(rb"element vertex (\d+)", path.read_bytes())
            assert found
            points.append(int(found[1]))
    assert 0.4 * points[0] < points[1] < 0.6 * points[0]


def test_who_leaves_leaves_nothing(app: App, images: list[str]) -> None:
    page = app.open()
    page.set_input_files("#choose", images)
    page.locator("#go:enabled").wait_for()
    assert app.files() == ["sample_0.png", "sample_1.png"]
    page.goto("about:blank")
    end = time.monotonic() + 3  # before the connection is missed
    while app.files():
        assert time.monotonic() < end
        time.sleep(0.05)
    page.close()


def test_everything_has_a_name_and_a_place_in_the_order_of_the_keys(done: Any) -> None:
    page = done
    page.click("#tab-scene")
    assert unnamed_controls(page) == []
    assert lowest_contrast(page) >= 4.5
    page.focus("#tab-scene")
    for name in ("views", "save", "cost", "scene"):
        page.keyboard.press("ArrowRight")
        assert page.locator(f"#{name}").is_visible()
        assert page.locator(":focus").get_attribute("id") == f"tab-{name}"
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.usefixtures("done")
def test_nothing_leaves_this_machine(app: App, connections: list[Any]) -> None:
    local = (app.server.url, "data:", f"blob:{app.server.url}", "about:")
    assert [url for url in app.requests if not url.startswith(local)] == []
    assert len(app.requests) > 10
    assert connections == []
    assert app.complaints == []
