from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mapengine.runtime.system.machine import resident_bytes
from mapengine.runtime.system.mapped_files import release_pages, released_meanwhile

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


@linux
def test_pages_are_released_while_they_are_read_and_at_the_end(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        values = np.frombuffer(mapped, np.uint32)
        before = resident_bytes()
        with released_meanwhile(weights):
            total = int(values.sum(dtype=np.uint64))
            until = time.monotonic() + 60
            while resident_bytes() - before > 0.1 * SIZE and time.monotonic() < until:
                time.sleep(0.01)
            assert resident_bytes() - before < 0.1 * SIZE
            assert int(values.sum(dtype=np.uint64)) == total
        assert resident_bytes() - before < 0.1 * SIZE
        del values


@linux
def test_a_small_file_is_released_at_the_end_also_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(SIZE // 4))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        values, before = np.frombuffer(mapped, np.uint8), resident_bytes()
        with pytest.raises(ValueError, match="axis 5"), released_meanwhile(path):
            _ = values.sum() + values.sum(axis=5)
        assert resident_bytes() - before < SIZE // 40
        del values
