"""``mapengine run``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.runtime import Engine, Scene
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import ProfileError
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.stored_view import StoredView
from mapengine.runtime.options import InferOptions, Progress
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.formats.table import suffixes_and_folders
from mapengine.runtime.outputs.frame import FRAMES, Alignment, alignment_of
from mapengine.runtime.outputs.view_files import check_no_views, save_views, view_files, view_scene
from mapengine.runtime.outputs.viewer.recording import record_views
from mapengine.runtime.system.sequences import Each
from mapengine.runtime.system.sizes import parse_bytes
from mapengine.runtime.writing.files import write_text
from mapengine.runtime.writing.output_checks import InputPaths, check_writable
from mapengine.runtime.writing.recognition import marker

from ...console import Steps, megabytes, say, show_facts, stage_progress
from ...inputs import (
    DepthFrom,
    DepthResize,
    DepthScale,
    Every,
    Fps,
    Give,
    Ignore,
    Inputs,
    Intrinsics,
    Masks,
    MaxViews,
    Metric,
    Recursive,
    find_inputs,
    read_files,
    read_options,
)
from ...options import (
    RANDOM_PRESETS,
    Backend,
    BundleArgument,
    ConfidencePercentile,
    ImageSize,
    MaskEdges,
    MinibatchSize,
    Quiet,
    SummaryFile,
    Threads,
    one_of,
    parse_size,
    value_of,
)
from ...outputs import (
    ColmapSize,
    DepthPngScale,
    Formats,
    LazPrecision,
    MapFormat,
    Maps,
    MaxPoints,
    Mesh,
    Out,
    Output,
    Preview,
    Rerun,
    Voxel,
    check_files,
    check_outputs,
    plan_outputs,
    save_options,
)

SUMMARY = "summary"
"""Kind of the file that ``--json`` writes."""


def run(
    bundle: BundleArgument,
    inputs: Inputs,
    out: Out = None,
    preview: Preview = None,
    rerun: Rerun = None,
    backend: Backend = "auto",
    threads: Threads = None,
    size: ImageSize = None,
    frame: Annotated[
        str,
        typer.Option(
            **one_of(FRAMES),
            help="World of the result: that of the given poses, where there are some, or the camera of view 0.",
        ),
    ] = "given",
    intrinsics: Intrinsics = None,
    masks: Masks = None,
    depth_scale: DepthScale = None,
    metric: Metric = None,
    recursive: Recursive = ReadOptions.recursive,
    every: Every = ReadOptions.every,
    fps: Fps = ReadOptions.fps,
    max_views: MaxViews = ReadOptions.max_views,
    give: Give = None,
    ignore: Ignore = None,
    depth_from: DepthFrom = ReadOptions.depth_from,
    depth_resize: DepthResize = ReadOptions.depth_resize,
    max_points: MaxPoints = SaveOptions.max_points,
    mesh: Mesh = SaveOptions.mesh,
    laz_precision: LazPrecision = SaveOptions.laz_precision,
    maps: Maps = None,
    map_format: MapFormat = SaveOptions.map_format,
    depth_png_scale: DepthPngScale = SaveOptions.depth_png_scale,
    voxel: Voxel = SaveOptions.voxel,
    colmap_size: ColmapSize = SaveOptions.colmap_size,
    confidence_percentile: ConfidencePercentile = 0,
    minibatch_size: MinibatchSize = InferOptions.minibatch_size,
    mask_edges: MaskEdges = InferOptions.mask_edges,
    stream: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write what infer returns for each view to FOLDER/view-0000.npz, ... as it comes, in place of a "
            "scene: for more views than fit in memory.",
            show_default=False,
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="With --stream: maps in float16.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Refuse what would take more memory, such as 8GB; needs `mapengine plan BUNDLE` once.",
            show_default=False,
        ),
    ] = None,
    formats: Formats = None,
    json_file: SummaryFile = None,
    quiet: Quiet = False,
) -> None:
    """Reconstruct a scene from INPUTS with BUNDLE.

    \b
    Example:
      mapengine run build/engine a.jpg b.jpg --out scene.glb --mesh --preview scene.png
      mapengine run build/engine photos/ --intrinsics K.txt --out colmap/
      mapengine run build/engine views.json --out scene.ply --max-points 200000
      mapengine run build/engine colmap-project/ --ignore poses --depth-from points --out scene.glb
      mapengine run build/engine video.mp4 --fps 2 --max-views 32 --out scene.glb
      mapengine run build/engine video-frames/ --stream predictions/ --half --memory 8GB
      mapengine run build/engine photos/ --rerun scene.rrd
    """

    reading = read_options(recursive, every, fps, max_views, give, ignore, depth_from, depth_resize)
    if stream is not None and (out or preview is not None):
        raise typer.BadParameter("a stream makes no scene; leave out --out and --preview", param_hint="--stream")
    if half and stream is None:
        raise typer.BadParameter("it belongs to --stream, which is not given", param_hint="--half")
    if stream is not None:
        conflict = InputPaths(inputs, [bundle]).conflict(stream)
        if conflict is not None:
            raise typer.BadParameter(conflict, param_hint="--stream")
        check_writable(stream, None, folder=True)
        check_no_views(stream)
    if json_file not in (None, "-"):
        given = [*inputs, *([] if intrinsics is None else [intrinsics])]
        check_files({"--json": (Path(str(json_file)), SUMMARY)}, InputPaths(given, [bundle]))
    quiet = quiet or json_file == "-"
    target = None if size is None else parse_size(size, "--size")
    with value_of("--memory"):
        limit = None if memory is None else parse_bytes(memory)
    saving_options = save_options(
        max_points, mesh, laz_precision, maps, map_format, depth_png_scale, voxel, colmap_size
    )
    json_path = None if json_file in (None, "-") else Path(str(json_file))
    outputs = plan_outputs(
        out or [], formats or [], preview, saving_options, InputPaths(inputs, [bundle]), json_path, rerun
    )
    # Cheap, and says what is wrong with the bundle before images are read.
    opened = Bundle.open(bundle, verify=False)
    requests = opened.manifest.requests
    with Steps(quiet) as step:
        step("finding the views")
        views = find_inputs(inputs, intrinsics, masks, depth_scale, metric, reading)
        files = read_files([*inputs, *([] if intrinsics is None else [intrinsics])], views)
        check_outputs(outputs, InputPaths(files))
        _check_count(requests, views, target)
        step("loading the engine")
        engine = Engine.load(opened, backend, threads=threads, memory_limit=limit)
        engine.check_call(views, size=target, stream=stream is not None)
    options: dict[str, Any] = {
        "minibatch_size": minibatch_size,
        "mask_edges": mask_edges,
        "apply_confidence_mask": confidence_percentile > 0,
        "confidence_percentile": confidence_percentile,
        "ignore_calibration_inputs": not reading.gives("intrinsics"),
    }
    with Steps(quiet) as reconstruction:
        # Without a line of its own: the bars of the stages show it.
        reconstruction.start_silently("reconstructing")
        with_geometry = sum(any(view.known) for view in views)
        with stage_progress(len(views), with_geometry, quiet) as progress:
            if stream is not None:
                facts, words = _stream(engine, views, target, stream, frame, half, progress, options)
                if rerun is not None:
                    _record_stream(rerun, stream, max_points)
                    facts["saved"] = [{"path": str(rerun), "format": "rrd"}]
                if not quiet:
                    say(words)
                _write_json(json_file, facts)
                return
            scene = engine.reconstruct_views(views, size=target, frame=frame, progress=progress, **options)
    with Steps(quiet) as saving:
        # A folder must be empty or ours, so it is there before what is written into it.
        for output in sorted(outputs, key=lambda output: (not output.is_folder, len(output.path.resolve().parts))):
            saving(f"saving {output.path}")
            if output.format is None:
                scene.preview(output.path)
            else:
                scene.save(output.path, format=output.name, **asdict(saving_options))
    seconds = {**step.seconds, **reconstruction.seconds}
    if outputs:
        seconds["saving"] = sum(saving.seconds.values())
    summary = _summary(engine, scene, outputs, seconds)
    if not quiet:
        _show(summary, scene, seconds, outputs)
    _write_json(json_file, summary)


def _stream(
    engine: Engine,
    views: Sequence[StoredView],
    size: tuple[int, int] | None,
    folder: Path,
    frame: str,
    half: bool,
    progress: Progress | None,
    options: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    """Write views as they come; returns the summary for programs, and for people."""
    prepared = engine.prepare(views, size=size)
    predictions = engine.infer_stream(prepared, progress=progress, **options)
    found: Alignment | None = None

    def align(poses: Sequence[Any]) -> Alignment | None:
        nonlocal found
        found = alignment_of(poses, prepared, InferOptions(**options))
        return found

    written = save_views(
        folder,
        predictions,
        [view.name for view in views],
        original_pixels=Each(attrgetter("original_pixels"), prepared),
        align=align if frame == "given" and any(view.known.pose for view in views) else None,
        half=half,
        made_by=engine.label,
    )
    total = sum(file.stat().st_size for file in written)
    named = [{"name": view.name, "file": str(file)} for view, file in zip(views, written, strict=True)]
    facts = {**_engine_facts(engine), **_frame_facts(found), "views": named, "bytes": total}
    return facts, f"{len(written)} views in {folder}, {megabytes(total)}; frame: {_frame_words(found)}"


def _record_stream(rerun: Path, folder: Path, max_points: int | None) -> None:
    """Write a recording of views on disk, which are read one by one."""
    files = view_files(folder)
    first = view_scene(files[0])
    share = SaveOptions(max_points=None if max_points is None else max_points // len(files))
    record_views(rerun, map(view_scene, files), len(files) * first.mask.size, first.made_by, share)


def _frame_facts(alignment: Alignment | None) -> dict[str, Any]:
    if alignment is None:
        return {"frame": "view0"}
    return {"frame": "given", "alignment": alignment.facts()}


def _frame_words(alignment: Alignment | None) -> str:
    return "the camera of view 0" if alignment is None else f"the world {alignment}"


def _check_count(requests: ServedRequests, views: Sequence[StoredView], target: tuple[int, int] | None) -> None:
    """Refuse more views than the bundle serves, or another size, before the engine is loaded."""
    try:
        requests.check_views(len(views))
    except ProfileError as error:
        most = requests.views.max
        if len(views) <= most:
            raise
        raise ProfileError(f"{error}; or take fewer of them with --max-views {most}") from error
    if target is not None:
        requests.check(len(views), height=target[1], width=target[0])


def _engine_facts(engine: Engine) -> dict[str, Any]:
    manifest = engine.manifest
    facts = {"model": manifest.model.id, "precision": manifest.precision}
    return {"engine": {**facts, "backend": engine.backend, "device": engine.device}}


def _summary(engine: Engine, scene: Scene, outputs: list[Output], seconds: dict[str, float]) -> dict[str, Any]:
    """What came out, for programs."""
    import numpy as np

    _, height, width = scene.mask.shape
    depths = scene.depth[scene.mask]
    return {
        **_engine_facts(engine),
        "views": [{"name": name} for name in scene.names],
        "width": width,
        "height": height,
        "points": int(scene.mask.sum()),
        "pixels": scene.mask.size,
        **_frame_facts(scene.alignment),
        "metric_scale": scene.metric_scale,
        "median_depth": float(np.median(depths)) if depths.size else None,
        "seconds": seconds,
        "saved": [{"path": str(output.path), "format": output.name} for output in outputs],
    }


def _show(summary: dict[str, Any], scene: Scene, seconds: dict[str, float], outputs: list[Output]) -> None:
    """The summary, for people."""
    names, alignment = scene.names, scene.alignment
    unit = "m" if alignment is None or alignment.metric or alignment.note else "units of the given poses"
    engine, points, pixels = summary["engine"], summary["points"], summary["pixels"]
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    depth = summary["median_depth"]
    print()
    show_facts(
        [
            ("engine", f"{engine['model']}, {engine['precision']}, {engine['backend']} on {engine['device']}"),
            ("views", f"{len(names)} ({listed})"),
            ("size", f"{summary['width']}x{summary['height']}"),
            ("points", f"{points:,} of {pixels:,} pixels ({points / pixels:.0%})"),
            ("frame", _frame_words(alignment)),
            ("metric scale", f"{summary['metric_scale']:.4g}"),
            ("median depth", "no valid depth" if depth is None else f"{depth:.3f} {unit}"),
            ("seconds", ", ".join(f"{name} {time:.2f}" for name, time in seconds.items())),
            ("saved", "\n".join(_written(output) for output in outputs) or "nothing"),
        ]
    )
    if not outputs:
        say(f"To save the scene: --out scene.glb ({suffixes_and_folders()}); a picture: --preview scene.png")
    if engine["model"] in RANDOM_PRESETS:
        say(f"Note: {engine['model']} has random weights: this shows that the chain works, not what the images show.")


def _write_json(file: str | None, summary: dict[str, Any]) -> None:
    if file is None:
        return
    text = json.dumps({"generator": marker(SUMMARY), **summary}, indent=2)
    if file == "-":
        print(text)
    else:
        write_text(file, SUMMARY, text + "\n")


def _written(output: Output) -> str:
    if output.is_folder:
        return f"{output.path} ({output.kind})"
    return f"{output.path} ({megabytes(output.path.stat().st_size)})"
