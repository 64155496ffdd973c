"""Requests to end: the interrupt key, the end of the session, and the polite kill."""

from __future__ import annotations

import signal
import threading

_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def interrupt_on_end() -> None:
    """Handle every request to end like the interrupt key, so that temporary files go. For the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup lets the program outlive its terminal
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
