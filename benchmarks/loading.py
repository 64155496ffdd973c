"""Time reading and resizing eight 12-megapixel photos, and reading them one after the other as upstream does.

    python benchmarks/loading.py --json benchmarks/results/loading.json

The baseline is a plain transcription of upstream's loader with Pillow, one file after the other: open, EXIF
orientation, RGB, Lanczos to the covering size, centre crop, normalise. Both give identical pixels, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mapengine.runtime import load_images
from mapengine.runtime.inputs.normalization import norm_constants
from mapengine.runtime.inputs.resolutions import target_size
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

WIDTH, HEIGHT, PHOTOS = 4032, 3024, 8


def write_photos(folder: Path) -> list[Path]:
    """Write photos with detail at all scales, as a camera's JPEG encoder leaves them."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(PHOTOS):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for step in (4, 16, 64, 256):
            coarse = rng.random((HEIGHT // step + 2, WIDTH // step + 2, 3), np.float32)
            pixels += coarse.repeat(step, 0).repeat(step, 1)[:HEIGHT, :WIDTH] / 4
        paths.append(folder / f"photo-{index}.jpg")
        Image.fromarray((pixels * 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def one_after_the_other(paths: list[Path]) -> list[np.ndarray]:
    """Load images as upstream does, in plain Pillow and NumPy."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(ImageOps.exif_transpose(image).convert("RGB"))
    target = target_size([image.width / image.height for image in images])
    mean, deviation = (np.array(x, np.float32) for x in norm_constants("dinov2"))
    result = []
    for image in images:
        scale = max(target[0] / image.width, target[1] / image.height) + 1e-8
        size = int(np.floor(image.width * scale)), int(np.floor(image.height * scale))
        small = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
        left, top = (size[0] - target[0]) // 2, (size[1] - target[1]) // 2
        pixels = np.asarray(small.crop((left, top, left + target[0], top + target[1])), np.float32) / 255
        result.append(((pixels - mean) / deviation).transpose(2, 0, 1)[None])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("build/loading.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder))
        ours, plain = load_images([*map(str, paths)]), one_after_the_other(paths)
        worst = max(float(np.abs(view["img"] - image).max()) for view, image in zip(ours, plain, strict=True))
        times: dict[str, list[float]] = {"plain": [], "mapengine": []}
        for _ in range(args.rounds):
            for name, run in (("plain", lambda: one_after_the_other(paths)), ("mapengine", lambda: load_images(paths))):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    record: dict[str, Any] = {
        "benchmark": "loading",
        "what": f"{PHOTOS} JPEG files of {WIDTH}x{HEIGHT} to normalised views, {args.rounds} rounds in turn",
        "threads": usable_processors(),
        **record_origin("mapengine", "pillow", "numpy"),
        "results": {
            "seconds": medians,
            "ratio": statistics.median(a / b for a, b in zip(times["plain"], times["mapengine"], strict=True)),
            "largest_difference": worst,
        },
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
