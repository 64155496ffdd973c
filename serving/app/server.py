"""The app over HTTP: one page, what it asks for, and the requests that are refused."""

from __future__ import annotations

import contextlib
import errno
import html
import ipaddress
import json
import os
import re
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.requests import AnySize
from mapengine.runtime.errors import InputError
from mapengine.runtime.outputs.drawing import CONFIDENCE_STOPS, DEPTH_STOPS

from .call import CallOptions
from .result import DOWNLOADS, PICTURES, Result
from .uploads import accepted_suffixes
from .visits import Visit, Visits

_MOST_JSON = 100_000
_CONNECTIONS_PER_PAGE = 8
"""Of which a browser opens six."""
_DRAIN_SECONDS, _DRAIN_BYTES = 5.0, 64_000_000
"""How much of a refused upload is still read, so that a browser that sends it gets to see why."""
_USUAL_VIEWS = 16
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_PARTS = ("main.js", "files.js", "result.js", "page.css")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_VISIT = r"/visits/(?P<token>[\w-]{32})"


class AppServer(ThreadingHTTPServer):
    """Listens; :meth:`serve` begins to answer."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    allow_reuse_address = os.name != "nt"  # there it would share the port with another program

    def __init__(self, host: str, port: int, names: Sequence[str] = ()) -> None:
        """Take a port; 0 is any free one.

        Args:
            host: address or name to listen at.
            names: further ones that pages reach it by, such as that of a web server in front of it.

        Raises:
            InputError: the port is taken or not allowed, or there is no such address here.
        """
        self.visits: Visits
        self.remark = ""
        self.still_there_seconds = 2.0
        """Between signs of life to a page that listens: a page that left is noticed by them."""
        self._places = threading.BoundedSemaphore(1)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(_why_not(error, host, port)) from error
        self.is_local = ipaddress.ip_address(self.server_address[0].partition("%")[0]).is_loopback  # type: ignore[arg-type]
        self.names = {"localhost", str(self.server_address[0]), host.lower(), *(name.lower() for name in names)}
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.server_address[1]}/"

    def serve(self, visits: Visits, remark: str = "") -> None:
        """Answer until :meth:`shutdown` or an interrupt.

        Args:
            visits: whose engine is served.
            remark: a sentence of the page, such as that the network has random weights.
        """
        self.visits, self.remark = visits, remark
        self._places = threading.BoundedSemaphore(_CONNECTIONS_PER_PAGE * (visits.limits.visits + 1))
        self.serve_forever(poll_interval=0.05)

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there are not too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See :meth:`process_request`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went."""
        import sys

        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def page(self) -> bytes:
        """Return the page, with what it has to know."""
        engine, limits = self.visits.engine, self.visits.limits
        requests = engine.manifest.requests
        sizes = requests.sizes
        facts = {
            "title": engine.label,
            "where": engine.where,
            "remark": self.remark,
            "views": {"min": requests.views.min, "max": requests.views.max},
            "usual": max(requests.views.min, min(requests.views.max, _USUAL_VIEWS)),
            "sizes": [] if isinstance(sizes, AnySize) else [f"{width}x{height}" for width, height in sizes],
            "sides": [sizes.min, sizes.max, sizes.multiple] if isinstance(sizes, AnySize) else None,
            "limits": {"files": limits.files, "size": limits.size, "pixels": limits.pixels},
            "suffixes": accepted_suffixes(),
            "colors": {"depth": DEPTH_STOPS, "confidence": CONFIDENCE_STOPS},
        }
        parts = {"TITLE": html.escape(engine.label), "FACTS": json.dumps(facts).replace("<", "\\u003c")}
        template = (files(__package__) / "page" / "page.html").read_text(encoding="utf-8")
        return re.sub(r"\{\{(TITLE|FACTS)\}\}", lambda found: parts[found[1]], template).encode()


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{host!r} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all of them (--host)"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; give another one with --port, or --port 0 for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} may not be used by this user; give one from 1024 up with --port"
    return f"port {port} of {host} cannot be used: {error.strerror or error}; give another one with --port"


class _Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: AppServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mapengine", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(_GET)

    def do_POST(self) -> None:
        self._answer(_POST)

    def do_PUT(self) -> None:
        self._answer(_PUT)

    def do_DELETE(self) -> None:
        self._answer(_DELETE)

    def log_message(self, *_: Any) -> None:
        """Requests are nobody's business."""

    def _answer(self, routes: _Routes) -> None:
        self._left = self._length()
        visit: Visit | None = None
        try:
            self._check_sender()
            if self._left is None:
                raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
            path, _, query = self.path.partition("?")
            self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            for pattern, answer in routes:
                found = re.fullmatch(pattern, path)
                if found:
                    parts = found.groupdict()
                    if "token" in parts:
                        try:
                            visit = self.server.visits.find(parts.pop("token"))
                        except InputError as error:
                            raise _Refused(HTTPStatus.GONE, str(error)) from None
                        answer(self, visit, **parts)
                    else:
                        answer(self, **parts)
                    break
            else:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        except _Refused as refusal:
            self._refuse(refusal.status, str(refusal))
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error) if visit is None else visit.sentence(error))
        if self._left:
            self.close_connection = True
            self._drain()

    def _length(self) -> int | None:
        """Bytes of the body; None where that is not said."""
        if "Transfer-Encoding" in self.headers:
            return None
        text = self.headers.get("Content-Length", "0")
        return int(text) if re.fullmatch(r"\d{1,18}", text) else None

    def _check_sender(self) -> None:
        """Refuse what pages of others send, also those that call themselves by a name of this machine."""
        host = self.headers.get("Host", "")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if self.server.is_local and name not in self.server.names:
            raise _Refused(HTTPStatus.FORBIDDEN, f"this app is not at {name!r}; start it with --name {name}, if it is")
        origin = urllib.parse.urlsplit(self.headers.get("Origin", f"//{host}"))
        if origin.netloc != host and origin.hostname not in self.server.names - {"localhost"}:
            raise _Refused(HTTPStatus.FORBIDDEN, "the request comes from another page")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        with contextlib.suppress(OSError):
            self._json({"error": sentence}, status)

    def _drain(self) -> None:
        end, read = time.monotonic() + _DRAIN_SECONDS, 0
        with contextlib.suppress(OSError):
            self.connection.settimeout(1)
            while self._left and read < _DRAIN_BYTES and time.monotonic() < end:
                part = self.rfile.read1(min(self._left, 1 << 16))
                if not part:
                    break
                self._left -= len(part)
                read += len(part)

    def read(self, size: int) -> bytes:
        """Read from the body, as an upload is read."""
        try:
            part = self.rfile.read1(min(size, self._left or 0))
        except TimeoutError:
            part = b""
        self._left = (self._left or 0) - len(part)
        return part

    def body(self) -> bytes:
        """The whole of a small body."""
        size = self._left or 0
        if size > _MOST_JSON:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
        parts = bytearray()
        while len(parts) < size:
            part = self.read(size - len(parts))
            if not part:
                raise _Refused(HTTPStatus.BAD_REQUEST, "the request ends early")
            parts += part
        return bytes(parts)

    def number(self, name: str) -> int:
        """A whole number of the query."""
        text = self.query.get(name, "")
        if not re.fullmatch(r"\d{1,9}", text):
            raise InputError(f"{name} is {text!r}; give a whole number")
        return int(text)

    def _begin(self, status: HTTPStatus, kind: str, size: int | None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        if self._left or size is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        common = {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def content(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = "") -> None:
        """Answer with bytes."""
        headers = {"Content-Security-Policy": policy} if policy else {}
        self._begin(status, kind, len(content), **headers)
        self.wfile.write(content)

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.content(json.dumps(value, allow_nan=False).encode(), "application/json", status)

    def file(self, path: Path, kind: str, **headers: str) -> None:
        """Answer with a file."""
        with path.open("rb") as file:
            self._begin(HTTPStatus.OK, kind, os.fstat(file.fileno()).st_size, **headers)
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    # What is asked for

    def page(self) -> None:
        self.content(self.server.page(), "text/html; charset=utf-8", policy=_POLICY)

    def part(self, name: str) -> None:
        self.content((files(__package__) / "page" / name).read_bytes(), _TYPES[Path(name).suffix])

    def new_visit(self) -> None:
        self.body()
        try:
            visit = self.server.visits.new()
        except InputError as error:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        self._json({"token": visit.token})

    def events(self, visit: Visit) -> None:
        visit.listen(1)
        try:
            self._begin(HTTPStatus.OK, "text/event-stream", None)
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
        self._json(visit.receive(self.query.get("name", ""), self._left or 0, self).to_json())

    def remove(self, visit: Visit, number: str) -> None:
        visit.uploads.remove([int(number)])
        self._json({})

    def check(self, visit: Visit) -> None:
        self._json(self.server.visits.check(visit, CallOptions.of_json(self.body())))

    def ask(self, visit: Visit) -> None:
        self.server.visits.ask(visit, CallOptions.of_json(self.body()))
        self._json({})

    def stop(self, visit: Visit) -> None:
        self.body()
        visit.stop()
        self._json({})

    def leave(self, visit: Visit) -> None:
        self.body()
        self.server.visits.end(visit)
        self._json({})

    def scene(self, visit: Visit) -> None:
        path = _result(visit).page(all_points=self.query.get("points") == "all")
        self.file(path, "text/html; charset=utf-8", **{"X-Frame-Options": "SAMEORIGIN"})

    def picture(self, visit: Visit, view: str, kind: str) -> None:
        self.content(_result(visit).picture(int(view), kind), PICTURES[kind][1])

    def point(self, visit: Visit, view: str) -> None:
        self._json(_result(visit).point(int(view), self.number("x"), self.number("y")))

    def download(self, visit: Visit, name: str) -> None:
        confidence = self.query.get("confidence", "0")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", confidence):
            raise InputError(f"confidence is {confidence!r}; give a percentage from 0 to 100")
        path = _result(visit).download(name, float(confidence))
        self.file(path, "application/octet-stream", **{"Content-Disposition": f'attachment; filename="{path.name}"'})


_Routes = list[tuple[str, Callable[..., None]]]
_GET: _Routes = [
    (r"/", _Handler.page),
    (rf"/(?P<name>{'|'.join(map(re.escape, _PARTS))})", _Handler.part),
    (rf"{_VISIT}/events", _Handler.events),
    (rf"{_VISIT}/scene", _Handler.scene),
    (rf"{_VISIT}/views/(?P<view>\d{{1,9}})/(?P<kind>{'|'.join(PICTURES)})", _Handler.picture),
    (rf"{_VISIT}/views/(?P<view>\d{{1,9}})/point", _Handler.point),
    (rf"{_VISIT}/downloads/(?P<name>{'|'.join(DOWNLOADS)})", _Handler.download),
]
_POST: _Routes = [
    (r"/visits", _Handler.new_visit),
    (rf"{_VISIT}/check", _Handler.check),
    (rf"{_VISIT}/call", _Handler.ask),
    (rf"{_VISIT}/stop", _Handler.stop),
    (rf"{_VISIT}/leave", _Handler.leave),
]
_PUT: _Routes = [(rf"{_VISIT}/files", _Handler.upload)]
_DELETE: _Routes = [(rf"{_VISIT}/files/(?P<number>\d{{1,9}})", _Handler.remove)]


def _result(visit: Visit) -> Result:
    if visit.result is None:
        raise InputError("there is no scene yet; reconstruct one first")
    return visit.result
