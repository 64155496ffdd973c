"""The tables of stages and of parity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapengine.runtime.bundle.build_record import Parity
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.checks.product_precision import LOW, StageProducts

from .console import megabytes, say, show_table

if TYPE_CHECKING:
    from mapengine.export.diagnosis.layer_comparison import LayerComparison
    from mapengine.export.diagnosis.layer_noise import NoiseComparison

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
            tuple((record.file, record.bytes) for record in stage.files()),
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


def show_layers(manifest: Manifest) -> None:
    """What the plans are made of: fused attention, and the precisions of matrix products and convolutions."""
    rows = []
    for name, stage in manifest.stages.items():
        if stage.layers is None:
            continue
        fused = f"{stage.layers.fused} of {stage.layers.attention}" if stage.layers.attention else "-"
        gemms = sorted(stage.layers.gemms.items(), key=lambda entry: -entry[1])
        rows.append((name, fused, "\n".join(f"{count} x {types}" for types, count in gemms)))
    if rows:
        show_table(("stage", "attention fused", "matrix products and convolutions"), rows, right=("attention fused",))
    for name, stage in manifest.stages.items():
        if stage.layers is not None and stage.layers.unfused:
            say(f"Not fused in {name}: {', '.join(stage.layers.unfused)}")
        chosen = Counter(entry.name for entry in stage.attention)
        if chosen:
            counts = ", ".join(f"{count} x {kernel}" for kernel, count in chosen.items())
            say(f"Attention by kernels of ours between {len(stage.segments)} plans of {name}: {counts}")


def show_precision(manifest: Manifest) -> None:
    """What the measured magnitudes kept in float32, and how near the rest comes to FP16's limit."""
    reduced = manifest.reduced_precision
    if reduced is None:
        return
    if reduced.kept_layers:
        say(f"Kept in float32, because their values come near FP16's limit: {', '.join(reduced.kept_layers)}\n")
    if reduced.headroom:
        show_table(
            ("stage", "least room in FP16", "largest value", "fits"),
            [(h.stage, h.tensor, f"{h.largest:.4g}", f"{h.factor:.3g} times") for h in reduced.headroom],
            right=("largest value", "fits"),
        )


def show_quantization(manifest: Manifest) -> None:
    """How INT8 or FP8 was written, and what it left."""
    record = manifest.quantization
    if record is None:
        return
    if record.weights_only:
        say(f"Weights in {manifest.precision}, products in {record.rest} ({record.method})\n")
        return
    counts = ", ".join(f"{count} in {stage}" for stage, count in record.products.items())
    say(f"Matrix products in {manifest.precision}, the rest in {record.rest}: {counts or 'none'} ({record.method})")
    if record.kept_layers:
        say(f"Kept in higher precision for accuracy: {', '.join(record.kept_layers)}")
    say("")


def show_products(manifest: Manifest, backend: str, products: Iterable[StageProducts]) -> None:
    """What the products of each stage run in, and the share of their multiplications in 8 bits."""

    rows = []
    for entry in products:
        share = entry.share(LOW[manifest.precision])
        counts = "\n".join(f"{count} x {dtype}" for dtype, count in entry.counts().items())
        rows.append((entry.stage, counts, "-" if share is None else f"{share:.1%}"))
    columns = ("stage", f"products in {backend}", f"multiplications in {manifest.precision}")
    show_table(columns, rows, right=columns[2:])


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


def show_divergence(comparison: LayerComparison) -> None:
    """The first layer that is outside the tolerance, and the layers that differ most."""
    say(f"{len(comparison.layers)} layers of {comparison.compared} against float32, largest relative differences:\n")
    show_table(
        ("stage", "layer", "max abs", "max rel"),
        [(d.stage, d.layer, f"{d.max_abs:.1e}", f"{d.max_rel:.1e}") for d in comparison.worst()],
        right=("max abs", "max rel"),
    )
    first = comparison.first
    if first is None:
        say(f"No layer differs by more than {comparison.tolerance:.0e} of its largest value.\n")
    else:
        say(
            f"First layer that differs by more than {comparison.tolerance:.0e} of its largest value: {first.layer} in "
            f"{first.stage}, by {first.max_rel:.1e}.\n"
        )


def show_noise(comparison: NoiseComparison) -> None:
    """The layers of an INT8 or FP8 bundle that lose most, and the first one that loses more than rounding does."""
    shown = comparison.worst()
    say(
        f"{len(comparison.layers)} linear layers of {comparison.compared} against float32, the {len(shown)} with the "
        "lowest signal-to-noise ratios:\n"
    )
    show_table(
        ("stage", "layer", "product", "dB", "dB in the stream"),
        [
            (d.stage, d.layer, d.precision, f"{d.snr:.1f}", "-" if d.stream_snr is None else f"{d.stream_snr:.1f}")
            for d in shown
        ],
        right=("dB", "dB in the stream"),
    )
    first = comparison.first
    if first is None:
        say(f"No layer is below {comparison.least:.0f} dB.\n")
    else:
        say(f"First layer below {comparison.least:.0f} dB: {first.layer} in {first.stage}, with {first.snr:.1f} dB.\n")
