"""``mapengine profile``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.calibration.scenes import MAX_VIEWS, render_scene
from mapengine.runtime.backend_table import NAMES, PACKAGES
from mapengine.runtime.backends.registry import make_backend
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import InputError, MapEngineError
from mapengine.runtime.profiling import Contender, Settings, compare_records
from mapengine.runtime.profiling import profile as measure
from mapengine.runtime.profiling.accuracy import add_accuracy, check_evaluation
from mapengine.runtime.profiling.compare import check_profile
from mapengine.runtime.profiling.measure import INTERRUPTED
from mapengine.runtime.profiling.report import markdown, rows
from mapengine.runtime.system.machine import clocks
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.reading import read_file, shown_path
from mapengine.runtime.typed_json.text import Document, parse_json
from mapengine.runtime.writing.files import write_markdown, write_record
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import say, show_table
from ...extras import needs
from ...options import Threads, parse_size
from ...outputs import check_files
from ...plots.figures import PLOT, check_plots
from ...plots.profile import draw_profile

PROFILE = "profile"
_COLUMNS = ("contender", "precision", "views", "size", "p50", "p90", "p99", "min", "CV", "runs", "speed", "memory")
_MOST_RECORD = 64 * 2**20
"""Bytes; a record of a hundred configurations has less than one."""


def profile(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders that `mapengine build` wrote; they take turns.")
    ],
    views: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of views.")] = "1,2,4",
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="WxH,...",
            help="Sizes of the images; the first that the bundles serve if not given.",
            show_default=False,
        ),
    ] = None,
    backends: Annotated[
        str,
        typer.Option(metavar="NAME,...", help=f"What runs the bundles: auto, all that can, or {', '.join(NAMES)}."),
    ] = "auto",
    baselines: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Also time the bundles' model in PyTorch: pytorch, pytorch-bf16, pytorch-fp16, pytorch-compile, "
            "pytorch-compile-bf16, upstream (its own package), or none.",
        ),
    ] = "pytorch",
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed calls of each.")] = 30,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, metavar="S", help="Time for each number of views and size; fewer calls if it ends."),
    ] = 60,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Calls before the timed ones.")] = 2,
    threads: Threads = None,
    roofline: Annotated[
        bool, typer.Option("--roofline/--no-roofline", help="Compare the stages with what this machine can do.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where to write the record.", show_default=False)
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Where to write the tables.", show_default=False)
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PNG",
            help="Where to draw time and memory against views, and accuracy against time.",
            show_default=False,
        ),
    ] = None,
    accuracy: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A record of `mapengine eval --json` for one of what is timed: its errors stand beside the times.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A record of an earlier profile, to say what changed.", show_default=False),
    ] = None,
) -> None:
    """Time BUNDLEs from image files to a scene, beside PyTorch.

    Every contender has a process of its own, and they are called in turn. The output says what is timed.

    \b
    Example:
      mapengine profile build/engine --views 1,4,16 --json profile.json
      mapengine profile build/fp32 build/int8 --backends all --baselines pytorch,pytorch-bf16
      mapengine profile build/engine --compare profile.json
    """
    files = {
        "--json": (json_file, f"{PROFILE} record"),
        "--markdown": (markdown_file, PROFILE),
        "--plot": (plot_file, PLOT),
    }
    check_files(files, InputPaths([*(accuracy or ()), *([] if compare is None else [compare])], bundles))
    if plot_file is not None:
        check_plots()
    if roofline:
        with needs("export"):
            from mapengine.export.diagnosis.roofline import add_rooflines, measure_ceilings
    old = None if compare is None else _read(compare)
    if old is not None:
        check_profile(old)  # before anything is timed
    evaluations = [_read(path) for path in accuracy or ()]
    for evaluation in evaluations:
        check_evaluation(evaluation)
    manifests = _manifests(bundles)
    sizes = _sizes(manifests, resolution)
    settings = Settings(_counts(views, manifests, sizes), sizes, runs, seconds, warmup)
    contenders = _contenders(bundles, manifests, backends, baselines, threads)
    before = clocks()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(contenders, _Photos(Path(folder)), settings, say)
    record: dict[str, Any] = {
        "benchmark": PROFILE,
        **record_origin(*PACKAGES),
        "clocks": [before, clocks()],
        **measured,
    }
    try:
        if roofline and record["ended_early"] is None:
            say("measuring what this machine can do: products of matrices, and copying")
            record["ceilings"] = measure_ceilings()
            add_rooflines(record["results"], record["ceilings"])
        add_accuracy(record["results"], evaluations)
    except BaseException as error:
        record["ended_early"] = INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error)
        raise
    finally:  # minutes of measuring are not lost
        _show(record)
        _save(record, json_file, markdown_file, plot_file)
    if old is not None:
        _compare(old, record)
    if record["ended_early"] == INTERRUPTED:
        raise KeyboardInterrupt
    if record["ended_early"] is not None:
        raise MapEngineError(f"the profile ended early, what was measured stands above: {record['ended_early']}")


def _show(record: dict[str, Any]) -> None:
    for result in record["results"]:
        result.pop("config", None)
    print()
    show_table(_COLUMNS, [[cell.replace("`", "").replace("**", "") for cell in row] for row in rows(record)])
    for entry in record["not_measured"]:
        say(f"Not measured: {entry['contender']}: {entry['why']}")
    if record["ended_early"] is not None:
        say(f"Ended early: {record['ended_early']}")
    say(record["boundary"])


def _save(record: dict[str, Any], json_file: Path | None, markdown_file: Path | None, plot_file: Path | None) -> None:
    if json_file is not None:
        write_record(json_file, record)
    if markdown_file is not None:
        write_markdown(markdown_file, PROFILE, markdown(record))
    if plot_file is not None:
        draw_profile(record, plot_file)


def _manifests(bundles: list[Path]) -> list[Any]:

    return [Bundle.open(bundle).manifest for bundle in bundles]


def _sizes(manifests: list[Any], resolution: str | None) -> tuple[tuple[int, int], ...]:
    if resolution is not None:
        sizes = tuple(parse_size(part, "--resolution") for part in resolution.split(","))
    else:
        served = manifests[0].requests.sizes
        sizes = (served[0] if isinstance(served, tuple) else (518, 392),)
    for manifest in manifests:
        for width, height in sizes:
            manifest.requests.check(manifest.requests.views.min, height, width)
    return sizes


def _counts(text: str, manifests: list[Any], sizes: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,4", param_hint="--views")
    counts = tuple(dict.fromkeys(int(part) for part in parts))
    for manifest in manifests:
        for count in counts:
            manifest.requests.check_views(count)
    return counts


def _contenders(
    bundles: list[Path], manifests: list[Any], backends: str, baselines: str, threads: int | None
) -> list[Any]:

    contenders = []
    for bundle, manifest in zip(bundles, manifests, strict=True):
        known = manifest.fastest_backends
        names = known if backends == "all" else [name.strip() for name in backends.split(",")]
        for name in names:
            chosen = make_backend(name, known, threads).name  # also refuses what is unknown or not installed
            contenders.append(Contender.bundle(bundle, chosen, threads))
    if baselines != "none":
        with needs("export"):
            from mapengine.export.diagnosis.baselines import baseline
        names = [name.strip() for name in baselines.split(",")]
        contenders += [baseline(name, manifests[0].model.id, threads) for name in names]
    return contenders


class _Photos:
    """Image files of a rendered scene, made once per size: JPEG of twice the size, as photos are larger."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, views: int, width: int, height: int) -> list[Path]:
        from PIL import Image

        paths = [self._folder / f"{width}x{height}-{index:04d}.jpg" for index in range(views)]
        if not all(path.exists() for path in paths):
            images = render_scene(0, MAX_VIEWS, width, height).images
            for index, path in enumerate(paths):
                picture = Image.fromarray(images[index % len(images)])
                picture.resize((2 * width, 2 * height)).save(path, quality=92)
        return paths


def _read(path: Path) -> Any:

    document = Document(shown_path(path), "give a file that --json wrote", InputError)
    try:
        return parse_json(read_file(path, _MOST_RECORD), document)
    except OSError as error:
        raise document.complaint(f" cannot be read ({error.strerror})") from None


def _compare(old: Any, new: Any) -> None:

    found, differences = compare_records(old, new)
    rows = [
        [
            c.contender,
            str(c.views),
            "{}x{}".format(*c.size),
            f"{1e3 * c.old_s:.1f} ms",
            f"{1e3 * c.new_s:.1f} ms",
            f"{c.ratio:.2f}",
            c.verdict,
        ]
        for c in found
    ]
    show_table(("contender", "views", "size", "before", "now", "ratio", "verdict"), rows)
    for difference in differences:
        say(f"Hard to compare: {difference}")
