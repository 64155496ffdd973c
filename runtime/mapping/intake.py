"""Frames of a sequence as they come in: checked, encoded once, and all of one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..inputs.encoded import EncodedView

if TYPE_CHECKING:
    from ..engine import Engine


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is no positive number, or None where that may be (InputError)."""
    if optional and value is None:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; give a positive integer{' or None' if optional else ''}")


def encode_frame(engine: Engine, view: Mapping[str, Any] | EncodedView, before: EncodedView | None) -> EncodedView:
    """Run the image encoder on the next frame of a sequence.

    Args:
        engine: runs it.
        view: as ``infer`` takes it; its arrays may be filled anew afterwards.
        before: a frame before it, or None.

    Raises:
        InputError: as in ``infer``, and for a frame of another size than the one before it.
    """
    encoded = engine.encode([view])[0]
    if before is not None:
        there, here = np.shape(before.view["img"]), np.shape(encoded.view["img"])
        if there != here:
            raise InputError(
                f"the frame has the shape {here}, those before it {there}; bring all frames of a video to one size"
            )
    return encoded
