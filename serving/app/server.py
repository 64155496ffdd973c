"""The app over HTTP: one page, what it asks for, and the requests that are refused."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from mapengine.runtime.bundle.requests import AnySize
from mapengine.runtime.errors import InputError

from ..pages.scene_routes import SHARED_PARTS, SceneHandler, scene_page, scene_routes
from ..pages.server import CONNECTIONS_PER_PAGE, POLICY, PageServer, Refused, Routes
from ..pages.shown_scene import ShownScene
from .call import CallOptions
from .uploads import accepted_suffixes
from .visits import Visit, Visits

_USUAL_VIEWS = 16
_PARTS = ("main.js", "files.js")
_VISIT = r"/visits/(?P<token>[\w-]{32})"


class AppServer(PageServer):
    """Listens; :meth:`serve` begins to answer."""

    def __init__(self, host: str, port: int, names: Sequence[str] = ()) -> None:
        """Take a port; arguments and errors as of :class:`PageServer`."""
        self.visits: Visits
        self.remark = ""
        self.still_there_seconds = 2.0
        """Between signs of life to a page that listens: a page that left is noticed by them."""
        super().__init__(host, port, _Handler, names)

    def serve(self, visits: Visits, remark: str = "") -> None:
        """Answer until :meth:`shutdown` or an interrupt.

        Args:
            visits: whose engine is served.
            remark: a sentence of the page, such as that the network has random weights.
        """
        self.visits, self.remark = visits, remark
        self._places = threading.BoundedSemaphore(CONNECTIONS_PER_PAGE * (visits.limits.visits + 1))
        self.serve_forever(poll_interval=0.05)

    def page(self) -> bytes:
        """Return the page, with what it has to know."""
        engine, limits = self.visits.engine, self.visits.limits
        requests = engine.manifest.requests
        sizes = requests.sizes
        facts = {
            "where": engine.where,
            "remark": self.remark,
            "views": {"min": requests.views.min, "max": requests.views.max},
            "usual": max(requests.views.min, min(requests.views.max, _USUAL_VIEWS)),
            "sizes": [] if isinstance(sizes, AnySize) else [f"{width}x{height}" for width, height in sizes],
            "sides": [sizes.min, sizes.max, sizes.multiple] if isinstance(sizes, AnySize) else None,
            "limits": {"files": limits.files, "size": limits.size, "pixels": limits.pixels},
            "suffixes": accepted_suffixes(),
        }
        return scene_page(__package__, engine.label, facts)


class _Handler(SceneHandler):
    server: AppServer
    _visit: Visit | None = None

    def of_parts(self, parts: dict[str, str]) -> list[Any]:
        """The visit, where a path names one."""
        self._visit = None
        if "token" not in parts:
            return []
        try:
            self._visit = self.server.visits.find(parts.pop("token"))
        except InputError as error:
            raise Refused(HTTPStatus.GONE, str(error)) from None
        return [self._visit]

    def sentence(self, error: Exception) -> str:
        return str(error) if self._visit is None else self._visit.sentence(error)

    def shown(self, *of: Any) -> ShownScene:
        """The scene of a visit."""
        (visit,) = of
        if visit.result is None:
            raise InputError("there is no scene yet; reconstruct one first")
        shown: ShownScene = visit.result
        return shown

    def page(self) -> None:
        self.content(self.server.page(), "text/html; charset=utf-8", policy=POLICY)

    def part(self, name: str) -> None:
        self.static(__package__, name)

    def new_visit(self) -> None:
        self.body()
        try:
            visit = self.server.visits.new()
        except InputError as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        self.json({"token": visit.token})

    def events(self, visit: Visit) -> None:
        visit.listen(1)
        try:
            self.begin(HTTPStatus.OK, "text/event-stream", None)
            version: int | None = -1
            while True:
                before, version = version, visit.wait(version or 0, self.server.still_there_seconds)
                if version is None:
                    self.wfile.write(b"event: ended\ndata: {}\n\n")
                    return
                text = f"data: {json.dumps(self.server.visits.state(visit))}\n\n" if version != before else ":\n\n"
                self.wfile.write(text.encode())
        finally:
            visit.listen(-1)

    def upload(self, visit: Visit) -> None:
        self.json(visit.receive(self.query.get("name", ""), self._left or 0, self).to_json())

    def remove(self, visit: Visit, number: str) -> None:
        visit.uploads.remove([int(number)])
        self.json({})

    def check(self, visit: Visit) -> None:
        self.json(self.server.visits.check(visit, CallOptions.of_json(self.body())))

    def ask(self, visit: Visit) -> None:
        self.server.visits.ask(visit, CallOptions.of_json(self.body()))
        self.json({})

    def stop(self, visit: Visit) -> None:
        self.body()
        visit.stop()
        self.json({})

    def leave(self, visit: Visit) -> None:
        self.body()
        self.server.visits.end(visit)
        self.json({})

    routes: ClassVar[Mapping[str, Routes]] = {
        "GET": [
            (r"/", page),
            (rf"/(?P<name>{'|'.join(map(re.escape, _PARTS))})", part),
            *SHARED_PARTS,
            (rf"{_VISIT}/events", events),
            *scene_routes(_VISIT),
        ],
        "POST": [
            (r"/visits", new_visit),
            (rf"{_VISIT}/check", check),
            (rf"{_VISIT}/call", ask),
            (rf"{_VISIT}/stop", stop),
            (rf"{_VISIT}/leave", leave),
        ],
        "PUT": [(rf"{_VISIT}/files", upload)],
        "DELETE": [(rf"{_VISIT}/files/(?P<number>\d{{1,9}})", remove)],
    }
