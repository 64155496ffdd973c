"""Tables of the attention kernels."""

from __future__ import annotations

from typing import Any

from table_text import origin_text, table


def attention(record: dict[str, Any]) -> str:
    rows = [
        [
            f"`{name}`",
            f"sm_{architecture}",
            str(figures["registers"]),
            f"{figures['spilled_bytes']} B",
            f"{figures['shared_bytes'] / 1024:.0f} KiB",
            f"{figures['warps_per_multiprocessor']} ({100 * figures['occupancy']:.0f} %)",
            ", ".join(f"`{name}`" for name in figures["tensor_cores"]),
        ]
        for name, architectures in record["compiled"].items()
        for architecture, figures in architectures.items()
    ]
    head = ["kernel", "GPU", "registers", "spilled", "shared memory", "warps per multiprocessor", "tensor cores"]
    parts = [table(head, rows)] if rows else []
    speed = record["speed"]
    if isinstance(speed, str):
        parts += [attention_work(record), f"Speed {speed}."]
    else:
        parts.append(attention_speed(speed))
    if "trained" in record:
        parts.append(attention_kept(record["trained"]))
    compiler = ", ".join(f"{name} {version}" for name, version in record["compiler"].items())
    gpu = record["machine"]["gpu"]
    where = f"{gpu['name']}, CUDA {gpu['cuda']}; " if gpu else ""
    what = f"{record['what'][0].upper()}{record['what'][1:]}." + (f" Compiled by {compiler}." if compiler else "")
    return "\n\n".join([*parts, f"{what} {where}{origin_text(record)}"])


def attention_work(record: dict[str, Any]) -> str:
    rows = [
        [
            views,
            str(figures["length"]),
            name,
            f"{figures['tflop']:.3g}",
            f"{figures['dram_mb']:.0f} MB",
            f"{figures['l2_gb']:.3g} GB",
            f"{figures['flop_per_l2_byte']:.0f}",
        ]
        for views, kernels in record["work"].items()
        for name, figures in kernels.items()
    ]
    head = ["views", "tokens", "kernel", "TFLOP", "DRAM, at least", "loads and stores", "FLOP per byte loaded"]
    return table(head, rows)


def attention_speed(speed: dict[str, Any]) -> str:
    rows = []
    for views, results in speed.items():
        flash = results["torch flash"].get("median_ms")
        for name, figures in results.items():
            if "refused" in figures:
                rows.append([views, name, "refused", "", "", figures["refused"]])
                continue
            median = figures["median_ms"]
            ratio = f"{flash / median:.2f}" if flash else ""
            error = f"{figures['relative_error']:.1e}"
            rows.append([views, name, f"{median:.2f} ms", f"{figures['tflops']:.0f}", ratio, error])
    return table(["views", "attention", "time", "TFLOP/s", "times torch flash", "error"], rows)


def attention_kept(trained: dict[str, Any]) -> str:
    rows = []
    for threshold, figures in trained["thresholds"].items():
        timed = "median_ms" in figures
        speed = f"{trained['dense_ms'] / figures['median_ms']:.2f}" if timed else "not measured"
        rows.append([threshold, f"{100 * figures['kept']:.0f} %", speed])
    what = f"Inputs of `{trained['model']}`, {trained['views']} views, {trained['length']} tokens, global layers"
    return f"{what}:\n\n{table(['threshold', 'blocks kept', 'times dense'], rows)}"


def attention_accuracy(record: dict[str, Any]) -> str:
    rows = [
        [
            views,
            name,
            f"{100 * figures['kept']:.0f} %",
            f"{figures['depth_abs_rel']:.4f}",
            f"{figures['points_abs_rel']:.4f}",
            f"{figures['rotation_degrees']:.2f}°",
            f"{figures['metric_scale_abs_rel']:.4f}",
        ]
        for views, variants in record["results"].items()
        for name, figures in variants.items()
    ]
    head = ["views", "attention", "blocks kept", "depth AbsRel", "points AbsRel", "rotation", "scale AbsRel"]
    return f"{table(head, rows)}\n\n{record['what']}, {record['size']}. {origin_text(record)}"


def attention_tuning(record: dict[str, Any]) -> str:
    rows = [
        [
            figures["kernel"],
            f"{figures['keys']}",
            f"{figures['warps']}",
            f"{figures['stages']}",
            f"{figures['median_ms']:.2f} ms",
            f"{figures['tflops']:.0f}",
        ]
        for figures in record["results"]
    ]
    refused = sorted({figures["kernel"] for figures in record["refused"]})
    note = f" Refused by this Triton: {', '.join(refused)}." if refused else ""
    head = ["kernel", "keys per step", "warps", "stages", "time", "TFLOP/s"]
    what = f"{record['what'][0].upper()}{record['what'][1:]}, {record['machine']['gpu']['name']}."
    return f"{table(head, rows)}\n\n{what}{note} {origin_text(record)}"


def attention_launch(record: dict[str, Any]) -> str:
    """What launching a kernel costs, by sequence length."""
    head = ["attention", "tokens", "in a graph", "queued one by one", "host, to queue", "error", "Triton's bits"]
    rows = [
        [
            name,
            length,
            f"{found['graph_us']:.1f} µs",
            f"{found['queued_us']:.1f} µs",
            f"{found['host_us']:.1f} µs",
            f"{found['relative_error']:.1e}",
            "yes" if found["equals_triton_launch"] else "no",
        ]
        for name, lengths in record["results"].items()
        for length, found in lengths.items()
    ]
    what = f"{record['what'][0].upper()}{record['what'][1:]}, {record['machine']['gpu']['name']}."
    return f"{table(head, rows)}\n\n{what} {origin_text(record)}"
