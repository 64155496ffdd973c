"""How much of a network's own rounding the golden check of a bundle allows for."""

from __future__ import annotations

from collections.abc import Mapping

from mapengine.runtime.checks.parity import Predictions, measure_parity

MARGIN = 2.0
"""Times the error of the rounded network that an engine's may have. Kernels add in another order, so that numbers near
the middle of a step round to the other side and errors differ from run to run, but not in size; a kernel that computes
something else is outside."""


def rounding_tolerance(
    found: Mapping[str, Predictions], wanted: Mapping[str, Predictions], measured_with: str
) -> dict[str, float]:
    """Allowed difference per output, relative to its largest value: :data:`MARGIN` times what rounding cost.

    Args:
        found: predictions of the rounded network by case. wanted: of the one that does not round so.
        measured_with: for error messages.
    """
    parity = measure_parity(found, wanted, measured_with)
    return {key: MARGIN * output.max_rel for key, output in parity.outputs.items()}
