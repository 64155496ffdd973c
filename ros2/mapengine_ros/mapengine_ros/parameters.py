"""The node's parameters: names, defaults, bounds and meanings, which stand here and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mapengine.runtime import InputError

from .clouds import Thinning
from .poses import mounts
from .window import WindowSize

_NAME = re.compile(r"[A-Za-z]\w*(/[A-Za-z]\w*)*", re.ASCII)


@dataclass(frozen=True)
class Bounds:
    """What a parameter may be.

    Attributes:
        text: what it means.
        low, high: of a number.
        choices: of a word.
        fixed: whether it can be given at the start alone.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    fixed: bool = False


def _parameter(default: Any, text: str, **bounds: Any) -> Any:
    bounded = Bounds(text, **bounds)
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata={"bounds": bounded})
    return field(default=default, metadata={"bounds": bounded})


@dataclass(frozen=True)
class Settings:
    """The values of all parameters, checked when they are made.

    Raises:
        InputError: a value outside its bounds, or values that contradict each other; names the parameter.
    """

    engine: str = _parameter("", "Folder of the engine bundle.", fixed=True)
    backend: str = _parameter("auto", "Backend that runs it; auto: the fastest that is usable.", fixed=True)
    threads: int = _parameter(0, "Processor threads of the engine; 0: all.", low=0, high=1024, fixed=True)
    verify: bool = _parameter(True, "Check the hashes of the bundle when it is loaded.", fixed=True)
    cameras: tuple[str, ...] = _parameter(("camera",), "Namespaces of the cameras.", fixed=True)
    image_transport: str = _parameter(
        "raw", "Topics of the images: NAME/image or NAME/image/compressed.", choices=("raw", "compressed"), fixed=True
    )
    depth_transport: str = _parameter(
        "none",
        "Topics of depth: none, NAME/depth or NAME/depth/compressedDepth.",
        choices=("none", "raw", "compressed"),
        fixed=True,
    )
    pose_source: str = _parameter(
        "none",
        "Where poses come from: none, NAME/pose (PoseStamped), NAME/odometry (Odometry), or TF.",
        choices=("none", "pose", "odometry", "tf"),
        fixed=True,
    )
    camera_mounts: tuple[float, ...] = _parameter(
        (),
        "x y z qx qy qz qw of each camera's optical frame in the frame that its pose is of; none: poses are of the "
        "optical frames.",
        fixed=True,
    )
    use_camera_info: bool = _parameter(True, "Give the network the intrinsics of NAME/camera_info.", fixed=True)
    rectified: bool = _parameter(False, "The images are rectified: P of CameraInfo counts, its distortion does not.")
    frame: str = _parameter("reconstruction", "Frame of results while no pose is given.", fixed=True)
    tf_frame: str = _parameter("odom", "Fixed frame that poses of TF are looked up in.", fixed=True)
    tolerance: float = _parameter(0.02, "Seconds that the stamps of one set may differ by.", low=0.0, high=1.0)
    timeout: float = _parameter(1.0, "Seconds without a message after which a topic is left out.", low=0.05, high=60.0)
    window: int = _parameter(2, "Newest sets of frames that are reconstructed together.", low=1, high=1000)
    keyframe_every: int = _parameter(10, "Each so many-th set is a keyframe; 0: none is.", low=0, high=100000)
    max_keyframes: int = _parameter(2, "Newest keyframes that stay beside the window.", low=0, high=1000)
    width: int = _parameter(0, "Width that images are brought to; 0: the engine chooses.", low=0, high=4096)
    height: int = _parameter(0, "Height that images are brought to; 0: the engine chooses.", low=0, high=4096)
    mask_edges: bool = _parameter(True, "Leave out pixels at depth edges.")
    confidence_percentile: float = _parameter(
        0.0, "Percentage of the pixels of each image, the least confident, that are left out.", low=0.0, high=99.0
    )
    cloud_step: int = _parameter(2, "Every so many-th pixel of rows and columns becomes a point.", low=1, high=64)
    cloud_voxel: float = _parameter(0.0, "Edge of cubes with one point each, metres; 0: all.", low=0.0, high=10.0)
    cloud_views: str = _parameter(
        "window",
        "Views whose points are in the cloud: those of the newest set, or of the window.",
        choices=("newest", "window"),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option.name, getattr(self, option.name), bounds_of(option.name))
        if not self.engine:
            raise InputError("engine is not set; give the folder of an engine bundle")
        if not self.cameras:
            raise InputError("cameras is empty; name at least one")
        for name in self.cameras:
            if not _NAME.fullmatch(name):
                raise InputError(f"cameras names {name!r}, which is no name of ROS; use letters, digits, _ and /")
        if len(set(self.cameras)) < len(self.cameras):
            raise InputError(f"cameras names one twice: {', '.join(self.cameras)}")
        if bool(self.width) != bool(self.height):
            raise InputError(f"width is {self.width} and height {self.height}; give both, or 0 for both")
        if self.pose_source == "tf" and self.frame == self.tf_frame:
            raise InputError(f"frame and tf_frame are both {self.frame!r}; give results without poses another frame")
        mounts(self.camera_mounts, len(self.cameras))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings of values as ROS has them."""
        given: dict[str, Any] = {name: tuple(value) if _is_list(name) else value for name, value in values.items()}
        return cls(**given)

    @property
    def window_size(self) -> WindowSize:
        """How many sets of frames stay."""
        return WindowSize(self.window, self.keyframe_every, self.max_keyframes)

    @property
    def size(self) -> tuple[int, int] | None:
        """(W, H) that images are brought to, or None."""
        return (self.width, self.height) if self.width else None

    @property
    def thinning(self) -> Thinning:
        """How points become fewer."""
        return Thinning(self.cloud_step, self.cloud_voxel)

    @property
    def infer_options(self) -> dict[str, Any]:
        """Options of ``Engine.infer``."""
        masked = self.confidence_percentile > 0
        chosen: dict[str, Any] = {"mask_edges": self.mask_edges, "apply_confidence_mask": masked}
        return {**chosen, "confidence_percentile": self.confidence_percentile} if masked else chosen


def parameter_defaults() -> dict[str, Any]:
    """Return every parameter's default."""
    return {option.name: _default(option.name) for option in fields(Settings)}


def bounds_of(name: str) -> Bounds:
    """Return what the parameter of a name may be."""
    found: Bounds = Settings.__dataclass_fields__[name].metadata["bounds"]
    return found


def _default(name: str) -> Any:
    option: Any = Settings.__dataclass_fields__[name]
    return option.default_factory() if _is_list(name) else option.default


def _is_list(name: str) -> bool:
    return str(Settings.__dataclass_fields__[name].type).startswith("tuple")


def _check(name: str, value: Any, bounds: Bounds) -> None:
    if bounds.choices and value not in bounds.choices:
        raise InputError(f"{name} is {value!r}; choose {', '.join(bounds.choices)}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not bounds.low <= value <= bounds.high:
        raise InputError(f"{name} is {value!r}; it must be between {bounds.low:g} and {bounds.high:g}")
