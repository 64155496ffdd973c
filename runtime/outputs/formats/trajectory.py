"""The cameras as a trajectory in TUM's format: a line of ``timestamp tx ty tz qx qy qz qw`` per view."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...geometry import matrix_to_quaternion
from ...writing.files import write_text
from ...writing.recognition import marker
from ..scene_arrays import SceneArrays, check_cameras
from .options import SaveOptions

TRAJECTORY_KIND = "trajectory"


def write_trajectory(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write camera-to-world poses, with the name of each view in a comment before its line; no option changes it.

    The timestamp is the time of the view in seconds if all views have one (of a video, of a recording), else its index.

    Raises:
        InputError: a camera without a finite pose.
        OutputError: the file could not be written.
    """
    check_cameras(scene)
    times = np.arange(len(scene.names)) if scene.times is None else scene.times
    lines = [f"# {marker(TRAJECTORY_KIND)}", "# timestamp tx ty tz qx qy qz qw, camera-to-world, OpenCV axes"]
    for time, pose, name in zip(times, scene.poses.astype(np.float64), scene.names, strict=True):
        quaternion = matrix_to_quaternion(pose[:3, :3])
        numbers = [*pose[:3, 3], *(quaternion / np.linalg.norm(quaternion))]
        lines.append(f"# {' '.join(name.split())}".encode(errors="replace").decode())
        lines.append(" ".join([_plain(time), *(f"{number:.10g}" for number in numbers)]))
    write_text(path, TRAJECTORY_KIND, "\n".join(lines) + "\n")


def _plain(time: float) -> str:
    """A number with all its digits and without an exponent."""
    return np.format_float_positional(time, trim="-")
