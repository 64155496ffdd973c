"""Time the post-processing of one view, and a plain transcription of the same formulas.

    python benchmarks/postprocess.py [--height 518] [--width 518] [--runs 15] [--json FILE]

Timed: everything between the heads' outputs and the returned dictionary with default options, for one view, on one
thread: metric points, intrinsics, pose, depth, the edge mask and the image in 0..1. Two scenes: ``room`` is piecewise
smooth, with the depth jumps of real views; in ``noise`` every pixel is a depth jump, the worst case for the edge mask.

NAMED BASELINE ``plain``: the formulas of the reference written down in the obvious NumPy way: arrays of vectors, one
shifted copy per neighbour, all neighbours stacked, angles by arccos. It is timed alternately with ours in the same
process, and both must give the same mask up to 0.5 % of the pixels. The ratio is that of the median wall times; the
processor time stands beside it in the record, because other work on the machine disturbs it less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy is imported

import numpy as np  # noqa: E402

from mapengine.runtime.geometry import rays_from_intrinsics  # noqa: E402
from mapengine.runtime.postprocessing.predictions import finish_predictions, forward_outputs  # noqa: E402
from mapengine.runtime.system.origin import record_origin  # noqa: E402
from mapengine.runtime.writing.files import write_record  # noqa: E402

Array = Any
MEAN = np.asarray((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.asarray((0.229, 0.224, 0.225), np.float32)


def make_view(height: int, width: int, scene: str, seed: int = 0) -> dict[str, Array]:
    """Return the heads' outputs for a synthetic view, and its image."""
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
        "image": rng.standard_normal((1, 3, height, width)).astype(np.float32),
    }


def ours(view: dict[str, Array]) -> dict[str, Array]:
    heads = {key: value for key, value in view.items() if key != "image"}
    return finish_predictions([forward_outputs(**heads)], [view["image"]], overwrite=True)[0]


def plain(view: dict[str, Array]) -> dict[str, Array]:
    """Compute the same outputs formula by formula: the baseline."""
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
    depth = view["depth_along_ray"] * scale[0, 0]
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
    mask = mask[None, ..., None]
    return {
        "pts3d": points * mask,
        "pts3d_cam": points_cam * mask,
        "ray_directions": rays,
        "depth_along_ray": depth * mask,
        "cam_trans": view["cam_trans"] * scale,
        "cam_quats": view["cam_quats"],
        "metric_scaling_factor": scale,
        "conf": view["confidence"],
        "non_ambiguous_mask": unambiguous,
        "non_ambiguous_mask_logits": logits,
        "img_no_norm": np.clip(view["image"].transpose(0, 2, 3, 1) * DEVIATION + MEAN, 0, 1),
        "depth_z": depth_z * mask,
        "intrinsics": intrinsics,
        "camera_poses": pose,
        "mask": mask,
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


def measure(height: int, width: int, scene: str, runs: int) -> dict[str, Any]:
    view = make_view(height, width, scene)
    result, expected = ours(view), plain(view)  # also the warm-up
    flips = float((result["mask"] != expected["mask"]).mean())
    if flips > 0.005:
        raise SystemExit(f"{scene}: the masks of ours and the baseline differ in {flips:.2%} of the pixels")
    keep = result["mask"] & expected["mask"]
    for key in ("pts3d", "pts3d_cam", "depth_z", "depth_along_ray"):
        np.testing.assert_allclose(result[key] * keep, expected[key] * keep, rtol=1e-4, atol=1e-4, err_msg=key)
    np.testing.assert_allclose(result["intrinsics"], expected["intrinsics"], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(result["img_no_norm"], expected["img_no_norm"], atol=1e-6)
    wall: dict[str, list[float]] = {"ours": [], "plain": []}
    cpu: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(runs):
        for name, function in (("ours", ours), ("plain", plain)):
            start, start_cpu = time.perf_counter(), time.process_time()
            function(view)
            wall[name].append(1e3 * (time.perf_counter() - start))
            cpu[name].append(1e3 * (time.process_time() - start_cpu))
    medians = {name: statistics.median(values) for name, values in wall.items()}
    cpu_medians = {name: statistics.median(values) for name, values in cpu.items()}
    return {
        "ours_ms": round(medians["ours"], 2),
        "plain_ms": round(medians["plain"], 2),
        "ratio": round(medians["plain"] / medians["ours"], 2),
        "ours_cpu_ms": round(cpu_medians["ours"], 2),
        "plain_cpu_ms": round(cpu_medians["plain"], 2),
        "mask_pixels_that_differ": flips,
        "mask_fraction": float(result["mask"].mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the post-processing of one view against a plain transcription.")
    parser.add_argument("--height", type=int, default=518)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("build/postprocess.json"), help="where to write the record")
    options = parser.parse_args(arguments)
    if options.runs < 1 or min(options.height, options.width) < 14:
        parser.error("--runs must be at least 1, --height and --width at least 14")
    results = {name: measure(options.height, options.width, name, options.runs) for name in ("room", "noise")}
    for name, figures in results.items():
        print(
            f"{name:6s} {options.width}x{options.height}  ours {figures['ours_ms']:7.2f} ms   "
            f"plain {figures['plain_ms']:7.2f} ms   {figures['ratio']:5.1f} times faster   "
            f"masks differ in {figures['mask_pixels_that_differ']:.3%}   kept {figures['mask_fraction']:.1%}"
        )
    record = {
        "benchmark": "postprocess",
        "baseline": "plain",
        "size": f"{options.width}x{options.height}",
        "rounds": options.runs,
        "threads": 1,
        **record_origin("mapengine", "numpy"),
        "results": results,
    }
    write_record(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
