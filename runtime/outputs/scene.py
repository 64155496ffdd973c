"""The reconstruction of a call: points, colours, depth, confidence and cameras of all views, to look at or save."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..inputs.normalization import image_bytes
from ..options import options_of, shows_options_of
from ..system.array_files import load_arrays
from ..system.reading import shown_path
from ..writing.files import output_path
from .formats.options import SaveOptions
from .formats.scene_file import KNOWN, VERSION
from .formats.table import chosen_format
from .frame import Alignment
from .preview import write_preview
from .scene_arrays import DTYPES, IN_WORLD, SHAPES, SceneArrays, selected_pixels

Array = NDArray[Any]

_PREDICTIONS = {
    "points": ("pts3d", 4),
    "colors": ("img_no_norm", 4),
    "depth": ("depth_z", 4),
    "confidence": ("conf", 3),
    "intrinsics": ("intrinsics", 3),
    "poses": ("camera_poses", 3),
}


SCENE_OUTPUTS = (*(key for key, _ in _PREDICTIONS.values()), "mask", "metric_scaling_factor")
"""What a scene is made of, among the outputs of ``infer``."""


class Scene(SceneArrays):
    """A reconstruction of V views of H x W pixels.

    Axes are OpenCV's (x right, y down, z forward); lengths are metres as far as the model's metric scale is right, or
    the unit of the given poses where those have no scale.

    Attributes:
        points: (V, H, W, 3) float32, world coordinates of every pixel, 0 where ``mask`` is False. Float64 in a world
            whose origin is more than 100 units away, such as one of map coordinates.
        colors: (V, H, W, 3) uint8, the images that the network saw.
        depth: (V, H, W) float32, z in the view's camera, 0 where ``mask`` is False.
        confidence: (V, H, W) float32, higher is more certain; no unit.
        mask: (V, H, W) bool, True where the reconstruction holds.
        intrinsics: (V, 3, 3) float32, pixels of the H x W images, pixel centres at integers.
        poses: (V, 4, 4) of the type of the points, camera-to-world.
        metric_scale: the metric scaling factor, and the scale of the ``alignment``, that are already applied.
        names: one name per view; ``view 0``, ``view 1``, ... unless given.
        alignment: how the scene was brought into the world of the given poses, and how well it fits them; None in the
            frame of view 0. See :class:`~.frame.Alignment`.
        original_pixels: (V, 3, 3) float64, from homogeneous pixels (x, y, 1) of a view to those of the image that it
            was made of, pixel centres at integers; None where that is not known. It is that image as it is shown: EXIF
            orientation applied. An image that was undistorted counts as one of a pinhole camera with the same
            intrinsics: distort its pixels with the lens for those of the file. Intrinsics follow:
            ``original_pixels[v] @ intrinsics[v]``.
        original_sizes: (V, 2) int64, width and height of these images (undistorted ones: of what was left), or None.
        made_by: :attr:`Engine.label <mapengine.runtime.Engine.label>` of the engine that made it; empty where that is
            not known.
        sources: where these images are read again, None for one that was in memory; empty for a scene that was loaded.
        times: (V,) float64, seconds, where all views have a time (of a video or a recording); else None.

    Arrays are copied; ``copy=False`` gives those of the right types to the scene, which writes into them.

    Raises:
        InputError: arrays whose shapes do not fit together.
    """

    def __repr__(self) -> str:
        count, height, width = self.mask.shape
        points = int(self.mask.sum())
        return f"Scene({count} views of {width}x{height}, {points} points, metric_scale={self.metric_scale:.4g})"

    @classmethod
    def from_predictions(
        cls,
        predictions: Sequence[Mapping[str, Any]],
        names: Sequence[str] | None = None,
        batch_index: int = 0,
        alignment: Alignment | None = None,
    ) -> Scene:
        """Collect what ``Engine.infer`` (or upstream's ``MapAnything.infer``) returned, for one sample of the batch.

        The mask is the prediction's ``mask``; where there is none (``apply_mask=False``), ``non_ambiguous_mask``; where
        there is neither, all pixels. ``alignment`` is how the predictions were brought into the world of given poses,
        if they were.

        Raises:
            InputError: no view, a missing key, a wrong shape, or a ``batch_index`` outside the batch.
        """
        if not predictions:
            raise InputError("scene: there are no predictions; pass the list that infer returned")
        parts: dict[str, list[Array]] = {name: [] for name in SHAPES}
        for view, prediction in enumerate(predictions):
            for name, (key, ndim) in _PREDICTIONS.items():
                parts[name].append(_sample(prediction, view, key, ndim, batch_index))
            mask_key = next((k for k in ("mask", "non_ambiguous_mask") if prediction.get(k) is not None), None)
            size = parts["confidence"][-1].shape
            if mask_key is None:
                parts["mask"].append(np.ones(size, dtype=bool))
            else:
                ndim = 4 if mask_key == "mask" else 3
                parts["mask"].append(_sample(prediction, view, mask_key, ndim, batch_index).reshape(size).astype(bool))
            parts["depth"][-1] = parts["depth"][-1][..., 0]
            parts["colors"][-1] = image_bytes(parts["colors"][-1])
        if any(part.shape != parts["points"][0].shape for part in parts["points"]):
            raise InputError("scene: the views differ in size; predictions of one call have one size")
        scale = 1.0
        if predictions[0].get("metric_scaling_factor") is not None:
            scale = float(_sample(predictions[0], 0, "metric_scaling_factor", 2, batch_index)[0])
        values: dict[str, Any] = {name: np.stack(arrays) for name, arrays in parts.items()}
        return cls(**values, metric_scale=scale, names=list(names or []), alignment=alignment)

    @classmethod
    def of_finished(cls, arrays: Mapping[str, Array], metric_scale: float, names: Sequence[str], **known: Any) -> Scene:
        """Take arrays as they are: of the right shapes and types, finite, and 0 outside the mask; ``known`` is more of
        its attributes."""
        scene = cls.__new__(cls)
        vars(scene).update(arrays, metric_scale=metric_scale, names=list(names), **known)
        return scene

    @property
    def frame(self) -> str:
        """``"given"`` for the world of the poses that were given, ``"view0"`` for the camera of view 0."""
        return "view0" if self.alignment is None else "given"

    def point_cloud(
        self, max_points: int | None = None, confidence_percentile: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return world points (N, 3) float32 and their colours (N, 3) uint8, view by view, rows first.

        Args:
            max_points: keep at most so many, chosen at random but always the same ones.
            confidence_percentile: 0..100; leave out, in each view, the valid points whose confidence lies below it.

        Raises:
            InputError: an argument outside its range.
        """
        keep = self.selection(max_points, confidence_percentile)
        return self.points[keep], self.colors[keep]

    def selection(self, max_points: int | None = None, confidence_percentile: float = 0.0) -> NDArray[np.bool_]:
        """Return the pixels (V, H, W) bool that :meth:`point_cloud` takes; same arguments."""
        return selected_pixels(self, max_points, confidence_percentile)

    @shows_options_of(SaveOptions)
    def save(self, path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> Path:
        """Write the scene, in one of the formats of :mod:`.formats.table`.

        Args:
            path: its suffix decides the format, unless ``format`` does; none is a folder for COLMAP.
            format: name of a format, such as "glb".
            **options: those of :class:`~.formats.options.SaveOptions` that the format has.

        A scene without valid points gives valid files without points (the cameras stay).

        Returns:
            The path written.

        Raises:
            InputError: an unknown suffix or format, or an option that does not exist or is outside its range.
            OutputError: it could not be written, or something that is not an older result of this kind is there;
                nothing half-written is left.
            BackendUnavailableError: a package that the format needs is not installed.
        """
        path = output_path(path)
        form, chosen = chosen_format(path, format), options_of(SaveOptions, **options)
        form.check_packages(chosen)
        form.write(path, self, chosen)
        return path

    def preview(self, path: str | os.PathLike[str], max_width: int = 1600) -> Path:
        """Write a PNG with image, depth and confidence of each view; see :func:`~.preview.write_preview`."""
        return write_preview(path, self, max_width)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scene:
        """Read a scene that :meth:`save` wrote as ``.npz``. Nothing in the file is executed (no pickles).

        Raises:
            InputError: the file is missing, damaged, or no scene.
        """
        name, wanted = shown_path(path), (*SHAPES, "metric_scale", "names")
        try:
            arrays = load_arrays(path)
            version = int(arrays["version"])
            if version != VERSION:
                raise InputError(
                    f"{name}: is a scene of version {version}, this mapengine reads {VERSION}; save it again with "
                    "this version"
                )
            values: dict[str, Any] = {key: arrays[key] for key in wanted}
            known: dict[str, Any] = {key: arrays.get(key) for key in KNOWN}
            known["alignment"] = Alignment.of_arrays(arrays)
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{name}: there is no such file; check the path") from error
        except Exception as error:  # zipfile, zlib and NumPy raise many types on damaged files
            # NumPy's advice for what is no archive is to unpickle it, which nobody should do.
            said = str(getattr(error, "strerror", None) or error)
            reason = f" ({said})" if "pickle" not in said else ""
            raise InputError(
                f"{name}: is not a scene that Scene.save wrote as .npz, or is damaged{reason}; save it again"
            ) from error
        types = {key: DTYPES.get(key, np.float32) for key in SHAPES} | KNOWN | {"metric_scale": np.float64}
        if known["alignment"] is not None:
            types |= dict.fromkeys(IN_WORLD, known["alignment"].dtype)
        values |= {key: value for key, value in known.items() if value is not None}
        for key, dtype in types.items():
            if key in values and values[key].dtype != dtype:
                raise InputError(f"{name}: {key} is {values[key].dtype}, not {np.dtype(dtype)}; save the scene again")
        if values["names"].dtype.kind != "U" or values["names"].ndim != 1 or values["metric_scale"].shape != ():
            raise InputError(f"{name}: names or metric_scale are not what Scene.save writes; save the scene again")
        made_by = arrays.get("made_by", np.array(""))
        if made_by.dtype.kind != "U" or made_by.shape != ():
            raise InputError(f"{name}: made_by is not what Scene.save writes; save the scene again")
        values["made_by"] = str(made_by)
        values["names"] = [str(each) for each in values["names"]]
        return cls(**values, copy=False)


def _is(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; True is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _sample(prediction: Mapping[str, Any], view: int, key: str, ndim: int, batch_index: int) -> Array:
    """Return sample ``batch_index`` of one prediction; errors name the view and key."""
    if not isinstance(prediction, Mapping) or prediction.get(key) is None:
        raise InputError(f"view {view}: the prediction lacks {key}; pass what infer returned")
    array = np.asarray(prediction[key])
    if array.ndim != ndim:
        raise InputError(f"view {view}: {key} has shape {array.shape}; expected {ndim} axes, the batch first")
    if not _is(batch_index, numbers.Integral) or not 0 <= batch_index < array.shape[0]:
        raise InputError(f"view {view}: batch_index {batch_index!r} is outside the batch of {array.shape[0]}")
    return np.asarray(array[batch_index])
