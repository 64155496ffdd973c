"""What the control groups of this process leave it (Linux): a container, a service or a job may have less than the
machine.

Version 1 has a tree of groups per controller, version 2 one for all; a machine may mount both. What limits a group
limits everything below it, so each group is asked from the process's own up to the mount point: what lies above that
(outside of a container) is not seen, but in version 1 a group tells the narrowest limit of all of these.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""Of the file system that has ``proc`` and the control groups."""
_NO_LIMIT = 2**60
"""Version 1 writes the largest number of pages there can be where nothing is limited."""


@dataclass(frozen=True)
class MemoryLimits:
    """The narrowest limits of all control groups, in bytes; infinite where there is none.

    Attributes:
        whole: that a group may hold.
        free: that it may take besides what it holds and cannot drop.
    """

    whole: float = math.inf
    free: float = math.inf

    def narrowed(self, other: MemoryLimits) -> MemoryLimits:
        """Return the narrower of each limit."""
        return MemoryLimits(min(self.whole, other.whole), min(self.free, other.free))


def memory_limits(root: Path = ROOT) -> MemoryLimits:
    """Return the narrowest limits of the control groups that this process is in; no limits where there are none.

    Takes milliseconds where groups count their memory anew when they are asked. Never raises: what cannot be read is no
    limit.

    Args:
        root: folder with ``proc/self`` and the mount points that it names.
    """
    found = MemoryLimits()
    for version, group in _groups(root):
        found = found.narrowed(_memory_2(group) if version == 2 else _memory_1(group))
    return found


def processor_limit(root: Path = ROOT) -> float:
    """Return how many processors the control groups of this process may use at a time, on average; else infinite.

    Never raises: what cannot be read is no limit.

    Args:
        root: as in :func:`memory_limits`.
    """
    limit = math.inf
    for version, group in _groups(root):
        if version == 2:
            quota, _, period = _text(group / "cpu.max").partition(" ")
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        limit = min(limit, _ratio(quota, period))
    return limit


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of the groups that this process is in, each with those that it lies in."""
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):  # 4:memory:/a/b, and 0::/a/b for version 2
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            paths |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, rest = line.partition(" - ")
        where, kind = mount.split(), rest.split()
        if len(where) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        known = [paths[name] for name in ([""] if version == 2 else kind[2].split(",")) if name in paths]
        if not known:
            continue
        top = root / _unescaped(where[4]).lstrip("/")
        folder = top / _below(known[0], _unescaped(where[3]))
        for group in (folder, *folder.parents):
            yield version, group
            if group == top:
                break


def _below(path: str, mounted: str) -> str:
    """Return where a group lies below a mount point that shows the group ``mounted``.

    Inside a container the two may be told as seen from outside, and the group not be among what is mounted; then it is
    the mount point that stands for it, as it does where the path has no folder.
    """
    inside = path == mounted or path.startswith(f"{mounted.rstrip('/')}/")
    relative = path[len(mounted) :].strip("/") if inside else ""
    return "" if ".." in relative.split("/") else relative


def _memory_2(group: Path) -> MemoryLimits:
    # Beyond `high` a group is not killed, but slowed down until nothing moves.
    memory = min(_number(group / name) for name in ("memory.max", "memory.high"))
    return MemoryLimits(memory, memory - _held(group / "memory.current", _statistics(group), "inactive_file"))


def _memory_1(group: Path) -> MemoryLimits:
    known = _statistics(group)
    # The groups above are known by their least limit even where they are not mounted.
    memory = min(_number(group / "memory.limit_in_bytes"), known.get("hierarchical_memory_limit", math.inf))
    free = memory - _held(group / "memory.usage_in_bytes", known, "total_inactive_file")
    swap = min(_number(group / "memory.memsw.limit_in_bytes"), known.get("hierarchical_memsw_limit", math.inf))
    free = min(free, swap - _held(group / "memory.memsw.usage_in_bytes", known, "total_inactive_file"))
    if _text(group / "memory.use_hierarchy") == "0":  # neither limits nor counts what is below
        return MemoryLimits()
    return MemoryLimits(memory, free)


def _held(usage: Path, known: dict[str, float], reclaimable: str) -> float:
    """Return the bytes that a group holds without the pages of files that it would drop first."""
    used = _number(usage)
    return max(0.0, used - known.get(reclaimable, 0.0)) if math.isfinite(used) else 0.0


def _ratio(quota: str, period: str) -> float:
    """Return processors from microseconds of time per period; infinite without a quota (``max``, -1)."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return math.inf
    return int(quota) / int(period) or math.inf


def _statistics(group: Path) -> dict[str, float]:
    found = {}
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = _bounded(int(value))
    return found


def _number(file: Path) -> float:
    """Return the number in a file; infinite where it says so or is not there."""
    text = _text(file)
    return _bounded(int(text)) if text.isdecimal() else math.inf


def _bounded(value: int) -> float:
    return float(value) if value < _NO_LIMIT else math.inf


def _text(file: Path) -> str:
    return next(iter(_lines(file)), "").strip()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, which writes blanks as ``\\040``."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), os.fsencode(path))
    return os.fsdecode(raw)
