"""A map on disk: a file per frame, written when its window is done, and its poses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..outputs.frame import Alignment
from ..outputs.view_files import check_no_views, load_view, view_path, write_view
from ..writing.files import output_path, write_npz, writing
from .similarity import Similarity

Array = NDArray[Any]

MAP_FILE = "map.npz"
"""The poses and submaps of all frames, beside the files of the views."""
MAP_KIND = "map"


class MapFolder:
    """The files of a map; see :func:`.outputs.view_files.save_views` for those of the views.

    Attributes:
        folder: of them.
    """

    def __init__(self, folder: str | os.PathLike[str], *, half: bool, made_by: str) -> None:
        """Make the folder if it is not there.

        Raises:
            InputError: it holds views of another run.
            OutputError: it cannot be made.
        """
        self.folder = output_path(folder)
        self._half, self._made_by = half, made_by
        check_no_views(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def write(
        self, number: int, prediction: Mapping[str, Array], placement: Similarity, name: str, given: bool
    ) -> None:
        """Write what ``infer`` gives of a frame.

        Args:
            number: of the frame.
            prediction: in the frame of its window.
            placement: of the window in the map.
            name: for people.
            given: whether the map is in the world of given poses.

        Raises:
            OutputError: it could not be written.
        """
        more = {"name": np.array(name or f"frame {number}")}
        more["frame"] = np.array("given" if given else "view0")
        move, path = _alignment(placement), view_path(self.folder, number)
        write_view(path, prediction, move, half=self._half, made_by=self._made_by, more=more)

    def refine(self, number: int, move: Similarity, given: bool) -> None:
        """Move a frame that was written; errors as :meth:`write`."""
        path = view_path(self.folder, number)
        view = load_view(path)
        more: dict[str, Any] = {key: view.pop(key) for key in ("name", "made_by") if key in view}
        more["frame"] = np.array("given" if given else "view0")
        view.pop("frame")
        write_view(path, view, _alignment(move), half=self._half, more=more)

    def write_poses(self, poses: Array, submaps: Array, keyframes: Array, breaks: Sequence[Any]) -> None:
        """Write poses (N, 4, 4) and submaps (N,) of all frames, whether they are keyframes (N,), and where submaps
        begin; errors as :meth:`write`."""
        arrays = {
            "poses": poses,
            "submaps": submaps,
            "keyframes": keyframes,
            "break_frames": np.array([found.number for found in breaks], np.int64),
            "break_reasons": np.array([found.reason for found in breaks], np.str_),
        }
        write_npz(self.folder / MAP_FILE, MAP_KIND, arrays)


def _alignment(move: Similarity) -> Alignment:
    """Return a transform in the form that predictions are moved by."""
    return Alignment(move.rotation, move.translation, move.scale, 0, True, 0.0, 0.0)
