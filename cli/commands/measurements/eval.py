"""``mapengine eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.calibration.evaluation import (
    DEFAULT_SCENES,
    HELD_OUT_SEED,
    Predictor,
    evaluate,
    load_rgbd,
    markdown_table,
    select_tasks,
)
from mapengine.calibration.evaluation.report import HEAD, described, fewer_scenes, table_rows
from mapengine.runtime import Engine
from mapengine.runtime.backend_table import PACKAGES
from mapengine.runtime.errors import ProfileError
from mapengine.runtime.mapping.keyframes import DEFAULT_KEYFRAMES
from mapengine.runtime.mapping.windows import DEFAULT_JOIN, DEFAULT_OVERLAP, DEFAULT_WINDOW
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_markdown, write_record
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import Steps, say, show_facts, show_table
from ...extras import needs
from ...options import (
    Backend,
    Give,
    Join,
    Keyframes,
    Overlap,
    Revision,
    Threads,
    Window,
    parse_given,
    parse_size,
    value_of,
)
from ...outputs import check_files
from ...plots.evaluation import draw_evaluations
from ...plots.figures import PLOT, check_plots
from ...sequences import WALK_FRAMES, WALKS, SequenceOptions, evaluate_sequences

EVALUATION = "evaluation"


def eval_(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A bundle that `mapengine build` wrote, or what it takes (a preset, a folder, a Hub id): then PyTorch "
            "runs it.",
        ),
    ],
    scenes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"How many scenes to render, or walks; {DEFAULT_SCENES} scenes or {WALKS} walks if not given.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed of the first scene; those from 1000000 on, the default, were kept out of training.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Tasks, such as image-only-4,depth; all that can be run if not given.",
            show_default=False,
        ),
    ] = None,
    rgbd: Annotated[
        Path | None,
        typer.Option(
            "--rgbd",
            metavar="FOLDER",
            help="Take these views instead of rendered scenes: an RGB-D recording or a view list, see `mapengine run`.",
            show_default=False,
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            metavar="rendered|PATH",
            help="Judge the map of a sequence instead: of rendered walks, or of an RGB-D recording, such as a folder "
            "laid out like 7-Scenes or TUM RGB-D.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=3,
            metavar="N",
            help=f"With --sequence: frames of a walk, {WALK_FRAMES} if not given; or the first frames of a recording.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With --sequence: each so many-th frame of a recording.", show_default=False
        ),
    ] = None,
    give: Give = None,
    join: Join = DEFAULT_JOIN,
    window: Window = DEFAULT_WINDOW,
    overlap: Overlap = DEFAULT_OVERLAP,
    keyframes: Keyframes = DEFAULT_KEYFRAMES,
    intrinsics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Camera of all views, for a recording without.", show_default=False),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the views in pixels.")] = "140x112",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Where to write the results as JSON.", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Where to write the table as Markdown.", show_default=False),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PNG",
            help="Where to draw the errors of tasks, or the paths of sequences.",
            show_default=False,
        ),
    ] = None,
    backend: Backend = "auto",
    revision: Revision = None,
    threads: Threads = None,
) -> None:
    """Measure how right MODEL's reconstructions are.

    With --sequence rendered, MODEL maps walks through rooms and outdoors, or with a path a recording: how far the path,
    the depth and the surfaces are from the truth, time and memory. Otherwise:

    Scenes with exact depth, cameras and poses are rendered and given to MODEL as images only, with intrinsics, with
    poses, with dense or sparse depth, and in mixes. The errors stand beside those of a constant depth.

    \b
    Example:
      mapengine eval build/engine --json eval.json --markdown eval.md
      mapengine eval preset:tiny --scenes 10 --tasks image-only-4,depth
      mapengine eval build/engine --rgbd recording/
      mapengine eval build/engine --sequence rendered --scenes 2 --window 8 --overlap 3
    """
    target = parse_size(size, "--size")
    _check_kind(context, sequence)
    if sequence is not None:
        options = SequenceOptions(
            source=sequence,
            count=scenes,
            frames=frames,
            seed=seed,
            every=every,
            intrinsics=intrinsics,
            size=target,
            given=parse_given(["intrinsics"] if give is None else give),
            mapper={"join": join, "window": window, "overlap": overlap, "keyframes": keyframes},
            json_file=json_file,
            markdown=markdown,
            plot_file=plot_file,
        )
        evaluate_sequences(options, model, lambda: load_predictor(model, backend, revision, threads))
        return
    if intrinsics is not None and rgbd is None:
        raise typer.BadParameter("it belongs to --rgbd, which is not given", param_hint="--intrinsics")
    files = {
        "--json": (json_file, f"{EVALUATION} record"),
        "--markdown": (markdown, EVALUATION),
        "--plot": (plot_file, PLOT),
    }
    given_files = [] if intrinsics is None else [intrinsics]
    check_files(files, InputPaths(given_files, [model] if rgbd is None else [model, rgbd]))
    if plot_file is not None:
        check_plots()
    if seed is not None and rgbd is not None:
        raise typer.BadParameter("it belongs to rendered scenes, and --rgbd names others", param_hint="--seed")
    names = None if tasks is None else [name.strip() for name in tasks.split(",")]
    chosen = _tasks(names)
    with Steps() as step:
        given = None
        if rgbd is not None:
            step(f"reading {rgbd}")
            given = load_rgbd(rgbd, target, intrinsics=intrinsics)
        step(f"loading {model}")
        predictor, facts = load_predictor(model, backend, revision, threads)
        left_out = _unserved(predictor, chosen, target, named=names is not None)
        step("evaluating")
        evaluation = evaluate(
            predictor,
            (DEFAULT_SCENES if scenes is None else scenes) if given is None else given,
            tasks=[name for name, _ in chosen if name not in left_out] if names is not None or left_out else None,
            seed=HELD_OUT_SEED if seed is None else seed,
            size=target,
            progress=lambda done, total, task: step.part(done / total, task),
        ).to_json()
        record = {
            "benchmark": EVALUATION,
            **facts,
            "data": "rendered" if rgbd is None else "rgbd",
            **record_origin(*PACKAGES),
            **evaluation,
        }
        table = f"# {facts['model']}\n\n{markdown_table(record)}"
        if json_file is not None:
            write_record(json_file, record)
        if markdown is not None:
            write_markdown(markdown, EVALUATION, table)
        if plot_file is not None:
            draw_evaluations([record], plot_file)
    _show(record, left_out, [path for path in (json_file, markdown, plot_file) if path is not None])


_OF_SEQUENCES = ("frames", "every", "give", "join", "window", "overlap", "keyframes")
_OF_SCENES = ("tasks", "rgbd")


def _check_kind(context: typer.Context, sequence: str | None) -> None:
    """Refuse options of scenes with --sequence, and those of sequences without.

    Raises:
        typer.BadParameter: there is one.
    """
    for name in _OF_SEQUENCES if sequence is None else _OF_SCENES:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            why = "it belongs to --sequence, which is not given"
            raise typer.BadParameter(
                why if sequence is None else "it belongs to scenes, and --sequence judges a map", param_hint=f"--{name}"
            )


def load_predictor(
    model: str, backend: str = "auto", revision: str | None = None, threads: int | None = None
) -> tuple[Predictor, dict[str, Any]]:
    """An engine for the folder of a bundle, otherwise the PyTorch reference in float32.

    Returns:
        What answers ``infer``, and what a record says of it: ``model``, ``weights_sha256``, ``precision`` and
        ``where`` it runs.

    Raises:
        typer.BadParameter: an option that does not belong to such a model.
        BundleError, BackendError, ModelNotFoundError, CheckpointError: as when loading.
    """
    folder = Path(model)
    # A folder with neither file is taken for a bundle, because that error does not need PyTorch.
    if folder.is_dir() and ((folder / "manifest.json").exists() or not (folder / "config.json").exists()):
        if revision is not None:
            raise typer.BadParameter(f"it belongs to a Hub id, and {model} is a bundle", param_hint="--revision")

        engine = Engine.load(folder, backend, threads=threads)
        manifest = engine.manifest
        return engine, _facts(manifest.model.id, manifest.model.weights_sha256, manifest.precision, engine.where)
    if backend != "auto":
        raise typer.BadParameter(f"it belongs to a bundle, and {model} runs in PyTorch", param_hint="--backend")
    with needs("export"):
        import torch

        from mapengine.export.model.reference import load_model
    reference = load_model(model, revision)
    if threads is not None:
        torch.set_num_threads(threads)
    where = f"PyTorch {torch.__version__} on {reference.device}"
    return reference, _facts(reference.model_id, reference.weights_hash(), "fp32", where)


def _facts(model: str, weights_sha256: str, precision: str, where: str) -> dict[str, Any]:
    return {"model": model, "weights_sha256": weights_sha256, "precision": precision, "where": where}


def _tasks(names: Sequence[str] | None) -> list[tuple[str, int]]:
    """Name and number of views of each task that is asked for.

    Raises:
        typer.BadParameter: an unknown name.
    """

    with value_of("--tasks"):
        return [(task.name, task.views) for task in select_tasks(names)]


def _unserved(predictor: Any, tasks: Sequence[tuple[str, int]], size: tuple[int, int], named: bool) -> dict[str, str]:
    """The tasks that a bundle was not built for, with the reason.

    Raises:
        ProfileError: one of them was named, it is the image size that does not fit, or no task is left.
    """

    manifest = getattr(predictor, "manifest", None)
    if manifest is None:
        return {}
    manifest.requests.check(manifest.requests.views.min, height=size[1], width=size[0])
    reasons = {}
    for name, views in tasks:
        try:
            manifest.requests.check_views(views)
        except ProfileError as error:
            if named:
                raise ProfileError(f"{name}: {error}") from error
            reasons[name] = str(error)
    if len(reasons) == len(tasks):
        raise ProfileError(reasons[tasks[0][0]])
    return reasons


def _show(record: dict[str, Any], left_out: dict[str, str], written: Sequence[Path]) -> None:

    print()
    show_facts(
        [
            ("model", f"{record['model']}, {record['precision']}, {record['where']}"),
            ("data", described(record)),
            ("alignment", "depth AbsRel, inliers: one median factor per scene; points: mean distance; ATE: similarity"),
        ]
    )
    show_table(HEAD, table_rows(record), right=HEAD[1:])
    fewer = fewer_scenes(record)
    if fewer:
        say(f"Fewer scenes: {', '.join(fewer)}")
    for name, reason in left_out.items():
        say(f"Left out: {name}: {reason}")
    for path in written:
        print(f"Wrote {path}")
