"""``mapengine demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mapengine.calibration.data.samples import SAMPLE_SEED, SAMPLE_SIZE
from mapengine.calibration.demonstration.comparison import Comparison, compare, demo_scene
from mapengine.calibration.demonstration.picture import draw_demo, figures
from mapengine.calibration.evaluation import HELD_OUT_SEED, Task, task_views
from mapengine.runtime import Engine
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendUnavailableError, ProfileError
from mapengine.runtime.inputs.resolutions import target_size
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import Steps, megabytes, say, show_facts, show_table, stage_progress
from ...options import RANDOM_PRESETS, Backend, BundleArgument, Device, Give, Threads, parse_given, parse_size
from ...outputs import check_folder

_KIND = "demonstration"
_MOST_VIEWS, _USUAL_VIEWS = 8, 4
_WARNING = "Random weights: this shows that the chain works, and the prediction means nothing."


def demo(
    bundle: BundleArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write page, picture and the two scenes.")
    ] = Path("build/demo"),
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Another scene; those from 1000000 on were kept out of training.",
            show_default=False,
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_VIEWS,
            metavar="N",
            help=f"How many views; {_USUAL_VIEWS} if not given, or as near to that as the bundle takes.",
            show_default=False,
        ),
    ] = None,
    give: Give = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="Size of the views; the bundle's nearest to 5:4 if not given.", show_default=False
        ),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    device: Annotated[
        Device, typer.Option(help="optional: where the GPU of a bundle is missing, say so and leave it at that.")
    ] = Device.required,
) -> None:
    """Reconstruct a rendered scene, beside its truth.

    Writes demo.html (both scenes, to turn in a browser), demo.png (images, true and predicted depth, errors, cameras),
    demo.glb (the reconstruction) and truth.glb (the scene, in the same frame).

    \b
    Example:
      mapengine demo build/engine
      mapengine demo build/engine --give intrinsics,poses --seed 1000003 --out build/posed
    """

    given = parse_given(give or [])
    target = None if size is None else parse_size(size, "--size")
    names = ("demo.html", "demo.png", "demo.glb", "truth.glb")
    check_folder(out, _KIND, InputPaths([], [bundle]), option="--out", names=names)
    # Cheap, and says what is wrong with the bundle before anything is rendered.
    opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    count = _usual_views(manifest.requests) if views is None else views
    width, height = target or _usual_size(manifest.requests)
    manifest.requests.check(count, height, width)
    number = SAMPLE_SEED if seed is None else seed
    task = Task(
        "demo",
        count,
        intrinsics="intrinsics" in given or "depth" in given,
        depth="dense" if "depth" in given else "none",
        poses="poses" in given,
    )
    with Steps() as step:
        step("loading the engine")
        try:
            engine = Engine.load(opened, backend, threads=threads)
        except BackendUnavailableError as error:
            if device is Device.required:
                raise
            missing = error
            engine = None
        else:
            step(f"rendering scene {number}")
            rendered = demo_scene((width, height), count, number)
    if engine is None:
        say(f"No demonstration on this machine: {missing}")
        return
    inputs = task_views(task, rendered.scene, engine.data_norm_type)
    with stage_progress(count, count if given else 0) as progress:
        predictions = engine.infer(inputs, apply_mask=False, progress=progress)
    with Steps() as step:
        step(f"writing {out}")
        comparison = compare(predictions, rendered.scene, engine.data_norm_type)
        held_out = "kept out of training" if number >= HELD_OUT_SEED else "from the seeds of training"
        what = f"from {task.inputs}" if task.inputs != "images" else "from images only"
        picture = draw_demo(
            comparison,
            list(rendered.pictures),
            rendered.scene.poses[0, :3, :3].T @ [0.0, 1.0, 0.0],
            f"{manifest.model.id}: a rendered scene reconstructed {what}",
            f"{manifest.precision}, {engine.backend} on {engine.device}. Scene {number}, {held_out}; {count} views of "
            f"{width}x{height}",
            _WARNING if manifest.model.id in RANDOM_PRESETS else "",
        )
        with atomic_folder(out, _KIND, names) as folder:
            picture.save(folder / "demo.png", format="PNG")
            comparison.save(folder, f"{engine.label}: a rendered scene, reconstructed {what}")
    _summary(engine, comparison, f"{number} ({rendered.scene.kind}), {held_out}", task.inputs, [out / n for n in names])


def _usual_views(requests: ServedRequests) -> int:
    """Four, or what is nearest among the view counts of the bundle.

    Raises:
        ProfileError: it takes more views than a rendered scene has.
    """

    if requests.views.min > _MOST_VIEWS:
        raise ProfileError(
            f"this bundle was built for {requests.views.min} views or more, and a rendered scene has at most "
            f"{_MOST_VIEWS}; build it with --views {_USUAL_VIEWS}:{requests.views.opt}:{requests.views.max}, or use "
            "`mapengine run`"
        )
    return min(max(_USUAL_VIEWS, requests.views.min), requests.views.max)


def _usual_size(requests: ServedRequests) -> tuple[int, int]:
    """(width, height) of the bundle, or of MapAnything's table, whose shape is nearest to that of the samples."""

    ratio = SAMPLE_SIZE[0] / SAMPLE_SIZE[1]
    return requests.nearest_size(ratio) or target_size([ratio])


def _summary(engine: Engine, comparison: Comparison, scene: str, inputs: str, files: Sequence[Path]) -> None:

    count, height, width = comparison.depth.shape
    manifest = engine.manifest
    print()
    show_facts(
        [
            ("engine", f"{manifest.model.id}, {manifest.precision}, {engine.backend} on {engine.device}"),
            ("scene", scene),
            ("views", f"{count} of {width}x{height}"),
            ("given", inputs),
        ]
    )
    shown = figures(comparison)
    show_table([title for title, _ in shown], [[value for _, value in shown]], right=[title for title, _ in shown])
    if manifest.model.id in RANDOM_PRESETS:
        say(f"Note: {_WARNING}")
    for file in files:
        print(f"Wrote {file} ({megabytes(file.stat().st_size)})")
    say(f"Look at it: open {files[0]} in a browser")
