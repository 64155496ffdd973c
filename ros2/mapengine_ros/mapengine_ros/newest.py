"""One place for what waits: newer replaces older."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Newest(Generic[Item]):
    """Hands items from one thread to another; of those that wait only the newest stays."""

    def __init__(self) -> None:
        self._waiting: Item | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> Item | None:
        """Leave an item; return the one that it replaces, or itself after :meth:`close`."""
        with self._changed:
            if self._closed:
                return item
            replaced, self._waiting = self._waiting, item
            self._changed.notify()
            return replaced

    def take(self, timeout: float | None = None) -> Item | None:
        """Wait for an item and take it; None after :meth:`close`, or when none came within ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed, timeout)
            item, self._waiting = self._waiting, None
            return item

    def close(self) -> None:
        """Let :meth:`take` return None from now on; what waits is dropped."""
        with self._changed:
            self._closed, self._waiting = True, None
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed
