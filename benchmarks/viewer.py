"""Measure the page of `mapengine view` on a scene of many views, in a headless Chromium without a graphics processor.

    python benchmarks/viewer.py --json benchmarks/results/viewer.json

The scene is made of rendered ones side by side. Times of the page count from its address to what is drawn; frames per
second are those of five seconds in which the mouse turns the scene. Bytes are those of the points that were loaded.
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
from mapengine.serving.pages.shown_scene import ShownScene

ROOT = Path(__file__).resolve().parents[1]
SEED = 1_000_046
DISTANCE = 12.0  # metres between scenes that stand side by side
TURN_SECONDS = 5.0
WINDOW = {"width": 1280, "height": 720}


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
        page = chromium.new_page(viewport=WINDOW)
        page.set_default_timeout(300_000)
        begun = time.perf_counter()
        page.goto(url)
        frame = page.frame_locator("#viewer")
        frame.locator("html[data-state=ready]").wait_for(state="attached")
        inside = page.frames[1]
        _drawn(inside)
        figures["first_points_s"] = time.perf_counter() - begun
        frame.locator("html[data-level='1']").wait_for(state="attached")
        _drawn(inside)
        figures["loaded_s"] = time.perf_counter() - begun
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
    frame.evaluate(
        """() => { window.times = []; window.turns = true; requestAnimationFrame(function step(now) {
            window.times.push(now); if (window.turns) requestAnimationFrame(step); }); }"""
    )
    page.mouse.move(300, 400)
    page.mouse.down()
    begun, step = time.perf_counter(), 0
    while time.perf_counter() - begun < TURN_SECONDS:
        step += 1
        page.mouse.move(300 + 4 * (step % 100), 400 + step % 40)
        time.sleep(0.015)
    frames = frame.evaluate("() => { window.turns = false; return window.times; }")
    page.mouse.up()
    page.wait_for_timeout(500)  # until it stands still
    _drawn(frame)
    gaps = np.diff(frames)
    drawn, total = (int(number.replace(",", "")) for number in found.groups())
    return {
        "drawn": drawn,
        "total": total,
        "megabytes": size / 1e6,
        "frames_per_second": 1000 * len(gaps) / float(gaps.sum()),
        "slow_frame_ms": float(np.percentile(gaps, 90)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--screenshot", type=Path, help="a PNG of the page")
    parser.add_argument("--json", type=Path, default=Path("build/viewer.json"), help="where to write the record")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scene = large_scene(args.views, *args.size)
        path = scene.save(Path(folder) / "scene.npz")
        begun = time.perf_counter()
        ShownScene(Path(folder) / "shown", scene).delete()
        prepared = time.perf_counter() - begun
        del scene
        command = child_command("mapengine.cli", "view", path, "--port", 0)
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) as process:
            assert process.stdout is not None
            found = re.search(r" is at (\S+) ", process.stdout.readline())
            if found is None:
                raise SystemExit("mapengine view did not begin")
            served = time.perf_counter() - begun
            try:
                figures = measure(found[1], args.screenshot)
            finally:
                process.terminate()
    record = {
        "benchmark": "viewer",
        "what": "seconds from a command and from an address to what is drawn, and frames per second while it turns",
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "window": "{width}x{height}".format(**WINDOW),
        "load_before": load,
        "prepare_s": prepared,
        "command_s": served,
        **figures,
        **record_origin("mapengine", "numpy", "playwright"),
    }
    write_record(args.json, record)
    print(
        {key: record[key] for key in ("prepare_s", "command_s", "first_points_s", "loaded_s", "first", "all_s", "all")}
    )


if __name__ == "__main__":
    main()
