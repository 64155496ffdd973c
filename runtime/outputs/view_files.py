"""Predictions on disk, a file per view, written as they come: for more views than fit in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..postprocessing.predictions import halved
from ..system.array_files import load_arrays
from ..system.reading import shown_path
from ..writing.files import output_error, output_path, real_path, write_npz, writing
from ..writing.staging import staging
from .frame import Alignment, moved_prediction
from .scene import Scene

Align = Callable[[Sequence[NDArray[Any]]], Alignment | None]
"""From the predicted poses (4, 4) of all views to the transform into the frame of the result, or None."""


def save_views(
    folder: str | os.PathLike[str],
    predictions: Iterable[Mapping[str, NDArray[Any]]],
    names: Sequence[str] | None = None,
    *,
    original_pixels: Sequence[NDArray[np.float64] | None] | None = None,
    align: Align | None = None,
    half: bool = False,
    made_by: str = "",
) -> list[Path]:
    """Write ``view-0000.npz``, ``view-0001.npz``, ... with the keys, shapes and types that ``infer_stream`` gives.

    Each also holds ``frame``, and of what is given below ``name``, ``original_pixels``, ``made_by`` and, where
    the views were moved, the fields of the :class:`~.frame.Alignment`, with ``alignment_`` before them.

    Args:
        folder: is made if it is not there; files of an earlier run must not be in it.
        predictions: one dictionary per view, in the frame of view 0.
        names: one per view, such as that of its image.
        original_pixels: one (3, 3) per view, see :class:`~.scene.Scene`.
        align: brings the views into the world of the given poses. The poses of all views are needed for that, so views
            wait on the disk, in ``folder``, until the last one was predicted, and are then moved one by one.
        half: write maps as float16, but for points that are float64.
        made_by: what predicted them, such as :attr:`Engine.label <mapengine.runtime.Engine.label>`.

    Returns:
        The files, in order. Each is complete or not there.

    Raises:
        InputError: the folder has such files already.
        OutputError: a file could not be written.
    """
    target = output_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    check_no_views(target)
    written: list[Path] = []

    def write(index: int, prediction: Mapping[str, NDArray[Any]], alignment: Alignment | None) -> None:
        path = view_path(target, index)
        more: dict[str, Any] = {}
        if alignment is not None:
            more = alignment.arrays()
        if names is not None:
            more["name"] = np.array(names[index], dtype=np.str_)
        if original_pixels is not None and original_pixels[index] is not None:
            more["original_pixels"] = original_pixels[index]
        write_view(path, prediction, alignment, half=half, made_by=made_by, more=more)
        written.append(path)

    try:
        if align is None:
            for index, prediction in enumerate(predictions):
                write(index, prediction, None)
        else:
            with _waiting(target) as place:
                poses = []
                for index, prediction in enumerate(predictions):
                    poses.append(prediction["camera_poses"][0])
                    write_npz(view_path(place, index), "view", prediction)
                alignment = align(poses)
                for index in range(len(poses)):
                    write(index, load_arrays(view_path(place, index)), alignment)
                    view_path(place, index).unlink()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{_complete(written, target)}; nothing half-written is left") from None
    except OutputError as error:
        raise OutputError(f"{error}; {_complete(written, target)}") from error
    return written


def write_view(
    path: Path,
    prediction: Mapping[str, NDArray[Any]],
    move: Alignment | None = None,
    *,
    half: bool = False,
    made_by: str = "",
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write one view as :func:`save_views` does.

    Args:
        path: see :func:`view_path`.
        prediction: what ``infer_stream`` gives of it.
        move: into the world of the given poses, if it is to be there.
        half, made_by: as there.
        more: further arrays of the file.

    Raises:
        OutputError: it could not be written; no half of it is left.
    """
    contents: dict[str, Any] = {name: np.asarray(value) for name, value in prediction.items()}
    if move is not None:
        contents = moved_prediction(contents, move)
    if half:
        contents |= halved({key: value for key, value in contents.items() if value.dtype != np.float64})
    contents["frame"] = np.array("view0" if move is None else "given")
    if made_by:
        contents["made_by"] = np.array(made_by, dtype=np.str_)
    write_npz(path, "view", {**contents, **(more or {})})


def view_path(folder: Path, index: int) -> Path:
    """Return where a view is written."""
    return folder / f"view-{index:04d}.npz"


@contextmanager
def _waiting(folder: Path) -> Iterator[Path]:
    """A folder for views that wait, inside the one that they will be in."""
    with writing(folder), staging(real_path(folder) / "waiting") as place:
        place.new.mkdir()
        yield place.new


def _complete(written: Sequence[Path], folder: Path) -> str:
    count = len(written)
    return f"{count or 'no'} view{'' if count == 1 else 's'} {'is' if count == 1 else 'are'} complete in {folder}"


def check_no_views(folder: Path) -> None:
    """Refuse a folder that has views of another run (InputError): old and new ones could not be told apart."""
    if folder.is_dir() and any(folder.glob("view-*.npz")):
        raise InputError(f"{folder} holds views of another run; name another folder, or remove them")


def load_view(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read a view that :func:`save_views` wrote.

    Raises:
        InputError: no such file, or not one of these.
    """
    try:
        return load_arrays(path)
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged archives
        said = getattr(error, "strerror", None) or error
        raise InputError(f"{shown_path(path)} is no view that was saved ({said}); give a view-*.npz") from None


def view_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a folder that :func:`save_views` wrote, in order.

    Raises:
        InputError: there are none.
    """
    found = sorted(Path(folder).glob("view-*.npz"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise InputError(f"{shown_path(folder)}: there are no views in it (view-0000.npz, ...), as run --stream writes")
    return found


def view_scene(path: str | os.PathLike[str]) -> Scene:
    """Read a view that :func:`save_views` wrote, as a scene of one view.

    Raises:
        InputError: no such file, or not one of these.
    """
    view = load_view(path)
    try:
        alignment = Alignment.of_arrays(view)
        name = str(view.get("name", Path(path).stem))
        scene = Scene.from_predictions([view], [name], alignment=alignment)
        scene.made_by = str(view.get("made_by", ""))
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{shown_path(path)} is no view that was saved ({error}); give a view-*.npz") from None
    return scene
