"""``mapengine batch``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.status import Status

from mapengine.runtime.backend_table import CPU_BACKENDS, GPU_BACKENDS
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.options import InferOptions
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.formats.table import FORMAT_NAMES, chosen_format
from mapengine.runtime.outputs.frame import FRAMES
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.sizes import parse_bytes
from mapengine.runtime.writing.output_checks import InputPaths
from mapengine.runtime.writing.recognition import RECORD

from ...console import make_console, one_line, show_facts
from ...extras import needs
from ...inputs import (
    DepthFrom,
    DepthResize,
    DepthScale,
    Every,
    Fps,
    Give,
    Ignore,
    Intrinsics,
    Masks,
    MaxViews,
    Metric,
    Recursive,
    read_options,
)
from ...options import (
    Backend,
    BundleArgument,
    ConfidencePercentile,
    MaskEdges,
    MinibatchSize,
    Threads,
    one_of,
    parse_size,
    value_of,
)
from ...outputs import check_folder

if TYPE_CHECKING:
    from mapengine.serving.batch.estimate import Estimate
    from mapengine.serving.batch.run import Tally
    from mapengine.serving.batch.worker import Answer

_LINE_SECONDS = 10.0
"""How often progress is said where there is no terminal."""


def batch(
    bundle: BundleArgument,
    scenes: Annotated[
        str,
        typer.Argument(
            metavar="SCENES",
            help="A folder of scenes, JSON lines (.jsonl) or Parquet with id, inputs and, if wanted, options of each; "
            "a path or an address that fsspec knows, such as s3://bucket/scenes.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results; on a cluster, one that all see.")],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, metavar="N", help="Processes of this machine, 1 if not given.", show_default=False
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster, such as 10.0.0.1:6379; auto for the one that this machine is part of, local "
            "for one of this machine alone.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            **one_of(FORMAT_NAMES),
            help="What each scene is saved as; may be given several times. npz if not given.",
            show_default=False,
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Stop when more than N scenes have failed; never if not given.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that each worker may take, such as 8GB: a scene that takes more fails.",
            show_default=False,
        ),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Size that images are brought to, as in `run`.", show_default=False),
    ] = None,
    frame: Annotated[str, typer.Option(**one_of(FRAMES), help="World of the results, as in `run`.")] = "given",
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
    confidence_percentile: ConfidencePercentile = 0,
    minibatch_size: MinibatchSize = InferOptions.minibatch_size,
    mask_edges: MaskEdges = InferOptions.mask_edges,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings, failures and errors only.")] = False,
) -> None:
    """Reconstruct many SCENES with BUNDLE into OUT.

    Run it again, and what is missing or changed is done.

    \b
    Example:
      mapengine batch build/engine scenes/ results/ --workers 2
      mapengine batch build/engine scenes.jsonl results/ --format glb --format npz
      mapengine batch build/engine s3://bucket/scenes.parquet /shared/results --ray auto --max-failures 100
    """
    if ray is not None and workers is not None:
        raise typer.BadParameter("it is for this machine, and --ray for a cluster; give one", param_hint="--workers")
    if "://" in str(out) or str(out).startswith(("s3:", "gs:", "memory:")):
        raise typer.BadParameter("results go to a folder, not to an address; give a path", param_hint="OUT")
    reading = read_options(recursive, every, fps, max_views, give, ignore, depth_from, depth_resize)
    if size is not None:
        parse_size(size, "--size")
    with value_of("--memory"):
        limit = None if memory is None else parse_bytes(memory)
    chosen = tuple(dict.fromkeys(formats or ["npz"]))
    for name in chosen:
        chosen_format(Path("scene"), name).check_packages(SaveOptions())
    given: dict[str, Any] = {
        **{name: value for name, value in vars(reading).items() if value != vars(ReadOptions())[name]},
        "size": size,
        "frame": frame,
        "intrinsics": None if intrinsics is None else str(intrinsics),
        "masks": None if masks is None else str(masks),
        "depth_scale": depth_scale,
        "metric": metric,
        "minibatch_size": minibatch_size,
        "mask_edges": mask_edges,
        "confidence_percentile": confidence_percentile or None,
    }
    with needs("batch"):
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
    from mapengine.serving.batch.addresses import is_remote, local_path
    from mapengine.serving.batch.ledger import RESULTS
    from mapengine.serving.batch.pools import LocalPool, RayPool
    from mapengine.serving.batch.records import SCENES
    from mapengine.serving.batch.run import BATCH_KIND, Batch, BatchError, run_batch

    read = [*([] if is_remote(scenes) else [Path(local_path(scenes))]), *(p for p in (intrinsics, masks) if p)]
    folders = [bundle, *(path for path in read if path.is_dir())]
    names = (SCENES, RESULTS, RECORD)
    check_folder(out, BATCH_KIND, InputPaths([p for p in read if not p.is_dir()], folders), names=names)
    opened = Bundle.open(bundle, verify=False)
    on_gpu = backend in GPU_BACKENDS or not any(info.name in CPU_BACKENDS for info in opened.manifest.backends)
    count = workers or 1
    with nullcontext(LocalPool(count)) if ray is None else RayPool(ray, on_gpu) as pool:
        if threads is None:
            threads = pool.processors() if isinstance(pool, RayPool) else max(1, usable_processors() // count)
        wanted = Batch(bundle, scenes, out, given, chosen, backend, threads, limit, max_failures)
        with _Report(quiet).showing() as report:
            tally = run_batch(wanted, pool, report.planned, report.progress)
    if not quiet:
        _show(tally, out / RESULTS)
    if tally.failed:
        raise BatchError(
            f"{tally.failed} of {tally.scenes} scenes failed, the last with: {tally.last_error}; see {out / RESULTS}"
        )


class _Report:
    """What is said while a batch runs: a line that changes on a terminal, else one now and then."""

    def __init__(self, quiet: bool) -> None:
        from mapengine.serving.batch.estimate import Estimate

        self._console = make_console(stderr=True, quiet=quiet)
        self._failures = make_console(stderr=True)
        self._status: Status | None = None
        self._estimate: Estimate = Estimate()
        self._said = time.monotonic()

    @contextmanager
    def showing(self) -> Iterator[_Report]:
        """Show it while the block runs."""
        if not self._console.is_terminal:
            yield self
            return
        with self._console.status("finding out what is to do") as self._status:
            yield self

    def planned(self, tally: Tally) -> None:
        """Say what is to be done."""
        self._console.print(tally.plan(), soft_wrap=True)

    def progress(self, tally: Tally, answer: Answer) -> None:
        """Say how far it is, and what failed."""
        self._estimate.add()
        result = answer.result
        if result is not None and result.error is not None:
            self._failures.print(one_line(f"failed: {result.id}: {result.error}"), soft_wrap=True)
        done = tally.todo - tally.left
        failed = f", {tally.failed} failed" if tally.failed else ""
        line = f"{done} of {tally.todo} scenes{failed}; {self._estimate.words(tally.left)}"
        if self._status is not None:
            self._status.update(line)
        elif time.monotonic() - self._said >= _LINE_SECONDS and tally.left:
            self._said = time.monotonic()
            self._console.print(line, soft_wrap=True)


def _show(tally: Tally, results: Path) -> None:
    """What became of the scenes, for people."""
    before = tally.before + tally.reread
    same = f" ({tally.reread} of them read again: times changed, bytes did not)" if tally.reread else ""
    rate = f", {(tally.done + tally.failed) / tally.seconds:.3g} scenes per second" if tally.done else ""
    print()
    show_facts(
        [
            ("scenes", str(tally.scenes)),
            ("done now", f"{tally.done} in {tally.seconds:.1f} s{rate}"),
            ("done before", f"{before}{same}"),
            ("failed", str(tally.failed)),
            ("table", str(results)),
        ]
    )
