"""What ``--attention auto`` means for a plan: native attention, unless a kernel of ours was measured to be faster."""

from __future__ import annotations

from collections.abc import Sequence

from mapengine.kernels.speeds import Speed, speed_at
from mapengine.runtime.backends.table import EIGHT_BIT

from .choice import KernelChoice

WORTH = 1.1
"""How many times as fast as native attention a kernel has to be: cutting costs launches, and fusions across the cut."""

EXACT, ROUNDED = ("flash",), ("flash", "int8")


def choose_attention(architectures: Sequence[int], length: int, precision: str) -> tuple[KernelChoice | None, str]:
    """The kernel for attention over all views, and why.

    Args:
        architectures: compute capabilities, times ten, that the plan is for; empty if it is for a range of them.
        length: tokens of the usual request.
        precision: of the bundle. INT8 scores are for bundles that round activations anyway.

    Returns:
        None for native attention; and a sentence for the user.
    """
    if not architectures:
        return None, "attention: native, because the plan is for a range of GPUs"
    names = ROUNDED if precision in EIGHT_BIT else EXACT
    speeds: list[Speed] = []
    for architecture in architectures:
        found = speed_at(architecture, length)
        if found is None:
            return None, f"attention: native, because no kernel was timed on compute capability {architecture / 10}"
        speeds.append(found)
    # A plan is the same for all of its targets, so the kernel has to be worth it on the worst of them.
    gains = {name: min(speed.native / speed.kernels[name] for speed in speeds) for name in names}
    best = max(names, key=lambda name: gains[name])
    what = f"{best} was {gains[best]:.2f} times as fast on {speeds[0].gpu} at {speeds[0].length} tokens"
    if gains[best] >= WORTH:
        return KernelChoice(best), f"attention: {best}, because {what}"
    return None, f"attention: native, because {what}, below {WORTH} times"
