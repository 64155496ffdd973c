"""Arrays in ``.npy`` and ``.npz`` files that somebody else made: what they hold is known before it is unpacked.

Four megabytes of an archive can stand for gigabytes of zeros, and an array of objects is a pickle, which is a program.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .reading import PathLike, open_file
from .sizes import gigabytes

MOST_TIMES = 100
"""How much larger than its file an archive may be unpacked; depth and masks shrink to a tenth or so."""
_ALWAYS = 2**26  # bytes that a small archive may have in any case
_KINDS = "biufcU"
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class StoredArray:
    """An array that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _open: Callable[[], IO[bytes]]

    @property
    def nbytes(self) -> int:
        """Bytes that it has in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """Read it (ValueError if the file ends before it does)."""
        with self._open() as file:
            result: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return result


@contextmanager
def stored_arrays(path: PathLike) -> Iterator[Mapping[str, StoredArray]]:
    """Yield the arrays of an archive by their names, or of a single ``.npy`` under the empty name.

    Raises:
        OSError: as :func:`.reading.open_file`.
        ValueError: it is neither, is damaged, or holds what is no array of numbers or text.
    """
    with open_file(path) as file:
        begin = file.read(2)
        file.seek(0)
        if begin == b"PK":
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                yield {member.filename.removesuffix(".npy"): _of_member(archive, member) for member in members}
        else:
            array = _described(file, lambda: _again(file))
            if os.fstat(file.fileno()).st_size < file.tell() + array.nbytes:
                raise ValueError("it is truncated")
            yield {"": array}


def load_arrays(path: PathLike) -> dict[str, NDArray[Any]]:
    """Return all arrays of an archive; raises as :func:`stored_arrays`, and where it would unpack to far more than its
    file holds (ValueError)."""
    with stored_arrays(path) as arrays:
        needed = sum(array.nbytes for array in arrays.values())
        if needed > max(_ALWAYS, MOST_TIMES * os.stat(path).st_size):
            raise ValueError(f"it would unpack to {gigabytes(needed)}, more than {MOST_TIMES} times its size")
        return {name: array.read() for name, array in arrays.items()}


def _again(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


def _of_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> StoredArray:
    if member.compress_type not in _PACKINGS:
        raise ValueError("it is packed in a way that NumPy does not write")
    with archive.open(member) as file:
        return _described(file, lambda: archive.open(member))


def _described(file: IO[bytes], opened: Callable[[], IO[bytes]]) -> StoredArray:
    """What the header of an array says."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("it holds something other than plain arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in _KINDS or any(side < 0 for side in shape):
        raise ValueError(f"it holds {dtype} of shape {shape}, which is no array of numbers")
    return StoredArray(shape, dtype, opened)
