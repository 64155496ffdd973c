"""Work that ends at one of its changes of the file system, as a process does that is killed there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from mapengine.runtime.writing import replacement

STEPS = ("replace", "rename", "mkdir", "unlink", "rmdir", "open", "remove", "link")
"""The functions of ``os`` that are counted."""


class _Dead(BaseException):
    """Ends work; whatever it does on the way out is refused with this, too."""


def dies_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` until its change number ``step`` (from 0) of the file system, and let it change nothing from there.

    Files and locks are closed as at the end of a process, which :func:`is_killed_at` really ends; a process for each
    step would take ten times as long.

    Returns:
        Whether it had so many.
    """

    def refuse() -> None:
        raise _Dead

    with pytest.MonkeyPatch.context() as patch:
        reached = _end_at(step, patch.setattr, refuse)
        try:
            work()
        except BaseException:
            if not reached():
                raise
    return reached()


def is_killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child process that kills itself before its change number ``step``; whether it had so many."""
    child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent only
        _end_at(step, setattr, lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _end_at(step: int, replace: Callable[[object, str, object], None], end: Callable[[], object]) -> Callable[[], bool]:
    """Call ``end`` before every change from number ``step`` on; returns what says whether there was one."""
    left = step

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                end()
            return original(*arguments, **options)

        return call

    for name in STEPS:
        replace(os, name, counted(getattr(os, name)))
    replace(replacement, "exchange", counted(replacement.exchange))
    return lambda: left < 0
