"""Tables of times and memory."""

from __future__ import annotations

from mapengine.runtime.profiling.report import markdown, table

from .page import Record, capitalised, origin, page


def engine(record: Record) -> str:
    """Return time and memory per engine, beside PyTorch."""
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
    what = f"`{record['model']}`, {record['views']} views of {record['size']}, FP32, {record['rounds']} rounds in turn."
    return page(record, head, rows, what)


def cpu_options(record: Record) -> str:
    """Return time, memory and error per option of a CPU backend."""
    rows = [
        [
            stage,
            name,
            f"{figures['median_s']:.2f} s",
            f"{figures['times_chosen']:.2f}",
            f"{figures['private_memory_gb']:.2f} GB",
            _error(figures["max_rel_error"]),
        ]
        for stage, variants in record["results"].items()
        for name, figures in variants.items()
    ]
    head = ["stage", "variant", "median", "time / chosen", "memory", "largest error"]
    return page(record, head, rows, _views_in_turn(record))


def speed_work(record: Record) -> str:
    """Return time and error per variant of a stage's graph."""
    rows = [
        [
            stage,
            backend,
            name,
            f"{1e3 * figures['median_s']:.1f} ms",
            f"{figures['times_built']:.2f}",
            _error(figures["max_rel_error"]),
        ]
        for stage, backends in record["results"].items()
        for backend, variants in backends.items()
        for name, figures in variants.items()
    ]
    head = ["stage", "backend", "graph", "median", "time / as built", "largest difference"]
    return page(record, head, rows, _views_in_turn(record))


def postprocess(record: Record) -> str:
    """Return the times of post-processing, now and before."""
    rows = [
        [name, f"{figures['earlier_ms']:.1f} ms", threads, f"{own['ms']:.1f} ms", f"{own['ratio']:.1f}"]
        for name, figures in record["results"].items()
        for threads, own in figures["ours"].items()
    ]
    head = ["scene", "before, one thread", "threads", "now", "ratio"]
    what = (
        f"Milliseconds a view, {record['views']} views of {record['size']}, from the heads' outputs to a `Scene`, "
        f"default options, {record['rounds']} runs in turn."
    )
    return page(record, head, rows, what)


def loading(record: Record) -> str:
    """Return the times of reading photos."""
    results = record["results"]
    row = [
        f"{1e3 * results['seconds']['plain']:.0f} ms",
        f"{1e3 * results['seconds']['mapengine']:.0f} ms",
        f"{results['ratio']:.2f}",
        "identical" if results["largest_difference"] == 0 else f"{results['largest_difference']:.0e}",
    ]
    head = ["one after the other", "`load_images`", "ratio", "pixels"]
    return page(record, head, [row], f"{capitalised(record['what'])}.")


def scenes(record: Record) -> str:
    """Return how many views a second are rendered."""
    rate = record["views_per_second"]
    row = [f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}", str(record["processes"]), record["size"]]
    head = ["views per second", "range", "processes", "size"]
    return page(record, head, [row], f"{record['views_per_round']} views a round.")


def build(record: Record) -> str:
    """Return time, memory and size of every plan."""
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
    what = f"`{record['model']}` compiled with {record['backend']} for its default GPUs, on a machine without one."
    return page(record, head, rows, what)


def memory(record: Record) -> str:
    """Return measured memory and what the model of it says."""
    rows = []
    for backend, counts in record["results"].items():
        for views, calls in counts.items():
            cells = [backend, views]
            for how in ("kept", "streamed"):
                figures = calls[how]
                planned = f"{figures['planned_mb']:.0f} MB ({100 * (figures['ratio'] - 1):+.0f} %)"
                cells += [f"{figures['measured_mb']:.0f} MB", planned]
            rows.append(cells)
    head = ["backend", "views", "all predictions kept", "planned", "streamed", "planned"]
    return page(record, head, rows, f"`{record['model']}`, {record['size']}: {record['what']}.")


def load(record: Record) -> str:
    """Return the peaks of loading a bundle and of its first call, beside the size of its weights."""
    rows = [
        [
            backend,
            *(
                f"{figures[f'{what}_mb'] / 1e3:.2f} GB ({figures[f'{what}_times_weights']:.2f})"
                for what in ("load", "first_call")
            ),
        ]
        for backend, figures in record["results"].items()
    ]
    what = (
        f"`{record['model']}`, {record['weights_mb'] / 1e3:.2f} GB of graphs and weights (times these in brackets); "
        f"the call has {record['views']} views of {record['size']}."
    )
    return page(record, ["backend", "peak of loading", "peak of the first call"], rows, what)


def viewer(record: Record) -> str:
    """Return how soon a page draws a large scene, and how smoothly it turns."""
    seconds = (record["loaded_s"], record["all_s"])
    begins = ("the page was opened", "*Load all points*")
    rows = [
        [
            f"{figures['drawn']:,} of {figures['total']:,}",
            f"{time:.1f} s after {begin}",
            f"{figures['megabytes']:.0f} MB",
            f"{figures['drawn_turning']:,.0f}",
            f"{figures['frame_ms']:.0f} ms",
            f"{figures['slow_frame_ms']:.0f} ms",
        ]
        for figures, time, begin in zip((record["first"], record["all"]), seconds, begins, strict=True)
    ]
    what = (
        f"{record['views']} views of {record['size']} in a window of {record['window']}, headless {record['browser']}, "
        f"whose WebGL is drawn by the processor (SwiftShader). `mapengine view` says where the page is "
        f"{record['command_s']:.1f} s after it was started; the first picture is there "
        f"{record['first_picture_s']:.1f} s after the page was opened."
    )
    head = ["points drawn", "seconds", "loaded", "points while it turns", "frame while it turns", "95th percentile"]
    return page(record, head, rows, what)


def batch(record: Record) -> str:
    """Return scenes per second by the number of workers, and under it the driver's memory."""
    rows = [
        [
            workers,
            f"{figures['scenes_per_second']:.2f}",
            f"{figures['scenes_per_second_with_start']:.2f}",
            f"{100 * figures['not_engine']:.1f} %",
            f"{figures['milliseconds_of_a_scene']:.0f} ms",
        ]
        for workers, figures in record["results"].items()
    ]
    driver = [
        f"{int(count):,} ({figures['seconds']:.0f} s)".replace(",", " ") + f": {figures['peak_mb']:.0f} MB"
        for count, figures in record["driver"].items()
    ]
    what = (
        f"`{record['model']}`, {record['backend']}, {record['scenes']} scenes of {record['views']} views of "
        f"{record['size']}, one thread per worker, median of {record['rounds']} rounds in turn. Peak memory of the "
        f"process that lists scenes and writes the table: {', '.join(driver)}."
    )
    head = ["workers", "scenes per second", "with the start", "not the engine", "time of a scene"]
    return page(record, head, rows, what)


def ros(record: Record) -> str:
    """Return the milliseconds of a set of images in the ROS 2 node, by the number of cameras."""
    phases = ("wait", "decode", "prepare", "publish")
    rows = []
    for entry in record["results"]:
        figures = [entry["engine_ms"], entry["node_ms"], *(entry["phases_ms"][phase] for phase in phases)]
        figures.append(entry["publish_to_cloud_ms"])
        rows.append([str(entry["cameras"]), *(f"{value:.1f} ms" for value in figures)])
    head = ["cameras", "engine", "node", "of that: wait", "decode", "resize", "publish", "publish to cloud"]
    return page(record, head, rows, f"`{record['model']}`, {record['what']}.")


def saved(record: Record) -> str:
    """Return what encoding a view once saves; counted, not measured."""
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


def profile(record: Record) -> str:
    """Return the tables that `mapengine profile` writes."""
    return f"{markdown(record)}\n\n{origin(record)}"


def _views_in_turn(record: Record) -> str:
    return f"`{record['model']}`, {record['views']} views of {record['size']}, {record['rounds']} rounds in turn."


def _error(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def soak(record: Record) -> str:
    """Return what was done during a soak, and what differed and grew."""
    backends = list(record["results"])
    ways = list(record["results"][backends[0]])
    rows = [[way, *(str(record["results"][backend][way]) for backend in backends)] for way in ways]
    first, last = record["first_round"], record["last_round"]
    device = "" if first["device_bytes"] is None else f", {_megabytes(first, last, 'device_bytes')} on the GPU"
    what = (
        f"`{record['model']}`, {record['callers']} threads that share an engine per backend for "
        f"{record['seconds'] / 60:.0f} minutes. First difference from a single thread: "
        f"{record['first_difference'] or 'none'}. From the first tenth to the end: "
        f"{_megabytes(first, last, 'resident_bytes')} resident{device}, {first['descriptors']} to "
        f"{last['descriptors']} descriptors, {first['threads']} to {last['threads']} threads."
    )
    return page(record, ["done", *(f"`{backend}`" for backend in backends)], rows, what)


def _megabytes(first: Record, last: Record, name: str) -> str:
    return f"{first[name] / 1e6:.0f} to {last[name] / 1e6:.0f} MB"
