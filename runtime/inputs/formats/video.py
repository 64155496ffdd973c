"""Video files: their frames, decoded in order as they are needed. Needs PyAV, the extra ``video``."""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...errors import BackendUnavailableError, ImageReadError
from ..files.opening import VIDEO_SUFFIXES
from ..resolutions import Size
from .view_files import InputFormat, ReadOptions, ViewFiles


def _matches(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def _read(path: Path, options: ReadOptions) -> list[ViewFiles]:
    """Return all frames; nothing is decoded but the first one, whose size all of them share."""
    video = _Video(path)
    return [
        ViewFiles(
            _Frame(video, stamp), name=f"{path.name}#{index:06d}", time=float((stamp - video.stamps[0]) * video.unit)
        )
        for index, stamp in enumerate(video.stamps)
    ]


class VideoFacts(NamedTuple):
    """What a video says of itself: (W, H) of its frames as they are stored, how many there are, and its seconds."""

    size: Size
    frames: int
    seconds: float


def video_facts(path: Path) -> VideoFacts:
    """Return what a video's header and the list of its packets say; no frame is decoded.

    Raises:
        ImageReadError: it cannot be read as a video.
        BackendUnavailableError: PyAV is not installed.
    """
    with _opened(path) as container:
        stream = _stream(path, container)
        stamps, _ = _stamps(path, container, stream)
        seconds = float((stamps[-1] - stamps[0]) * stream.time_base)
        return VideoFacts((stream.codec_context.width, stream.codec_context.height), len(stamps), seconds)


class _Video:
    """One video, whose frames several threads ask for, nearly in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wanted: set[int] = set()
        self._lock = threading.Lock()
        self._container: Any = None
        self._frames: Any = None
        self._position = -(2**63)
        self._waiting: dict[int, Image.Image] = {}
        with _opened(path) as container:
            stream = _stream(path, container)
            self.unit = stream.time_base
            self.stamps, self._keys = _stamps(path, container, stream)
        self.size: Size = self.frame(self.stamps[0]).size

    def seconds(self, stamp: int) -> float:
        """From the first frame on."""
        return float((stamp - self.stamps[0]) * self.unit)

    def frame(self, stamp: int) -> Image.Image:
        """Decode the frame at a time, upright; several threads may ask."""
        with self._lock:
            try:
                return self._frame(stamp)
            except ImageReadError:
                raise
            except Exception as error:  # see _stamps
                raise ImageReadError(f"{self.path}: cannot be decoded ({error}); convert it to MP4 again") from error

    def _frame(self, stamp: int) -> Image.Image:
        if stamp in self._waiting:
            return self._waiting.pop(stamp)
        key = self._keys[max(bisect_right(self._keys, stamp) - 1, 0)] if self._keys else self.stamps[0]
        if self._container is None or stamp <= self._position or key > self._position:
            if self._container is None:
                self._container = _opened(self.path)
                _stream(self.path, self._container).thread_type = "AUTO"
            stream = _stream(self.path, self._container)
            self._container.seek(key, stream=stream, backward=True)
            self._frames = self._container.decode(stream)
        for frame in self._frames:
            if frame.pts is None:
                continue
            self._position = frame.pts
            if frame.pts >= stamp:
                return _upright(frame)
            if frame.pts in self.wanted:  # another thread asks for it at once
                self._waiting[frame.pts] = _upright(frame)
        self._container.close()
        self._container = None
        raise ImageReadError(f"{self.path}: ends before the frame at {float(stamp * self.unit):.3f} s; is it cut off?")


def _stamps(path: Path, container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """The times of all frames and of those that need no others, ascending."""
    try:
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
    except Exception as error:  # FFmpeg's errors have many types
        raise ImageReadError(f"{path}: cannot be read as a video ({error}); convert it to MP4 again") from error
    stamps = sorted({packet.pts for packet in packets})
    if not stamps:
        raise ImageReadError(f"{path}: holds no frame that can be found; convert it to MP4 again")
    return stamps, sorted({packet.pts for packet in packets if packet.is_keyframe})


def _opened(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise BackendUnavailableError(
            f"{path}: reading a video needs PyAV; install it with: pip install 'mapengine[video]'"
        ) from None
    try:
        return av.open(str(path))
    except Exception as error:  # see _stamps
        raise ImageReadError(f"{path}: cannot be read as a video ({error}); convert it to MP4") from error


def _stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise ImageReadError(f"{path}: has no video stream; give a file with pictures")
    return container.streams.video[0]


@dataclass(frozen=True)
class _Frame:
    """A frame as :class:`.view_files.Picture`."""

    video: _Video
    stamp: int

    @property
    def size(self) -> Size:
        return self.video.size

    def expect(self) -> None:
        self.video.wanted.add(self.stamp)

    def read(self) -> Image.Image:
        return self.video.frame(self.stamp)


def _upright(frame: Any) -> Image.Image:
    """A frame as it is shown: a phone stores how it was held, in degrees counter-clockwise."""
    image: Image.Image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


VIDEO = InputFormat("video", _matches, _read)
