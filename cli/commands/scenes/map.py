"""``mapengine map``."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.runtime import Engine, Mapper, Scene, load_view
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import InputError
from mapengine.runtime.geometry import matrix_to_quaternion, pose_matrix
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.resolutions import served_size
from mapengine.runtime.inputs.stored_view import StoredView
from mapengine.runtime.mapping.keyframes import DEFAULT_KEYFRAMES
from mapengine.runtime.mapping.placement import TRANSFORMS
from mapengine.runtime.mapping.windows import DEFAULT_JOIN, DEFAULT_OVERLAP, DEFAULT_WINDOW
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.formats.trajectory import TRAJECTORY_KIND
from mapengine.runtime.outputs.view_files import check_no_views, view_files
from mapengine.runtime.writing.files import write_text
from mapengine.runtime.writing.output_checks import InputPaths, check_writable
from mapengine.runtime.writing.recognition import marker

from ...console import Steps, say, show_facts, stage_progress
from ...inputs import (
    DepthFrom,
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
    find_inputs,
    read_options,
)
from ...options import (
    Backend,
    BundleArgument,
    ImageSize,
    Join,
    Keyframes,
    KeyframeThreshold,
    Overlap,
    Quiet,
    SummaryFile,
    Threads,
    Window,
    one_of,
    parse_size,
)
from ...outputs import Formats, MaxPoints, Out, check_files, plan_outputs
from ...plots.figures import PLOT, check_plots
from ...plots.maps import MAX_POINTS, MapPicture, draw_map

SUMMARY = "summary"
_SCENE_PIXELS = 4_000_000
"""Of all views that the point cloud is made of; the frames of a longer sequence are taken at equal distances."""


def map_(
    bundle: BundleArgument,
    inputs: Inputs,
    out: Out = None,
    formats: Formats = None,
    max_points: MaxPoints = SaveOptions.max_points,
    stream: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep what infer returns for each frame, in FOLDER/view-0000.npz, ..., and all poses in map.npz.",
            show_default=False,
        ),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(metavar="TXT", help="Where to save the poses of all frames in TUM's format.", show_default=False),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PNG",
            help="Where to draw the map from above, with the path, the true one if it is known, and loops.",
            show_default=False,
        ),
    ] = None,
    window: Window = DEFAULT_WINDOW,
    overlap: Overlap = DEFAULT_OVERLAP,
    join: Join = DEFAULT_JOIN,
    keyframes: Keyframes = DEFAULT_KEYFRAMES,
    keyframe_threshold: KeyframeThreshold = None,
    transform: Annotated[
        str, typer.Option(**one_of(TRANSFORMS), help="Whether windows are scaled to the ones before.")
    ] = "similarity",
    loops: Annotated[
        bool | None,
        typer.Option("--loops/--no-loops", help="Close loops; by default where SciPy is.", show_default=False),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    size: ImageSize = None,
    intrinsics: Intrinsics = None,
    masks: Masks = None,
    depth_scale: DepthScale = None,
    metric: Metric = None,
    every: Every = ReadOptions.every,
    fps: Fps = ReadOptions.fps,
    max_views: MaxViews = ReadOptions.max_views,
    give: Give = None,
    ignore: Ignore = None,
    depth_from: DepthFrom = ReadOptions.depth_from,
    json_file: SummaryFile = None,
    quiet: Quiet = False,
) -> None:
    """Map a sequence of any length, frame by frame.

    Frames are read one by one and reconstructed in windows, which are joined to one map.

    \b
    Example:
      mapengine map build/engine video.mp4 --out map.ply --trajectory path.txt --plot map.png
      mapengine map build/engine recording/ --ignore poses --stream frames/ --json summary.json
    """
    reading = read_options(False, every, fps, max_views, give, ignore, depth_from, ReadOptions.depth_resize)
    given = [*inputs, *([] if intrinsics is None else [intrinsics])]
    json_path = None if json_file in (None, "-") else Path(str(json_file))
    files = {"--json": (json_path, SUMMARY), "--trajectory": (trajectory, "trajectory"), "--plot": (plot_file, PLOT)}
    check_files(files, InputPaths(given, [bundle]))
    if plot_file is not None:
        check_plots()
    if stream is not None:
        conflict = InputPaths(inputs, [bundle]).conflict(stream)
        if conflict is not None:
            raise typer.BadParameter(conflict, param_hint="--stream")
        check_writable(stream, None, folder=True)
        check_no_views(stream)
    quiet = quiet or json_file == "-"
    target = None if size is None else parse_size(size, "--size")
    saving = SaveOptions(max_points=max_points)
    outputs = plan_outputs(out or [], formats or [], None, saving, InputPaths(inputs, [bundle]), json_path)
    opened = Bundle.open(bundle, verify=False)
    with Steps(quiet) as step:
        step("finding the frames")
        views = find_inputs(inputs, intrinsics, masks, depth_scale, metric, reading)
        known = find_inputs(inputs, intrinsics, masks, depth_scale, metric, replace(reading, give=None, ignore=()))
        step("loading the engine")
        engine = Engine.load(opened, backend, threads=threads)
    keeps: Any = nullcontext(stream)
    needs_scene = bool(outputs) or plot_file is not None
    if needs_scene and stream is None:
        keeps = tempfile.TemporaryDirectory(prefix="mapengine-map-")
    began = time.perf_counter()
    with keeps as folder:
        mapper = Mapper(
            engine,
            window=window,
            overlap=overlap,
            join=join,
            keyframes=keyframes,
            keyframe_threshold=keyframe_threshold,
            transform=transform,
            loops=loops,
            folder=folder,
        )
        with stage_progress(len(views), 0, quiet) as progress:
            for number, view in enumerate(views):
                (frame,) = engine.preprocess([view], size=target or _size_for(engine, views))
                mapper.add(frame, view.name)
                progress("mapping", number + 1, len(views))
            mapper.finish()
        seconds = time.perf_counter() - began
        summary = {**mapper.summary, "seconds": seconds, "seconds_per_frame": seconds / len(views)}
        true = None if reading.gives("poses") else _Truth.of(mapper, known)
        summary["truth"] = None if true is None else true.errors(window)
        if trajectory is not None:
            write_text(trajectory, TRAJECTORY_KIND, _tum(mapper.poses, views))
        if needs_scene:
            scene = _scene(Path(str(folder)))
            for output in outputs:
                scene.save(output.path, format=output.name, **asdict(saving))
            if plot_file is not None:
                draw_map(_picture(mapper, scene, true, summary), plot_file)
    written = (*(output.path for output in outputs), stream, trajectory, plot_file)
    summary["saved"] = [str(file) for file in written if file is not None]
    if not quiet:
        _show(summary)
    text = json.dumps({"generator": marker(SUMMARY), **summary}, indent=2)
    if json_file == "-":
        print(text)
    elif json_path is not None:
        write_text(json_path, SUMMARY, text + "\n")


def _size_for(engine: Engine, views: Sequence[StoredView]) -> tuple[int, int]:
    """The size that all frames are brought to: the one for the first of them."""
    width, height = views[0].size
    return served_size(engine.manifest.requests, [width / height])


@dataclass(frozen=True, eq=False)
class _Truth:
    """The path that the input knows and the network was not told.

    Attributes:
        poses: (N, 4, 4), NaN where there is none.
        metric: whether they are in metres.
        path: what of the map is compared with them.
    """

    poses: Any
    metric: bool
    path: Any

    @classmethod
    def of(cls, mapper: Mapper, views: Sequence[StoredView]) -> _Truth | None:
        """Return it beside the map, or None where no frame has both."""
        import numpy as np

        from mapengine.calibration.sequences.path import ComparedPath

        poses = np.full((len(views), 4, 4), np.nan)
        for pose, view in zip(poses, views, strict=True):
            if view.files.pose is not None:
                pose[...] = _matrix(view.files.pose)
        path = ComparedPath.of(mapper.poses, mapper.submaps, poses)
        if not len(path.poses):
            return None
        return cls(poses, all(view.files.metric is not False for view in views), path)

    def errors(self, window: int) -> dict[str, Any]:
        """How far the path is from the true one, as ``mapengine eval --sequence`` has it."""
        return {"frames": len(self.path.poses), "path_length": self.path.length, **self.path.errors(window)}

    def positions(self) -> Any:
        """(M, 3) of the true path in the frame of the map, by the transform of the ATE: the rigid one of metres."""
        import numpy as np

        known = np.isfinite(self.poses).all(axis=(1, 2))
        return self.path.alignment(scale=not self.metric).inverse().apply(self.poses[known, :3, 3])


def _matrix(pose: Any) -> Any:
    import numpy as np

    return pose_matrix(*(np.asarray(part, np.float64) for part in pose)) if isinstance(pose, tuple) else pose


def _tum(poses: Any, views: Sequence[StoredView]) -> str:
    """The poses of the frames that have one; the timestamp is the number of the frame."""
    import numpy as np

    lines = [f"# {marker(TRAJECTORY_KIND)}", "# timestamp tx ty tz qx qy qz qw, camera-to-world, OpenCV axes"]
    for number, (pose, view) in enumerate(zip(poses, views, strict=True)):
        if not np.isfinite(pose).all():
            continue
        lines.append(f"# {' '.join(view.name.split())}".encode(errors="replace").decode())
        quaternion = matrix_to_quaternion(pose[:3, :3])
        values = (*pose[:3, 3], *(quaternion / np.linalg.norm(quaternion)))
        lines.append(" ".join([str(number), *(f"{value:.10g}" for value in values)]))
    return "\n".join(lines) + "\n"


def _scene(folder: Path) -> Scene:
    """The frames of a map that together have no more than so many pixels."""
    files = view_files(folder) if any(folder.glob("view-*.npz")) else []
    if not files:
        raise InputError("nothing can be seen in any frame, so there is no point cloud; give other images")
    pixels = load_view(files[0])["depth_z"].size
    chosen = files[:: max(1, math.ceil(len(files) * pixels / _SCENE_PIXELS))]
    found = [load_view(file) for file in chosen]
    scene = Scene.from_predictions(found, [str(view["name"]) for view in found])
    scene.made_by = str(found[0].get("made_by", ""))
    return scene


def _picture(mapper: Mapper, scene: Scene, true: _Truth | None, summary: dict[str, Any]) -> MapPicture:
    points, colors = scene.point_cloud(MAX_POINTS)
    closed = sum(loop.believed for loop in mapper.loops)
    title = f"{summary['frames']} frames, submaps: {summary['submaps']}, loops closed: {closed} of {len(mapper.loops)}"
    if true is not None:
        title += f"\ndrift {_drift(summary['truth'])}"
    return MapPicture(
        mapper.poses,
        mapper.submaps,
        mapper.loops,
        mapper.breaks,
        points,
        colors,
        None if true is None else true.positions(),
        "m" if summary["metric"] else "unit of the given poses",
        title,
    )


def _drift(truth: dict[str, Any]) -> str:
    if truth["drift_percent"] is None or truth["ate"] is None:
        return "not known: the frames that can be compared make no path"
    path, frames = f"{truth['path_length']:.3g}", truth["frames"]
    drift = f"{truth['drift_percent']:.2f} % of the path ({path}), over {frames} frames"
    return f"{drift}; ATE {truth['ate']:.3g}, scaled {truth['ate_similarity']:.3g}"


def _show(summary: dict[str, Any]) -> None:
    """The summary, for people."""
    truth, off = summary["truth"], summary["shared_points_off"]
    closed = sum(loop["believed"] for loop in summary["loops"])
    windows = f"{summary['windows']} window{'' if summary['windows'] == 1 else 's'}"
    facts = [
        ("frames", f"{summary['frames']} in {windows}, {summary['blank_frames']} of them blank"),
        ("keyframes", str(summary["keyframes"])),
        ("submaps", "\n".join([str(summary["submaps"]), *(found["text"] for found in summary["breaks"])])),
        ("loops", f"{closed} closed of {len(summary['loops'])} found"),
        ("seconds", f"{summary['seconds']:.1f}, {summary['seconds_per_frame']:.3f} per frame"),
        ("saved", "\n".join(summary["saved"]) or "nothing"),
    ]
    if off is not None:
        agreeing = summary["shared_points_agreeing"]
        facts.insert(3, ("consistency", f"shared points are off by {off:.2%} of their depth; {agreeing:.0%} agree"))
    if truth is not None:
        facts.insert(3, ("drift", _drift(truth)))
    show_facts(facts)
    if not summary["saved"]:
        say("To save the map: --out map.ply, --trajectory path.txt, --stream frames/")
