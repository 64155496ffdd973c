"""Pages of mapped files are given back, and come back when they are read."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from mapengine.runtime.backends.mapped_files import release_pages
from mapengine.runtime.system.machine import resident_bytes

SIZE = 64 * 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped where")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "two words.data"
    path.write_bytes(np.arange(SIZE // 4, dtype=np.uint32).tobytes())
    return path


@linux
def test_resident_memory_falls_and_the_values_stay(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        values = np.frombuffer(mapped, np.uint32)
        total = int(values.sum(dtype=np.uint64))
        before = resident_bytes()
        assert release_pages(weights) == SIZE
        assert before - resident_bytes() > 0.9 * SIZE
        assert int(values.sum(dtype=np.uint64)) == total
        del values


@linux
def test_what_may_have_been_written_to_is_left_alone(weights: Path) -> None:
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"\xff\xff\xff\xff"
        assert release_pages(weights) == 0
        assert mapped[:4] == b"\xff\xff\xff\xff"


def test_a_file_that_is_not_mapped_is_no_error(tmp_path: Path) -> None:
    assert release_pages(tmp_path / "missing") == 0
