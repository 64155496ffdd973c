"""A scene that is looked at: on disk or in memory, and the page, pictures, points and files that are made of it."""

from __future__ import annotations

import io
import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterable, Mapping
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
from mapengine.runtime.outputs.viewer.layers import is_cloud
from mapengine.runtime.outputs.viewer.levels import FIRST_POINTS, SceneLevels, packed_rest
from mapengine.runtime.writing.files import atomic_write, writing

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


class ShownScene:
    """A scene and what is made of it, in a folder. Threads may share it."""

    def __init__(
        self, folder: Path, scene: Scene, *, in_memory: bool = False, title: str = "", first_points: int = FIRST_POINTS
    ) -> None:
        """Write the page and its points into ``folder``, which is made, and the scene unless it stays in memory.

        Args:
            title: of the page, where it is not known what made the scene.
            first_points: how many are drawn before somebody asks for all.

        Raises:
            OutputError: it could not be written.
        """
        self._folder = folder
        self.identity = secrets.token_hex(8)
        """Of this scene among those that one page has after another."""
        self._first_points = first_points
        self._kept = scene if in_memory else None
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
                for name in SHAPES if self._kept is None else ():
                    np.save(folder / f"{name}.npy", getattr(scene, name))
                levels = SceneLevels.of(scene, f"points/{self.identity}", title, first_points)
                self.page.write_text(levels.page, encoding="utf-8")
                for number, content in enumerate(levels.first):
                    (folder / f"level-{number}").write_bytes(content)
        except BaseException:
            self.delete()
            raise

    @property
    def page(self) -> Path:
        """The page that shows the scene, and asks for its points at ``points/IDENTITY/LEVEL``."""
        return self._folder / "page.html"

    def level(self, number: int) -> Iterable[bytes]:
        """Return the points of a level, 0 to 2, in pieces; see :mod:`mapengine.runtime.outputs.viewer.levels`."""
        if number < 2:
            return [(self._folder / f"level-{number}").read_bytes()]
        return packed_rest(self._scene(), self._first_points)

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

    def facts(self) -> dict[str, Any]:
        """Return what the part of a page that shows scenes has to know."""
        scene = self._scene()
        _, height, width = scene.mask.shape
        has_views = not is_cloud(scene)
        return {
            "views": self._known["names"] if has_views else [],
            "width": width,
            "height": height,
            "limits": self.limits,
            "downloads": [[name, form.label] for name, form in DOWNLOADS.items()] if has_views else [],
        }

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
        if self._kept is not None:
            return self._kept
        arrays = {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in SHAPES}
        known = dict(self._known)
        return Scene.of_finished(arrays, known.pop("metric_scale"), known.pop("names"), **known)


def _check_view(scene: Scene, view: int) -> None:
    if not 0 <= view < len(scene.names):
        raise InputError(f"there is no view {view}; there are {len(scene.names)}")
