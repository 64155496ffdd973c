"""The process that measures the memory of one call, so that nothing else counts; started by :func:`.memory.probe`.

    mapengine.runtime.profiling.memory_child BUNDLE DIGEST BACKEND VIEWS WIDTH HEIGHT GEOMETRY COLLECT

prints JSON: bytes of resident memory at the peak of loading and of every stage. Linux only (``/proc``).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from ..bundle.store import Bundle
from ..engine import Engine
from ..errors import BundleReplacedError, MapEngineError
from ..memory.model import STAGES
from ..system.machine import peak_bytes, reset_peak


def _take_peak() -> int:
    value = peak_bytes() or 0
    reset_peak()
    return value


def random_views(count: int, width: int, height: int, geometry: bool) -> list[dict[str, Any]]:
    """Return views of noise, with camera, depth and pose if ``geometry``."""
    rng = np.random.default_rng(0)
    views: list[dict[str, Any]] = []
    for index in range(count):
        image = rng.standard_normal((1, 3, height, width), np.float32)
        view: dict[str, Any] = {"img": image, "data_norm_type": ["dinov2"]}
        if geometry:
            camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
            pose = np.eye(4, dtype=np.float32)
            pose[0, 3] = 0.1 * index
            depth = 1 + rng.random((1, height, width), np.float32)
            view |= {"intrinsics": camera[None], "depth_z": depth, "camera_poses": pose[None]}
        views.append(view)
    return views


def main(arguments: list[str]) -> int:
    """Measure one call, see above, and return the exit code."""
    bundle, digest, backend, *numbers = arguments
    views, width, height, geometry, collect = map(int, numbers)
    peaks = dict.fromkeys(STAGES, 0)
    try:
        opened = Bundle.open(bundle)
        if opened.digest != digest:
            raise BundleReplacedError(f"{bundle} is another bundle than before; run it again")
        engine = Engine.load(opened, backend, verify=False)  # without the golden check, which takes memory too
        given = random_views(views, width, height, bool(geometry))
        for view in given:
            view["data_norm_type"] = [engine.data_norm_type]
        peaks["load"] = _take_peak()

        def progress(stage: str, done: int, total: int) -> None:
            if done == total:
                peaks[stage] = _take_peak()

        if collect:
            engine.infer(given, progress=progress)
        else:
            for _ in engine.infer_stream(given, progress=progress):
                pass
    except MapEngineError as error:
        print(error, file=sys.stderr)
        return 1
    peaks["dense_head"] = max(peaks["dense_head"], peak_bytes() or 0)  # and what follows it
    print(json.dumps(peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
