"""``infer`` as MapAnything defines it, once for every way of running the network (NumPy engine, PyTorch reference)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .errors import InputError
from .geometry import Array
from .inputs.encoded import EncodedView
from .inputs.normalization import norm_constants
from .inputs.prepared import PreparedView, PreparedViews, prepare_views
from .options import InferOptions, Progress, check_progress, chosen_outputs, shows_options
from .postprocessing.predictions import (
    FORWARD_OUTPUTS,
    finish_predictions,
    finish_view,
    forward_outputs,
    halved,
    needed_heads,
)

_OUTPUT_DTYPES = ("float32", "float16")


View = Mapping[str, Any] | EncodedView | PreparedView
"""What :meth:`MultiViewInference.infer` takes; prepared views were checked when they were made."""


class MultiViewInference(ABC):
    """Base of everything that answers ``infer``. Holds no state of a call."""

    data_norm_type: str

    @abstractmethod
    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> Iterable[dict[str, Array]]:
        """Run the network and give what it says of one view after the other, when it is asked for.

        Per view the arguments of :func:`.postprocessing.predictions.forward_outputs`, of which only ``heads`` are read.
        """

    def _check_request(self, prepared: PreparedViews, *, collect: bool) -> None:
        """Refuse what this instance cannot serve, before the network runs.

        Args:
            prepared: the views.
            collect: whether the results of all views are held at once.

        Raises:
            ProfileError: so many views, or views of this size.
        """
        return

    @property
    def _threads(self) -> int | None:
        """Threads that post-processing may use; None for all processors that this process may use."""
        return None

    @property
    def _encoder(self) -> str | None:
        """What identifies the image encoder; None where encoded views cannot be used."""
        return None

    @shows_options
    def infer(
        self,
        views: Sequence[View],
        *values: Any,
        outputs: Iterable[str] | None = None,
        on_device: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Reconstruct the views of one scene; keys, options and defaults are those of MapAnything's ``infer``.

        Args:
            views: one dictionary per view, as ``load_images`` and ``preprocess_inputs`` make them. V views, B samples:
                ``img`` (B, 3, H, W) normalised, ``data_norm_type``, and any of ``intrinsics`` (B, 3, 3) pixels or
                ``ray_directions`` (B, H, W, 3); ``depth_z`` (B, H, W) metres, 0 where unknown; ``camera_poses``
                (B, 4, 4) camera-to-world or (quaternion xyzw (B, 4), translation (B, 3)); ``is_metric_scale`` (B,);
                ``mask`` (B, H, W), True where the view counts: the other pixels give no points and no depth.
            *values: options in the order of :class:`.options.InferOptions`.
            outputs: names of what the dictionaries hold, such as ``("pts3d", "mask")``; only that is computed after
                the network, and comes back from a GPU. Everything by default.
            on_device: leave the results of an engine on a GPU there, in arrays that speak DLPack and
                ``__cuda_array_interface__``, so that PyTorch, CuPy or kernels of one's own take them without a copy.
                They are valid until ``release()``, or until nobody refers to them. On a CPU it changes nothing:
                arrays of NumPy speak DLPack too.
            progress: see :data:`.options.Progress`.
            **options: options by name, see :class:`.options.InferOptions`.

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
        chosen = InferOptions.of(*values, **options)
        wanted = chosen_outputs(outputs, chosen)
        if not isinstance(on_device, bool):
            raise InputError(f"on_device is {on_device!r}; it must be True or False")
        prepared = self._prepare(views, chosen, progress)
        kept = self._finish_on_device(prepared, chosen, progress, wanted) if on_device else None
        if kept is not None:
            return kept
        finished = self._finish(prepared, chosen, progress, wanted)
        return [{key: self._output(value) for key, value in prediction.items()} for prediction in finished]

    @shows_options
    def infer_stream(
        self,
        views: Sequence[View],
        *,
        dtype: str = "float32",
        outputs: Iterable[str] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[dict[str, Array]]:
        """Like :meth:`infer`, but give each view when it is decoded: the predictions of a call need not fit in memory.

        Args:
            views: as in :meth:`infer`.
            dtype: ``"float16"`` halves what has a value per pixel; values beyond its range become the largest one.
                Poses, intrinsics and the scale stay float32.
            outputs: as in :meth:`infer`.
            progress: as in :meth:`infer`.
            **options: those of :meth:`infer`. ``use_multiview_confidence`` needs all views at once and is refused.

        Returns:
            An iterator over one dictionary per view, in order, as NumPy arrays. Views and options are checked now, the
            network runs when the first view is asked for.

        Raises:
            InputError, ProfileError, BackendError: as in :meth:`infer`.
        """
        if dtype not in _OUTPUT_DTYPES:
            raise InputError(f"dtype is {dtype!r}; use one of {', '.join(_OUTPUT_DTYPES)}")
        chosen = InferOptions.of(**options)
        if chosen.use_multiview_confidence:
            raise InputError("use_multiview_confidence compares all views, a stream has one at a time; use infer")
        wanted = chosen_outputs(outputs, chosen)
        prepared = self._prepare(views, chosen, progress, copy=True)
        self._check_request(prepared, collect=False)

        def on_host() -> Iterator[dict[str, Array]]:
            predictions = self._predict(prepared, chosen, progress, needed_heads(chosen, wanted))
            for heads, image, kept in zip(predictions, prepared.images, prepared.masks, strict=True):
                yield finish_view(heads, image, chosen, wanted, kept=kept, data_norm_type=self.data_norm_type)

        finished = self._predict_finished(prepared, chosen, progress, wanted) or on_host()
        return map(halved, finished) if dtype == "float16" else finished

    def predict(self, views: Sequence[View], use_amp: bool = True) -> list[dict[str, Array]]:
        """Return what the network says of the views, without masks and other post-processing, as NumPy arrays.

        Args:
            views: as in :meth:`infer`.
            use_amp: as in :meth:`infer`.

        Returns:
            One dictionary per view: the keys of :meth:`infer` up to ``metric_scaling_factor``.
        """
        options = InferOptions(use_amp=use_amp)
        prepared = self._prepare(views, options)
        self._check_request(prepared, collect=True)
        return [forward_outputs(**heads) for heads in self._heads(prepared, options, None, FORWARD_OUTPUTS)]

    def _prepare(
        self,
        views: Sequence[View],
        options: InferOptions,
        progress: Progress | None = None,
        *,
        copy: bool = False,
    ) -> PreparedViews:
        """Check and convert the views of a call, before the network runs; ``copy`` as in :func:`prepare_views`."""
        check_progress(progress)
        norm_constants(self.data_norm_type)  # what the images of the result are made with
        return prepare_views(
            views, options, data_norm_type=self.data_norm_type, dtype=self._dtype(), encoder=self._encoder, copy=copy
        )

    def _predict_finished(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        progress: Progress | None,
        outputs: Collection[str],
        into: Sequence[Mapping[str, Array]] | None = None,
    ) -> Iterator[dict[str, Array]] | None:
        """Run the network and post-processing where the network runs, when a view is asked for.

        Returns:
            What :func:`.postprocessing.predictions.finish_predictions` yields, with ``outputs`` and ``into`` as there;
            None where that has to be done here.
        """
        return None

    def _finish_on_device(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, outputs: Collection[str]
    ) -> list[dict[str, Any]] | None:
        """Do what :meth:`_finish` does, with results that stay on a GPU; None where there is none."""
        return None

    def _finish(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        progress: Progress | None,
        outputs: Collection[str],
        into: Sequence[Mapping[str, Array]] | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Run the network and post-processing on all views, each where it is to run, after a check of the request."""
        self._check_request(prepared, collect=True)
        return self._predict_finished(prepared, options, progress, outputs, into) or finish_predictions(
            self._heads(prepared, options, progress, outputs),
            prepared.images,
            options,
            outputs,
            kept=prepared.masks,
            data_norm_type=self.data_norm_type,
            into=into,
            threads=self._threads,
        )

    def _heads(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, outputs: Collection[str]
    ) -> Iterable[dict[str, Array]]:
        """Run the network on all views and give what it says of them, as far as ``outputs`` are made of it.

        Processors that the network needs itself have none left for post-processing before the network is done.
        """
        heads = self._predict(prepared, options, progress, needed_heads(options, outputs))
        return heads if self._leaves_processors else list(heads)

    @property
    def _leaves_processors(self) -> bool:
        """Whether the network runs on a device of its own."""
        return False

    def _dtype(self) -> str:
        """Floating type that inputs are converted to."""
        return "float32"

    def _output(self, value: Array) -> Any:
        """An array of the result in the form that ``infer`` returns."""
        return value
