"""The files of a bundle: regular, inside its folder, with the contents of the manifest, and still those that were read.

A bundle may be replaced while it is being read. Its manifest and its files would then be of two bundles, each intact.
So what a file is (device, inode, size, times) is noted when it is first looked at, and compared whenever it is read and
once more when everything has been. Likewise the folder, which may have been another one for a moment; links that lead
to it are followed once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from ..errors import BundleNotFoundError, BundleReplacedError, IntegrityError
from ..system.machine import usable_processors
from .file_record import FileRecord

HASH_BLOCK = 4 * 2**20
HASH_THREADS = 8
"""hashlib releases the GIL on large blocks; more threads than files or cores gain nothing."""

PAUSES = (0.01, 0.03, 0.1, 0.3)
"""Seconds before each further attempt to read a bundle that is being replaced."""
# A pipe that takes the place of a file must not block, nor a link be followed out of the folder.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))

T = TypeVar("T")


@dataclass(frozen=True)
class FileIdentity:
    """What changes when a file is replaced, or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Return the identity of a file by its status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class BundleFiles:
    """The files of one bundle as they were first seen. Threads may share it.

    Attributes:
        folder: as it was given, for messages. place: where it is, without links.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to look at the bundle in ``folder``."""
        self.folder = folder
        try:
            self.place = Path(os.path.realpath(folder))
        except ValueError:  # a name with a null byte, which is nowhere
            self.place = folder
        self._first: os.stat_result | None = None
        self._seen: dict[str, FileIdentity] = {}
        self._hashed: set[FileRecord] = set()

    def check_presence(self, record: FileRecord) -> None:
        """Refuse a file that is not there, not a regular file inside the folder, or of another size.

        Raises:
            BundleNotFoundError, IntegrityError, BundleReplacedError.
        """
        try:
            with self._opened(record.file) as file:
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError as error:
            fix = "copy the whole folder or build the bundle again"
            raise BundleNotFoundError(f"{self.folder} lacks the file {record.file} of its manifest; {fix}") from error
        except OSError as error:
            raise self.unreadable(record.file, error) from error
        if size != record.bytes:
            raise self.broken(record.file, f"has {size} bytes, but its manifest says {record.bytes}")

    def check_hashes(self, records: Iterable[FileRecord]) -> None:
        """Compare the SHA-256 of files with their records; of each once.

        Raises:
            BundleNotFoundError: a file is gone or unreadable.
            IntegrityError: a file has another SHA-256. BundleReplacedError: it is another file than before.
        """
        # Longest first, so that no thread ends alone with the largest file.
        left = sorted(set(records) - self._hashed, key=lambda record: -record.bytes)
        if not left:
            return
        with ThreadPoolExecutor(min(HASH_THREADS, len(left), usable_processors())) as pool:
            for record, digest in zip(left, pool.map(self.hash, (record.file for record in left)), strict=True):
                self._check_digest(record, digest)

    def hash(self, name: str) -> str:
        """SHA-256 of a file, read in large blocks into one buffer."""
        digest = hashlib.sha256()
        block = memoryview(bytearray(HASH_BLOCK))
        with self.open(name) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
            self._note(name, os.fstat(file.fileno()))
        return digest.hexdigest()

    def read(self, record: FileRecord, most: int | None = None) -> bytes:
        """Return the content of a file, whose SHA-256 is that of its record.

        Raises:
            BundleNotFoundError, IntegrityError, BundleReplacedError: as :meth:`check_hashes`; also for a file of more
                than ``most`` bytes.
        """
        if most is not None and record.bytes > most:
            raise self.broken(record.file, f"takes more than {most} bytes")
        with self.open(record.file) as file:
            content = file.read(record.bytes + 1)
        self._check_digest(record, hashlib.sha256(content).hexdigest())
        return content

    @contextmanager
    def mapped(self, record: FileRecord) -> Iterator[mmap.mmap]:
        """Map a file whose SHA-256 is that of its record: it may take gigabytes, and is read as it is used."""
        self.check_hashes([record])
        with self.open(record.file) as file:
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # an empty file cannot be mapped
                raise BundleNotFoundError(
                    f"{self.folder / record.file} cannot be read ({error}); build the bundle again"
                ) from error
            with content:
                yield content

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading.

        Raises:
            BundleNotFoundError: it is gone or unreadable.
            IntegrityError: it is not a regular file inside the folder. BundleReplacedError: it is another than before.
        """
        try:
            return self._opened(name)
        except OSError as error:
            raise self.unreadable(name, error) from error

    def check_unchanged(self) -> None:
        """Refuse what is no longer as it was when it was first looked at.

        Raises:
            BundleReplacedError: a file was replaced, written to or removed meanwhile.
        """
        for name, identity in self._seen.items():
            try:
                found = FileIdentity.of(os.stat(self.place / name))
            except OSError as error:
                raise self._replaced(name) from error
            if found != identity:
                raise self._replaced(name)
        if self._first is not None and _was_moved(self._first, os.stat(self.place)):
            raise self._replaced("")

    def broken(self, name: str, problem: str) -> IntegrityError:
        """Return the error for a file that is not what the manifest says."""
        return IntegrityError(f"{self.folder / name} {problem}; copy the whole folder again or build the bundle again")

    def unreadable(self, name: str, error: OSError) -> BundleNotFoundError:
        """Return the error for a file that the system does not let us read."""
        reason = error.strerror or str(error)
        path = self.folder / name
        return BundleNotFoundError(f"{path} cannot be read ({reason}); check that it exists and its permissions")

    def _opened(self, name: str) -> BufferedReader:
        """Open a regular file inside the folder; ``OSError`` as the system raises it."""
        if self._first is None:
            self._first = os.stat(self.place)
        path = os.path.realpath(self.place / name)
        if self.place not in Path(path).parents:
            raise self.broken(name, "is a link that leaves the folder")
        descriptor = os.open(path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.broken(name, "is not a regular file")
            self._note(name, status)
            return open(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _note(self, name: str, status: os.stat_result) -> None:
        identity = FileIdentity.of(status)
        if self._seen.setdefault(name, identity) != identity:
            raise self._replaced(name)

    def _check_digest(self, record: FileRecord, digest: str) -> None:
        if digest != record.sha256:
            raise self.broken(record.file, "differs from the hash in its manifest")
        self._hashed.add(record)

    def _replaced(self, name: str) -> BundleReplacedError:
        return BundleReplacedError(
            f"{self.folder / name} was replaced or changed while the bundle was being read; run it again when nothing "
            f"writes to the bundle"
        )


def _was_moved(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether a folder is another one, or was another one meanwhile.

    Renaming a folder changes its status, and not its content; a new file in it changes both at once.
    """
    if not os.path.samestat(before, now):
        return True
    return now.st_ctime_ns not in (before.st_ctime_ns, now.st_mtime_ns)


def while_replaced(read: Callable[[], T]) -> T:
    """Return what ``read`` returns; it is called again, a few times, while the bundle is being replaced.

    Raises:
        BundleReplacedError: the bundle was replaced in every attempt.
    """
    for pause in PAUSES:
        try:
            return read()
        except BundleReplacedError:
            time.sleep(pause)
    return read()
