"""Time post-processing against what it was before, as ratios measured in one run. Writes JSON.

    python benchmarks/postprocess.py [--size 518x392] [--views 8] [--threads 1 2] [--runs 9] [--stage] [--json FILE]

Timed: from the heads' outputs of all views, and the prepared views, to a ``Scene``, with default options: metric
points, intrinsics, poses, depth, the edge mask, colours, and the arrays of the scene themselves. Two scenes: ``room``
is piecewise smooth, with the depth jumps of real views; in ``noise`` every pixel is a depth jump, the worst case for
the edge mask.

NAMED BASELINE ``earlier``: the functions of commit 39c1548, kept in ``earlier/``, which worked view by view on one
thread. It is timed alternately with ours in the same process. The ratio is that of the median wall times.

With ``--stage`` also the stage ``scene``, which is the same as a graph, on the backends of this machine: for one view,
from the heads' outputs to what ``infer`` returns, on one thread, in turn with NumPy.

Both must give the same scene, and masks that differ in at most 0.5 % of the pixels from a ``plain`` transcription of
the reference's formulas into NumPy: arrays of vectors, one shifted copy per neighbour, angles by arccos.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy is imported

import numpy as np  # noqa: E402
from earlier.postprocessing import EarlierScene, finish_view, forward_outputs  # noqa: E402

from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from mapengine.runtime.backends.openvino import OpenVinoBackend  # noqa: E402
from mapengine.runtime.geometry import rays_from_intrinsics  # noqa: E402
from mapengine.runtime.inputs.normalization import normalize_image  # noqa: E402
from mapengine.runtime.inputs.prepared import PreparedView  # noqa: E402
from mapengine.runtime.options import DEFAULTS  # noqa: E402
from mapengine.runtime.outputs.assembly import assemble_scene  # noqa: E402
from mapengine.runtime.outputs.scene import Scene  # noqa: E402
from mapengine.runtime.postprocessing.predictions import finish_predictions  # noqa: E402
from mapengine.runtime.postprocessing.predictions import finish_view as finish_now  # noqa: E402
from mapengine.runtime.postprocessing.scene_stage import READS, option_values  # noqa: E402
from mapengine.runtime.system.machine import usable_processors  # noqa: E402
from mapengine.runtime.system.origin import record_origin  # noqa: E402
from mapengine.runtime.system.sizes import parse_pixels  # noqa: E402
from mapengine.runtime.writing.files import write_record  # noqa: E402

Array = Any


def make_view(height: int, width: int, scene: str, seed: int = 0) -> dict[str, Array]:
    """Return the heads' outputs for a synthetic view, and the bytes of its image (H, W, 3) as ``pixels``."""
    rng = np.random.default_rng(seed)
    focal = 0.8 * width
    intrinsics = np.array([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], np.float32)
    rays = rays_from_intrinsics(intrinsics, height, width)
    v, u = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    if scene == "noise":
        depth = rng.uniform(1, 4, (height, width))
    else:
        depth = np.minimum(4 + u, 1.2 / np.maximum(v - 0.35, 0.05))  # a wall and a floor
        for _ in range(12):  # and boxes and balls in front of them
            cu, cv, radius, distance = rng.uniform((0, 0, 0.04, 1), (1, 1, 0.15, 3))
            r2 = ((u - cu) ** 2 + (v - cv) ** 2) / radius**2
            ball = distance - radius * np.sqrt(np.maximum(1 - r2, 0))
            depth = np.where(r2 < 1, np.minimum(depth, ball), depth)
            box = (abs(u - cv) < radius / 2) & (abs(v - cu) < radius)
            depth = np.where(box, np.minimum(depth, distance + u), depth)
        depth = depth * (1 + 0.002 * rng.standard_normal(depth.shape))
    return {
        "ray_directions": rays,
        "depth_along_ray": depth.astype(np.float32)[None, ..., None],
        "confidence": rng.uniform(1, 5, (1, height, width)).astype(np.float32),
        "mask_logits": (rng.standard_normal((1, height // 7, width // 7)) + 2)
        .repeat(7, 1)
        .repeat(7, 2)
        .astype(np.float32),
        "cam_trans": np.array([[0.1, -0.2, 0.3]], np.float32),
        "cam_quats": np.array([[0.1, 0.2, -0.1, 0.969536]], np.float32),
        "scale": np.array([[1.7]], np.float32),
        "pixels": rng.integers(0, 256, (height, width, 3), np.uint8),
    }


Views = list[tuple[dict[str, Array], PreparedView, Array]]


def make_views(count: int, height: int, width: int, scene: str) -> Views:
    """Return per view what the network says of it, and the view as it is prepared for the network, now and earlier: as
    bytes, and as a normalised image."""
    result = []
    for seed in range(count):
        heads = make_view(height, width, scene, seed)
        pixels = heads.pop("pixels")
        result.append((heads, PreparedView(pixels[None], np.array([True])), normalize_image(pixels)))
    return result


def ours(views: Views, threads: int) -> Scene:
    heads, prepared, images = zip(*views, strict=True)
    kept = [view.mask for view in prepared]

    def finish(options: Any, outputs: Any, into: Any) -> Any:
        return finish_predictions(heads, images, options, outputs, kept=kept, into=into, threads=threads)

    return assemble_scene(finish, prepared, [f"view {i}" for i in range(len(views))], DEFAULTS)


def earlier(views: Views) -> EarlierScene:
    predictions = [forward_outputs(**heads) for heads, _, _ in views]
    finished = [
        finish_view(prediction, image, overwrite=True)
        for prediction, (_, _, image) in zip(predictions, views, strict=True)
    ]
    return EarlierScene.from_predictions(finished)


def plain(view: dict[str, Array]) -> dict[str, Array]:
    """Compute the same outputs formula by formula."""
    rays, scale, logits = view["ray_directions"], view["scale"], view["mask_logits"]
    height, width = rays.shape[1:3]
    x, y, z, w = view["cam_quats"][0] / np.linalg.norm(view["cam_quats"][0])
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )
    points_cam = rays * view["depth_along_ray"]
    points = (points_cam @ rotation.T + view["cam_trans"]) * scale[0, 0]
    points_cam = points_cam * scale[0, 0]
    unambiguous = np.asarray(1 / (1 + np.exp(-logits)) > 0.5)
    depth_z = points_cam[..., 2:]

    sample = rays[0, :: max(1, height // 50), :: max(1, width // 50)]
    rows, columns = np.mgrid[: height : max(1, height // 50), : width : max(1, width // 50)]
    fits = []
    for pixel, axis in ((columns, 0), (rows, 1)):
        slope = (sample[..., axis] / sample[..., 2]).ravel()
        design = np.stack([slope, np.ones_like(slope)], axis=1)
        fits.append(np.linalg.solve(design.T @ design, design.T @ pixel.ravel().astype(np.float32)))
    intrinsics = np.array([[[fits[0][0], 0, fits[0][1]], [0, fits[1][0], fits[1][1]], [0, 0, 1]]], np.float32)
    pose = np.eye(4, dtype=np.float32)[None].copy()
    pose[0, :3, :3], pose[0, :3, 3] = rotation, view["cam_trans"][0] * scale[0, 0]

    mask: Array = unambiguous[0]
    mask = mask & ~(plain_depth_edge(depth_z[0, ..., 0], mask, 0.03) & plain_normal_edge(points[0], mask, 5.0))
    return {
        "points": points[0] * mask[..., None],
        "depth": depth_z[0, ..., 0] * mask,
        "confidence": view["confidence"][0],
        "mask": mask,
        "intrinsics": intrinsics[0],
        "poses": pose[0],
    }


def neighbours(padded: Array) -> Array:
    """Stack the nine shifted copies of an array that is padded by one pixel."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    return np.stack([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)])


def plain_depth_edge(depth: Array, mask: Array, threshold: float) -> Array:
    largest = neighbours(np.pad(np.where(mask, depth, -np.inf), 1, constant_values=-np.inf)).max(axis=0)
    smallest = neighbours(np.pad(np.where(mask, depth, np.inf), 1, constant_values=np.inf)).min(axis=0)
    return (largest - smallest) / depth > threshold


def plain_normal_edge(points: Array, mask: Array, threshold: float) -> Array:
    padded, inside = np.pad(points, ((1, 1), (1, 1), (0, 0))), np.pad(mask, 1)
    at = {"up": np.s_[:-2, 1:-1], "left": np.s_[1:-1, :-2], "down": np.s_[2:, 1:-1], "right": np.s_[1:-1, 2:]}
    difference = {name: padded[window] - points for name, window in at.items()}
    corners = [("up", "left"), ("left", "down"), ("down", "right"), ("right", "up")]
    cross = np.stack([np.cross(difference[a], difference[b]) for a, b in corners])
    cross = cross / (np.linalg.norm(cross, axis=-1, keepdims=True) + 1e-12)
    counts = np.stack([inside[at[a]] & inside[at[b]] & mask for a, b in corners])
    normals = (cross * counts[..., None]).sum(axis=0)
    normals = normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12)
    valid: Array = counts.any(axis=0)
    normals = np.where(valid[..., None], normals, 0)
    normals = normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12)
    around = neighbours(np.pad(normals, ((1, 1), (1, 1), (0, 0)), mode="edge"))
    with np.errstate(invalid="ignore"):
        angle = np.arccos((around * normals).sum(axis=-1))
    angle = np.where(neighbours(np.pad(valid, 1, mode="edge")), angle, 0).max(axis=0)
    widest = np.fmax.reduce(neighbours(np.pad(angle, 1, constant_values=-np.inf)), axis=0)
    return np.rad2deg(widest) > threshold


def check(found: Scene, views: Views, before: EarlierScene) -> float:
    """Hold a scene against the baseline's and the plain formulas; return the share of mask pixels that differ."""
    flips = []
    for index, (heads, view, _) in enumerate(views):
        expected = plain(heads)
        for other in (expected["mask"], before.mask[index]):
            flips.append(float((found.mask[index] != other).mean()))
            if flips[-1] > 0.005:
                raise SystemExit(f"view {index}: the mask differs in {flips[-1]:.2%} of the pixels")
        keep = found.mask[index] & expected["mask"]
        for name in ("points", "depth"):
            own, its = getattr(found, name)[index][keep], expected[name][keep]
            np.testing.assert_allclose(own, its, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(found.confidence[index], expected["confidence"])
        np.testing.assert_allclose(found.poses[index], expected["poses"], atol=1e-5)
        np.testing.assert_allclose(found.intrinsics[index], expected["intrinsics"], rtol=1e-3, atol=1e-2)
        for colors in (found.colors, before.colors):
            np.testing.assert_array_equal(colors[index], view.pixels[0])
    return max(flips)


def measure(count: int, height: int, width: int, scene: str, threads: list[int], runs: int) -> dict[str, Any]:
    views = make_views(count, height, width, scene)
    before = earlier(views)  # also the warm-up
    flips = max(check(ours(views, most), views, before) for most in threads)
    wall: dict[str, list[float]] = {"earlier": [], **{f"threads {most}": [] for most in threads}}
    calls = {"earlier": lambda: earlier(views), **{f"threads {most}": partial(ours, views, most) for most in threads}}
    for _ in range(runs):
        for name, function in calls.items():
            start = time.perf_counter()
            function()
            wall[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) / count for name, values in wall.items()}
    return {
        "earlier_ms": round(medians["earlier"], 2),
        "ours": {
            str(most): {
                "ms": round(medians[f"threads {most}"], 2),
                "ratio": round(medians["earlier"] / medians[f"threads {most}"], 2),
            }
            for most in threads
        },
        "mask_pixels_that_differ": flips,
        "mask_fraction": float(before.mask.mean()),
    }


def time_stage(height: int, width: int, scene: str, runs: int) -> dict[str, float]:
    """Return the milliseconds of NumPy and of the stage, for one view, up to what ``infer`` returns."""
    from mapengine.export.graphs.tracing import export_added_stages

    heads = make_view(height, width, scene)
    image = normalize_image(heads.pop("pixels"))
    given = {name: heads[head] for name, head in READS.items()} | {
        "metric_scaling_factor": heads["scale"][0],
        "images": image,
        "kept": np.ones((1, height, width), bool),
        "options": option_values(DEFAULTS, height * width),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = export_added_stages(Path(folder), "dinov2")[-1].path
        stages = {
            library.name: library.load_stage("scene", path)
            for library in (OnnxRuntimeBackend(threads=1), OpenVinoBackend(threads=1))
        }
    calls: dict[str, Any] = {"numpy": lambda: finish_now(heads, image)}
    calls |= {name: partial(stage.run, given) for name, stage in stages.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, function in calls.items():
            start = time.perf_counter()
            function()
            wall[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values[1:]), 2) for name, values in wall.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time post-processing, up to a scene, against what it was before.")
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, usable_processors())}))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--stage", action="store_true", help="time post-processing as a graph, too")
    parser.add_argument("--json", type=Path, default=Path("build/postprocess.json"), help="where to write the record")
    options = parser.parse_args(arguments)
    width, height = options.size
    if min(options.runs, options.views, *options.threads) < 1 or min(height, width) < 14:
        parser.error("--runs, --views and --threads must be at least 1, both sides of --size at least 14")
    results = {
        name: measure(options.views, height, width, name, options.threads, options.runs) for name in ("room", "noise")
    }
    for name, figures in results.items() if options.stage else ():
        figures["infer_ms"] = time_stage(height, width, name, options.runs)
        print(f"{name:6s} {width}x{height}  one view to what infer returns, ms: {figures['infer_ms']}")
    for name, figures in results.items():
        print(f"{name:6s} {width}x{height}  earlier {figures['earlier_ms']:6.2f} ms a view", end="")
        for most, own in figures["ours"].items():
            print(f"   {most} threads {own['ms']:6.2f} ms, {own['ratio']:.2f} times as fast", end="")
        print(f"   masks differ in up to {figures['mask_pixels_that_differ']:.3%}")
    record = {
        "benchmark": "postprocess",
        "what": "milliseconds a view, from the heads' outputs to a Scene, in turn in one run",
        "baseline": "earlier",
        "size": f"{width}x{height}",
        "views": options.views,
        "rounds": options.runs,
        **record_origin("mapengine", "numpy"),
        "results": results,
    }
    write_record(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
