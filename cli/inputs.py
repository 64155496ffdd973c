"""Options about what is read, and the views that they lead to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from mapengine.runtime.inputs.formats.table import in_natural_order
from mapengine.runtime.inputs.formats.view_files import DEPTH_RESIZING, DEPTH_SOURCES, KNOWN, ReadOptions
from mapengine.runtime.inputs.images import image_suffixes
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView

from .options import one_of, value_of

_KNOWN = ",".join(KNOWN)

Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUTS",
        help="Image files, patterns, folders of images, RGB-D recordings (7-Scenes, TUM), COLMAP projects, "
        "transforms.json, videos, or a views.json: a list of views, each with image and, if known, intrinsics, depth, "
        "pose and mask.",
    ),
]
Intrinsics = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Text file with the camera of all images, in pixels of the image files: 3x3, 4x4, or fx fy cx cy.",
        show_default=False,
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Images of the names of the views, white where a view counts: the rest gives no points and no depth.",
        show_default=False,
    ),
]
DepthScale = Annotated[
    float | None,
    typer.Option(
        metavar="METRES",
        help="Metres per stored unit of the depth maps, such as 0.0002 for TUM; 0.001 for integers if not given.",
        show_default=False,
    ),
]
Metric = Annotated[
    bool | None,
    typer.Option(
        "--metric/--no-metric",
        help="Whether poses and depth are in metres; by default yes, but for COLMAP and transforms.json without depth.",
        show_default=False,
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Look for images in the sub-folders of a folder too.")]
Every = Annotated[int, typer.Option(min=1, metavar="N", help="Take each N-th view of a sequence.", show_default=False)]
Fps = Annotated[
    float | None,
    typer.Option(metavar="F", help="Take F views per second of a video or a recording.", show_default=False),
]
MaxViews = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Take at most N views, spread over the whole.", show_default=False),
]
Give = Annotated[
    str | None,
    typer.Option(
        metavar=_KNOWN, help="What the network gets of what is known; all of it if not given.", show_default=False
    ),
]
Ignore = Annotated[str | None, typer.Option(metavar=_KNOWN, help="What it does not get.", show_default=False)]
DepthFrom = Annotated[
    str,
    typer.Option(**one_of(DEPTH_SOURCES), help="Where depth comes from; points are those of a COLMAP model."),
]
DepthResize = Annotated[
    str,
    typer.Option(
        **one_of(DEPTH_RESIZING),
        help="How depth is resized: nearest as MapAnything does; valid keeps a measured value per pixel where there is "
        "one, for sparse depth.",
    ),
]


def read_options(
    recursive: bool,
    every: int,
    fps: float | None,
    max_views: int | None,
    give: str | None,
    ignore: str | None,
    depth_from: str,
    depth_resize: str,
) -> ReadOptions:
    """The options that were given.

    Raises:
        typer.BadParameter: a value that is none, naming the option.
    """
    with value_of("--give"):
        given = None if give is None else _names(give)
        ReadOptions(give=given)
    with value_of("--ignore"):
        ignored = () if ignore is None else _names(ignore)
        ReadOptions(ignore=ignored)
    with value_of("--fps"):
        ReadOptions(fps=fps)
    return ReadOptions(recursive, every, fps, max_views, given, ignored, depth_from, depth_resize)


def find_inputs(
    inputs: Sequence[Path],
    intrinsics: Path | None,
    masks: Path | None,
    depth_scale: float | None,
    metric: bool | None,
    options: ReadOptions,
) -> list[StoredView]:
    """The views behind some inputs; errors as :func:`mapengine.runtime.inputs.sources.open_views`."""
    return open_views(
        in_natural_order(inputs),
        intrinsics,
        masks=masks,
        depth_scale=depth_scale,
        metric=metric,
        options=options,
    )


def read_files(inputs: Iterable[Path], views: Iterable[StoredView]) -> list[Path]:
    """The files that are read, as far as they are there."""
    files = list(inputs)
    for folder in [path for path in files if path.is_dir()]:
        with suppress(OSError):  # reading the images says so
            known = (*image_suffixes(), ".json")
            files += [file for file in folder.iterdir() if file.suffix.lower() in known]
    return [*files, *(file for view in views for file in view.files.files())]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
