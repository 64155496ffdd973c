"""A folder with the files of views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .view_files import DEPTH, IMAGE, POSE, K


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with depth, and text files of intrinsics and pose."""
    for name in ("b", "a"):
        Image.fromarray(IMAGE).save(tmp_path / f"{name}.png")
        Image.fromarray(np.rint(DEPTH * 1000).astype(np.uint16)).save(tmp_path / f"{name}.depth.png")
    np.savetxt(tmp_path / "K.txt", K)
    np.savetxt(tmp_path / "pose.txt", POSE, delimiter=", ")
    return tmp_path
