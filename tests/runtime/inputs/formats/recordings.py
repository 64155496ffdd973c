"""Recordings of one small scene in every format, with the numbers that reading them has to give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime.geometry import matrix_to_quaternion

SIZE = (80, 60)
COUNT = 3
VIEWS = sample_views(COUNT, *SIZE)
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_images(folder: Path, names: list[str]) -> None:
    for name, view in zip(names, VIEWS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view.image).save(folder / name)


def write_depth(path: Path, depth: NDArray[Any], per_metre: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(depth * per_metre).astype(np.uint16)).save(path)


def write_tum(folder: Path, camera: str | None = "intrinsics.txt") -> Path:
    """Depth and poses are 4 and 9 ms off the images, and one image is alone."""
    names = [f"rgb/{index}.png" for index in range(COUNT)]
    write_images(folder, names)
    Image.fromarray(VIEWS[0].image).save(folder / "rgb/late.png")
    rgb, depth, truth = (["# timestamps"] for _ in range(3))
    for index, view in enumerate(VIEWS):
        time = 100 + index / 30
        rgb.append(f"{time:.4f} rgb/{index}.png")
        depth.append(f"{time + 0.004:.4f} depth/{index}.png")
        write_depth(folder / f"depth/{index}.png", view.depth_z, 5000)
        pose = view.pose.astype(np.float64)
        numbers = [*pose[:3, 3], *matrix_to_quaternion(pose[:3, :3])]
        truth.append(f"{time - 0.009:.4f} " + " ".join(f"{x:.9f}" for x in numbers))
        truth.append(f"{time + 0.016:.4f} 9 9 9 0 0 0 1")  # not the nearest
    rgb.append("200.0 rgb/late.png")
    for name, lines in (("rgb.txt", rgb), ("depth.txt", depth), ("groundtruth.txt", truth)):
        (folder / name).write_text("\n".join(lines) + "\n")
    if camera is not None:
        k = VIEWS[0].intrinsics
        (folder / camera).write_text(f"{k[0, 0]} {k[1, 1]} {k[0, 2]} {k[1, 2]}\n")
    return folder


def write_transforms(folder: Path, **shared: Any) -> Path:
    frames = []
    for index, view in enumerate(VIEWS):
        write_images(folder, [f"images/frame_{i}.png" for i in range(COUNT)])
        write_depth(folder / f"depth/frame_{index}.png", view.depth_z, 1000)
        Image.fromarray(mask_of(view.depth_z)).save(folder / f"mask_{index}.png")
        frames.append(
            {
                "file_path": f"./images/frame_{index}.png",
                "transform_matrix": (view.pose.astype(np.float64) @ OPENGL).tolist(),
                "depth_file_path": f"depth/frame_{index}.png",
                "mask_path": f"mask_{index}.png",
            }
        )
    k = VIEWS[0].intrinsics.astype(float)
    camera = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5, "w": SIZE[0], "h": SIZE[1]}
    (folder / "transforms.json").write_text(json.dumps({**camera, **shared, "frames": frames[::-1]}))
    return folder


def mask_of(depth: NDArray[Any]) -> NDArray[np.uint8]:
    """The left half counts."""
    mask = np.zeros(depth.shape, np.uint8)
    mask[:, : depth.shape[1] // 2] = 255
    return mask


@dataclass
class Model:
    """A COLMAP project, and where its points are: per image pixels (N, 2) of COLMAP's, and depth (N,)."""

    folder: Path
    pixels: list[NDArray[np.float64]]
    depths: list[NDArray[np.float64]]


def write_colmap(folder: Path, model: str = "PINHOLE", extra: tuple[float, ...] = (), text: bool = False) -> Model:
    """A project that pycolmap writes, with images in a sub-folder and points of the true depth."""
    k = VIEWS[0].intrinsics.astype(float)
    focal = [k[0, 0]] if model.startswith(("SIMPLE", "RADIAL")) else [k[0, 0], k[1, 1]]
    parameters = [*focal, k[0, 2] + 0.5, k[1, 2] + 0.5, *extra]
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=SIZE[0], height=SIZE[1], params=parameters, camera_id=1)
    reconstruction.add_camera_with_trivial_rig(camera)
    names = [f"sub/frame{index}.png" for index in (2, 10, 11)]
    write_images(folder / "images", names)
    points, depths = [], []
    rng = np.random.default_rng(0)
    for index, view in enumerate(VIEWS):
        pose = view.pose.astype(float)
        rows, columns = rng.integers(5, SIZE[1] - 5, 40), rng.integers(5, SIZE[0] - 5, 40)
        z = view.depth_z[rows, columns].astype(float)
        local = np.stack([(columns - k[0, 2]) / k[0, 0] * z, (rows - k[1, 2]) / k[1, 1] * z, z], axis=-1)
        world = local @ pose[:3, :3].T + pose[:3, 3]
        seen = camera.img_from_cam(local)
        image = pycolmap.Image(
            name=names[index], camera_id=1, image_id=index + 1, points2D=[pycolmap.Point2D(xy) for xy in seen]
        )
        inverse = np.linalg.inv(pose)
        moved = pycolmap.Rigid3d(pycolmap.Rotation3d(inverse[:3, :3]), inverse[:3, 3])
        reconstruction.add_image_with_trivial_frame(image, moved)
        for number, point in enumerate(world):
            track = pycolmap.Track()
            track.add_element(index + 1, number)
            reconstruction.add_point3D(point, track, np.zeros(3, np.uint8))
        points.append(np.asarray(seen))
        depths.append(z)
    (folder / "sparse" / "0").mkdir(parents=True)
    (reconstruction.write_text if text else reconstruction.write_binary)(str(folder / "sparse" / "0"))
    return Model(folder, points, depths)
