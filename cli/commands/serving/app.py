"""``mapengine app``."""

from __future__ import annotations

from typing import Annotated

import typer

from mapengine.runtime import Engine
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.sizes import parse_bytes

from ...console import Steps, problem, say
from ...options import RANDOM_PRESETS, Backend, BundleArgument, Host, HostNames, Port, Threads, value_of


def app(
    bundle: BundleArgument,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    names: HostNames = None,
    backend: Backend = "auto",
    threads: Threads = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Refuse calls that would take more memory, such as 8GB; needs `mapengine plan BUNDLE` once.",
            show_default=False,
        ),
    ] = None,
    max_files: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most files that somebody has uploaded at a time.")
    ] = 200,
    max_upload: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes of these files in all, such as 500MB.")
    ] = "1GB",
    max_pixels: Annotated[
        float, typer.Option(min=0.01, max=500, metavar="MILLIONS", help="Most pixels of an image or a frame.")
    ] = 50,
    max_pages: Annotated[int, typer.Option(min=1, metavar="N", help="Most pages that are open at a time.")] = 8,
) -> None:
    """Reconstruct what people drop into a page, with BUNDLE.

    Several people may use it; their reconstructions run one after the other. An upload is deleted when it was used, a
    result when its page is closed, and all of it when the program ends. The page asks for nothing outside this machine.

    \b
    Example:
      mapengine app build/engine
      mapengine app build/engine --host 0.0.0.0 --port 8000 --max-upload 200MB
    """
    from mapengine.serving.app.limits import UploadLimits
    from mapengine.serving.app.server import AppServer
    from mapengine.serving.app.uploads import unread_kinds
    from mapengine.serving.app.visits import Visits

    with value_of("--memory"):
        limit = None if memory is None else parse_bytes(memory)
    with value_of("--max-upload"):
        limits = UploadLimits(max_files, parse_bytes(max_upload, "the size"), round(max_pixels * 1e6), max_pages)
    opened = Bundle.open(bundle, verify=False)
    with AppServer(host, port, names or []) as server:  # before the engine is loaded, which takes longer than a refusal
        with Steps() as step:
            step("loading the engine")
            engine = Engine.load(opened, backend, threads=threads, memory_limit=limit)
        if unread_kinds():
            problem("Note", f"{' and '.join(unread_kinds())} cannot be read; pip install 'mapengine[app]'")
        if not server.is_local:
            problem("Warning", f"everybody who reaches {server.url} can use this app; it asks for no password")
        random = engine.manifest.model.id in RANDOM_PRESETS
        remark = "Its weights are random: the scenes mean nothing." if random else ""
        visits = Visits(engine, limits)
        try:
            say(f"{engine.label} is at {server.url} - open it in a browser; Ctrl-C ends it")
            server.serve(visits, remark)
        except KeyboardInterrupt:
            problem("Ended", "uploads and results are deleted")
        finally:
            visits.close()
