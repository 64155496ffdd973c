"""``infer`` as MapAnything defines it, once for every way of running the network (NumPy engine, PyTorch reference)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .geometry import Array
from .postprocess import check_options, finish_predictions
from .views import PreparedViews, prepare_views

Progress = Callable[[str, int, int], None]
"""Called with a stage, the views that it has finished, and how many it will do."""

_AMP_DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class RunOptions:
    """How the network runs; none of it changes a result beyond rounding, except reduced precision."""

    head_chunk: int | None = None
    """Views per call of the dense head; ``None`` lets the implementation choose."""
    amp_dtype: str | None = None
    """Reduced precision that the caller allows; only the PyTorch reference on a GPU acts on it."""
    progress: Progress | None = None


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

    def infer(
        self,
        views: Sequence[Mapping[str, Any]],
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
        post: dict[str, Any] = {
            "data_norm_type": self.data_norm_type,
            "apply_mask": apply_mask,
            "mask_edges": mask_edges,
            "edge_normal_threshold": edge_normal_threshold,
            "edge_depth_threshold": edge_depth_threshold,
            "apply_confidence_mask": apply_confidence_mask,
            "confidence_percentile": confidence_percentile,
            "use_multiview_confidence": use_multiview_confidence,
            "multiview_conf_depth_abs_thresh": multiview_conf_depth_abs_thresh,
            "multiview_conf_depth_rel_thresh": multiview_conf_depth_rel_thresh,
        }
        # Before the network runs, not after. A flag must be a bool: the word "no" would count as True.
        check_options(
            **post,
            memory_efficient_inference=memory_efficient_inference,
            use_amp=use_amp,
            ignore_calibration_inputs=ignore_calibration_inputs,
            ignore_depth_inputs=ignore_depth_inputs,
            ignore_pose_inputs=ignore_pose_inputs,
            ignore_depth_scale_inputs=ignore_depth_scale_inputs,
            ignore_pose_scale_inputs=ignore_pose_scale_inputs,
        )
        is_count = isinstance(minibatch_size, int | np.integer) and not isinstance(minibatch_size, bool)
        if minibatch_size is not None and (not is_count or minibatch_size < 1):
            raise InputError(f"minibatch_size is {minibatch_size!r}; give a positive integer or None")
        if progress is not None and not callable(progress):
            raise InputError(f"progress is a {type(progress).__name__}; give a function of stage, done and total")
        if amp_dtype not in _AMP_DTYPES:
            raise InputError(f"amp_dtype is {amp_dtype!r}; use one of {', '.join(_AMP_DTYPES)}")
        prepared = prepare_views(
            views,
            data_norm_type=self.data_norm_type,
            ignore_calibration_inputs=ignore_calibration_inputs,
            ignore_depth_inputs=ignore_depth_inputs,
            ignore_pose_inputs=ignore_pose_inputs,
            ignore_depth_scale_inputs=ignore_depth_scale_inputs,
            ignore_pose_scale_inputs=ignore_pose_scale_inputs,
            dtype=self._dtype(),
        )
        options = RunOptions(
            head_chunk=minibatch_size if memory_efficient_inference else len(views),
            amp_dtype=amp_dtype if use_amp else None,
            progress=progress,
        )
        predictions = self._predict(prepared, options)
        return finish_predictions(predictions, prepared.images, **post, overwrite=True)

    def predict(self, views: Sequence[Mapping[str, Any]], use_amp: bool = True) -> list[dict[str, Array]]:
        """What the network says of the views, without masks and other post-processing, as NumPy arrays.

        Args:
            views: as in :meth:`infer`.
            use_amp: as in :meth:`infer`.

        Returns:
            One dictionary per view: the keys of :meth:`infer` up to ``metric_scaling_factor``.
        """
        prepared = prepare_views(views, data_norm_type=self.data_norm_type, dtype=self._dtype())
        return self._predict(prepared, RunOptions(amp_dtype="bf16" if use_amp else None))

    def _dtype(self) -> str:
        """Floating type that inputs are converted to."""
        return "float32"
