"""The table of formats that scenes are saved in: help, messages and the guide are made from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendUnavailableError, InputError
from ..colmap import COLMAP_MAX_POINTS, COLMAP_NAMES, write_colmap
from ..scene_arrays import SceneArrays, selected_pixels
from ..viewer.page import PAGE_KIND, write_page
from ..viewer.recording import RECORDING_KIND, write_recording
from .laz import write_laz
from .maps import MAPS_KIND, MAPS_NAMES, write_maps
from .options import SaveOptions
from .point_cloud import write_glb, write_ply
from .scene_file import write_scene
from .trajectory import TRAJECTORY_KIND, write_trajectory
from .transforms import TRANSFORMS_KIND, TRANSFORMS_NAMES, write_transforms


@dataclass(frozen=True)
class Requirement:
    """Packages that a format is written with, and the extra that brings them."""

    extra: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class OutputFormat:
    """A format that scenes are saved in.

    Attributes:
        name: as ``format=`` and ``--format`` take it.
        suffixes: endings of its files; none if it is a folder.
        kind: what is written, as :mod:`...writing.recognition` knows it.
        holds, read_by: for the guide.
        write: called with path, scene and options.
        options: the fields of :class:`SaveOptions` that change it.
        names: of the files and folders that are written into a folder itself.
        needs: what it cannot be written without, with these options.
    """

    name: str
    suffixes: tuple[str, ...]
    kind: str
    holds: str
    read_by: str
    write: Callable[[Path, SceneArrays, SaveOptions], None]
    options: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    needs: Callable[[SaveOptions], Requirement | None] = lambda options: None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files."""
        return not self.suffixes

    def check_packages(self, options: SaveOptions) -> None:
        """Refuse to write without a package that is needed (BackendUnavailableError)."""
        needed = self.needs(options)
        missing = [name for name in needed.packages if importlib.util.find_spec(name) is None] if needed else []
        if needed and missing:
            raise BackendUnavailableError(
                f"saving as {self.name} needs {' and '.join(missing)}; install with: pip install "
                f"'mapengine[{needed.extra}]', or choose another format"
            )


def _colmap(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    write_colmap(
        path,
        scene,
        selected_pixels(scene, None, options.confidence_percentile),
        voxel=options.voxel,
        max_points=COLMAP_MAX_POINTS if options.max_points is None else options.max_points,
        original_size=options.colmap_size == "original",
    )


_POINTS = ("max_points", "confidence_percentile")

FORMATS: tuple[OutputFormat, ...] = (
    OutputFormat(
        "glb",
        (".glb",),
        "point cloud",
        "coloured points, or with `mesh` a surface per view; a frustum per camera. glTF axes (y up), linear colours",
        "viewers, Blender, browsers",
        write_glb,
        (*_POINTS, "mesh"),
    ),
    OutputFormat(
        "ply",
        (".ply",),
        "point cloud",
        "coloured points, binary",
        "MeshLab, CloudCompare, Open3D",
        write_ply,
        _POINTS,
    ),
    OutputFormat("npz", (".npz",), "scene", "every array of the scene", "NumPy, `Scene.load`", write_scene),
    OutputFormat(
        "html",
        (".html",),
        PAGE_KIND,
        "a page to look at the scene: points that turn, confidence, cameras with images, distances; at most 15 MB",
        "any browser, without a network",
        write_page,
        _POINTS,
    ),
    OutputFormat(
        "rrd",
        (".rrd",),
        RECORDING_KIND,
        "a recording: per view pose, camera, image, depth, mask and points, under the entity paths of MapAnything",
        "Rerun",
        write_recording,
        _POINTS,
        needs=lambda options: Requirement("rerun", ("rerun",)),
    ),
    OutputFormat(
        "colmap",
        (),
        "COLMAP model",
        "cameras, merged points with the views that see them, and images under their names, as text and binary",
        "COLMAP, gsplat, OpenMVS, Metashape",
        _colmap,
        (*_POINTS, "voxel", "colmap_size"),
        COLMAP_NAMES,
    ),
    OutputFormat(
        "transforms",
        (),
        TRANSFORMS_KIND,
        "`transforms.json`, images, depth as 16-bit PNG, points as PLY",
        "nerfstudio (splatfacto trains with gsplat), `mapengine run`",
        write_transforms,
        (*_POINTS, "depth_png_scale"),
        TRANSFORMS_NAMES,
    ),
    OutputFormat(
        "maps",
        (),
        MAPS_KIND,
        "depth, normals (camera frame, OpenCV axes) and confidence per view, and `maps.json`, which lists them",
        "dn-splatter, OpenCV, NumPy",
        write_maps,
        ("maps", "map_format", "depth_png_scale"),
        MAPS_NAMES,
        lambda options: Requirement("exr", ("OpenEXR",)) if options.map_format == "exr" else None,
    ),
    OutputFormat(
        "laz",
        (".laz", ".las"),
        "point cloud",
        "coloured points with confidence and the number of their view, in steps of `laz_precision`",
        "QGIS, CloudCompare, PDAL",
        write_laz,
        (*_POINTS, "laz_precision"),
        needs=lambda options: Requirement("geo", ("laspy", "lazrs")),
    ),
    OutputFormat(
        "tum",
        (".txt",),
        TRAJECTORY_KIND,
        "a trajectory: `timestamp tx ty tz qx qy qz qw`, camera-to-world",
        "evo, TUM's tools",
        write_trajectory,
    ),
)
"""The first folder among them is what a path without an ending becomes."""

FORMAT_NAMES = tuple(form.name for form in FORMATS)


def chosen_format(path: Path, name: str | None = None) -> OutputFormat:
    """Return the format of that name, or the one that a path asks for by its ending.

    Raises:
        InputError: there is no such format.
    """
    if name is not None:
        for form in FORMATS:
            if form.name == name:
                return form
        raise InputError(f"format {name!r} is not known; choose one of {', '.join(FORMAT_NAMES)}")
    suffix = path.suffix.lower()
    for form in FORMATS:
        if suffix in form.suffixes or (form.is_folder and (suffix == "" or path.is_dir())):
            return form
    raise InputError(f"{path}: scenes cannot be saved as {path.suffix}; use {suffixes_and_folders()}")


def suffixes_and_folders() -> str:
    """Return the endings, and what a folder becomes, in words."""
    files = [suffix for form in FORMATS for suffix in form.suffixes]
    folders = [form.name for form in FORMATS if form.is_folder]
    others = f" (or --format {', '.join(folders[1:])})" if folders[1:] else ""
    return f"{', '.join(files)}, or no suffix for a {_SHOWN.get(folders[0], folders[0])} folder{others}"


_SHOWN = {"colmap": "COLMAP"}
