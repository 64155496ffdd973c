"""Checking where results go before the network runs, and writing them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import typer

from mapengine.runtime.errors import BackendUnavailableError
from mapengine.runtime.outputs.colmap import COLMAP_NAMES
from mapengine.runtime.writing.folders import Ours
from mapengine.runtime.writing.output_checks import InputPaths, check_writable

_WRITES = {
    "glb": "point cloud",
    "ply": "point cloud",
    "npz": "scene",
    "colmap": "COLMAP model",
    "preview": "preview",
}


class Format(str, Enum):
    """The formats of a scene."""

    glb = "glb"
    ply = "ply"
    npz = "npz"
    colmap = "colmap"


@dataclass(frozen=True)
class Output:
    """One result: where, and as what (a format, or ``preview``)."""

    path: Path
    kind: str

    @property
    def option(self) -> str:
        """The option that names it."""
        return "--preview" if self.kind == "preview" else "--out"

    @property
    def writes(self) -> str:
        """What an older file or folder must be to be replaced."""
        return _WRITES[self.kind]


def plan_outputs(
    out: Sequence[Path], formats: Sequence[Format], preview: Path | None, keep: InputPaths
) -> list[Output]:
    """What is to be written, checked as far as that is possible without writing.

    Args:
        out: paths of the scene files.
        formats: none (suffixes decide), one for all of ``out``, or one for each.
        preview: path of the picture.
        keep: what is read, which must not be written over.

    Raises:
        typer.BadParameter: an unknown suffix, or formats that do not match the paths.
        OutputError: a path that cannot be written to.
        BackendUnavailableError: ``.glb`` without trimesh.
    """
    if formats and not out:
        raise typer.BadParameter("it belongs to --out, which is not given", param_hint="--format")
    if formats and len(formats) not in (1, len(out)):
        raise typer.BadParameter(
            f"there are {len(formats)} for {len(out)} --out; give one for all, or one each", param_hint="--format"
        )
    chosen: list[Format | None] = list(formats) if len(formats) == len(out) else [*formats, None][:1] * len(out)
    outputs = [
        Output(path, _kind(path) if form is None else form.value) for path, form in zip(out, chosen, strict=True)
    ]
    if preview is not None:
        if preview.suffix.lower() != ".png":
            raise typer.BadParameter(f"{preview} is no .png file, and the preview is one", param_hint="--preview")
        outputs.append(Output(preview, "preview"))
    for output in outputs:
        if sum(os.path.realpath(other.path) == os.path.realpath(output.path) for other in outputs) > 1:
            raise typer.BadParameter(f"{output.path} is named twice", param_hint=output.option)
    _refuse_inputs(outputs, keep)
    for output in outputs:
        check_writable(output.path, None, folder=output.kind == "colmap")
    if any(output.kind == "glb" for output in outputs) and importlib.util.find_spec("trimesh") is None:
        raise BackendUnavailableError(
            "writing .glb needs the package trimesh; install it with: pip install 'mapengine[viz]', or save as .ply"
        )
    return outputs


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
        check_writable(output.path, output.writes, folder=output.kind == "colmap", names=COLMAP_NAMES)


def _refuse_inputs(outputs: Sequence[Output], read: InputPaths) -> None:
    for output in outputs:
        conflict = read.conflict(output.path, names=COLMAP_NAMES if output.kind == "colmap" else ())
        if conflict is not None:
            raise typer.BadParameter(conflict, param_hint=output.option)


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("glb", "ply", "npz"):
        return kind
    if kind == "" or path.is_dir():
        return "colmap"
    raise typer.BadParameter(
        f"{path} has an unknown suffix; use .glb, .ply, .npz, or none for a COLMAP folder", param_hint="--out"
    )
