"""The tables of stages and of parity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .console import megabytes, say, show_table

if TYPE_CHECKING:
    from mapengine.runtime.manifest import Manifest
    from mapengine.runtime.parity_record import Parity

Tensors = tuple[tuple[str, tuple[int | str, ...]], ...]


@dataclass(frozen=True)
class StageRow:
    """What the table of stages shows of one: files with their bytes, ONNX opset, and tensors with their axes."""

    name: str
    files: tuple[tuple[str, int], ...]
    opset: int | None
    inputs: Tensors
    outputs: Tensors


def manifest_rows(manifest: Manifest) -> list[StageRow]:
    """The stages of a bundle."""
    return [
        StageRow(
            name,
            tuple((record.file, record.bytes) for record in (stage.file, *stage.data)),
            stage.opset,
            tuple((tensor.name, tensor.shape) for tensor in stage.inputs),
            tuple((tensor.name, tensor.shape) for tensor in stage.outputs),
        )
        for name, stage in manifest.stages.items()
    ]


def show_stages(stages: Iterable[StageRow]) -> None:
    """Files and sizes, then the inputs and outputs of each stage."""
    rows = list(stages)
    show_table(
        ("stage", "file", "size", "opset"),
        [
            (row.name if not i else "", file, megabytes(size), str(row.opset or "-") if not i else "")
            for row in rows
            for i, (file, size) in enumerate(row.files)
        ],
        right=("size", "opset"),
    )
    show_table(
        ("stage", "", "tensor", "shape"),
        [
            (
                row.name if side == "in" and not i else "",
                side if not i else "",
                name,
                f"({', '.join(map(str, axes))})" if axes else "()",
            )
            for row in rows
            for side, tensors in (("in", row.inputs), ("out", row.outputs))
            for i, (name, axes) in enumerate(tensors)
        ],
    )


def show_parity(parity: Parity) -> None:
    """Differences from the reference: per output, as geometry, and over which cases."""
    show_table(
        ("output", "max abs", "max rel"),
        [(name, f"{p.max_abs:.1e}", f"{p.max_rel:.1e}") for name, p in parity.outputs.items()],
        right=("max abs", "max rel"),
    )
    geometry = parity.geometry
    columns = {
        "depth AbsRel": geometry.depth_abs_rel,
        "rays, degrees": geometry.ray_degrees,
        "rotation, degrees": geometry.rotation_degrees,
        "translation, rel.": geometry.translation,
        "metric scale, rel.": geometry.metric_scale,
    }
    show_table(list(columns), [[f"{value:.1e}" for value in columns.values()]], right=list(columns))
    say(f"cases: {'; '.join(parity.cases)}\n")
