"""Tables of how right predictions are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mapengine.calibration.evaluation import METRICS, markdown_table, retention
from mapengine.runtime.profiling.report import table

from .page import Record, origin, page

RESULTS = Path(__file__).resolve().parents[1] / "results"
STAGES = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")
_TITLES = {metric.key: metric.title for metric in METRICS}


def precision(record: Record) -> str:
    """Return the errors of 16-bit stages, by row of the policy."""
    parts = []
    for name, results in record["results"].items():
        rows = []
        for title, errors in results["errors"].items():
            end = errors["end_to_end"]
            stages = (f"{errors['stages'][s]:.1e}" if s in errors["stages"] else "same" for s in STAGES)
            figures = (f"{end[key]:.1e}" if end else "not finite" for key in ("depth_abs_rel", "metric_scale"))
            angles = (f"{end[key]:.3f}" if end else "not finite" for key in ("ray_degrees", "rotation_degrees"))
            rows.append([f"**{title}**" if title == "the policy" else title, *stages, *figures, *angles])
        head = [name.upper(), *(stage.replace("_", " ") for stage in STAGES)]
        head += ["depth AbsRel", "metric scale", "rays, degrees", "rotation, degrees"]
        room = ""
        if results.get("headroom"):
            tight = results["headroom"][0]
            room = f" Least room in FP16: {tight['tensor']} fits {tight['factor']:.0f} times."
        explained = "Stages: root mean square error of the worst output over that output's root mean square"
        parts.append(f"{table(head, rows)}\n\n{explained}; *same* as the policy.{room}")
    return "\n\n".join([*parts, f"{_cases(record)} {origin(record)}"])


def dense_head(record: Record) -> str:
    """Return what fewer bits in the convolutions of the dense head keep, by resolution."""
    tasks = record["tasks"]
    rows = [
        [
            found["precision"].upper() + (", results too" if found["results_too"] else ""),
            found["levels"],
            *(f"{found['reached'][bar]} ({found['below_beyond_chance'][bar]})" for bar in ("0.99", "0.999")),
            f"{100 * found['least']['part']:.1f}, {found['least']['metric']} of `{found['least']['task']}`",
            *(f"{100 * found['rays'][task]:.1f}" for task in tasks),
        ]
        for found in record["results"]
    ]
    count = record["results"][0]["figures"]
    head = ["products", "resolutions", f"of {count} at 99 %", "at 99.9 %", "least"]
    head += [f"rays, `{task}`" for task in tasks]
    what = (
        "Per cent of float32's accuracy that is kept. In brackets: how many figures are below by more than two "
        "standard errors (paired bootstrap over the scenes)."
    )
    scenes = f"`{record['model']}`, {record['scenes']} held-out scenes, {record['size']}, emulated in PyTorch."
    return f"{table(head, rows)}\n\n{what}\n\n{scenes} {origin(record)}"


def precision_range(record: Record) -> str:
    """Return the errors of 16-bit stages beyond float16's range, without and with measured magnitudes."""
    rows = []
    for place, results in record["results"].items():
        for name in ("fp16", "bf16"):
            errors = results[name]
            depths = (f"{errors[k]['depth_abs_rel']:.1e}" if errors[k] else "not finite" for k in ("without", "with"))
            rows.append([place, name.upper(), f"{results['largest']:.0e}", *depths, f"{errors['kept_layers']}"])
    head = ["scaled", "precision", "largest", "depth AbsRel without ranges", "with ranges", "layers kept in float32"]
    return page(record, head, rows, _cases(record))


def evaluation(record: Record) -> str:
    """Return the table of `mapengine eval`, or of a reduced precision what it keeps of float32's accuracy."""
    what = f"`{record['model']}`, {record['precision'].upper()}, {record['where']}"
    float32 = _float32_of(record)
    figures = markdown_table(record) if float32 is None else _kept(record, float32)
    return f"{figures}\n\n{what}. {origin(record)}"


def _float32_of(record: Record) -> Record | None:
    """Return the evaluation of the same weights on the same scenes in float32; None if ``record`` is it."""
    if record["precision"] == "fp32":
        return None
    for path in sorted(RESULTS.glob("eval-*.json")):
        other: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = ("weights_sha256", "scenes", "seed", "size")
        if other["precision"] == "fp32" and all(other.get(key) == record[key] for key in same):
            return other
    return None


def _kept(record: Record, float32: Record) -> str:
    """Return the part of every metric of every task that a reduced precision keeps."""
    found, wanted = ({name: task["metrics"] for name, task in r["results"].items()} for r in (record, float32))
    parts = retention(found, wanted)
    shown = [key for key in _TITLES if any(key == other for _, other in parts)]
    rows = [
        [f"`{task}`", *(f"{100 * parts[task, key]:.1f}" if (task, key) in parts else "-" for key in shown)]
        for task in found
    ]
    task, key = min(parts, key=lambda each: parts[each])
    many = " and ".join(
        f"{sum(part >= bar for part in parts.values())} of {len(parts)} figures are {100 * bar:g} or more"
        for bar in (0.99, 0.999)
    )
    what = (
        f"Per cent of float32's accuracy that is kept, over the same {record['scenes']} scenes: {many}; the least is "
        f"{100 * parts[task, key]:.1f}, {_TITLES[key]} of `{task}`."
    )
    if "kept_errors" in record:
        what += f" {_beyond_chance(parts, record['kept_errors'])}"
    return f"{table(['task', *(_TITLES[key] for key in shown)], rows)}\n\n{what}"


def _beyond_chance(parts: dict[tuple[str, str], float], errors: dict[str, dict[str, float]]) -> str:
    """Name the figures that are below the bars by more than other scenes of the same kind could explain."""

    def below(bar: float) -> list[tuple[str, str]]:
        return [name for name, part in parts.items() if part + 2 * errors[name[0]][name[1]] < bar]

    named = ", ".join(f"{_TITLES[key]} of `{task}` ({100 * parts[task, key]:.1f})" for task, key in below(0.99))
    return (
        f"By more than two standard errors (paired bootstrap over the scenes), {len(below(0.99))} are below 99"
        f"{f': {named}' if named else ''}; {len(below(0.999))} below 99.9."
    )


def outliers(record: Record) -> str:
    """Return the signal-to-noise ratios of a network with outlier channels, by way of rounding."""
    tables = []
    for part in ("decibels", "predictions"):
        outputs = list(next(iter(next(iter(record["results"].values())).values()))[part])
        rows = [
            [
                name.upper(),
                method,
                f"{100 * found['quantised_share']:.1f} %",
                *(f"{found[part][output]:.1f}" for output in outputs),
            ]
            for name, methods in record["results"].items()
            for method, found in methods.items()
        ]
        tables.append(table(["format", "rounding", "in 8 bits", *(f"`{output}`" for output in outputs)], rows))
    channels = "; ".join(f"{place}: {what}" for place, what in record["channels"].items())
    what = (
        f"Decibels. `{record['model']}` with outlier channels ({channels}), {record['size']}, calibrated on "
        f"{record['cases']} rendered scenes and judged on {record['cases']} others. First what the transformers give, "
        "then what the heads make of it, scale and poses applied."
    )
    return "\n\n".join([*tables, f"{what} {origin(record)}"])


def quantizers(record: Record) -> str:
    """Return what INT8 of several projects keeps."""
    keys = list(next(iter(record["results"].values()))["decibels"])
    rows = [
        [
            name,
            str(found["products"]),
            *(f"{found['decibels'][key]:.1f}" for key in keys),
            f"{found['kept_99']} of {found['figures']}",
            f"{100 * found['kept_median']:.1f}",
        ]
        for name, found in record["results"].items()
    ]
    decibels = (f"`{key}`, dB" for key in keys)
    head = ["quantiser", "INT8 products", *decibels, "figures at 99 % or more", "median kept, %"]
    what = (
        f"`{record['model']}`, calibrated on the same {record['cases']} rendered cases; signal-to-noise ratios over "
        f"{record['cases']} others, what is kept over {record['scenes']} scenes."
    )
    return page(record, head, rows, what)


def training(record: Record) -> str:
    """Return the validations of a training run, at most twelve of them."""
    tasks = [name for name in record["validation"][-1] if name != "step"]
    points = record["validation"]
    chosen = points if len(points) <= 12 else [*points[:: -(-len(points) // 11)], points[-1]]
    rows = [
        [
            str(point["step"]),
            *(f"{point[t]['depth_abs_rel']:.3f}, {point[t]['rotation_degrees']:.2f}°" for t in tasks),
        ]
        for point in chosen
    ]
    config, run = record["config"], record["runs"][-1]
    views = " then ".join(str(phase["views_per_step"]) for phase in config["phases"])
    what = (
        f"{record['steps']} steps of {views} views in {record['minutes']} minutes on {run['device']}, "
        f"{config['scenes']} scenes; validation on {config['evaluation_scenes']} others."
    )
    head = ["step", *(f"{task}: AbsRel, rotation" for task in tasks)]
    return f"{table(head, rows)}\n\n{what} python {run['python']}, torch {run['torch']}."


def _cases(record: Record) -> str:
    return f"`{record['model']}`, {record['size']}, cases: {', '.join(record['cases'])}."
