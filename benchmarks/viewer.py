"""Measure the page of `mapengine view` on a scene of many views, in a headless Chromium without a graphics processor.

    python benchmarks/viewer.py --json benchmarks/results/viewer.json

The scene is made of rendered ones side by side. Times of the command count from its start to the address of its page,
and those of the page from this address to what is drawn. Frames are those of five seconds in which the mouse turns the
scene: the time from one that draws to the next, and the points that they draw. Bytes are those of the points that were
loaded.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.calibration.scenes import MAX_VIEWS, RenderedScene, render_scene
from mapengine.runtime import Scene
from mapengine.runtime.system.children import child_command, child_environment
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

ROOT = Path(__file__).resolve().parents[1]
SEED = 1_000_046
DISTANCE = 12.0  # metres between scenes that stand side by side
TURN_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # of turning, before frames count
WINDOW = {"width": 1280, "height": 720}
RENDERER = """() => {
    const context = document.createElement("canvas").getContext("webgl2");
    return context.getParameter(context.getExtension("WEBGL_debug_renderer_info").UNMASKED_RENDERER_WEBGL);
}"""
COUNT_DRAWS = """(() => {
    const prototype = WebGL2RenderingContext.prototype;
    const draw = prototype.drawArrays;
    const drawn = window.drawn = { calls: 0, frames: [], isOn: false };
    prototype.drawArrays = function (...of) {
        drawn.calls += 1;
        draw.apply(this, of);
    };
    drawn.step = (now) => {
        if (drawn.calls) drawn.frames.push([now, Number(document.getElementById("canvas").dataset.points)]);
        drawn.calls = 0;
        if (drawn.isOn) requestAnimationFrame(drawn.step);
    };
})()"""


def large_scene(views: int, width: int, height: int) -> Scene:
    """Return rendered scenes side by side as one, each of them twice, with points and depth that are exact."""
    rendered = [render_scene(SEED + index, MAX_VIEWS, width, height) for index in range(-(-views // (2 * MAX_VIEWS)))]
    parts = [_placed(scene, place) for place, scene in enumerate([*rendered, *rendered])]
    arrays = {name: np.concatenate([part[name] for part in parts])[:views] for name in parts[0]}
    depth = arrays["depth"]
    noise = np.random.default_rng(0).random(depth.shape, np.float32)
    return Scene(**arrays, confidence=1 + 1 / np.maximum(depth, 0.1) + noise, mask=depth > 0, made_by="rendered scenes")


def _placed(scene: RenderedScene, place: int) -> dict[str, Any]:
    """The arrays of a rendered scene at one of several places."""
    rows, columns = np.indices(scene.depth_z.shape[1:3]).astype(np.float32)
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    depth = scene.depth_z.reshape(scene.depth_z.shape[:3])
    poses = scene.poses.astype(np.float32)
    poses[:, (0, 2), 3] += DISTANCE * np.array([place % 4, place // 4], np.float32)
    points = np.empty((*depth.shape, 3), np.float32)
    for view, (k, pose) in enumerate(zip(scene.intrinsics, poses, strict=True)):
        rays = pixels @ np.linalg.inv(k).T.astype(np.float32)
        points[view] = rays * depth[view][..., None] @ pose[:3, :3].T + pose[:3, 3]
    return {"points": points, "colors": scene.images, "depth": depth, "intrinsics": scene.intrinsics, "poses": poses}


def measure(url: str, screenshot: Path | None) -> dict[str, Any]:
    """Open a page, turn its scene, load all points, and turn it again."""
    sys.path.insert(0, str(ROOT))
    from tests.chromium import browser, chromium_path

    path = chromium_path()
    if path is None:
        raise SystemExit("there is no Chromium; `make browser` installs one")
    figures: dict[str, Any] = {}
    with browser(path) as chromium:
        figures["browser"] = f"Chromium {chromium.version}"
        page = chromium.new_page(viewport=WINDOW)
        page.set_default_timeout(300_000)
        page.add_init_script(COUNT_DRAWS)
        begun = time.perf_counter()
        page.goto(url, wait_until="commit")
        frame = page.frame_locator("#viewer")
        frame.locator("html[data-state=ready]").wait_for(state="attached")
        inside = page.frames[1]
        _drawn(inside)
        figures["first_picture_s"] = time.perf_counter() - begun
        frame.locator("html[data-level='1']").wait_for(state="attached")
        _drawn(inside)
        figures["loaded_s"] = time.perf_counter() - begun
        figures["renderer"] = inside.evaluate(RENDERER)
        figures["first"] = _look(page, inside)
        if screenshot is not None:
            page.screenshot(path=screenshot)
        begun = time.perf_counter()
        frame.locator("#rest").click()
        frame.locator("html[data-level='2']").wait_for(state="attached")
        _drawn(inside)
        figures["all_s"] = time.perf_counter() - begun
        figures["all"] = _look(page, inside)
    return figures


def _drawn(frame: Any) -> None:
    frame.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _look(page: Any, frame: Any) -> dict[str, Any]:
    """What is drawn, of how much, in how many bytes, and how smoothly it turns."""
    words = frame.locator("#drawn").inner_text()
    found = re.match(r"Drawn: ([\d,]+) of ([\d,]+) points", words)
    if not found:
        raise SystemExit(f"the page says {words!r}")
    size = frame.evaluate(
        "() => performance.getEntriesByType('resource').reduce((sum, entry) => sum + entry.encodedBodySize, 0)"
    )
    page.mouse.move(300, 400)
    page.mouse.down()
    _turn(page, SETTLE_SECONDS)
    frame.evaluate("() => { drawn.frames = []; drawn.isOn = true; requestAnimationFrame(drawn.step); }")
    _turn(page, TURN_SECONDS)
    frames = frame.evaluate("() => { drawn.isOn = false; return drawn.frames; }")
    page.mouse.up()
    page.wait_for_timeout(1000)  # until it stands still
    _drawn(frame)
    times, points = np.array(frames).T
    gaps = np.diff(times)
    drawn, total = (int(number.replace(",", "")) for number in found.groups())
    return {
        "drawn": drawn,
        "total": total,
        "megabytes": size / 1e6,
        "frames": len(gaps),
        "frame_ms": float(np.median(gaps)),
        "slow_frame_ms": float(np.percentile(gaps, 95)),
        "drawn_turning": float(np.median(points)),
    }


def _turn(page: Any, seconds: float) -> None:
    begun, step = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step += 1
        page.mouse.move(300 + 4 * (step % 100), 400 + step % 40)
        time.sleep(0.015)


def measure_command(path: Path, screenshot: Path | None) -> dict[str, Any]:
    """Run `mapengine view` on a scene and look at its page."""
    begun = time.perf_counter()
    command = child_command("mapengine.cli", "view", path, "--port", 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) as process:
        assert process.stdout is not None
        try:
            found = re.search(r" is at (\S+) ", process.stdout.readline())
            if found is None:
                raise SystemExit("mapengine view did not begin")
            served = time.perf_counter() - begun
            return {"command_s": served, **measure(found[1], screenshot)}
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--scene", type=Path, help="keep the scene in this .npz, and take it from there the next time")
    parser.add_argument("--screenshot", type=Path, help="a PNG of the page")
    parser.add_argument("--json", type=Path, default=Path("build/viewer.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.scene or Path(folder) / "scene.npz"
        if not path.exists():
            large_scene(args.views, *args.size).save(path)
        load = os.getloadavg()[0]
        figures = measure_command(path, args.screenshot)
    record = {
        "benchmark": "viewer",
        "what": "seconds from a command and from an address to what is drawn, and time of a frame while it turns",
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "window": "{width}x{height}".format(**WINDOW),
        "load_before": load,
        **figures,
        **record_origin("mapengine", "numpy", "playwright"),
    }
    write_record(args.json, record)
    print({name: figures[name] for name in ("command_s", "first_picture_s", "loaded_s", "first", "all_s", "all")})


if __name__ == "__main__":
    main()
