"""A robot that knows its poses, its camera and some depth: the network completes the depth, in the robot's map.

python examples/03_robot_poses_depth.py build/engine build/samples/views.json
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mapengine.runtime import Engine


def main(bundle: str, recording: str) -> None:
    folder = Path(recording).parent
    frames = json.loads(Path(recording).read_text(encoding="utf-8"))["views"]
    images = [np.asarray(Image.open(folder / frame["image"])) for frame in frames]  # (H, W, 3) uint8
    poses = [np.array(frame["pose"]) for frame in frames]  # camera-to-map, OpenCV axes, metres
    intrinsics = [np.array(frame["intrinsics"]) for frame in frames]  # pixels of these images
    depths = [np.asarray(Image.open(folder / frame["depth"])) / 1000 for frame in frames]  # metres, 0: unknown

    random = np.random.default_rng(0)
    sparse = [np.where(random.random(depth.shape) < 0.05, depth, 0) for depth in depths]  # a sensor with few points

    engine = Engine.load(bundle)
    scene = engine.reconstruct(images, intrinsics=intrinsics, poses=poses, depths=sparse)

    known = sum(int((depth > 0).sum()) for depth in sparse)
    print(f"{known} depths became {scene.mask.sum()} points of {scene.depth.shape[2]}x{scene.depth.shape[1]} maps")
    low, high = scene.points[scene.mask].min(axis=0), scene.points[scene.mask].max(axis=0)
    print(f"In the map they reach from {low.round(2)} to {high.round(2)}")  # scenes are in the world of the poses
    print(f"Their frame is the world {scene.alignment}")


if __name__ == "__main__":
    main(*sys.argv[1:])
