"""Predictions on disk, a file per view, written as they come: for more views than fit in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..system.array_files import load_arrays
from ..system.reading import shown_path
from ..writing.files import output_error, output_path, write_npz


def save_views(
    folder: str | os.PathLike[str],
    predictions: Iterable[Mapping[str, NDArray[Any]]],
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write ``view-0000.npz``, ``view-0001.npz``, ... with the keys, shapes and types that ``infer_stream`` gives.

    Args:
        names: one per view, such as that of its image, which each file then holds as ``name``.
        folder: is made if it is not there; files of an earlier run must not be in it.
        predictions: one dictionary per view.

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
    try:
        for index, prediction in enumerate(predictions):
            path = target / f"view-{index:04d}.npz"
            contents: dict[str, Any] = {name: np.asarray(value) for name, value in prediction.items()}
            if names is not None:
                contents["name"] = np.array(names[index], dtype=np.str_)
            write_npz(path, "view", contents)
            written.append(path)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{_complete(written, target)}; nothing half-written is left") from None
    except OutputError as error:
        raise OutputError(f"{error}; {_complete(written, target)}") from error
    return written


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
