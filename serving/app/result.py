"""What a visit has of its last call: the scene on disk, and the page, pictures, points and files made of it."""

from __future__ import annotations

import io
import shutil
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.errors import InputError
from mapengine.runtime.outputs.drawing import CONFIDENCE_STOPS, DEPTH_STOPS, Limits, colorize, robust_range
from mapengine.runtime.outputs.formats.names import file_stems
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.scene_arrays import SHAPES
from mapengine.runtime.outputs.viewer.page import MAX_BYTES, PAGE_KIND, page_text
from mapengine.runtime.writing.files import atomic_write, write_text, writing

_ALL_POINTS = 2_000_000_000
"""Bytes that a page may have with which nothing is thinned."""
_IN_MEMORY = ("metric_scale", "names", "alignment", "made_by", "original_pixels", "original_sizes", "times")


@dataclass(frozen=True)
class Download:
    """A file that a scene is given away as.

    Attributes:
        format: of :mod:`mapengine.runtime.outputs.formats.table`; a folder is given as a ZIP file.
        file: its name.
        label: for people.
        mesh: with surfaces instead of points.
    """

    format: str
    file: str
    label: str
    mesh: bool = False


DOWNLOADS: Mapping[str, Download] = {
    "glb": Download("glb", "scene.glb", "GLB"),
    "mesh": Download("glb", "scene-mesh.glb", "GLB with surfaces", mesh=True),
    "ply": Download("ply", "scene.ply", "PLY"),
    "colmap": Download("colmap", "scene-colmap.zip", "COLMAP (ZIP)"),
    "npz": Download("npz", "scene.npz", "NPZ"),
    "html": Download("html", "scene.html", "HTML page"),
}

PICTURES: Mapping[str, tuple[str, str]] = {
    "image": ("JPEG", "image/jpeg"),
    "depth": ("PNG", "image/png"),
    "confidence": ("PNG", "image/png"),
}
"""What is drawn of a view: Pillow's name of the format, and its type on the web."""


class Result:
    """The scene of a call, in a folder; its arrays are read from there when they are needed. Threads may share it."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        """Write the scene and its page into ``folder``, which is made.

        Raises:
            OutputError: it could not be written.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {name: getattr(scene, name) for name in _IN_MEMORY}
        # A part of the pixels tells the range as well as all of them, and 64 views have 13 million.
        step = max(1, scene.mask.size // 2_000_000)
        depth, confidence = scene.depth.reshape(-1)[::step], scene.confidence.reshape(-1)[::step]
        mask = scene.mask.reshape(-1)[::step]
        self.limits: dict[str, Limits | None] = {
            "depth": robust_range(depth[mask]),
            "confidence": robust_range(confidence),
        }
        """Ends of the scales of the pictures; depth in metres."""
        try:
            with writing("the scene"):
                folder.mkdir()
                for name in SHAPES:
                    np.save(folder / f"{name}.npy", getattr(scene, name))
            self._write_page(scene, MAX_BYTES)
        except BaseException:
            self.delete()
            raise

    def page(self, all_points: bool = False) -> Path:
        """Return the page that shows the scene: at most 15 MB, or with all of its points."""
        if not all_points:
            return self._folder / "page.html"
        with self._lock:
            path = self._folder / "page-all.html"
            return path if path.exists() else self._write_page(self._scene(), _ALL_POINTS, path.name)

    def picture(self, view: int, kind: str) -> bytes:
        """Return the file of a picture of a view, of a kind in :data:`PICTURES`.

        Raises:
            InputError: there is no such view.
        """
        scene = self._scene()
        _check_view(scene, view)
        if kind == "image":
            pixels = scene.colors[view]
        elif kind == "depth":
            pixels = colorize(scene.depth[view], scene.mask[view], self.limits["depth"], DEPTH_STOPS)
        else:
            confidence = scene.confidence[view]
            pixels = colorize(confidence, np.isfinite(confidence), self.limits["confidence"], CONFIDENCE_STOPS)
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format=PICTURES[kind][0], quality=92)
        return file.getvalue()

    def point(self, view: int, x: int, y: int) -> dict[str, Any]:
        """Return what is known of a pixel: ``depth``, ``confidence`` and ``point``, or None each where there is none.

        Raises:
            InputError: there is no such view or pixel.
        """
        scene = self._scene()
        _check_view(scene, view)
        height, width = scene.mask.shape[1:]
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"there is no pixel {x}, {y}; the views have {width}x{height}")
        valid = bool(scene.mask[view, y, x])
        return {
            "depth": float(scene.depth[view, y, x]) if valid else None,
            "confidence": float(scene.confidence[view, y, x]),
            "point": [float(value) for value in scene.points[view, y, x]] if valid else None,
        }

    def download(self, name: str, confidence_percentile: float = 0.0) -> Path:
        """Return the file of a download of :data:`DOWNLOADS`, made when it is asked for.

        Args:
            confidence_percentile: of :class:`SaveOptions`.

        Raises:
            InputError: no such download, or an option outside its range.
            OutputError: it could not be written.
        """
        if name not in DOWNLOADS:
            raise InputError(f"there is no download {name!r}; choose one of {', '.join(DOWNLOADS)}")
        form = DOWNLOADS[name]
        options = SaveOptions(confidence_percentile=confidence_percentile, mesh=form.mesh)
        with self._lock:
            place = self._folder / f"{name}-{options.confidence_percentile:g}"
            path = place / form.file
            if not path.exists():
                for older in self._folder.glob(f"{name}-*"):
                    shutil.rmtree(older, ignore_errors=True)
                place.mkdir()
                self._save(path, form, options)
            return path

    def delete(self) -> None:
        """Delete all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, path: Path, form: Download, options: SaveOptions) -> None:
        scene = self._scene()
        chosen = {"confidence_percentile": options.confidence_percentile, "mesh": options.mesh}
        if path.suffix != ".zip":
            scene.save(path, format=form.format, **chosen)
            return
        folder = path.parent / file_stems([form.file])[0]
        scene.save(folder, format=form.format, **chosen)
        with (
            atomic_write(path, None) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, True, 1) as file,
        ):
            for entry in sorted(folder.rglob("*")):
                file.write(entry, entry.relative_to(path.parent).as_posix())
        shutil.rmtree(folder, ignore_errors=True)

    def _scene(self) -> Scene:
        arrays = {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in SHAPES}
        known = dict(self._known)
        return Scene.of_finished(arrays, known.pop("metric_scale"), known.pop("names"), **known)

    def _write_page(self, scene: Scene, most: int, name: str = "page.html") -> Path:
        path = self._folder / name
        write_text(path, PAGE_KIND, page_text({"": scene}, SaveOptions(), most=most))
        return path


def _check_view(scene: Scene, view: int) -> None:
    if not 0 <= view < len(scene.names):
        raise InputError(f"there is no view {view}; there are {len(scene.names)}")
