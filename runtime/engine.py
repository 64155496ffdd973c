"""An engine bundle, loaded and ready to reconstruct."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from .backends.contract import Backend, ChunkSizes, StagePipeline
from .backends.registry import make_backend
from .bundle.build_record import Parity
from .bundle.bundle_files import while_replaced
from .bundle.manifest import Manifest
from .bundle.store import Bundle
from .checks.golden import check_golden, has_golden_record, write_golden_record
from .checks.parity import measure_parity
from .errors import InputError, IntegrityError
from .geometry import Array
from .inference import MultiViewInference
from .inputs.encoded import EncodedView, images_of, kept_of, unpack_views
from .inputs.formats.view_files import ReadOptions
from .inputs.prepared import ArrivingViews, PreparedViews, prepare_raw, prepare_views
from .inputs.preprocess import each_resized, preprocess_dictionaries, preprocess_views
from .inputs.raw_view import AnyView, RawView
from .inputs.resolutions import checked_size, served_size
from .inputs.sources import open_views
from .inputs.stored_view import StoredView
from .memory.guard import MemoryGuard, guard_for
from .options import InferOptions, Progress, check_progress, shows_options
from .outputs.assembly import assemble_scene
from .outputs.frame import check_frame
from .outputs.scene import Scene
from .postprocessing.scene_stage import PLAIN_IMAGE, runs_in_stage, with_plain_images


class Engine(MultiViewInference):
    """MapAnything without PyTorch. Threads may share one engine; it keeps nothing of a call.

    Attributes:
        pipeline: the stages of the bundle on the backend, for those who run them without what surrounds a call.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        pipeline: StagePipeline,
        memory: MemoryGuard | None = None,
        threads: int | None = None,
    ) -> None:
        """Use :meth:`load`."""
        self._loading: dict[str, Any] | None = None
        self._bundle = bundle
        self._processors = threads
        self._memory = memory
        self._backend = backend
        self.pipeline = pipeline
        self.data_norm_type = bundle.manifest.model.data_norm_type

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        *,
        threads: int | None = None,
        verify: bool = True,
        memory_limit: int | str | None = None,
    ) -> Engine:
        """Load an engine bundle.

        Schema, files, hashes and backend version are checked before a stage is handed to a backend. At the first load
        on a device the bundle's golden input is run and compared with the reference. What was loaded is what was
        checked: a bundle that is replaced meanwhile is loaded anew, a few times.

        Args:
            path: folder of the bundle, or what ``Bundle.open`` gave.
            backend: ``"auto"`` (the fastest that is usable here), ``"onnxruntime"``, ``"openvino"``,
                ``"onnxruntime-cuda"``, ``"tensorrt"`` or ``"tensorrt-rtx"``; the bundle must be for it.
            threads: processor threads of a CPU backend and of post-processing, by default all that this process may
                use.
            verify: ``False`` skips hashing the files and the golden check, for a bundle that nobody else can write.
                Plans and compiled kernels, which are code, are hashed nevertheless.
            memory_limit: memory that a call may take, in bytes or as ``"8GB"``; larger calls are refused before they
                begin. Needs what ``mapengine plan`` measured on this machine. Without a limit what is free counts, if
                the bundle was planned here.

        Raises:
            InputError: an unknown backend or number of threads; a limit that is no size, or for a bundle that was not
                planned.
            BundleError: the folder is no intact bundle for this backend and device, or is replaced again and again; the
                subclass says which.
            BackendUnavailableError: the backend is not installed, or its GPU is not there.
            ParityError: the golden check failed.
        """
        if isinstance(path, Bundle):
            return cls._load(path, backend, threads, verify, memory_limit)
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"the bundle is a {type(path).__name__}; give the path of its folder")
        return while_replaced(
            lambda: cls._load(Bundle.open(path, verify=verify), backend, threads, verify, memory_limit)
        )

    @classmethod
    def _load(
        cls, bundle: Bundle, backend: str, threads: int | None, verify: bool, memory_limit: int | str | None
    ) -> Engine:
        if verify:
            bundle.check_hashes()
        manifest = bundle.manifest
        library = make_backend(backend, manifest.fastest_backends, threads)
        info = manifest.backend(library.name)
        info.check_version(library.version)
        info.check_device(library.compute_capability)
        identity = (bundle.digest, library.name, library.version, library.device)
        memory = guard_for(*identity, memory_limit)
        with bundle.unchanged():
            pipeline = library.open_pipeline(bundle, ChunkSizes(**manifest.requests.chunks))
        if verify and not has_golden_record(*identity):
            check_golden(bundle, pipeline, f"{library.name} {library.version} on {library.device}")
            write_golden_record(*identity)
        engine = cls(bundle, library, pipeline, memory, threads)
        engine._loading = {"backend": library.name, "threads": threads, "verify": verify, "memory_limit": memory_limit}
        return engine

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path of the bundle: another process loads it again, and refuses one that changed meanwhile."""
        if self._loading is None:
            raise pickle.PicklingError("an engine that was not made by Engine.load cannot be pickled; load it there")
        return _load_again, (str(self._bundle.folder.resolve()), self.digest, self._loading)

    def verify(self) -> Parity:
        """Run the golden check now and return the measured differences from the reference.

        Raises:
            ParityError: an output is outside its tolerance.
        """
        found, expected = check_golden(self._bundle, self.pipeline, self.where)
        return measure_parity({"golden": found}, {"golden": expected}, self.where)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def backend_version(self) -> str:
        """Version of the backend in use."""
        return self._backend.version

    @property
    def device(self) -> str:
        """Device in use."""
        return self._backend.device

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's manifest, which names the hashes of all its files."""
        return self._bundle.digest

    def device_bytes(self) -> int | None:
        """Memory in use on the GPU, by all programs; None on a CPU."""
        return self.pipeline.device_bytes()

    def time_device(self) -> Callable[[], dict[str, float]] | None:
        """Time copies and stages on the GPU from now on, for calls from one thread; None on a CPU.

        Returns:
            What gives the seconds since it was called last: one entry per stage, ``"host to device"``, ``"device to
            host"`` and ``"between buffers"``. They do not overlap each other, but do overlap what the host does.
        """
        return self.pipeline.time_device()

    @property
    def where(self) -> str:
        """Backend, its version and the device, for records and messages."""
        return f"{self._backend.name} {self._backend.version} on {self._backend.device}"

    @property
    def label(self) -> str:
        """Model, precision and name of the bundle, for titles."""
        return f"{self.manifest.model.id}, {self.manifest.precision} (bundle {self._bundle.folder.resolve().name})"

    def __repr__(self) -> str:
        return f"Engine({self.manifest.model.id!r}, {self.manifest.precision}, {self.backend} on {self.device})"

    def encode(
        self, views: Sequence[Mapping[str, Any] | EncodedView], *, progress: Progress | None = None
    ) -> list[EncodedView]:
        """Run the image encoder alone, for views that are used in several calls.

        Args:
            views: as in :meth:`infer`; copies of what they bring are kept. Encoded ones stay as they are.
            progress: called with stage, views done and views in all.

        Returns:
            One :class:`.encoded.EncodedView` per view, which ``infer``, ``infer_stream`` and ``predict`` of this engine
            take in place of a dictionary. The numbers are those of a call with the plain views: bit for bit where the
            encoder takes one view at a time, as on a CPU (but for small images); else within the rounding that its
            chunks make.

        Raises:
            InputError, ProfileError, BackendError: as in :meth:`infer`.
        """
        plain, known = unpack_views(views, self._encoder)
        prepared = prepare_views(images_of(plain), data_norm_type=self.data_norm_type)
        self.manifest.requests.check(self.manifest.requests.views.min, prepared.height, prepared.width)
        images = [image for image, features in zip(prepared.images, known, strict=True) if features is None]
        fresh = iter(self.pipeline.encode(images, progress=progress) if images else ())
        return [
            view
            if isinstance(view, EncodedView)
            else EncodedView(kept_of(entry, features), features or next(fresh), self._encoder)
            for view, entry, features in zip(views, plain, known, strict=True)
        ]

    @property
    def _encoder(self) -> str:
        return self._bundle.digest

    def _check_request(self, prepared: PreparedViews, *, collect: bool) -> None:
        self.manifest.requests.check(len(prepared.views), prepared.height, prepared.width)
        if self._memory is not None:
            geometry = any(prepared.brings_geometry)
            shape = len(prepared.views) * prepared.batch, prepared.width, prepared.height
            self._memory.check(*shape, geometry=geometry, collect=collect)

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> Iterator[dict[str, Array]]:
        return self.pipeline.stream(prepared, self._chunks(prepared, options), progress, heads)

    def _chunks(self, prepared: PreparedViews, options: InferOptions) -> ChunkSizes:
        head_chunk = options.head_chunk(len(prepared.views))
        return self.pipeline.chunks if head_chunk is None else replace(self.pipeline.chunks, dense_head=head_chunk)

    def _predict_finished(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        progress: Progress | None,
        outputs: Collection[str],
        into: Sequence[Mapping[str, Array]] | None = None,
    ) -> Iterator[dict[str, Array]] | None:
        if not (self.pipeline.finishes and runs_in_stage(options)):
            return None
        chunks = self._chunks(prepared, options)
        views = self.pipeline.finish(prepared, options, set(outputs) - {PLAIN_IMAGE}, chunks, progress, into)
        return with_plain_images(views, prepared.images, outputs, self.data_norm_type)

    def _finish_on_device(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, outputs: Collection[str]
    ) -> list[dict[str, Any]] | None:
        if not self.pipeline.keeps:
            return None
        if not (self.pipeline.finishes and runs_in_stage(options)):
            return [self.pipeline.to_device(view) for view in self._finish(prepared, options, progress, outputs)]
        self._check_request(prepared, collect=True)
        chunks = self._chunks(prepared, options)
        return self.pipeline.finish_on_device(prepared, options, outputs, self.data_norm_type, chunks, progress)

    @property
    def _threads(self) -> int | None:
        return self._processors

    @property
    def _leaves_processors(self) -> bool:
        return self._backend.compute_capability is not None

    @shows_options
    def reconstruct(
        self,
        images: Any,
        intrinsics: Any = None,
        poses: Any = None,
        depths: Any = None,
        *,
        masks: Any = None,
        metric: bool | Sequence[bool | None] | None = None,
        depth_scale: float | Sequence[float | None] | None = None,
        read: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
        size: tuple[int, int] | None = None,
        frame: str = "given",
        progress: Progress | None = None,
        **options: Any,
    ) -> Scene:
        """From images (and what is known about them) to a scene.

        Args:
            images: a folder of images, a recording, a video, a view list (see the guide on inputs), or a list of these,
                of paths, Pillow images or arrays (H, W, 3); sizes may differ.
            intrinsics: one camera for all images, or one per image (``None`` where unknown): (3, 3) in pixels of that
                image, (4, 4), ``[fx, fy, cx, cy]`` or a text file.
            poses: one (4, 4) or (3, 4) camera-to-world matrix or text file per image, ``None`` where unknown.
            depths: one depth map per image, (H, W) metres or a file; ``None`` where unknown. Needs intrinsics.
            masks: one (H, W) or file per image, white where it counts, or a folder of them. The others have no points.
            metric: whether depths and poses are in metres (default: yes, but for formats without a scale).
            depth_scale: metres per unit of the depth files.
            read: which views are taken, and what of them.
            size: (width, height) that the images are brought to; by default the nearest size of MapAnything's table
                that the bundle serves.
            frame: ``"given"``: the result is in the world of the poses, where there are some, by the rigid transform
                (where they are metric) or similarity that fits the predicted cameras to them best: see
                ``Scene.alignment``. ``"view0"``: it is in the frame of the first image, as the network predicts it.
            progress: called with stage, views done and views in all.
            **options: further options of :meth:`infer`.

        Returns:
            The scene, in the world of the poses, or in the frame of the first image where there are none.

        Raises:
            InputError: as in :meth:`infer`, for files that cannot be read, and for an unknown option.
            MemoryLimitError: the call does not fit; nothing was decoded.
        """
        InferOptions.of(**options)  # before files are read
        check_frame(frame)
        if not isinstance(read, ReadOptions):
            raise InputError(f"read is a {type(read).__name__}; give ReadOptions(...)")
        views = open_views(images, intrinsics, poses, depths, metric, depth_scale, masks, read)
        if not read.gives("intrinsics"):
            options["ignore_calibration_inputs"] = True
        return self.reconstruct_views(views, size=size, frame=frame, progress=progress, **options)

    @shows_options
    def reconstruct_views(
        self,
        views: Sequence[AnyView],
        *,
        size: tuple[int, int] | None = None,
        frame: str = "given",
        progress: Progress | None = None,
        **options: Any,
    ) -> Scene:
        """Like :meth:`reconstruct`, from what :func:`.inputs.sources.open_views` found or ``read_views`` read."""
        chosen = InferOptions.of(**options)
        check_progress(progress)
        check_frame(frame)
        # Refused before the images are decoded and resized: that takes longer than the refusal.
        target = self._target_size(views, size)
        self.check_call(views, size=target)
        with closing(self._arriving(views, target)) as prepared:  # the first are encoded while others are read
            together = prepared.together(chosen)
            return assemble_scene(
                lambda options, outputs, into: self._finish(together, options, progress, outputs, into),
                together.views,
                [view.name or f"view {i}" for i, view in enumerate(views)],
                chosen,
                frame=frame,
                sources=views,
                made_by=self.label,
                data_norm_type=self.data_norm_type,
            )

    def prepare(self, views: Sequence[AnyView], *, size: tuple[int, int] | None = None) -> ArrivingViews:
        """Do what :meth:`preprocess` does with views that were found or read, for :meth:`infer` and
        :meth:`infer_stream` of this engine: values that were checked when they were read are not checked again.

        A view is read when it is first asked for, so that some are encoded while others are read. What is wrong with a
        file is said then.

        Args:
            views: what :func:`.inputs.sources.open_views` found or ``read_views`` read.
            size: (width, height); by default as :meth:`reconstruct` chooses it.

        Raises:
            InputError, MemoryLimitError: as :meth:`preprocess`.
        """
        target = self._target_size(views, size)
        self._check_reading(views, target)
        return self._arriving(views, target)

    def _arriving(self, views: Sequence[AnyView], target: tuple[int, int]) -> ArrivingViews:
        resized = each_resized(views, target, partial(prepare_raw, data_norm_type=self.data_norm_type))
        return ArrivingViews(resized, [view.known for view in views], target)

    def preprocess(
        self, views: Sequence[AnyView] | Sequence[Mapping[str, Any]], *, size: tuple[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """Bring views to a size that this engine serves, in the form that :meth:`infer` takes.

        Args:
            views: dictionaries as ``preprocess_inputs`` takes them, or what :func:`.inputs.sources.open_views` found.
            size: (width, height); by default as :meth:`reconstruct` chooses it.

        Raises:
            InputError: as in ``preprocess_inputs``, or a size that is not served.
            MemoryLimitError: a call with these views does not fit; nothing was decoded.
        """
        given: Any = views  # whatever is wrong among them is refused by name
        if isinstance(views, Sequence) and any(isinstance(view, Mapping) for view in views):
            return preprocess_dictionaries(given, lambda raw: self._target_size(raw, size), self.data_norm_type)
        target = self._target_size(given, size)
        self._check_reading(given, target)
        return preprocess_views(given, target, self.data_norm_type)

    def check_call(
        self, views: Sequence[AnyView], *, size: tuple[int, int] | None = None, stream: bool = False
    ) -> None:
        """Refuse a call with these views where it cannot be, before any of them is decoded.

        Args:
            views: as in :meth:`preprocess`. size: likewise.
            stream: whether the call is :meth:`infer_stream`, which keeps one prediction at a time.

        Raises:
            ProfileError: more views than the engine was built for, or a size that it does not serve.
            MemoryLimitError: they do not fit.
        """
        target = self._target_size(views, size)
        self.manifest.requests.check_views(len(views))
        if self._memory is not None:
            geometry = any(any(view.known) for view in views)
            self._memory.check(len(views), *target, geometry=geometry, collect=not stream)
        self._check_reading(views, target)

    def _check_reading(self, views: Sequence[AnyView], target: tuple[int, int]) -> None:
        if self._memory is not None:
            largest = max((view.bytes_to_read for view in views if isinstance(view, StoredView)), default=0)
            self._memory.check_reading(len(views), *target, largest)

    def _target_size(self, views: Sequence[AnyView], size: tuple[int, int] | None) -> tuple[int, int]:
        """The (width, height) that was asked for, or the nearest of those built, or of MapAnything's own table."""
        is_list = isinstance(views, Sequence) and len(views) > 0
        if not is_list or not all(isinstance(view, RawView | StoredView) for view in views):
            raise InputError("views is no list of views that were read; give reconstruct what is to be read")
        if size is not None:
            return checked_size(size, self.manifest.requests)
        return served_size(self.manifest.requests, [view.size[0] / view.size[1] for view in views])


def _load_again(path: str, digest: str, options: dict[str, Any]) -> Engine:
    """What unpickles an engine."""
    engine = Engine.load(path, **options)
    if engine.digest != digest:
        raise IntegrityError(f"{path}: is another bundle than the engine that was pickled; load it by its path")
    return engine
