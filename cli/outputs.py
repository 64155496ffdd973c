"""Checking where results go before the network runs, and writing them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from mapengine.runtime.options import option_help
from mapengine.runtime.outputs.formats.options import COLMAP_SIZES, MAP_FORMATS, MAPS, SaveOptions
from mapengine.runtime.outputs.formats.table import (
    FORMAT_NAMES,
    FORMATS,
    OutputFormat,
    chosen_format,
    suffixes_and_folders,
)
from mapengine.runtime.writing.folders import Ours
from mapengine.runtime.writing.output_checks import InputPaths, check_writable
from mapengine.runtime.writing.recognition import RECORD

from .options import one_of, value_of

_PREVIEW = "preview"

Out = Annotated[
    list[Path] | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help=f"Where to save the scene: {suffixes_and_folders()}. May be given several times.",
        show_default=False,
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        **one_of(FORMAT_NAMES),
        help="Format of --out where its suffix does not say it; once for all of them, or once for each.",
        show_default=False,
    ),
]
Preview = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Where to save a picture of images, depth and confidence.", show_default=False),
]
Rerun = Annotated[
    Path | None,
    typer.Option(
        metavar="RRD",
        help="Where to save a recording for the Rerun viewer, with the entity paths of MapAnything's demonstrations; "
        "works with --stream, too.",
        show_default=False,
    ),
]
MaxPoints = Annotated[
    int | None, typer.Option(min=0, metavar="N", help=option_help("max_points", SaveOptions), show_default=False)
]
Mesh = Annotated[bool, typer.Option("--mesh", help=option_help("mesh", SaveOptions))]
LazPrecision = Annotated[
    float, typer.Option("--laz-precision", metavar="METRES", help=option_help("laz_precision", SaveOptions))
]
Maps = Annotated[
    str | None,
    typer.Option(
        "--maps",
        metavar=",".join(MAPS),
        help=f"{option_help('maps', SaveOptions)} All if not given.",
        show_default=False,
    ),
]
MapFormat = Annotated[
    str, typer.Option("--map-format", **one_of(MAP_FORMATS), help=option_help("map_format", SaveOptions))
]
DepthPngScale = Annotated[
    float, typer.Option("--depth-png-scale", metavar="UNITS", help=option_help("depth_png_scale", SaveOptions))
]
Voxel = Annotated[
    float | None, typer.Option(metavar="LENGTH", help=option_help("voxel", SaveOptions), show_default=False)
]
ColmapSize = Annotated[str, typer.Option(**one_of(COLMAP_SIZES), help=option_help("colmap_size", SaveOptions))]


def save_options(
    max_points: int | None,
    mesh: bool,
    laz_precision: float,
    maps: str | None,
    map_format: str,
    depth_png_scale: float,
    voxel: float | None,
    colmap_size: str,
) -> SaveOptions:
    """The options that were given.

    Raises:
        typer.BadParameter: a value that is none, naming the option.
    """
    with value_of("--laz-precision"):
        SaveOptions(laz_precision=laz_precision)
    with value_of("--maps"):
        chosen = MAPS if maps is None else tuple(word.strip() for word in maps.split(","))
        SaveOptions(maps=chosen)
    with value_of("--depth-png-scale"):
        SaveOptions(depth_png_scale=depth_png_scale)
    with value_of("--voxel"):
        SaveOptions(voxel=voxel)
    return SaveOptions(
        max_points=max_points,
        mesh=mesh,
        laz_precision=laz_precision,
        maps=chosen,
        map_format=map_format,
        depth_png_scale=depth_png_scale,
        voxel=voxel,
        colmap_size=colmap_size,
    )


@dataclass(frozen=True)
class Output:
    """One result: where, in which format (none for the preview), and the option that names it."""

    path: Path
    format: OutputFormat | None
    option: str = "--out"

    @property
    def name(self) -> str:
        """Of its format, or ``preview``."""
        return self.format.name if self.format else _PREVIEW

    @property
    def kind(self) -> str:
        """What an older file or folder must be to be replaced."""
        return self.format.kind if self.format else _PREVIEW

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files."""
        return self.format is not None and self.format.is_folder

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of what is written into a folder itself; of a file there is none."""
        return self.format.names if self.format and self.is_folder else ()


def plan_outputs(
    out: Sequence[Path],
    formats: Sequence[str],
    preview: Path | None,
    options: SaveOptions,
    keep: InputPaths,
    summary: Path | None = None,
    rerun: Path | None = None,
) -> list[Output]:
    """What is to be written, checked as far as that is possible without writing.

    Args:
        out: paths of the scene files.
        formats: names; none (suffixes decide), one for all of ``out``, or one for each.
        preview: path of the picture.
        options: of saving.
        keep: what is read, which must not be written over.
        summary: path of the file of ``--json``, which none of them may be.
        rerun: path of the recording.

    Raises:
        typer.BadParameter: results that would be written over each other, an unknown suffix, formats that do not match
            the paths, or an option that none of them has.
        OutputError: a path that cannot be written to.
        BackendUnavailableError: a package is missing that a format needs.
    """
    if formats and not out:
        raise typer.BadParameter("it belongs to --out, which is not given", param_hint="--format")
    if formats and len(formats) not in (1, len(out)):
        raise typer.BadParameter(
            f"there are {len(formats)} for {len(out)} --out; give one for all, or one each", param_hint="--format"
        )
    chosen: list[str | None] = list(formats) if len(formats) == len(out) else [*formats, None][:1] * len(out)
    with value_of("--out"):
        outputs = [Output(path, chosen_format(path, name)) for path, name in zip(out, chosen, strict=True)]
    if rerun is not None:
        if rerun.suffix.lower() != ".rrd":
            raise typer.BadParameter(f"{rerun} is no .rrd file, and the recording is one", param_hint="--rerun")
        outputs.append(Output(rerun, chosen_format(rerun), "--rerun"))
    _refuse_options(options, [output.format for output in outputs if output.format])
    if preview is not None:
        if preview.suffix.lower() != ".png":
            raise typer.BadParameter(f"{preview} is no .png file, and the preview is one", param_hint="--preview")
        outputs.append(Output(preview, None, "--preview"))
    places = [(output.option, output.path) for output in outputs]
    _refuse_overlaps(outputs, [*places, *([] if summary is None else [("--json", summary)])])
    _refuse_inputs(outputs, keep)
    for output in outputs:
        check_writable(output.path, None, folder=output.is_folder)
        if output.format is not None:
            output.format.check_packages(options)
    return outputs


def _refuse_overlaps(outputs: Sequence[Output], places: Sequence[tuple[str, Path]]) -> None:
    """Refuse results, by option and path, that are the same, or inside what a folder of another is filled with."""
    real = [Path(os.path.realpath(path)) for _, path in places]
    for index, (option, path) in enumerate(places):
        if real[index] in real[:index]:
            raise typer.BadParameter(f"{path} is named twice; choose another name", param_hint=option)
        for output in outputs:
            folder = Path(os.path.realpath(output.path))
            filled = [folder / name for name in (RECORD, *output.names)] if output.is_folder and output.names else []
            if any(own in (real[index], *real[index].parents) for own in filled):
                raise typer.BadParameter(
                    f"{path} is inside what {output.option} {output.path} writes; choose another place",
                    param_hint=option,
                )


def _refuse_options(options: SaveOptions, formats: Sequence[OutputFormat]) -> None:
    """Refuse options that differ from their defaults and that no output has."""
    for option in fields(SaveOptions):
        if getattr(options, option.name) == option.default or any(option.name in form.options for form in formats):
            continue
        takers = " or ".join(form.name for form in FORMATS if option.name in form.options)
        flag = f"--{option.name.replace('_', '-')}"
        raise typer.BadParameter(f"it belongs to the format {takers}, which no --out has", param_hint=flag)


def check_files(files: Mapping[str, tuple[Path | None, str]], read: InputPaths) -> None:
    """Refuse files, by the option that names each, that would be written over each other or over what is read.

    Args:
        files: path and kind by option; no path for an option that is not given.
        read: what is read.

    Raises:
        typer.BadParameter: naming the option.
        OutputError: a path that cannot be written to.
    """
    options: dict[str, str] = {}
    for option, (path, kind) in files.items():
        if path is None:
            continue
        conflict = read.conflict(path)
        if conflict is not None:
            raise typer.BadParameter(conflict, param_hint=option)
        real = os.path.realpath(path)
        if real in options:
            raise typer.BadParameter(
                f"{path} is also the file of {options[real]}; choose another name", param_hint=option
            )
        options[real] = option
        check_writable(path, kind)


def check_folder(
    out: Path,
    kind: str,
    read: InputPaths,
    *,
    option: str = "OUT",
    names: Sequence[str] | None = None,
    ours: Ours | None = None,
) -> None:
    """Refuse a folder that would be written over what is read, or cannot be written; errors as :func:`check_files`."""
    conflict = read.conflict(out, folder=True, names=names)
    if conflict is not None:
        raise typer.BadParameter(conflict, param_hint=option)
    check_writable(out, kind, folder=True, names=names, ours=ours)


def check_outputs(outputs: Sequence[Output], read: InputPaths) -> None:
    """Refuse outputs that would be written over what is read, or over anything but an older result of their kind.

    Raises:
        typer.BadParameter: naming the option.
        OutputError: something else is there.
    """
    _refuse_inputs(outputs, read)
    for output in outputs:
        check_writable(output.path, output.kind, folder=output.is_folder)


def _refuse_inputs(outputs: Sequence[Output], read: InputPaths) -> None:
    for output in outputs:
        conflict = read.conflict(output.path, names=output.names)
        if conflict is not None:
            raise typer.BadParameter(conflict, param_hint=output.option)
