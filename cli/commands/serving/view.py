"""``mapengine view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...console import Steps, problem, say
from ...options import Host, HostNames, Port


def view(
    scene: Annotated[
        Path,
        typer.Argument(metavar="SCENE", help="A .npz, .glb or .ply, or the folder that `run --stream` writes."),
    ],
    host: Host = "127.0.0.1",
    port: Port = 7861,
    names: HostNames = None,
) -> None:
    """Show SCENE in the browser.

    Points with a slider for confidence, cameras with their images, depth, views one by one, and distances in metres; of
    a .glb or .ply points alone. The page asks for nothing outside this machine, and is there until Ctrl-C.

    \b
    Example:
      mapengine run build/engine build/samples --out build/scene.npz
      mapengine view build/scene.npz
    """
    from mapengine.runtime.system.reading import shown_path
    from mapengine.serving.viewer.reading import read_scene
    from mapengine.serving.viewer.server import ViewServer

    with ViewServer(host, port, names or []) as server:  # before the scene is read, which takes longer than a refusal
        try:
            with Steps() as step:
                step("reading the scene")
                loaded = read_scene(scene)
                step("preparing the page")
                server.prepare(loaded, shown_path(scene.resolve().name))
            if not server.is_local:
                problem("Warning", f"everybody who reaches {server.url} can see this scene; it asks for no password")
            say(f"{server.title} is at {server.url} - open it in a browser; Ctrl-C ends it")
            server.serve_forever(poll_interval=0.05)
        except KeyboardInterrupt:
            problem("Ended", "nothing is left of the page")
