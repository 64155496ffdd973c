"""Options of a build that only TensorRT has, and the compute capabilities that a plan is compiled for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.errors import InputError

_LEVELS = range(6)
_TARGET = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)")
_ELSEWHERE = {
    "8.7": "Orin",
    "8.8": "Jetson",
    "9.0": "Hopper",
    "10.0": "data-centre Blackwell",
    "10.3": "data-centre Blackwell",
    "11.0": "Thor",
}
"""GPUs of ``tensorrt`` that ``tensorrt-rtx`` has no target for (support matrix of TensorRT-RTX 1.7)."""


@dataclass(frozen=True)
class PlanSettings:
    """How TensorRT compiles a plan.

    Attributes:
        targets: compute capabilities that a tensorrt-rtx plan is compiled for, such as ``("8.9",)``; empty for
            the flavour's default.
        memory_limit: bytes of workspace that a kernel may use; None for no limit.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None for the library's default.
    """

    targets: tuple[str, ...] = ()
    memory_limit: int | None = None
    optimization_level: int | None = None


def check_settings(settings: PlanSettings) -> None:
    """Refuse values that no TensorRT takes.

    Raises:
        InputError: the message names the option.
    """
    if settings.memory_limit is not None and settings.memory_limit < 1:
        raise InputError(f"memory_limit is {settings.memory_limit} bytes; give a positive number")
    if settings.optimization_level is not None and settings.optimization_level not in _LEVELS:
        raise InputError(f"optimization_level is {settings.optimization_level!r}; give 0 (fastest build) to 5")


def parse_target(text: str) -> str:
    """Return ``sm_89``, ``sm89``, ``89`` or ``8.9`` as ``8.9``.

    Raises:
        InputError: anything else.
    """
    match = _TARGET.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise InputError(f"target {text!r} is no compute capability; give it as sm_89 or 8.9")
    return f"{int(match[1])}.{match[2]}"


def check_targets(flavour: Flavour, targets: Iterable[str]) -> tuple[str, ...]:
    """Return the named compute capabilities, each once; none means the flavour's default.

    Raises:
        InputError: the flavour cannot compile for one of them.
    """
    chosen = tuple(dict.fromkeys(parse_target(target) for target in targets))
    if not chosen:
        return ()
    if not flavour.is_rtx:
        raise InputError("tensorrt builds for the GPU that is there; leave out the targets")
    known = known_targets(flavour)
    for target in chosen:
        if target not in known:
            kind = _ELSEWHERE.get(target)
            fix = (
                f"build on a machine with that GPU ({kind}) with the backend tensorrt" if kind else "choose one of them"
            )
            raise InputError(
                f"{flavour.name} {flavour.version} compiles for {', '.join(map(_sm, known))}, not for {_sm(target)}; "
                f"{fix}"
            )
    return chosen


def known_targets(flavour: Flavour) -> tuple[str, ...]:
    """Return every compute capability that the flavour can be told to compile for, ascending; TensorRT has none."""
    if not flavour.is_rtx:
        return ()
    names = [name for name in dir(flavour.library.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return tuple(sorted((parse_target(name) for name in names), key=lambda text: tuple(map(int, text.split(".")))))


def set_targets(flavour: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    """Write checked targets into a builder's configuration."""
    if not (flavour.is_rtx and targets):
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(flavour.library.ComputeCapability, f"SM{target.replace('.', '')}")
        if not config.set_compute_capability(capability, index):
            raise InputError(f"{flavour.name} {flavour.version} refuses the target {_sm(target)}; choose another")


def _sm(target: str) -> str:
    return f"sm_{target.replace('.', '')}"
