"""Video: frames come one by one, every image is encoded once, and the views in use change by a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import InputError, ProfileError
from .inputs.encoded import EncodedView, snapshot
from .mapping.intake import check_count, encode_frame
from .options import shows_options

if TYPE_CHECKING:
    from .engine import Engine


class Session:
    """The frames of a video that are reconstructed together: keyframes, and the latest others.

    Only the image encoder's work is kept, because every frame looks at every other one afterwards. Results are those of
    one call with the views in use (see :meth:`mapengine.runtime.Engine.encode`). Not for several threads at once.

    The first frame in use is the reference, in whose frame results are. When it leaves, the next one takes its place;
    if frames have poses, that one needs a pose too (:meth:`update`).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        window: int | None = None,
        keyframe_every: int | None = None,
        max_keyframes: int | None = None,
    ) -> None:
        """Begin without frames.

        Args:
            engine: runs the network.
            window: how many frames that are no keyframes stay, the latest; all of them if not given.
            keyframe_every: the first frame and each so many-th after it become keyframes, which outlast the window;
                none do by themselves if not given.
            max_keyframes: how many keyframes stay, the latest. By default as many as the engine serves beside the
                window; all of them where there is no window.

        Raises:
            InputError: a value that is no positive number, or more frames than the engine was built for.
        """
        for name, value in (("window", window), ("keyframe_every", keyframe_every), ("max_keyframes", max_keyframes)):
            check_count(name, value, optional=True)
        self._most = engine.manifest.requests.views.max
        if (window or 0) + (max_keyframes or 0) > self._most:
            both = " and ".join(
                f"{name} is {value}" for name, value in (("window", window), ("max_keyframes", max_keyframes)) if value
            )
            raise InputError(
                f"{both}, but this bundle was built for up to {self._most} views; give at most {self._most} in all"
            )
        if window is not None and max_keyframes is None:
            max_keyframes = self._most - window
        self._engine, self._window, self._every, self._max_keyframes = engine, window, keyframe_every, max_keyframes
        self._frames: dict[int, EncodedView] = {}
        self._keyframes: set[int] = set()
        self._added = 0
        if keyframe_every is not None:
            self._check_room_for_keyframes()

    def add(self, view: Mapping[str, Any] | EncodedView, *, keyframe: bool = False) -> int:
        """Encode a frame and take it in; the oldest frames leave for it where the window or the keyframes are full.

        Args:
            view: as ``infer`` takes it, with whatever is known about the frame; its arrays may be filled anew
                afterwards.
            keyframe: let it stay when it has left the window.

        Returns:
            The number of the frame; the first is 0.

        Raises:
            InputError: as in ``infer``, and for a frame of another size than the ones in use.
            ProfileError: without a window, more frames than the engine was built for. After an error the session is as
                it was.
        """
        encoded = encode_frame(self._engine, view, next(iter(self._frames.values()), None))
        frame = self._added
        keyframes = [number for number in self._frames if number in self._keyframes]
        others = [number for number in self._frames if number not in self._keyframes]
        is_keyframe = keyframe or (self._every is not None and frame % self._every == 0)
        if is_keyframe:
            self._check_room_for_keyframes()
        (keyframes if is_keyframe else others).append(frame)
        leaving = [*_oldest(others, self._window), *_oldest(keyframes, self._max_keyframes)]
        count = len(self._frames) + 1 - len(leaving)
        if count > self._most:
            raise ProfileError(
                f"{count} frames would be in use, but this bundle was built for up to {self._most} views; give the "
                "session a window, or drop frames"
            )
        self._frames[frame] = encoded
        if is_keyframe:
            self._keyframes.add(frame)
        for number in leaving:
            self.drop(number)
        self._added += 1
        return frame

    def _check_room_for_keyframes(self) -> None:
        if self._max_keyframes == 0:
            raise InputError(
                f"window is {self._window}, all that this bundle serves in a call, which leaves no room for keyframes; "
                f"give at most {self._most - 1}"
            )

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
        view = {key: value for key, value in {**old.view, **snapshot(known)}.items() if value is not None}
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
    def infer(
        self, *, outputs: Iterable[str] | None = None, on_device: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        """:meth:`mapengine.runtime.Engine.infer` over the frames in use, one dictionary per frame."""
        return self._engine.infer(self.views, outputs=outputs, on_device=on_device, **options)

    @shows_options
    def infer_stream(self, *, outputs: Iterable[str] | None = None, **options: Any) -> Iterator[dict[str, Any]]:
        """:meth:`mapengine.runtime.Engine.infer_stream` over the frames in use."""
        return self._engine.infer_stream(self.views, outputs=outputs, **options)


def _oldest(frames: list[int], most: int | None) -> list[int]:
    """The first frames, all but the last ``most``; none where there is no limit."""
    return [] if most is None else frames[: max(len(frames) - most, 0)]
