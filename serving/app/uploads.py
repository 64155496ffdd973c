"""The files that somebody uploaded: bounded, looked at before anything decodes them, and deleted."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.files.opening import VIDEO_SUFFIXES
from mapengine.runtime.inputs.formats.selection import natural_key
from mapengine.runtime.inputs.formats.video import video_facts
from mapengine.runtime.inputs.images import has_depth_pixels, image_size, image_suffixes, missing_extra
from mapengine.runtime.writing.files import writing

from .limits import UploadLimits

_CHUNK = 1 << 20
_LONGEST_NAME = 60
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names of devices on Windows."""

# FFmpeg decides by the content what a file is, and some of what it knows names other files, or addresses to load.
_CONTAINERS = (
    re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)", re.DOTALL),  # MP4, QuickTime, 3GP
    re.compile(rb"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
    re.compile(rb"\x00\x00\x01[\xba\xb3]"),  # MPEG
    re.compile(rb"(.{4})?\x47.{187}(.{4})?\x47", re.DOTALL),  # MPEG transport stream, with or without time codes
    re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # Windows Media
)
_BEGINNING = 512


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded and looked at.

    Attributes:
        number: by which the page names it.
        name: as its owner calls it.
        kind: ``"image"`` or ``"video"``.
        width, height: in pixels; of an image upright, of a video as its frames are stored.
        size: in bytes.
        frames, seconds: of a video; 1 and 0 of an image.
    """

    number: int
    name: str
    kind: str
    width: int
    height: int
    size: int
    frames: int = 1
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it for the page."""
        return asdict(self)


def accepted_suffixes() -> list[str]:
    """Return the endings of the files that can be read here; those of videos only with PyAV."""
    return sorted({*image_suffixes(), *(VIDEO_SUFFIXES if _reads_videos() else ())})


def unread_kinds() -> list[str]:
    """Return what cannot be read here for lack of a package of the extra ``app``, in words."""
    photographs = [] if ".heic" in image_suffixes() else ["HEIC and AVIF photographs"]
    return photographs + ([] if _reads_videos() else ["videos"])


def _reads_videos() -> bool:
    return importlib.util.find_spec("av") is not None


class Uploads:
    """The uploads of one visit, each in a folder of its own below ``folder``, which exists. Threads may share it."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._files: dict[int, tuple[Upload, Path]] = {}
        self._coming: dict[int, int] = {}
        """Bytes of those that are on their way, by number."""

    def receive(self, name: str, size: int, content: BinaryIO) -> Upload:
        """Store a file and look at it.

        Args:
            name: that its owner gave it; only its last part counts.
            size: how many bytes of ``content`` it has.

        Raises:
            InputError: it is too much, ends early, or is nothing that can be read; nothing of it is left.
            OutputError: it could not be stored, as where the disk is full; likewise.
        """
        name = safe_name(name)
        _check_suffix(name)
        with self._lock:
            self._limits.check_count(name, len(self._files) + len(self._coming))
            there = sum(self._coming.values()) + sum(upload.size for upload, _ in self._files.values())
            self._limits.check_size(name, size, there)
            if not size:
                raise InputError(f"{name}: is empty; choose another file")
            number = next(self._numbers)
            self._coming[number] = size
        place = self._folder / str(number)
        try:
            place.mkdir()
            path = place / name
            _copy(name, content, path, size)
            upload = self._looked_at(number, name, path, size)
            with self._lock:
                if number not in self._coming:
                    raise InputError(f"{name}: was removed while it was uploaded; upload it again")
                self._files[number] = upload, path
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._coming.pop(number, None)
        return upload

    def paths(self, numbers: Sequence[int]) -> list[Path]:
        """Return where uploads are, in the natural order of their names.

        Raises:
            InputError: there is none, or one of them is not there.
        """
        if not numbers:
            raise InputError("no file is chosen; drop images or a video, and tick what to use")
        with self._lock:
            missing = [number for number in numbers if number not in self._files]
            chosen = [self._files[number] for number in dict.fromkeys(numbers) if number in self._files]
        if missing:
            raise InputError("a file is no longer there; add it again")
        return [path for _, path in sorted(chosen, key=lambda entry: natural_key(entry[0].name))]

    def remove(self, numbers: Sequence[int]) -> None:
        """Delete uploads; those that are not there are none of them."""
        with self._lock:
            gone = [self._files.pop(number) for number in numbers if number in self._files]
        for _, path in gone:
            shutil.rmtree(path.parent, ignore_errors=True)

    def clear(self) -> None:
        """Delete all of them, and those that are on their way."""
        with self._lock:
            numbers = list(self._files)
            self._coming.clear()
        self.remove(numbers)

    def _looked_at(self, number: int, name: str, path: Path, size: int) -> Upload:
        """What a header says; nothing is decoded."""
        if path.suffix.lower() in VIDEO_SUFFIXES:
            with path.open("rb") as file:
                beginning = file.read(_BEGINNING)
            if not any(form.match(beginning) for form in _CONTAINERS):
                raise InputError(f"{name}: is not a video as its name says; convert it to MP4")
            facts = video_facts(path)
            self._limits.check_pixels(name, facts.size)
            return Upload(number, name, "video", *facts.size, size, facts.frames, facts.seconds)
        width, height = image_size(path)
        self._limits.check_pixels(name, (width, height))
        if has_depth_pixels(path):
            raise InputError(f"{name}: is a depth map of one channel and no photograph; leave it out")
        return Upload(number, name, "image", width, height, size)


def safe_name(name: str) -> str:
    """Return the last part of a name, short, and as a file may be called on any system."""
    last = _UNSAFE.sub("_", re.split(r"[/\\]", name)[-1]).strip(" ")
    stem, suffix = Path(last).stem, Path(last).suffix[:10]
    while len((stem + suffix).encode()) > 4 * _LONGEST_NAME or len(stem + suffix) > _LONGEST_NAME:
        stem = stem[:-1]
    name = (stem.strip(". ") or "file") + suffix.rstrip(". ")
    return f"_{name}" if _RESERVED.match(name) else name


def _check_suffix(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if missing_extra(Path(name)) is not None or (suffix in VIDEO_SUFFIXES and not _reads_videos()):
        raise InputError(f"{name}: needs one more package where the app runs: pip install 'mapengine[app]'")
    if suffix not in image_suffixes() and suffix not in VIDEO_SUFFIXES:
        kind = f"{suffix} files are" if suffix else "a file without an ending is"
        raise InputError(f"{name}: {kind} neither an image nor a video that can be read; give JPEG, PNG or MP4")


def _copy(name: str, content: BinaryIO, path: Path, size: int) -> None:
    left = size
    with path.open("wb") as file:
        while left:
            part = content.read(min(left, _CHUNK))
            if not part:
                raise InputError(f"{name}: {size - left} of {size} bytes arrived; upload it again")
            with writing(name):
                file.write(part)
                file.flush()
            left -= len(part)
