"""What is timed in a process of its own; that imports this module, and no pytest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mapengine.runtime.errors import BackendError


class Fake:
    """A subject without a network."""

    def __init__(self, precision: str = "fp32", seconds: float = 0.001, fail: str = "") -> None:
        if fail == "load":
            raise BackendError("it does not load")
        self.facts = {"kind": "bundle", "model": "m", "backend": "b", "device": "CPU", "precision": precision}
        self._seconds, self._fail, self._calls = seconds, fail, 0

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        if self._fail == "call" and len(files) > 1:
            raise ValueError("too many")
        if self._fail == "die":
            os._exit(9)
        self._calls += 1
        if self._fail == "late" and self._calls > 3:
            os._exit(9)
        return {"network": self._seconds / 2, "total": self._seconds * len(files)}

    def device_seconds(self) -> dict[str, float] | None:
        return {"host to device": 0.25}

    def device_bytes(self) -> int | None:
        return 5_000_000
