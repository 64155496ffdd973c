"""Options of a build that only TensorRT has."""

from __future__ import annotations

from dataclasses import dataclass

from mapengine.runtime.errors import InputError

_LEVELS = range(6)


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
