"""``mapengine calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from mapengine.calibration.data.cases import folder_cases, rendered_cases
from mapengine.calibration.ranges import METHODS, Calibration, load_calibration, save_calibration
from mapengine.calibration.ranges.record import UNFINISHED
from mapengine.calibration.ranges.selection import Method
from mapengine.runtime.backend_table import EIGHT_BIT
from mapengine.runtime.errors import CalibrationError
from mapengine.runtime.writing.output_checks import InputPaths, check_writable

from ...console import Steps, say, show_table
from ...extras import needs
from ...options import AccuracyMetric, Model, Revision, one_of, parse_size
from ...outputs import check_files


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, such as build/calibration.json.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images, a recording, or what else `mapengine run` reads; sub-folders of a folder without images are "
            "sequences. Rendered views if not given.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[str, typer.Option(**one_of(EIGHT_BIT), help="Number format to calibrate for.")] = "int8",
    method: Annotated[str, typer.Option(**one_of(METHODS), help="How activation ranges are chosen.")] = "mse",
    accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Leave layers in higher precision until this much of float32's accuracy is kept, such as 99.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        AccuracyMetric,
        typer.Option(
            help="What --accuracy and --compare mean: the largest difference of the stages' outputs from float32, or "
            "the worst geometry metric on rendered scenes (for trained models)."
        ),
    ] = AccuracyMetric.outputs,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Scenes of --metric geometry; 20 if not given.", show_default=False),
    ] = None,
    smooth: Annotated[bool, typer.Option(help="Move outlier channels into weights (SmoothQuant).")] = True,
    rotate: Annotated[bool, typer.Option(help="Rotate what proj, w3 and fc2 read where that is better.")] = True,
    correct_bias: Annotated[bool, typer.Option(help="Correct the mean error of every layer.")] = True,
    compare: Annotated[bool, typer.Option("--compare", help="Measure what each of these buys.")] = False,
    cases: Annotated[int, typer.Option(min=1, metavar="N", help="Number of cases to run.")] = 8,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Image size; fitting or 140x112 if not given.", show_default=False)
    ] = None,
    revision: Revision = None,
) -> None:
    """Find the ranges that MODEL needs in INT8 or FP8.

    They are written to OUT. An OUT of the same model, data and options is kept. An interrupted run goes on where it
    stopped.

    \b
    Example:
      mapengine calibrate preset:tiny build/calibration.json --compare
      mapengine calibrate preset:nano build/calibration.json --accuracy 99 --metric geometry
      mapengine calibrate facebook/map-anything-apache build/calibration.json --data photos --accuracy 99
      mapengine build preset:tiny build/engine --precision int8 --calibration build/calibration.json
    """
    sides = None if size is None else parse_size(size, "--size")
    if accuracy is not None and not 0 < accuracy < 100:
        raise typer.BadParameter(f"{accuracy:g} is not between 0 and 100, such as 99", param_hint="--accuracy")
    by_geometry = metric is AccuracyMetric.geometry
    if by_geometry and accuracy is None and not compare:
        raise typer.BadParameter("it belongs to --accuracy or --compare, which are not given", param_hint="--metric")
    if scenes is not None and not by_geometry:
        raise typer.BadParameter("it belongs to --metric geometry, which is not given", param_hint="--scenes")
    unfinished = out.with_name(f"{out.name}.unfinished.npz")
    read = InputPaths([model, *([] if data is None else [data])])
    check_files({"OUT": (out, "calibration")}, read)
    check_writable(unfinished, UNFINISHED)
    with needs("export"):
        from mapengine.export.model.reference import load_model
        from mapengine.export.quantization import CalibrationOptions, GeometryQuality, OutputQuality
        from mapengine.export.quantization import calibrate as find_ranges
        from mapengine.export.quantization.budget import quantized_share
        from mapengine.export.quantization.quality import describe

    options = CalibrationOptions(precision, cast(Method, method), smooth, rotate, correct_bias, accuracy, compare)
    with Steps() as step:
        step(f"loading {model}")
        network = load_model(model, revision)
        step("preparing the views")
        norm = network.data_norm_type
        if data is None:
            prepared = rendered_cases(cases, sides or (140, 112), norm)
        else:
            prepared = folder_cases(data, count=cases, size=sides, data_norm_type=norm)
        count, shown_size = scenes or 20, sides or (140, 112)
        measure = None
        if accuracy is not None or compare:
            measure = OutputQuality.description
            if by_geometry:
                measure = describe(count, shown_size)
        found = _reusable(out, network.weights_hash(), prepared.sha256, options, measure)
        if found is None:
            quality = None
            if by_geometry:
                step(f"measuring the {measure}")
                quality = GeometryQuality(network, count, shown_size)
            try:
                found = find_ranges(
                    network, prepared, options, quality=quality, report=step, fraction=step.part, unfinished=unfinished
                )
            except KeyboardInterrupt:
                if not unfinished.exists():
                    raise
                raise KeyboardInterrupt(f"{unfinished} has what was done; the same command goes on there") from None
            save_calibration(found, out)
            done = f"Calibrated {network.model_id} for {precision} in {out}"
        else:
            done = f"{out} is of this model, data and options already; nothing to do"
        share = quantized_share(network, found)
    _show(found, share)
    print(done)


def _reusable(out: Path, weights: str, data: str, options: object, measure: str | None) -> Calibration | None:
    """The calibration that is there, if it would come out again, measured by ``measure`` (None: by anything)."""

    if not out.exists():
        return None
    try:
        found = load_calibration(out)
    except CalibrationError:
        return None  # damaged or of an older version: written anew
    names = ("precision", "method", "smooth", "rotate", "correct_bias", "accuracy")
    same = all(getattr(found, name) == getattr(options, name) for name in names)
    compared = any(name.startswith("naive") for name in found.report) or not getattr(options, "compare", False)
    measured = measure is None or found.measure == measure
    return (
        found
        if same and compared and measured and (found.weights_sha256, found.data_sha256) == (weights, data)
        else None
    )


def _show(found: Calibration, share: float) -> None:
    print()
    if found.report:
        say(f"Measured by: {found.measure}\n")
        show_table(
            ("rounding", "accuracy kept"), [(k, f"{v:.2%}") for k, v in found.report.items()], right=("accuracy kept",)
        )
    widened = [layer.name for layer in found.layers if layer.widened]
    smoothed = sum(layer.exponents is not None for layer in found.layers)
    rotated = sum(layer.rotated for layer in found.layers)
    count, total = len(found.quantized), len(found.layers)
    say(f"{count} of {total} layers in {found.precision}, {share:.1%} of their multiplications")
    say(f"{smoothed} layers smoothed, {rotated} rotated; data: {found.data}")
    if widened:
        say(f"Ranges widened for class, scale or reference tokens: {', '.join(widened)}")
    if found.kept_layers:
        say(f"Kept in higher precision: {', '.join(found.kept_layers)}")
