"""``infer`` as MapAnything defines it, once for every way of running the network (NumPy engine, PyTorch reference)."""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError
from .geometry import Array
from .inputs.encoded import EncodedView, ImageFeatures, unpack_views
from .inputs.prepared import PreparedViews, prepare_views
from .postprocessing.predictions import check_options, finish_predictions, finish_view, halved

Progress = Callable[[str, int, int], None]
"""Called with a stage, the views that it has finished, and how many it will do."""

_AMP_DTYPES = ("fp16", "bf16", "fp32")
_OUTPUT_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class RunOptions:
    """How the network runs; none of it changes a result beyond rounding, except reduced precision."""

    head_chunk: int | None = None
    """Views per call of the dense head; ``None`` lets the implementation choose."""
    amp_dtype: str | None = None
    """Reduced precision that the caller allows; only the PyTorch reference on a GPU acts on it."""
    progress: Progress | None = None
    encoded: Sequence[ImageFeatures | None] = ()
    """Per view the features that it has already; empty where none has any."""


@dataclass(frozen=True)
class _Call:
    """A checked call: the views, how the network runs, and the options of the post-processing."""

    prepared: PreparedViews
    options: RunOptions
    post: dict[str, Any] = field(default_factory=dict)


class MultiViewInference(ABC):
    """Base of everything that answers ``infer``. Holds no state of a call."""

    data_norm_type: str

    @abstractmethod
    def _predict(self, prepared: PreparedViews, options: RunOptions) -> list[dict[str, Array]]:
        """Run the network: one dictionary per view, as :func:`.postprocess.forward_outputs` makes them.

        The caller may overwrite the arrays.

        Raises:
            ProfileError: this instance cannot serve so many views, or views of this size.
        """

    def _stream(self, prepared: PreparedViews, options: RunOptions) -> Iterator[dict[str, Array]]:
        """Like :meth:`_predict`, one view after the other."""
        yield from self._predict(prepared, options)

    @property
    def _encoder(self) -> str | None:
        """What identifies the image encoder; None where encoded views cannot be used."""
        return None

    def infer(
        self,
        views: Sequence[Mapping[str, Any] | EncodedView],
        memory_efficient_inference: bool = True,
        minibatch_size: int | None = None,
        use_amp: bool = True,
        amp_dtype: str = "bf16",
        apply_mask: bool = True,
        mask_edges: bool = True,
        edge_normal_threshold: float = 5.0,
        edge_depth_threshold: float = 0.03,
        apply_confidence_mask: bool = False,
        confidence_percentile: float = 10,
        ignore_calibration_inputs: bool = False,
        ignore_depth_inputs: bool = False,
        ignore_pose_inputs: bool = False,
        ignore_depth_scale_inputs: bool = False,
        ignore_pose_scale_inputs: bool = False,
        use_multiview_confidence: bool = False,
        multiview_conf_depth_abs_thresh: float = 0.02,
        multiview_conf_depth_rel_thresh: float = 0.02,
        *,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Reconstruct the views of one scene; keys, options and defaults are those of MapAnything's ``infer``.

        Args:
            views: one dictionary per view, as ``load_images`` and ``preprocess_inputs`` make them. V views, B samples:
                ``img`` (B, 3, H, W) normalised, ``data_norm_type``, and any of ``intrinsics`` (B, 3, 3) pixels or
                ``ray_directions`` (B, H, W, 3); ``depth_z`` (B, H, W) metres, 0 where unknown; ``camera_poses``
                (B, 4, 4) camera-to-world or (quaternion xyzw (B, 4), translation (B, 3)); ``is_metric_scale`` (B,).
            memory_efficient_inference: decode in chunks of views.
            minibatch_size: views per chunk; ``None`` chooses.
            use_amp: allow reduced precision where an implementation has a choice (the PyTorch reference on a GPU). An
                engine always runs in the precision that it was built with.
            amp_dtype: ``"fp16"``, ``"bf16"`` or ``"fp32"``.
            apply_mask: add ``mask`` and set points and depth outside it to 0.
            mask_edges: take depth edges that are normal edges too out of the mask.
            edge_normal_threshold: degrees.
            edge_depth_threshold: relative depth difference.
            apply_confidence_mask: take the least confident pixels of each image out of the mask.
            confidence_percentile: how many of them, 0 to 100.
            ignore_calibration_inputs: use no intrinsics or ray directions (depth keeps the conversion by them).
            ignore_depth_inputs: use no depth.
            ignore_pose_inputs: use no poses.
            ignore_depth_scale_inputs: take depth as not metric.
            ignore_pose_scale_inputs: take poses as not metric.
            use_multiview_confidence: replace ``conf`` by the share of views whose depth agrees.
            multiview_conf_depth_abs_thresh: agreement, metres.
            multiview_conf_depth_rel_thresh: agreement, relative to depth.
            progress: see :data:`Progress`.

        Returns:
            One dictionary per view: ``pts3d``, ``pts3d_cam``, ``ray_directions`` (B, H, W, 3); ``depth_along_ray``,
            ``depth_z``, ``mask`` (B, H, W, 1); ``conf``, ``non_ambiguous_mask``, ``non_ambiguous_mask_logits``
            (B, H, W); ``cam_trans`` (B, 3), ``cam_quats`` (B, 4), ``camera_poses`` (B, 4, 4), ``intrinsics`` (B, 3, 3),
            ``metric_scaling_factor`` (B, 1), ``img_no_norm`` (B, H, W, 3). Metres, camera-to-world, OpenCV axes.

        Raises:
            InputError: views or options that are wrong; the message names the view and the remedy.
            ProfileError: more views or another size than an engine was built for.
            BackendError: the backend failed.
        """
        call = self._checked(
            views,
            memory_efficient_inference=memory_efficient_inference,
            minibatch_size=minibatch_size,
            use_amp=use_amp,
            amp_dtype=amp_dtype,
            apply_mask=apply_mask,
            mask_edges=mask_edges,
            edge_normal_threshold=edge_normal_threshold,
            edge_depth_threshold=edge_depth_threshold,
            apply_confidence_mask=apply_confidence_mask,
            confidence_percentile=confidence_percentile,
            ignore_calibration_inputs=ignore_calibration_inputs,
            ignore_depth_inputs=ignore_depth_inputs,
            ignore_pose_inputs=ignore_pose_inputs,
            ignore_depth_scale_inputs=ignore_depth_scale_inputs,
            ignore_pose_scale_inputs=ignore_pose_scale_inputs,
            use_multiview_confidence=use_multiview_confidence,
            multiview_conf_depth_abs_thresh=multiview_conf_depth_abs_thresh,
            multiview_conf_depth_rel_thresh=multiview_conf_depth_rel_thresh,
            progress=progress,
        )
        predictions = self._predict(call.prepared, call.options)
        return finish_predictions(predictions, call.prepared.images, **call.post, overwrite=True)

    def infer_stream(
        self, views: Sequence[Mapping[str, Any] | EncodedView], *, dtype: str = "float32", **options: Any
    ) -> Iterator[dict[str, Array]]:
        """Like :meth:`infer`, but give each view when it is decoded: the predictions of a call need not fit in memory.

        Args:
            views: as in :meth:`infer`.
            dtype: ``"float16"`` halves what has a value per pixel; values beyond its range become the largest one.
                Poses, intrinsics and the scale stay float32.
            **options: those of :meth:`infer`. ``use_multiview_confidence`` needs all views at once and is refused.

        Returns:
            An iterator over one dictionary per view, in order, as NumPy arrays. Views and options are checked now, the
            network runs when the first view is asked for.

        Raises:
            InputError, ProfileError, BackendError: as in :meth:`infer`.
        """
        if dtype not in _OUTPUT_DTYPES:
            raise InputError(f"dtype is {dtype!r}; use one of {', '.join(_OUTPUT_DTYPES)}")
        check_known_options(options)
        if options.get("use_multiview_confidence"):
            raise InputError("use_multiview_confidence compares all views, a stream has one at a time; use infer")
        call = self._checked(views, **options)
        post = {name: value for name, value in call.post.items() if "multiview" not in name}
        predictions = self._stream(call.prepared, call.options)

        def finished() -> Iterator[dict[str, Array]]:
            for prediction, image in zip(predictions, call.prepared.images, strict=True):
                result = finish_view(prediction, image, **post, overwrite=True)
                yield halved(result) if dtype == "float16" else result

        return finished()

    def _checked(
        self,
        views: Sequence[Mapping[str, Any] | EncodedView],
        *,
        memory_efficient_inference: bool = True,
        minibatch_size: int | None = None,
        use_amp: bool = True,
        amp_dtype: str = "bf16",
        ignore_calibration_inputs: bool = False,
        ignore_depth_inputs: bool = False,
        ignore_pose_inputs: bool = False,
        ignore_depth_scale_inputs: bool = False,
        ignore_pose_scale_inputs: bool = False,
        progress: Progress | None = None,
        **post: Any,
    ) -> _Call:
        """Refuse what is wrong before the network runs, not after."""
        ignored: dict[str, Any] = {
            "ignore_calibration_inputs": ignore_calibration_inputs,
            "ignore_depth_inputs": ignore_depth_inputs,
            "ignore_pose_inputs": ignore_pose_inputs,
            "ignore_depth_scale_inputs": ignore_depth_scale_inputs,
            "ignore_pose_scale_inputs": ignore_pose_scale_inputs,
        }
        post["data_norm_type"] = self.data_norm_type
        # A flag must be a bool: the word "no" would count as True.
        check_options(**post, memory_efficient_inference=memory_efficient_inference, use_amp=use_amp, **ignored)
        is_count = isinstance(minibatch_size, int | np.integer) and not isinstance(minibatch_size, bool)
        if minibatch_size is not None and (not is_count or minibatch_size < 1):
            raise InputError(f"minibatch_size is {minibatch_size!r}; give a positive integer or None")
        if progress is not None and not callable(progress):
            raise InputError(f"progress is a {type(progress).__name__}; give a function of stage, done and total")
        if amp_dtype not in _AMP_DTYPES:
            raise InputError(f"amp_dtype is {amp_dtype!r}; use one of {', '.join(_AMP_DTYPES)}")
        plain, encoded = unpack_views(views, self._encoder)
        prepared = prepare_views(plain, data_norm_type=self.data_norm_type, **ignored, dtype=self._dtype())
        options = RunOptions(
            head_chunk=minibatch_size if memory_efficient_inference else len(views),
            amp_dtype=amp_dtype if use_amp else None,
            progress=progress,
            encoded=encoded,
        )
        return _Call(prepared, options, post)

    def predict(self, views: Sequence[Mapping[str, Any] | EncodedView], use_amp: bool = True) -> list[dict[str, Array]]:
        """What the network says of the views, without masks and other post-processing, as NumPy arrays.

        Args:
            views: as in :meth:`infer`.
            use_amp: as in :meth:`infer`.

        Returns:
            One dictionary per view: the keys of :meth:`infer` up to ``metric_scaling_factor``.
        """
        plain, encoded = unpack_views(views, self._encoder)
        prepared = prepare_views(plain, data_norm_type=self.data_norm_type, dtype=self._dtype())
        return self._predict(prepared, RunOptions(amp_dtype="bf16" if use_amp else None, encoded=encoded))

    def _dtype(self) -> str:
        """Floating type that inputs are converted to."""
        return "float32"


def check_known_options(options: Mapping[str, Any]) -> None:
    """Refuse what ``infer`` does not know (InputError), before any work is done."""
    known = list(inspect.signature(MultiViewInference.infer).parameters)[2:]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no option {option!r}; {hint}")
