"""From a set of messages to depth, poses and points: what the node's worker does, without ROS."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import Engine, InputError, MapEngineError
from mapengine.runtime.inputs.checks import depth_map

from .cameras import Camera, read_camera
from .clouds import masked_depth, merged, points_of
from .diagnostics import Record, Stopwatch
from .encodings import read_compressed_depth, read_compressed_image, read_depth, read_image
from .parameters import Settings
from .poses import mounts, read_pose
from .synchronizer import CAMERA_INFO, DEPTH, IMAGE, POSE, FrameSet
from .window import FrameResult, Window

Array = NDArray[Any]


class PoseSource(Protocol):
    """What knows where a frame is, such as TF."""

    def pose(self, frame: str, stamp: Any) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Job:
    """A set to be reconstructed, and when its last message arrived (``time.perf_counter``)."""

    frames: FrameSet
    arrived: float


@dataclass(frozen=True, eq=False)
class CameraResult:
    """What was reconstructed of a camera's newest image.

    Attributes:
        name: of the camera.
        header: of the image, whose stamp and frame the results have.
        depth: (H, W) float32 metres, NaN where there is none.
        confidence: (H, W) float32.
        intrinsics: (3, 3) pixels of these maps.
        pose: (4, 4) float64, from the camera's optical frame to the frame of the set.
    """

    name: str
    header: Any
    depth: Array
    confidence: Array
    intrinsics: Array
    pose: Array


@dataclass(frozen=True, eq=False)
class SetResult:
    """What was reconstructed of a set.

    Attributes:
        frame: the frame that poses and points are in.
        newest: header of the newest image.
        cameras: what each camera gave.
        cloud: (N,) of ``clouds.POINT``, or None where nobody asks for it.
    """

    frame: str
    newest: Any
    cameras: list[CameraResult]
    cloud: NDArray[np.void] | None


@dataclass(frozen=True, eq=False)
class _Frame:
    """Messages of one camera as a view."""

    name: str
    header: Any
    view: dict[str, Any]
    pose: Array | None
    world: str | None


class Reconstructor:
    """Keeps a window of frames of one engine. Not for several threads at once, but for :attr:`settings`.

    Attributes:
        settings: may be replaced at any time, and counts from the next set on. Another window or size, or poses in
            another frame than before, begin a window.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        record: Record,
        poses: PoseSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._engine, self._record, self._poses, self._clock = engine, record, poses, clock
        self._mounts = dict(zip(settings.cameras, mounts(settings.camera_mounts, len(settings.cameras)), strict=True))
        self._cameras: dict[str, tuple[tuple[Any, ...], Camera | None]] = {}
        self._window: Window | None = None
        self._kept_for: tuple[Any, ...] = ()
        self._world: str | None = None
        self._target: tuple[int, int] | None = None

    def reconstruct(
        self, job: Job, publish: Callable[[SetResult], None], *, wants_cloud: Callable[[], bool] = lambda: True
    ) -> None:
        """Reconstruct a set and hand the result to ``publish``; what is wrong with it is recorded, and not raised."""
        settings, watch = self.settings, Stopwatch(job.arrived)
        with watch.phase("decode"):
            frames = self._read(job.frames, settings)
        if not frames:
            return
        try:
            with watch.phase("prepare"):
                frames = self._prepare(frames, settings)
            if frames:
                self._run(frames, settings, watch, publish, wants_cloud())
        except MapEngineError as error:
            self._record.fail([frame.name for frame in frames], str(error), self._clock())

    def facts(self) -> dict[str, str]:
        """Return what diagnostics say of the window."""
        window = self._window
        if window is None:
            return {}
        return {"frames in use": str(len(window.frames)), "worlds begun without poses": str(window.worlds)}

    def _run(
        self,
        frames: Sequence[_Frame],
        settings: Settings,
        watch: Stopwatch,
        publish: Callable[[SetResult], None],
        cloud: bool,
    ) -> None:
        window = self._window_for(frames, settings)
        with watch.phase("encode"):
            numbers = window.add([frame.view for frame in frames], [frame.pose for frame in frames])
        outputs = ["depth_z", "conf", "mask", "intrinsics", *(["pts3d_cam", "img_no_norm"] if cloud else [])]
        try:
            with watch.phase("infer"):
                found = window.infer(outputs=outputs, **settings.infer_options)
        except MapEngineError:
            window.take_back()
            raise
        with watch.phase("publish"):
            newest = max((frame.header for frame in frames), key=lambda header: stamp_of(header))
            cameras = [_camera_result(frame, found[number]) for frame, number in zip(frames, numbers, strict=True)]
            shown = numbers if settings.cloud_views == "newest" else list(found)
            points = _cloud([found[number] for number in shown], settings) if cloud else None
            world = self._world if window.is_given and self._world else settings.frame
            publish(SetResult(world, newest, cameras, points))
        self._record.finish([frame.name for frame in frames], watch.finish())

    def _read(self, frames: FrameSet, settings: Settings) -> list[_Frame]:
        result = []
        for name, messages in frames.messages.items():
            try:
                result.append(self._read_camera(name, messages, settings))
            except InputError as error:
                self._record.refuse(name, str(error), self._clock())
        worlds = {frame.world for frame in result if frame.world is not None}
        if len(worlds) > 1:
            for frame in result:
                text = f"the poses of a set are in different frames: {', '.join(sorted(worlds))}; publish all in one"
                self._record.refuse(frame.name, text, self._clock(), frame=False)
            return [replace(frame, pose=None, world=None) for frame in result]
        return result

    def _read_camera(self, name: str, messages: Mapping[str, Any], settings: Settings) -> _Frame:
        image = messages[IMAGE]
        is_raw = settings.image_transport == "raw"
        pixels = read_image(image) if is_raw else read_compressed_image(image)
        camera = self._camera(name, messages.get(CAMERA_INFO), settings.rectified)
        depth = self._optional(name, lambda: self._depth(messages, pixels.shape[:2], camera, settings))
        view = {"img": pixels} if camera is None else camera.view(pixels, depth)
        found = self._optional(name, lambda: self._pose(name, messages, settings))
        pose, world = found if found is not None else (None, None)
        return _Frame(name, image.header, view, pose, world)

    def _optional(self, name: str, read: Callable[[], Any]) -> Any:
        """What can be done without: a refusal is recorded, and gives None."""
        try:
            return read()
        except InputError as error:
            self._record.refuse(name, str(error), self._clock(), frame=False)
            return None

    def _camera(self, name: str, info: Any, rectified: bool) -> Camera | None:
        if info is None:
            return None
        roi = info.roi
        numbers = (*info.k, *info.p, *info.d, info.width, info.height, info.binning_x, info.binning_y)
        key = (*numbers, roi.x_offset, roi.y_offset, roi.width, roi.height, info.distortion_model, rectified)
        if name not in self._cameras or self._cameras[name][0] != key:
            self._cameras[name] = key, read_camera(info, rectified)
        camera = self._cameras[name][1]
        if camera is None:
            text = "CameraInfo says that the camera is not calibrated (K[0] is 0); the network estimates its intrinsics"
            self._record.refuse(name, text, self._clock(), frame=False)
        return camera

    def _depth(
        self, messages: Mapping[str, Any], shape: tuple[int, ...], camera: Camera | None, settings: Settings
    ) -> Array | None:
        if DEPTH not in messages:
            return None
        read = read_depth if settings.depth_transport == "raw" else read_compressed_depth
        depth = read(messages[DEPTH])
        if camera is None:
            raise InputError("depth is left out, because it needs the CameraInfo of a calibrated camera")
        return depth_map(depth, shape, "depth", fill_missing=True, remedy="register depth to the image")

    def _pose(self, name: str, messages: Mapping[str, Any], settings: Settings) -> tuple[Array, str] | None:
        """The pose of the camera's optical frame, and the frame that it is in."""
        if self._poses is not None:
            header = messages[IMAGE].header
            return self._poses.pose(header.frame_id, header.stamp), settings.tf_frame
        if POSE not in messages:
            return None
        message = messages[POSE]
        pose = message.pose.pose if settings.pose_source == "odometry" else message.pose
        world = message.header.frame_id
        if not world or world == settings.frame:
            raise InputError(
                f"the frame_id of the pose is {world!r}; name the frame that it is in, which is not {settings.frame!r}"
            )
        return read_pose(pose) @ self._mounts[name], world

    def _prepare(self, frames: Sequence[_Frame], settings: Settings) -> list[_Frame]:
        """Bring views to one size; a frame that cannot be is refused, and the others go on."""
        target = settings.size or self._chosen_size(frames)
        try:
            views: list[dict[str, Any] | None] = [*self._engine.preprocess([f.view for f in frames], size=target)]
        except InputError:  # says which view of the call it is, not of which camera
            views = [self._prepare_alone(frame, target) for frame in frames]
        return [replace(frame, view=view) for frame, view in zip(frames, views, strict=True) if view is not None]

    def _prepare_alone(self, frame: _Frame, target: tuple[int, int]) -> dict[str, Any] | None:
        try:
            return self._engine.preprocess([frame.view], size=target)[0]
        except InputError as error:
            self._record.refuse(frame.name, str(error).removeprefix("view 0: "), self._clock())
            return None

    def _chosen_size(self, frames: Sequence[_Frame]) -> tuple[int, int]:
        """The size that the engine chooses for the first set; it stays, because a window has frames of one size."""
        if self._target is None:
            images = [{"img": frame.view["img"]} for frame in frames]
            height, width = self._engine.preprocess(images)[0]["img"].shape[-2:]
            self._target = width, height
        return self._target

    def _window_for(self, frames: Sequence[_Frame], settings: Settings) -> Window:
        """The window that the frames belong into; a new one where sizes or the world have changed."""
        world = next((frame.world for frame in frames if frame.world is not None), None)
        kept_for = (settings.size, settings.window_size)
        if self._window is None or kept_for != self._kept_for or world not in (None, self._world):
            self._window, self._kept_for = Window(self._engine, settings.window_size), kept_for
            self._world = world
        return self._window


def stamp_of(header: Any) -> int:
    """Return the stamp of a header in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _camera_result(frame: _Frame, found: FrameResult) -> CameraResult:
    depth = masked_depth(found["depth_z"][..., 0], found.mask)
    return CameraResult(frame.name, frame.header, depth, found["conf"], found["intrinsics"], found.pose)


def _cloud(found: Sequence[FrameResult], settings: Settings) -> NDArray[np.void]:
    thinning = settings.thinning
    clouds = (
        points_of(one["pts3d_cam"], one["img_no_norm"], one["conf"], one.mask, one.pose, thinning) for one in found
    )
    return merged(clouds, thinning)
