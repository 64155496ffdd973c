"""Video: frames come one by one, every image is encoded once, and the views in use change by a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .inputs.encoded import EncodedView
from .options import shows_options

if TYPE_CHECKING:
    from .engine import Engine


class Session:
    """The frames of a video that are reconstructed together: keyframes, and the latest others.

    Only the image encoder's work is kept, because every frame looks at every other one afterwards. Results are those of
    one call with the views in use (see :meth:`mapengine.runtime.Engine.encode`). Not for several threads at once.
    """

    def __init__(self, engine: Engine, *, window: int | None = None, keyframe_every: int | None = None) -> None:
        """Begin without frames.

        Args:
            engine: runs the network.
            window: how many frames that are no keyframes stay, the latest; all of them if not given.
            keyframe_every: the first frame and each so many-th after it become keyframes, which stay until they are
                dropped; none do by themselves if not given.

        Raises:
            InputError: a window or an interval that is no positive number, or a window of more views than the engine
                was built for.
        """
        for name, value in (("window", window), ("keyframe_every", keyframe_every)):
            is_count = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not is_count or value < 1):
                raise InputError(f"{name} is {value!r}; give a positive integer or None")
        most = engine.manifest.requests.views.max
        if window is not None and window > most:
            raise InputError(
                f"window is {window}, but this bundle was built for up to {most} views; give at most {most}"
            )
        self._engine, self._window, self._every = engine, window, keyframe_every
        self._frames: dict[int, EncodedView] = {}
        self._keyframes: set[int] = set()
        self._added = 0

    def add(self, view: Mapping[str, Any] | EncodedView, *, keyframe: bool = False) -> int:
        """Encode a frame and take it in; frames that leave the window are forgotten.

        Args:
            view: as ``infer`` takes it, with whatever is known about the frame.
            keyframe: keep it until it is dropped.

        Returns:
            The number of the frame; the first is 0.

        Raises:
            InputError: as in ``infer``, and for a frame of another size than the ones in use.
            ProfileError: the keyframes and the window are more views than the engine was built for; the frame is not
                taken in.
        """
        encoded = self._engine.encode([view])[0]
        if self._frames:
            there, here = (np.shape(next(iter(self._frames.values())).view["img"]), np.shape(encoded.view["img"]))
            if there != here:
                raise InputError(
                    f"the frame has the shape {here}, those before it {there}; bring all frames of a video to one size"
                )
        frame = self._added
        is_key = keyframe or (self._every is not None and frame % self._every == 0)
        others = [number for number in self._frames if number not in self._keyframes]
        if not is_key:
            others.append(frame)
        leaving = [] if self._window is None else others[: max(len(others) - self._window, 0)]
        self._engine.manifest.requests.check_views(len(self._frames) + 1 - len(leaving))
        self._frames[frame] = encoded
        if is_key:
            self._keyframes.add(frame)
        for number in leaving:
            del self._frames[number]
        self._added += 1
        return frame

    def drop(self, frame: int) -> None:
        """Forget a frame, keyframe or not.

        Raises:
            InputError: it is not in use.
        """
        if frame not in self._frames:
            raise InputError(f"frame {frame!r} is not in use; in use are {self.frames or 'none'}")
        del self._frames[frame]
        self._keyframes.discard(frame)

    def update(self, frame: int, **known: Any) -> None:
        """Change what is known about a frame in use, such as its pose; the image stays.

        Args:
            frame: its number.
            **known: keys of a view, such as ``camera_poses``; None takes a key away.

        Raises:
            InputError: the frame is not in use, or the image was to be changed.
        """
        if frame not in self._frames:
            raise InputError(f"frame {frame!r} is not in use; in use are {self.frames or 'none'}")
        if "img" in known:
            raise InputError("the image of a frame cannot be changed; add another frame")
        old = self._frames[frame]
        view = {key: value for key, value in {**old.view, **known}.items() if value is not None}
        self._frames[frame] = EncodedView(view, old.features, old.encoder)

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames in use, in order; the first is the reference of all poses."""
        return list(self._frames)

    @property
    def views(self) -> list[EncodedView]:
        """The frames in use, as any call of the engine takes them."""
        return list(self._frames.values())

    @shows_options
    def infer(self, **options: Any) -> list[dict[str, Any]]:
        """:meth:`mapengine.runtime.Engine.infer` over the frames in use, one dictionary per frame."""
        return self._engine.infer(self.views, **options)

    @shows_options
    def infer_stream(self, **options: Any) -> Iterator[dict[str, Any]]:
        """:meth:`mapengine.runtime.Engine.infer_stream` over the frames in use."""
        return self._engine.infer_stream(self.views, **options)
