"""Requests to end: the interrupt key, the end of the session, and the polite kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_INTERRUPT = signal.SIGINT
_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def interrupt_on_end() -> None:
    """Handle every request to end like the interrupt key, so that temporary files go. For the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup lets the program outlive its terminal
            signal.signal(number, _interrupt)


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Let the block finish, then be interrupted: for imports that swallow ``KeyboardInterrupt``, such as trimesh."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    for number in (_INTERRUPT, *_ENDINGS):
        if callable(signal.getsignal(number)):
            before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
