"""``mapengine plan``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.memory.model import known_model, model_path, table
from mapengine.runtime.profiling import memory as measurement
from mapengine.runtime.system.machine import attainable_bytes
from mapengine.runtime.system.sizes import gigabytes, parse_bytes
from mapengine.runtime.typed_json.codec import encode
from mapengine.runtime.writing.cached_records import cache_problem

from ...console import say, show_facts, show_table
from ...options import Backend, BundleArgument, parse_size, value_of


def plan(
    bundle: BundleArgument,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="How many views fit into so much memory, such as 8GB.", show_default=False),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How much memory so many views need.", show_default=False)
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Size of the images; the bundle's first if not given.", show_default=False),
    ] = None,
    backend: Backend = "auto",
    geometry: Annotated[
        bool, typer.Option("--geometry/--images-only", help="Whether views bring cameras, depth or poses.")
    ] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Predictions are taken one by one (`mapengine run --stream`).")
    ] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure again what is known of this bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many views of BUNDLE fit into memory.

    The first plan of a bundle on a machine runs it a few times, in processes of their own, and keeps what it measured.
    It is for the backends on a processor, and measures on Linux.
    With both --memory and --views the exit code is 1 if the views do not fit.

    \b
    Example:
      mapengine plan build/engine
      mapengine plan build/engine --views 50 --resolution 518x392
      mapengine plan build/engine --memory 8GB
    """

    with value_of("--memory"):
        limit = None if memory is None else parse_bytes(memory)
    opened = Bundle.open(bundle)
    requests = opened.manifest.requests
    width, height = _default_size(requests) if resolution is None else parse_size(resolution, "--resolution")
    requests.check(requests.views.min, height, width)
    model = _model(opened, backend, measure, quiet=as_json)
    options = {"geometry": geometry, "collect": not stream}
    room = attainable_bytes() if limit is None else limit
    most = None if room is None else model.most_views(room, width, height, **options)
    counts = [views] if views is not None else _counts(requests.views.max)
    if as_json:
        facts: dict[str, Any] = {
            "bundle": str(bundle),
            "backend": dict(model.key),
            "size": [width, height],
            **options,
            "memory_bytes": room,
            "most_views": most,
            "built_for": requests.views.max,
            "peaks_bytes": {str(n): model.peaks(n, width, height, **options) for n in counts},
            "samples": encode(model.samples),
        }
        print(json.dumps(facts, indent=2))
    else:
        what = "cameras, depth and poses with every view" if geometry else "images only"
        show_facts(
            [
                ("bundle", f"{bundle}: {opened.manifest.model.id}, {opened.manifest.precision}"),
                ("runs on", f"{model.key['backend']} {model.key['version']}, {model.key['device']}"),
                (
                    "call",
                    f"{width}x{height}, {what}; {'one prediction at a time' if stream else 'all predictions kept'}",
                ),
                ("measured", _kept(model)),
            ]
        )
        heads = ["resident memory", *(f"{n} view{'s' if n > 1 else ''}" for n in counts)]
        show_table(heads, table(model, counts, width, height, **options))
        if room is not None and most is not None:
            where = f"{gigabytes(room)} ({'given' if limit is not None else 'free now'})"
            say(f"{where} are enough for {most} views of {width}x{height}.{_built(most, requests.views.max)}")
    if limit is not None and views is not None:
        model.check(limit, views, width, height, **options)


def _model(opened: Bundle, backend: str, measure: bool, quiet: bool) -> Any:

    key = measurement.model_key(opened, backend)
    model = None if measure else known_model(key)
    if model is not None:
        return model

    def progress(done: int, total: int) -> None:
        if not quiet:
            say(f"measuring call {done + 1} of {total}" if done < total else "measured")

    return measurement.measure(opened, backend, progress)


def _kept(model: Any) -> str:
    problem = cache_problem()
    return f"not kept: {problem}" if problem else str(model_path(model.key))


def _default_size(requests: Any) -> tuple[int, int]:
    if isinstance(requests.sizes, tuple):
        return requests.sizes[0]
    largest = min(518, requests.sizes.max)
    return largest, max(requests.sizes.min, min(392, largest))


def _counts(most: int) -> list[int]:
    """Some numbers of views up to what was built for."""
    usual = [n for n in (1, 4, 16, 64, 256) if n < most]
    return [*usual, most]


def _built(most: int, built: int) -> str:
    if most <= built:
        return ""
    return f" The bundle was built for up to {built}; for more, build it with --views."
