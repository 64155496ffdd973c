"""Checking where results go before the network runs, and writing them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import typer

from mapengine.runtime.errors import BackendUnavailableError
from mapengine.runtime.writing.output_checks import check_writable


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


def plan_outputs(
    out: Sequence[Path], formats: Sequence[Format], preview: Path | None, keep: Sequence[Path]
) -> list[Output]:
    """What is to be written, checked as far as that is possible without writing.

    Args:
        out: paths of the scene files.
        formats: none (suffixes decide), one for all of ``out``, or one for each.
        preview: path of the picture.
        keep: files and folders that must not be written over.

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
    kept = {os.path.realpath(path) for path in keep}
    for output in outputs:
        real = os.path.realpath(output.path)
        hint = "--preview" if output.kind == "preview" else "--out"
        if real in kept:
            raise typer.BadParameter(f"{output.path} is one of the inputs; choose another name", param_hint=hint)
        if sum(os.path.realpath(other.path) == real for other in outputs) > 1:
            raise typer.BadParameter(f"{output.path} is named twice", param_hint=hint)
        check_writable(output.path, folder=output.kind == "colmap")
    if any(output.kind == "glb" for output in outputs) and importlib.util.find_spec("trimesh") is None:
        raise BackendUnavailableError(
            "writing .glb needs the package trimesh; install it with: pip install 'mapengine[viz]', or save as .ply"
        )
    return outputs


def check_files(files: Mapping[str, Path | None], read: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse files, by the option that names each, that would be written over each other or over what is read.

    Args:
        files: paths by option; None for an option that is not given.
        read: files, and folders with all that is in them.

    Raises:
        typer.BadParameter: naming the option.
        OutputError: a path that cannot be written to.
    """
    kept = [os.path.realpath(path) for path in read]
    options: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in options:
            raise typer.BadParameter(
                f"{path} is also the file of {options[real]}; choose another name", param_hint=option
            )
        if any(Path(real).is_relative_to(entry) for entry in kept):
            raise typer.BadParameter(f"{path} is among what is read; choose another place", param_hint=option)
        options[real] = option
        check_writable(path)


def keep_inputs(outputs: Sequence[Output], files: Iterable[Path]) -> None:
    """Refuse outputs that would write over one of ``files``, or put a COLMAP folder's images among them.

    Raises:
        typer.BadParameter: naming the option.
    """
    kept = {os.path.realpath(file): file for file in files}
    folders = {os.path.dirname(real): file for real, file in kept.items()}
    for output in outputs:
        real, hint = os.path.realpath(output.path), "--preview" if output.kind == "preview" else "--out"
        if real in kept:
            raise typer.BadParameter(f"{output.path} is a file that is read; choose another name", param_hint=hint)
        among = folders.get(os.path.realpath(output.path / "images")) if output.kind == "colmap" else None
        if among is not None:
            raise typer.BadParameter(
                f"{output.path} would get its images beside {among}, which is read; choose another folder",
                param_hint=hint,
            )


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("glb", "ply", "npz"):
        return kind
    if kind == "" or path.is_dir():
        return "colmap"
    raise typer.BadParameter(
        f"{path} has an unknown suffix; use .glb, .ply, .npz, or none for a COLMAP folder", param_hint="--out"
    )
