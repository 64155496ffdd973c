"""What pages ask of a scene that is shown: its page and points, pictures and pixels of its views, and files to save."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from mapengine.runtime.errors import InputError
from mapengine.runtime.outputs.drawing import CONFIDENCE_STOPS, DEPTH_STOPS
from mapengine.runtime.outputs.viewer.page import colors_css

from .server import PageHandler, Refused, Routes
from .shown_scene import DOWNLOADS, PICTURES, ShownScene


class SceneHandler(PageHandler):
    """A handler whose server has scenes; what goes before the named groups of a path says which."""

    def shown(self, *of: Any) -> ShownScene:
        """Return the scene that a path is of (InputError where there is none)."""
        raise NotImplementedError

    def shared_part(self, name: str) -> None:
        """Answer with a part that all pages of scenes have."""
        self.static(__package__, name, colors_css() if name == "page.css" else b"")

    def scene(self, *of: Any) -> None:
        """Answer with the page of the scene."""
        self.file(self.shown(*of).page, "text/html; charset=utf-8", **{"X-Frame-Options": "SAMEORIGIN"})

    def points(self, *of: Any, identity: str, level: str) -> None:
        """Answer with a level of its points."""
        shown = self.shown(*of)
        if identity != shown.identity:
            raise Refused(HTTPStatus.GONE, "the scene of this page is no longer there; load the page again")
        self.parts("application/octet-stream", shown.level(int(level)))

    def picture(self, *of: Any, view: str, kind: str) -> None:
        """Answer with a picture of a view."""
        self.content(self.shown(*of).picture(int(view), kind), PICTURES[kind][1])

    def point(self, *of: Any, view: str) -> None:
        """Answer with what is known of a pixel."""
        self.json(self.shown(*of).point(int(view), self.number("x"), self.number("y")))

    def download(self, *of: Any, name: str) -> None:
        """Answer with a file to save."""
        confidence = self.query.get("confidence", "0")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", confidence):
            raise InputError(f"confidence is {confidence!r}; give a percentage from 0 to 100")
        path = self.shown(*of).download(name, float(confidence))
        self.file(path, "application/octet-stream", **{"Content-Disposition": f'attachment; filename="{path.name}"'})


SHARED_PARTS: Routes = [(r"/(?P<name>ask\.js|result\.js|page\.css)", SceneHandler.shared_part)]


def scene_routes(prefix: str = "") -> Routes:
    """Return the routes of a scene below a pattern of paths."""
    return [
        (rf"{prefix}/scene", SceneHandler.scene),
        (rf"{prefix}/points/(?P<identity>[0-9a-f]{{16}})/(?P<level>[012])", SceneHandler.points),
        (rf"{prefix}/views/(?P<view>\d{{1,9}})/(?P<kind>{'|'.join(PICTURES)})", SceneHandler.picture),
        (rf"{prefix}/views/(?P<view>\d{{1,9}})/point", SceneHandler.point),
        (rf"{prefix}/downloads/(?P<name>{'|'.join(DOWNLOADS)})", SceneHandler.download),
    ]


def scene_page(package: str, title: str, facts: Mapping[str, Any]) -> bytes:
    """Return a page that shows scenes: the frame that all have, around the body of a package.

    Args:
        package: has ``page/body.html``, in which ``{{RESULT}}`` stands for the part that shows a scene, and
            ``page/main.js``.
        facts: what the page has to know beside its title and the colours of depth and confidence.
    """
    known = {"title": title, "colors": {"depth": DEPTH_STOPS, "confidence": CONFIDENCE_STOPS}, **facts}
    body = _fill(
        _part(package, "body.html"), TITLE=html.escape(title), RESULT=_part(__package__, "result.html").strip()
    )
    described = json.dumps(known).replace("<", "\\u003c")
    return _fill(_part(__package__, "frame.html"), TITLE=html.escape(title), BODY=body, FACTS=described).encode()


def _part(package: str, name: str) -> str:
    return (files(package) / "page" / name).read_text(encoding="utf-8")


def _fill(template: str, **parts: str) -> str:
    return re.sub(rf"\{{\{{({'|'.join(parts)})\}}\}}", lambda found: parts[found[1]], template)
