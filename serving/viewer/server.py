"""A server that shows one scene until it is stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mapengine.runtime import Scene
from mapengine.runtime.outputs.viewer.levels import FIRST_POINTS

from ..pages.own_folder import own_folder
from ..pages.scene_routes import SHARED_PARTS, SceneHandler, scene_page, scene_routes
from ..pages.server import POLICY, PageServer, Routes
from ..pages.shown_scene import ShownScene

_PAGES = 16  # that may be open at a time


class ViewServer(PageServer):
    """Listens; :meth:`serve` begins to answer."""

    def __init__(self, host: str, port: int, names: Sequence[str] = ()) -> None:
        """Take a port; arguments and errors as of :class:`PageServer`."""
        self.shown: ShownScene
        self.title = ""
        super().__init__(host, port, _Handler, names, _PAGES)

    def prepare(self, scene: Scene, name: str, first_points: int = FIRST_POINTS) -> None:
        """Make what the page shows.

        Args:
            name: of the scene, for the title where it is not known what made it.
            first_points: how many are drawn before somebody asks for all.

        Raises:
            OutputError: the temporary folder could not be written.
        """
        self.title = scene.made_by or f"{name} (what made it is not recorded in it)"
        self._folder = own_folder("mapengine-view")
        self.shown = ShownScene(
            self._folder / "scene", scene, in_memory=True, title=self.title, first_points=first_points
        )

    def server_close(self) -> None:
        """Stop to listen, and delete what was made."""
        super().server_close()
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)

    def page(self) -> bytes:
        """Return the page, with what it has to know."""
        return scene_page(__package__, self.title, {"result": {**self.shown.facts(), "number": 0}})


class _Handler(SceneHandler):
    server: ViewServer

    def shown(self, *_: Any) -> ShownScene:
        """The scene."""
        return self.server.shown

    def page(self) -> None:
        self.content(self.server.page(), "text/html; charset=utf-8", policy=POLICY)

    def part(self) -> None:
        self.static(__package__, "main.js")

    routes: ClassVar[Mapping[str, Routes]] = {
        "GET": [(r"/", page), (r"/main\.js", part), *SHARED_PARTS, *scene_routes()]
    }
