"""Views that are read when they are resized: few of them are in memory at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import open_views, read_views

from .view_files import DEPTH, POSE, K

PEAK = """
import resource, sys
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import open_views
views = preprocess_views(open_views(sys.argv[1]), (140, 112))
print(len(views), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_stored_views_are_those_that_are_read_at_once(folder: Path) -> None:
    given = ([folder / "a.png", folder / "b.png"], K, [POSE, POSE], [folder / "a.depth.png", DEPTH])
    stored, read = preprocess_views(open_views(*given), (28, 28)), preprocess_views(read_views(*given), (28, 28))
    for one, other in zip(stored, read, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_size_is_known_before_anything_is_decoded(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:200])
    assert open_views([folder / "cut.png"])[0].size == (56, 42)


@pytest.mark.slow
def test_32_large_photographs_take_the_memory_of_32_small_ones(tmp_path: Path) -> None:
    """Each of 6 megapixels takes 24 MB when it is decoded: all of them 770 MB, those of two threads 50 MB."""

    def peak(size: tuple[int, int]) -> int:
        folder = tmp_path / f"{size[0]}"
        folder.mkdir()
        Image.effect_noise(size, 40).convert("RGB").save(folder / "0.jpg")
        for index in range(1, 32):
            shutil.copyfile(folder / "0.jpg", folder / f"{index}.jpg")
        command = ["taskset", "-c", "0,1"] if shutil.which("taskset") else []
        command += [sys.executable, "-c", PEAK, str(folder)]
        count, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert count == "32"
        return int(kilobytes) // 1000

    small, large = peak((300, 200)), peak((3000, 2000))
    assert large - small < 250
