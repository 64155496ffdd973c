"""Tables of the attention kernels, and of what was run on a GPU."""

from __future__ import annotations

from typing import Any

from mapengine.runtime.profiling.report import table

from .page import Record, capitalised, origin, page


def attention(record: Record) -> str:
    """Return what is known of the compiled kernels, and their speed or else their work."""
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
        parts += [_attention_work(record), f"Speed {speed}."]
    else:
        parts.append(_attention_speed(speed))
    if "trained" in record:
        parts.append(_attention_kept(record["trained"]))
    compiler = ", ".join(f"{name} {version}" for name, version in record["compiler"].items())
    gpu = record["machine"]["gpu"]
    where = f"{gpu['name']}, CUDA {gpu['cuda']}; " if gpu else ""
    what = f"{capitalised(record['what'])}." + (f" Compiled by {compiler}." if compiler else "")
    return "\n\n".join([*parts, f"{what} {where}{origin(record)}"])


def _attention_work(record: Record) -> str:
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


def _attention_speed(speed: dict[str, Any]) -> str:
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


def _attention_kept(trained: dict[str, Any]) -> str:
    rows = []
    for threshold, figures in trained["thresholds"].items():
        timed = "median_ms" in figures
        speed = f"{trained['dense_ms'] / figures['median_ms']:.2f}" if timed else "not measured"
        rows.append([threshold, f"{100 * figures['kept']:.0f} %", speed])
    what = f"Inputs of `{trained['model']}`, {trained['views']} views, {trained['length']} tokens, global layers"
    return f"{what}:\n\n{table(['threshold', 'blocks kept', 'times dense'], rows)}"


def attention_accuracy(record: Record) -> str:
    """Return what each kernel costs in geometry."""
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
    return page(record, head, rows, f"{record['what']}, {record['size']}.")


def attention_tuning(record: Record) -> str:
    """Return the time of every choice of warps and pipeline stages."""
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
    what = f"{capitalised(record['what'])}, {record['machine']['gpu']['name']}.{note}"
    return page(record, head, rows, what)


def attention_launch(record: Record) -> str:
    """Return what launching a kernel costs, by sequence length."""
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
    what = f"{capitalised(record['what'])}, {record['machine']['gpu']['name']}."
    return page(record, head, rows, what)


def gpu_test(record: Record) -> str:
    """Return the result per backend, precision and attention."""
    rows = [
        [
            name,
            figures["status"],
            f"{max(figures['checks'].values()):.0e}" if figures.get("checks") else "none",
            f"{figures['tolerance']:.0e}",
        ]
        for name, figures in record["results"].items()
    ]
    gpu = record["machine"]["gpu"]
    head = ["backend, precision, attention", "result", "largest difference", "allowed"]
    what = (
        f"`{record['model']}` on {gpu['name']} (compute capability {gpu['compute_capability']}, CUDA {gpu['driver']})."
    )
    return page(record, head, rows, what)


def chain(record: Record) -> str:
    """Return the time per attention and number of views, beside the first attention."""
    first = next(iter(record["results"].values()))
    rows = [
        [
            name,
            views,
            f"{figures['milliseconds']:.2f} ms",
            f"{first[views]['milliseconds'] / figures['milliseconds']:.2f}",
            f"{figures['difference_from_first']:.1e}",
        ]
        for name, results in record["results"].items()
        for views, figures in results.items()
    ]
    head = ["attention", "views", "median", "speed", "difference from native"]
    what = (
        f"Aggregator of `{record['model']}` in FP16, {record['size']}, random features, {record['rounds']} runs, "
        f"{record['machine']['gpu']['name']}. Difference: largest of an output, root mean square, relative."
    )
    return page(record, head, rows, what)
