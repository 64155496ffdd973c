"""JSON lists of views: the files of their images and depth maps, their cameras and poses."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ...errors import ImageReadError, InputError
from ...system.reading import read_file, shown_path
from ...typed_json.codec import Fail, decode
from ...typed_json.fields import Text
from ...typed_json.text import Document, parse_json
from .image_files import warn_of_unlisted
from .values import camera_matrix, pose_matrix
from .view_files import InputFormat, ReadOptions, ViewFiles

FILE_NAME = "views.json"
NO_CAMERA = "has a depth map but no intrinsics"
_LARGEST_LIST = 64 * 1024 * 1024
_FileName = Annotated[str, Text("the path of a file", r"[^\0]+", printable=False)]
_Numbers = tuple[Any, ...]


@dataclass(frozen=True)
class _View:
    """One view as its JSON object has it; the names are those of :class:`ViewFiles`."""

    image: _FileName
    intrinsics: _FileName | _Numbers | None = None
    depth: _FileName | None = None
    depth_scale: float | None = None
    pose: _FileName | _Numbers | None = None
    metric: bool | None = None
    mask: _FileName | None = None

    def check_fields(self, fail: Fail) -> None:
        """Refuse parts without what they need."""
        if self.depth_scale is not None and self.depth is None:
            fail("", "has a depth_scale but no depth")
        if self.depth is not None and self.intrinsics is None:
            fail("", f"{NO_CAMERA}, which it needs")


def load_view_list(path: str | os.PathLike[str]) -> list[ViewFiles]:
    """Read a JSON list of views, or an object ``{"views": [...]}``.

    Each view is an object with ``image`` and, if known, ``intrinsics`` (what :func:`.values.camera_matrix` takes),
    ``depth`` (file) and ``depth_scale``, ``pose`` (what :func:`.values.pose_matrix` takes, camera-to-world), ``metric``
    (bool) and ``mask`` (file; white counts). Paths are relative to the JSON file. A key with null counts as absent. The
    files of images and depth must exist; they are read later, by :func:`..sources.read_views`.

    Raises:
        InputError: not such a list; the message names view and key.
        ImageReadError: an image or depth file is missing.
    """
    path = Path(path)
    views = _read_views(path)
    return [_view_files(view, path, f"{shown_path(path)}: view {index}") for index, view in enumerate(views)]


def _read_views(path: Path) -> list[_View]:
    name = shown_path(path)
    document = Document(name, "correct the file", InputError, root="", defaults=True)
    try:
        text = read_file(path, _LARGEST_LIST)
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such view list; check the path") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read as a view list: {error.strerror or error}; check the path") from error
    entries = parse_json(text.removeprefix(codecs.BOM_UTF8), document)
    if isinstance(entries, dict):
        if set(entries) != {"views"}:
            raise InputError(f'{name}: must be a list of views or an object {{"views": [...]}} without other keys')
        entries = entries["views"]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{name}: holds no list of views; give at least one object with an image")
    return [
        decode(_View, entry, replace(document, name=f"{name}: view {index}")) for index, entry in enumerate(entries)
    ]


def _view_files(view: _View, path: Path, where: str) -> ViewFiles:
    def file(key: str, name: str, error: type[InputError]) -> Path:
        found = path.parent / name
        if os.path.isfile(found):  # unlike Path.is_file, false for a name that is too long
            return found
        raise error(f"{where}: {key}: there is no file {shown_path(found)}; paths are relative to the view list")

    def values(key: str, given: Any) -> Any:
        return file(key, given, InputError) if isinstance(given, str) else given

    intrinsics = pose = None
    if view.intrinsics is not None:
        intrinsics = camera_matrix(values("intrinsics", view.intrinsics), f"{where}: intrinsics")
    if view.pose is not None:
        pose = pose_matrix(values("pose", view.pose), f"{where}: pose")
    return ViewFiles(
        image=file("image", view.image, ImageReadError),
        intrinsics=intrinsics,
        depth=None if view.depth is None else file("depth", view.depth, ImageReadError),
        depth_scale=view.depth_scale,
        pose=pose,
        metric=view.metric,
        mask=None if view.mask is None else file("mask", view.mask, ImageReadError),
        camera_files=tuple(path.parent / name for name in (view.intrinsics, view.pose) if isinstance(name, str)),
    )


def _matches(path: Path) -> bool:
    return (path / FILE_NAME).is_file() if path.is_dir() else path.suffix.lower() == ".json"


def _read(path: Path, options: ReadOptions) -> list[ViewFiles]:
    if not path.is_dir():
        return load_view_list(path)
    views = load_view_list(path / FILE_NAME)
    files = [file for view in views for file in view.files()]
    for folder in sorted({view.image.parent for view in views}):
        warn_of_unlisted(folder, files, f"{FILE_NAME} does not name")
    return views


VIEW_LIST = InputFormat("view list", _matches, _read)
