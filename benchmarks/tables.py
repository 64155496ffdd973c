"""Turn committed results into the tables of the documentation.

    python benchmarks/tables.py            # check: exit code 1 if a table is out of date
    python benchmarks/tables.py --write    # rewrite the tables

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` in a Markdown file; NAME is a file of
``benchmarks/results`` without its suffix; while there is none, the table says so. Figures reach the documentation by
no other way.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attention_tables import attention, attention_accuracy, attention_launch, attention_tuning
from gpu_tables import chain, gpu_test
from table_text import origin_text, table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "export" / "weights" / "nano" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)


def _engine(record: dict[str, Any]) -> str:
    rows = [
        [
            f"`{name}`",
            f"{figures['median_s']:.1f} s",
            f"{figures['min_s']:.1f} to {figures['max_s']:.1f} s",
            f"{figures['times_baseline_speed']:.2f}",
            f"{figures['private_memory_gb']:.1f} GB",
            f"{figures['load_s']:.0f} s",
        ]
        for name, figures in record["results"].items()
    ]
    head = ["engine", "median", "range", f"times the speed of {record['baseline']}", "memory", "load"]
    what = f"`{record['model']}`, {record['views']} views of {record['size']}, FP32, {record['rounds']} rounds in turn"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _cpu_options(record: dict[str, Any]) -> str:
    rows = [
        [
            stage,
            name,
            f"{figures['median_s']:.2f} s",
            f"{figures['times_chosen']:.2f}",
            f"{figures['private_memory_gb']:.2f} GB",
            f"{figures['max_rel_error']:.0e}" if figures["max_rel_error"] else "0",
        ]
        for stage, variants in record["results"].items()
        for name, figures in variants.items()
    ]
    head = ["stage", "variant", "median", "time / chosen", "memory", "largest error"]
    what = f"`{record['model']}`, {record['views']} views of {record['size']}, {record['rounds']} rounds in turn"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _postprocess(record: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{figures['plain_ms']:.0f} ms",
            f"{figures['ours_ms']:.1f} ms",
            f"{figures['ratio']:.1f}",
        ]
        for name, figures in record["results"].items()
    ]
    head = ["scene", "plain NumPy transcription", "mapengine", "ratio"]
    what = f"One view of {record['size']}, default options, {record['rounds']} runs in turn, one thread"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _build(record: dict[str, Any]) -> str:
    rows = [
        [
            precision.upper(),
            request.replace("/", ", "),
            stage,
            f"{figures['seconds']:.0f} s",
            f"{figures['peak_memory_gb']:.1f} GB" if figures["peak_memory_gb"] is not None else "not known",
            f"{figures['plan_mb']:.0f} MB",
            f"{figures['device_memory_mb'] / 1000:.2f} GB" if figures["device_memory_mb"] is not None else "not known",
            f"{figures['fused']} of {figures['attention']}" if figures["attention"] else "none",
        ]
        for precision, requests in record["results"].items()
        for request, stages in requests.items()
        for stage, figures in stages.items()
    ]
    head = ["precision", "views, sizes", "stage", "time", "host memory", "plan", "device memory", "attention fused"]
    what = f"`{record['model']}` compiled with {record['backend']} for its default GPUs, on a machine without one"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _precision(record: dict[str, Any]) -> str:
    parts = []
    for precision, results in record["results"].items():
        rows = []
        for name, errors in results["errors"].items():
            end = errors["end_to_end"]
            stages = (f"{errors['stages'][s]:.1e}" if s in errors["stages"] else "same" for s in _STAGES)
            figures = (f"{end[key]:.1e}" if end else "not finite" for key in ("depth_abs_rel", "metric_scale"))
            angles = (f"{end[key]:.3f}" if end else "not finite" for key in ("ray_degrees", "rotation_degrees"))
            rows.append([f"**{name}**" if name == "the policy" else name, *stages, *figures, *angles])
        stages_head = [stage.replace("_", " ") for stage in _STAGES]
        head = [precision.upper(), *stages_head, "depth AbsRel", "metric scale", "rays, degrees", "rotation, degrees"]
        tight = results["headroom"][0] if results.get("headroom") else None
        room = ""
        if tight is not None:
            room = f" Least room in FP16: {tight['tensor']} fits {tight['factor']:.0f} times."
        stages_are = "Stages: root mean square error of the worst output over that output's root mean square"
        parts.append(f"{table(head, rows)}\n\n{stages_are}; *same* as the policy.{room}")
    what = f"`{record['model']}`, {record['size']}, cases: {', '.join(record['cases'])}"
    return "\n\n".join([*parts, f"{what}. {origin_text(record)}"])


def _precision_range(record: dict[str, Any]) -> str:
    rows = []
    for place, results in record["results"].items():
        for precision in ("fp16", "bf16"):
            errors = results[precision]
            depths = (f"{errors[k]['depth_abs_rel']:.1e}" if errors[k] else "not finite" for k in ("without", "with"))
            kept = f"{errors['kept_layers']}"
            rows.append([place, precision.upper(), f"{results['largest']:.0e}", *depths, kept])
    head = ["scaled", "precision", "largest", "depth AbsRel without ranges", "with ranges", "layers kept in float32"]
    what = f"`{record['model']}`, {record['size']}, cases: {', '.join(record['cases'])}"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _evaluation(record: dict[str, Any]) -> str:
    # The program's own table, so that the documentation shows what `mapengine eval` shows.
    from mapengine.calibration.evaluation import markdown_table

    what = f"`{record['model']}`, {record['precision'].upper()}, {record['where']}"
    float32 = _float32_of(record)
    figures = markdown_table(record) if float32 is None else _kept(record, float32)
    return f"{figures}\n\n{what}. {origin_text(record)}"


def _float32_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """The evaluation of the same weights on the same scenes in float32, if this is one of reduced precision."""
    if record["precision"] == "fp32":
        return None
    for path in sorted((ROOT / "benchmarks" / "results").glob("eval-*.json")):
        other: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = ("weights_sha256", "scenes", "seed", "size")
        if other["precision"] == "fp32" and all(other.get(key) == record[key] for key in same):
            return other
    return None


def _kept(record: dict[str, Any], float32: dict[str, Any]) -> str:
    """Part of every metric of every task that a reduced precision keeps."""
    from mapengine.calibration.evaluation import METRICS, kept_parts

    found, wanted = ({name: task["metrics"] for name, task in r["results"].items()} for r in (record, float32))
    parts = kept_parts(found, wanted)
    shown = [metric for metric in METRICS if any(key == metric.key for _, key in parts)]
    rows = [
        [
            f"`{task}`",
            *(f"{100 * parts[task, m.key]:.1f}" if (task, m.key) in parts else "-" for m in shown),
        ]
        for task in found
    ]
    task, key = min(parts, key=lambda each: parts[each])
    title = next(metric.title for metric in METRICS if metric.key == key)
    many = " and ".join(
        f"{sum(part >= bar for part in parts.values())} of {len(parts)} figures are {100 * bar:g} or more"
        for bar in (0.99, 0.999)
    )
    what = (
        f"Per cent of float32's accuracy that is kept, over the same {record['scenes']} scenes: {many}; the least is "
        f"{100 * parts[task, key]:.1f}, {title} of `{task}`."
    )
    if "kept_errors" in record:
        what += f" {_beyond_chance(parts, record['kept_errors'])}"
    return f"{table(['task', *(metric.title for metric in shown)], rows)}\n\n{what}"


def _beyond_chance(parts: dict[tuple[str, str], float], errors: dict[str, dict[str, float]]) -> str:
    """Which figures are below the bars by more than other scenes of the same kind could explain."""
    from mapengine.calibration.evaluation import METRICS

    titles = {metric.key: metric.title for metric in METRICS}

    def below(bar: float) -> list[tuple[str, str]]:
        return [name for name, part in parts.items() if part + 2 * errors[name[0]][name[1]] < bar]

    named = ", ".join(f"{titles[key]} of `{task}` ({100 * parts[task, key]:.1f})" for task, key in below(0.99))
    return (
        f"By more than two standard errors (paired bootstrap over the scenes), {len(below(0.99))} are below 99"
        f"{f': {named}' if named else ''}; {len(below(0.999))} below 99.9."
    )


_STAGES = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")


def _scenes(record: dict[str, Any]) -> str:
    rate = record["views_per_second"]
    row = [f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}", str(record["processes"]), record["size"]]
    head = ["views per second", "range", "processes", "size"]
    return f"{table(head, [row])}\n\n{record['views_per_round']} views a round. {origin_text(record)}"


def _training(record: dict[str, Any]) -> str:
    tasks = [name for name in record["validation"][-1] if name != "step"]
    head = ["step", *(f"{task}: AbsRel, rotation" for task in tasks)]
    points = record["validation"]
    chosen = points if len(points) <= 12 else [*points[:: -(-len(points) // 11)], points[-1]]
    rows = [
        [
            str(point["step"]),
            *(f"{point[t]['depth_abs_rel']:.3f}, {point[t]['rotation_degrees']:.2f}°" for t in tasks),
        ]
        for point in chosen
    ]
    config = record["config"]
    run = record["runs"][-1]
    views = " then ".join(str(phase["views_per_step"]) for phase in config["phases"])
    what = (
        f"{record['steps']} steps of {views} views in {record['minutes']} minutes on {run['device']}, "
        f"{config['scenes']} scenes; validation on {config['evaluation_scenes']} others."
    )
    return f"{table(head, rows)}\n\n{what} python {run['python']}, torch {run['torch']}."


def _memory(record: dict[str, Any]) -> str:
    rows = []
    for backend, counts in record["results"].items():
        for views, calls in counts.items():
            cells = [backend, views]
            for how in ("kept", "streamed"):
                figures = calls[how]
                cells += [
                    f"{figures['measured_mb']:.0f} MB",
                    f"{figures['planned_mb']:.0f} MB ({100 * (figures['ratio'] - 1):+.0f} %)",
                ]
            rows.append(cells)
    head = ["backend", "views", "all predictions kept", "planned", "streamed", "planned"]
    what = f"`{record['model']}`, {record['size']}: {record['what']}"
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def _loading(record: dict[str, Any]) -> str:
    results = record["results"]
    rows = [
        [
            f"{1e3 * results['seconds']['plain']:.0f} ms",
            f"{1e3 * results['seconds']['mapengine']:.0f} ms",
            f"{results['ratio']:.2f}",
            "identical" if results["largest_difference"] == 0 else f"{results['largest_difference']:.0e}",
        ]
    ]
    head = ["one after the other", "`load_images`", "ratio", "pixels"]
    return f"{table(head, rows)}\n\n{record['what'][0].upper()}{record['what'][1:]}. {origin_text(record)}"


def _profile(record: dict[str, Any]) -> str:
    # The program's own tables, so that the documentation shows what `mapengine profile` shows.
    from mapengine.runtime.profiling.report import markdown

    return f"{markdown(record)}\n\n{origin_text(record)}"


def _outliers(record: dict[str, Any]) -> str:
    tables = []
    for part in ("decibels", "predictions"):
        outputs = list(next(iter(next(iter(record["results"].values())).values()))[part])
        rows = [
            [
                precision.upper(),
                name,
                f"{100 * found['quantised_share']:.1f} %",
                *(f"{found[part][output]:.1f}" for output in outputs),
            ]
            for precision, methods in record["results"].items()
            for name, found in methods.items()
        ]
        tables.append(table(["format", "rounding", "in 8 bits", *(f"`{output}`" for output in outputs)], rows))
    channels = "; ".join(f"{place}: {what}" for place, what in record["channels"].items())
    what = (
        f"Decibels. `{record['model']}` with outlier channels ({channels}), {record['size']}, calibrated on "
        f"{record['cases']} rendered scenes and judged on {record['cases']} others. First what the transformers give, "
        "then what the heads make of it, scale and poses applied."
    )
    return "\n\n".join([*tables, f"{what} {origin_text(record)}"])


def _quantizers(record: dict[str, Any]) -> str:
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
    head = [
        "quantiser",
        "INT8 products",
        *(f"`{key}`, dB" for key in keys),
        "figures at 99 % or more",
        "median kept, %",
    ]
    what = (
        f"`{record['model']}`, calibrated on the same {record['cases']} rendered cases; signal-to-noise ratios over "
        f"{record['cases']} others, what is kept over {record['scenes']} scenes."
    )
    return f"{table(head, rows)}\n\n{what} {origin_text(record)}"


def _saved(record: dict[str, Any]) -> str:
    rows = [
        [views, f"{figures['tflop']:.2f}", *(f"{100 * figures[key]:.0f} %" for key in ("encoder", "window", "pose"))]
        for views, figures in record["results"].items()
    ]
    head = [
        "views in use",
        "TFLOP of a call",
        "image encoder",
        "saved by a session, one new frame",
        "saved when only poses change",
    ]
    return f"{table(head, rows)}\n\n{record['what']}."


def _speed_work(record: dict[str, Any]) -> str:
    rows = [
        [
            stage,
            backend,
            name,
            f"{1e3 * figures['median_s']:.1f} ms",
            f"{figures['times_built']:.2f}",
            "0" if figures["max_rel_error"] == 0 else f"{figures['max_rel_error']:.0e}",
        ]
        for stage, backends in record["results"].items()
        for backend, variants in backends.items()
        for name, figures in variants.items()
    ]
    head = ["stage", "backend", "graph", "median", "time / as built", "largest difference"]
    what = f"`{record['model']}`, {record['views']} views of {record['size']}, {record['rounds']} rounds in turn."
    return f"{table(head, rows)}\n\n{what} {origin_text(record)}"


RENDER: dict[str, Callable[[dict[str, Any]], str]] = {
    "engine": _engine,
    "cpu_options": _cpu_options,
    "postprocess": _postprocess,
    "build": _build,
    "gpu_test": gpu_test,
    "chain": chain,
    "precision": _precision,
    "precision_range": _precision_range,
    "attention": attention,
    "attention_launch": attention_launch,
    "attention_tuning": attention_tuning,
    "attention_accuracy": attention_accuracy,
    "evaluation": _evaluation,
    "scenes": _scenes,
    "outliers": _outliers,
    "quantizers": _quantizers,
    "training": _training,
    "memory": _memory,
    "loading": _loading,
    "profile": _profile,
    "saved": _saved,
    "speed_work": _speed_work,
}


def rendered(text: str) -> str:
    """``text`` with every marked table made anew from its results."""

    def filled(match: re.Match[str]) -> str:
        path = ROOT / "benchmarks" / "results" / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}*Not measured yet.*\n{match[3]}"
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"{match[1]}{RENDER[record['benchmark']](record)}\n{match[3]}"

    return MARKED.sub(filled, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the tables")
    args = parser.parse_args()
    stale = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        new = rendered(text)
        if new != text:
            stale.append(document.name)
            if args.write:
                document.write_text(new, encoding="utf-8")
    if stale and not args.write:
        print(f"out of date: {', '.join(stale)}; run benchmarks/tables.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
