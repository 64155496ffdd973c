"""The arrays of a scene, with the checks of their shapes: what writes and draws scenes needs no more."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import all_finite, zero_outside
from ..inputs.stored_view import StoredView
from .formats.options import SaveOptions
from .frame import Alignment

SHAPES = {
    "points": ("V", "H", "W", 3),
    "colors": ("V", "H", "W", 3),
    "depth": ("V", "H", "W"),
    "confidence": ("V", "H", "W"),
    "mask": ("V", "H", "W"),
    "intrinsics": ("V", 3, 3),
    "poses": ("V", 4, 4),
}
DTYPES = {"colors": np.uint8, "mask": np.bool_}
"""Other than float32."""
IN_WORLD = ("points", "poses")
"""What is float64 in a world whose coordinates are large."""


def new_arrays(views: int, height: int, width: int) -> dict[str, NDArray[Any]]:
    """Return arrays of a scene, by name, with nothing in them yet."""
    sizes = {"V": views, "H": height, "W": width}
    return {
        name: np.empty([sizes[side] if isinstance(side, str) else side for side in shape], DTYPES.get(name, np.float32))
        for name, shape in SHAPES.items()
    }


def leave_out_what_is_not_finite(
    points: NDArray[np.float32],
    depth: NDArray[np.float32],
    confidence: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> None:
    """Take pixels without finite points or depth out of the ``mask``, and set both to 0 outside it, in place.

    Values that are not finite are no reconstruction, and file formats treat them differently.
    """
    if not (all_finite(points) and all_finite(depth)):
        mask &= np.isfinite(points).all(axis=-1)
        mask &= np.isfinite(depth)
    for view, is_valid in enumerate(mask):
        zero_outside(points[view], is_valid[..., None])
        zero_outside(depth[view], is_valid)
    if not all_finite(confidence):
        np.nan_to_num(confidence, copy=False, nan=0.0)


@dataclass(eq=False)
class SceneArrays:
    """The arrays of a :class:`~.scene.Scene`, which describes them.

    Args:
        copy: whether arrays are copied. If not, those of the right type become the scene's, which writes into them.

    Raises:
        InputError: arrays whose shapes do not fit together.
    """

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float32]
    poses: NDArray[np.float32]
    metric_scale: float = 1.0
    names: list[str] = field(default_factory=list)
    alignment: Alignment | None = None
    original_pixels: NDArray[np.float64] | None = None
    original_sizes: NDArray[np.int64] | None = None
    sources: tuple[StoredView | None, ...] = ()
    times: NDArray[np.float64] | None = None
    made_by: str = ""
    copy: InitVar[bool] = True

    def __post_init__(self, copy: bool) -> None:
        sizes: dict[str, int] = {}
        for name, shape in SHAPES.items():
            array = np.asarray(getattr(self, name))
            wanted = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
            if array.ndim != len(wanted) or any(
                isinstance(w, int) and w != n for w, n in zip(wanted, array.shape, strict=True)
            ):
                raise InputError(
                    f"scene: {name} has shape {array.shape}; expected ({', '.join(map(str, wanted))}), "
                    "the same views and size as points"
                )
            sizes.update((s, n) for s, n in zip(shape, array.shape, strict=True) if isinstance(s, str))
            # What is computed anew below needs no copy; the others must not stay the caller's arrays.
            own = copy and name in ("colors", "intrinsics", "poses")
            setattr(self, name, array.astype(self.dtype_of(name), copy=own))
        known = ("original_pixels", (3, 3), np.float64), ("original_sizes", (2,), np.int64), ("times", (), np.float64)
        for name, rest, kind in known:
            if getattr(self, name) is not None:
                array = np.array(getattr(self, name), dtype=kind)
                if array.shape != (sizes["V"], *rest):
                    raise InputError(f"scene: {name} has shape {array.shape}; expected {(sizes['V'], *rest)}")
                setattr(self, name, array)
        if self.times is not None and not np.isfinite(self.times).all():
            raise InputError("scene: times are not all finite; give one number of seconds per view, or None")
        if 0 in sizes.values():
            raise InputError("scene: there is no view or no pixel; give at least one")
        self.names = list(self.names) or [f"view {i}" for i in range(sizes["V"])]
        if len(self.names) != sizes["V"]:
            raise InputError(f"scene: {len(self.names)} names for {sizes['V']} views; give one name per view")
        for name in ("points", "depth", "confidence", "mask"):
            setattr(self, name, np.array(getattr(self, name), order="C", copy=copy or None))
        leave_out_what_is_not_finite(self.points, self.depth, self.confidence, self.mask)
        self.metric_scale = float(self.metric_scale)

    def __getstate__(self) -> dict[str, Any]:
        """Frames of an opened video cannot be read again by another process, nor through a copy."""
        sources = tuple(source if source is None or source.is_file else None for source in self.sources)
        return {**vars(self), "sources": sources}

    def dtype_of(self, name: str) -> Any:
        """Return the type of one of the arrays of :data:`SHAPES`."""
        if name in IN_WORLD and self.alignment is not None:
            return self.alignment.dtype
        return DTYPES.get(name, np.float32)


def check_cameras(scene: SceneArrays) -> None:
    """Refuse a scene with a camera that files of cameras cannot hold (InputError, which names the view)."""
    finite = np.isfinite(scene.intrinsics).all(axis=(1, 2)) & np.isfinite(scene.poses).all(axis=(1, 2))
    good = finite & (scene.intrinsics[:, 0, 0] > 0) & (scene.intrinsics[:, 1, 1] > 0)
    if not good.all():
        raise InputError(
            f"view {int(np.argmin(good))}: intrinsics or pose are not finite or have no focal length, which no camera "
            "can have; save the scene as .ply or .npz, or leave this view out"
        )


def selected_pixels(scene: SceneArrays, max_points: int | None, confidence_percentile: float) -> NDArray[np.bool_]:
    """Return the pixels (V, H, W) bool that are saved: of the mask, those that the options leave.

    Raises:
        InputError: an option outside its range.
    """
    SaveOptions(max_points=max_points, confidence_percentile=confidence_percentile)
    keep = scene.mask.copy()
    if not all_finite(scene.points):  # somebody wrote into them
        keep &= np.isfinite(scene.points).all(axis=-1)
    if confidence_percentile > 0:
        for view_mask, confidence in zip(keep, scene.confidence, strict=True):
            if view_mask.any():
                view_mask &= confidence >= np.percentile(confidence[view_mask], confidence_percentile)
    chosen = np.flatnonzero(keep)
    if max_points is not None and chosen.size > max_points:
        keep = np.zeros_like(keep)
        keep.flat[chosen[random_order(chosen.size)[:max_points]]] = True
    return keep


def random_order(count: int) -> NDArray[np.intp]:
    """Return the indices below ``count`` in a random order that is always the same."""
    # The raw stream of a seeded bit generator is the part of NumPy's randomness that never changes.
    return np.argsort(np.random.PCG64(0).random_raw(count), kind="stable")
