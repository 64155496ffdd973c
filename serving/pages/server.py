"""HTTP for pages of this machine: where it listens, who may ask, and answers and refusals."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from mapengine.runtime.errors import InputError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""What a browser lets a page of a server do: nothing outside it."""
CONNECTIONS_PER_PAGE = 8
"""Of which a browser opens six."""
_MOST_JSON = 100_000
_DRAIN_SECONDS, _DRAIN_BYTES = 5.0, 64_000_000
"""How much of a refused upload is still read, so that a browser that sends it gets to see why."""
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

Routes = Sequence[tuple[str, Callable[..., None]]]
"""Patterns of paths, and the methods of a handler that answer; named groups are arguments."""


class PageServer(ThreadingHTTPServer):
    """Listens; ``serve_forever`` answers."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    allow_reuse_address = os.name != "nt"  # there it would share the port with another program

    def __init__(
        self, host: str, port: int, handler: type[PageHandler], names: Sequence[str] = (), pages: int = 1
    ) -> None:
        """Take a port; 0 is any free one.

        Args:
            host: address or name to listen at.
            handler: answers the requests.
            names: further ones that pages reach it by, such as that of a web server in front of it.
            pages: that may be open at a time.

        Raises:
            InputError: the port is taken or not allowed, or there is no such address here.
        """
        self._places = threading.BoundedSemaphore(CONNECTIONS_PER_PAGE * (pages + 1))
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address[:2], handler)  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(_why_not(error, host, port)) from error
        self.is_local = ipaddress.ip_address(self.server_address[0].partition("%")[0]).is_loopback  # type: ignore[arg-type]
        self.names = {"localhost", str(self.server_address[0]), host.lower(), *(name.lower() for name in names)}
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.server_address[1]}/"

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
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{host!r} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all of them (--host)"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; give another one with --port, or --port 0 for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} may not be used by this user; give one from 1024 up with --port"
    return f"port {port} of {host} cannot be used: {error.strerror or error}; give another one with --port"


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PageHandler(BaseHTTPRequestHandler):
    """Answers requests by ``routes``, by method; a subclass says what they mean."""

    server: PageServer
    routes: ClassVar[Mapping[str, Routes]] = {}
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mapengine", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Answer."""
        self._answer("POST")

    def do_PUT(self) -> None:
        """Answer."""
        self._answer("PUT")

    def do_DELETE(self) -> None:
        """Answer."""
        self._answer("DELETE")

    def log_message(self, *_: Any) -> None:
        """Requests are nobody's business."""

    def of_parts(self, parts: dict[str, str]) -> list[Any]:
        """Take what is no argument of a method out of the named groups of a path; returns what goes before them."""
        return []

    def sentence(self, error: Exception) -> str:
        """Return what is said of an error."""
        return str(error)

    def _answer(self, method: str) -> None:
        self._left = self._length()
        try:
            self._check_sender()
            if self._left is None:
                raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
            path, _, query = self.path.partition("?")
            self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            for pattern, answer in self.routes.get(method, ()):
                found = re.fullmatch(pattern, path)
                if found:
                    parts = found.groupdict()
                    answer(self, *self.of_parts(parts), **parts)
                    break
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        except Refused as refusal:
            self._refuse(refusal.status, str(refusal))
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            self._refuse(HTTPStatus.BAD_REQUEST, self.sentence(error))
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
            raise Refused(HTTPStatus.FORBIDDEN, f"this page is not at {name!r}; start it with --name {name}, if it is")
        origin = urllib.parse.urlsplit(self.headers.get("Origin", f"//{host}"))
        if origin.netloc != host and origin.hostname not in self.server.names - {"localhost"}:
            raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another page")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        with contextlib.suppress(OSError):
            self.json({"error": sentence}, status)

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
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
        parts = bytearray()
        while len(parts) < size:
            part = self.read(size - len(parts))
            if not part:
                raise Refused(HTTPStatus.BAD_REQUEST, "the request ends early")
            parts += part
        return bytes(parts)

    def number(self, name: str) -> int:
        """A whole number of the query."""
        text = self.query.get(name, "")
        if not re.fullmatch(r"\d{1,9}", text):
            raise InputError(f"{name} is {text!r}; give a whole number")
        return int(text)

    def begin(self, status: HTTPStatus, kind: str, size: int | None, **headers: str) -> None:
        """Begin an answer of so many bytes; None where it ends with the connection."""
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
        self.begin(status, kind, len(content), **headers)
        self.wfile.write(content)

    def json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a value."""
        self.content(json.dumps(value, allow_nan=False).encode(), "application/json", status)

    def file(self, path: Path, kind: str, **headers: str) -> None:
        """Answer with a file."""
        with path.open("rb") as file:
            self.begin(HTTPStatus.OK, kind, os.fstat(file.fileno()).st_size, **headers)
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def parts(self, kind: str, pieces: Iterable[bytes]) -> None:
        """Answer with bytes that come piece by piece."""
        self.begin(HTTPStatus.OK, kind, None)
        for piece in pieces:
            self.wfile.write(piece)

    def static(self, package: str, name: str, before: bytes = b"") -> None:
        """Answer with a part of a page, which stands in the folder ``page`` of a package, after some bytes."""
        self.content(before + (files(package) / "page" / name).read_bytes(), _TYPES[Path(name).suffix])
