"""How long each kernel takes beside the best native attention, where that was measured, for ``--attention auto``.

``speeds.json`` has, per compute capability times ten, the GPU and, per sequence length, milliseconds of attention with
24 heads of 64 channels in FP16. ``benchmarks/attention_speeds.py`` writes it from a record of a GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPEEDS = Path(__file__).with_name("speeds.json")


@dataclass(frozen=True)
class Speed:
    """Times at one sequence length, in milliseconds.

    Attributes:
        gpu: its name. length: tokens. native: the fastest of PyTorch's backends, which stand for an engine's own
            attention. kernels: by name (``flash``, ``int8``).
    """

    gpu: str
    length: int
    native: float
    kernels: dict[str, float]


@cache
def _stored() -> dict[str, dict[str, dict[str, float]]]:
    stored: dict[str, dict[str, dict[str, float]]] = json.loads(SPEEDS.read_text(encoding="utf-8"))
    return stored


def speed_at(architecture: int, length: int) -> Speed | None:
    """Return what was measured on an architecture at the sequence length that is nearest by ratio; None if nothing
    was."""
    entry = _stored().get(str(architecture))
    if entry is None:
        return None
    times: dict[str, dict[str, float]] = entry["lengths"]  # type: ignore[assignment]
    nearest = min(times, key=lambda known: max(int(known) / length, length / int(known)))
    kernels = {name: time for name, time in times[nearest].items() if name != "native"}
    return Speed(str(entry["gpu"]), int(nearest), times[nearest]["native"], kernels)
