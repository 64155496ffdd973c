"""Messages of several topics that were taken at about the same time, as one set; topics that fall silent are left out.

``message_filters`` has an approximate synchronizer too. It waits for all of its topics, for ever if one stops; here a
camera that stops must not stop the others, and only the newest set is wanted.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

IMAGE, DEPTH, POSE, CAMERA_INFO = "image", "depth", "pose", "camera_info"

_CAPACITY = {IMAGE: 10, DEPTH: 10, POSE: 1000}
"""Messages of a topic that wait for others: an image is large, and poses come often."""
_JUMP = 1_000_000_000
"""Nanoseconds by which stamps go back only if a clock was set, or a recording began again."""


@dataclass
class _Stream:
    """Messages of one topic as (stamp, message), sorted by stamp."""

    waiting: list[tuple[int, Any]] = field(default_factory=list)
    arrived: float | None = None
    newest: int = 0
    since: float = 0.0

    def is_silent(self, now: float, timeout: float) -> bool:
        return now - max(self.since, -1.0 if self.arrived is None else self.arrived) > timeout

    def nearest(self, stamp: int) -> tuple[int, Any]:
        return min(self.waiting, key=lambda entry: abs(entry[0] - stamp))


@dataclass(frozen=True)
class FrameSet:
    """What was taken at about one time.

    Attributes:
        stamp: of the newest image, nanoseconds.
        messages: per camera, in their order, its messages by kind; without the cameras and kinds that are silent.
    """

    stamp: int
    messages: Mapping[str, Mapping[str, Any]]


class Synchronizer:
    """Finds sets of messages whose stamps differ by at most a tolerance.

    A set has a message of every topic that is not silent: a camera without images for ``timeout`` seconds is left out
    with all of its topics, and a topic of depth or poses alone. Until topics have been silent for so long from the
    first image on, they are waited for. ``CameraInfo`` is not matched by its stamp: the newest one counts.

    Attributes:
        tolerance: nanoseconds; may be changed.
        timeout: seconds; may be changed.
        jumps: how often stamps went back, and everything that waited was dropped.
    """

    def __init__(self, cameras: Mapping[str, Sequence[str]], tolerance: int, timeout: float) -> None:
        """Expect the ``IMAGE`` of every camera, and the further kinds that are named for it."""
        self.tolerance, self.timeout = tolerance, timeout
        self._unmatched: Counter[str] = Counter()
        self.jumps = 0
        self._kinds = {name: tuple(kind for kind in kinds if kind != CAMERA_INFO) for name, kinds in cameras.items()}
        self._streams = {(name, kind): _Stream() for name, kinds in cameras.items() for kind in (IMAGE, *kinds)}
        self._infos: dict[str, Any] = {}
        self._used: Counter[str] = Counter()

    def add(self, camera: str, kind: str, stamp: int, message: Any, now: float) -> FrameSet | None:
        """Take a message in; return the set that it completes.

        Args:
            camera: its name. kind: which topic of it.
            stamp: of the message's header, nanoseconds.
            message: whatever is to be found in the set.
            now: seconds of a clock that is not set, by which silence is measured.
        """
        stream = self._streams[camera, kind]
        if kind == IMAGE:
            self._begin(camera, now)
        stream.arrived = now
        if kind == CAMERA_INFO:
            self._infos[camera] = message
            return self._match(now)
        if stamp < stream.newest - _JUMP:
            self._forget()
        if kind == IMAGE and stamp <= self._used[camera]:
            self._unmatched[camera] += 1
            return None
        stream.newest = max(stream.newest, stamp)
        insort(stream.waiting, (stamp, message), key=itemgetter(0))
        while len(stream.waiting) > _CAPACITY[kind]:
            del stream.waiting[0]
            self._unmatched[camera] += kind == IMAGE
        return self._match(now)

    def take_unmatched(self) -> dict[str, int]:
        """Return per camera how many images came into no set since the last call: late, alone, or older than one."""
        found = {name: count for name, count in self._unmatched.items() if count}
        self._unmatched.clear()
        return found

    def silent(self, now: float) -> list[tuple[str, str]]:
        """Return (camera, kind) of every topic that nothing comes from; of a silent camera the image alone."""
        found = []
        for name, kinds in self._kinds.items():
            if self._streams[name, IMAGE].is_silent(now, self.timeout):
                found.append((name, IMAGE))
                continue
            found += [(name, kind) for kind in kinds if self._streams[name, kind].is_silent(now, self.timeout)]
            info = self._streams.get((name, CAMERA_INFO))
            if info is not None and name not in self._infos and info.is_silent(now, self.timeout):
                found.append((name, CAMERA_INFO))
        return found

    def _begin(self, camera: str, now: float) -> None:
        """Where images begin, after none or after silence, give what belongs to them time to come."""
        images = [self._streams[name, IMAGE] for name in self._kinds]
        if all(stream.is_silent(now, self.timeout) or stream.arrived is None for stream in images):
            for stream in images:
                stream.since = now
        own = self._streams[camera, IMAGE]
        if own.arrived is None or own.is_silent(now, self.timeout):
            for (name, kind), stream in self._streams.items():
                if name == camera and kind != IMAGE:
                    stream.since = now

    def _forget(self) -> None:
        self.jumps += 1
        self._used.clear()
        for (name, kind), stream in self._streams.items():
            self._unmatched[name] += len(stream.waiting) * (kind == IMAGE)
            stream.waiting, stream.newest = [], 0

    def _match(self, now: float) -> FrameSet | None:
        silent = set(self.silent(now))
        cameras = [name for name in self._kinds if (name, IMAGE) not in silent]
        wanted = [
            (name, kind) for name in cameras for kind in (IMAGE, *self._kinds[name]) if (name, kind) not in silent
        ]
        for name in cameras:
            expected = (name, CAMERA_INFO) in self._streams and (name, CAMERA_INFO) not in silent
            if expected and name not in self._infos:
                return None
        if not wanted or not all(self._streams[key].waiting for key in wanted):
            return None
        # The topic that is behind the others decides: nothing newer has all of its partners.
        pivot = min(self._streams[key].waiting[-1][0] for key in wanted)
        chosen = {key: self._streams[key].nearest(pivot) for key in wanted}
        stamps = [stamp for stamp, _ in chosen.values()]
        if max(stamps) - min(stamps) > self.tolerance:
            return None
        found: dict[str, dict[str, Any]] = {}
        for (name, kind), (stamp, message) in chosen.items():
            found.setdefault(name, {})[kind] = message
            waiting = self._streams[name, kind].waiting
            older = sum(entry[0] < stamp for entry in waiting)
            del waiting[: older + 1]
            if kind == IMAGE:
                self._unmatched[name] += older
                self._used[name] = stamp
                if name in self._infos:
                    found[name][CAMERA_INFO] = self._infos[name]
        newest = max(stamp for (_, kind), (stamp, _) in chosen.items() if kind == IMAGE)
        return FrameSet(newest, found)
