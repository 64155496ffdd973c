"""How a scene is read and reconstructed: the options of `run`, of the command for all scenes and of each scene."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mapengine.runtime.bundle.requests import PATCH_SIZE, rounded_to_patches
from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.options import InferOptions
from mapengine.runtime.outputs.frame import check_frame
from mapengine.runtime.system.sizes import parse_pixels

PATHS = ("intrinsics", "masks")
"""Options that may be paths; in a list of scenes they are relative to its folder, as inputs are."""
_GIVEN = (*PATHS, "depth_scale", "metric")
_READING = tuple(option.name for option in fields(ReadOptions) if option.name not in PATHS)


@dataclass(frozen=True)
class SceneOptions:
    """The checked options of one scene.

    Attributes:
        size: (width, height) that the images are brought to; None for the nearest that the bundle serves.
        frame: world of the result, as ``Engine.reconstruct`` takes it.
        given: intrinsics, masks, depth_scale and metric, for ``open_views``.
        reading: which views are taken, and what of them.
        inference: options of ``Engine.infer``.
    """

    size: tuple[int, int] | None = None
    frame: str = "given"
    given: Mapping[str, Any] = field(default_factory=dict)
    reading: ReadOptions = ReadOptions()  # noqa: RUF009 - it is frozen
    inference: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SceneOptions:
        """Return options by name; what is None counts as not given.

        ``confidence_percentile`` asks for the confidence mask, too, as it does in `run`.

        Raises:
            InputError: an option that does not exist, or a value that is refused.
        """
        rest = {name: value for name, value in values.items() if value is not None}
        size, frame = rest.pop("size", None), rest.pop("frame", "given")
        check_frame(frame)
        given = {name: rest.pop(name) for name in _GIVEN if name in rest}
        reading = ReadOptions(**{name: rest.pop(name) for name in _READING if name in rest})
        if "confidence_percentile" in rest:
            rest.setdefault("apply_confidence_mask", rest["confidence_percentile"] != 0)
        if not reading.gives("intrinsics"):
            rest["ignore_calibration_inputs"] = True
        InferOptions.of(**rest)
        return cls(None if size is None else _size(size), frame, given, reading, rest)

    @property
    def files(self) -> list[str]:
        """Paths among the options, which are read as the inputs are."""
        return [os.fspath(self.given[name]) for name in PATHS if isinstance(self.given.get(name), str)]


def options_digest(values: Mapping[str, Any], *more: Any) -> str:
    """Return the SHA-256 of what options by name mean, defaults included, and of ``more`` that decides a result."""
    try:
        options = SceneOptions.of(values)
        meant: Any = {**asdict(options), "inference": asdict(InferOptions.of(**options.inference))}
    except InputError:  # the scene fails, and is no longer the same when they are put right
        meant = dict(values)
    return hashlib.sha256(json.dumps([meant, *more], sort_keys=True, default=str).encode()).hexdigest()


def _size(size: Any) -> tuple[int, int]:
    sides = parse_pixels(size) if isinstance(size, str) else size
    is_pair = isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
    if not is_pair:
        raise InputError(f"size is {size!r}; give (width, height) in pixels, such as [518, 392] or 518x392")
    width, height = sides
    near = rounded_to_patches(width, height)
    if (width, height) != near:
        raise InputError(
            f"size {width}x{height} is not a multiple of {PATCH_SIZE} pixels on both sides; the nearest is "
            f"{near[0]}x{near[1]}"
        )
    return width, height
