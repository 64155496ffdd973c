"""The app over HTTP, without a browser."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from mapengine.runtime.errors import InputError
from mapengine.serving.app.server import AppServer
from mapengine.serving.app.visits import Visits

from .conftest import photograph


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Asks one server."""

    def __init__(self, server: AppServer) -> None:
        self.port = server.server_port
        self.visits = server.visits

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def new_visit(self) -> str:
        return f"/visits/{self.ask('POST', '/visits', b'{}').json['token']}"

    def upload(self, visit: str, name: str = "a.png", content: bytes = photograph()) -> Answer:
        return self.ask("PUT", f"{visit}/files?name={name}", content)


@pytest.fixture
def client(open_visits: Callable[..., Visits]) -> Iterator[Client]:
    with AppServer("127.0.0.1", 0) as server:
        server.visits = open_visits()
        server.still_there_seconds = 0.05
        thread = threading.Thread(target=server.serve, args=(server.visits, "Only a wall."))
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def events(client: Client, visit: str) -> Iterator[dict[str, Any]]:
    """What the server tells a page that listens, until it says that the visit has ended."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.request("GET", f"{visit}/events")
    with connection.getresponse() as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
    connection.close()


def test_the_page_says_what_it_is_and_asks_for_nothing_else(client: Client) -> None:
    page = client.ask("GET", "/")
    text = page.content.decode()
    assert "<title>preset:wall, fp32 (bundle bricks)</title>" in text
    assert "Only a wall." in text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    asked = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert asked == ["data:,", "page.css", "main.js"]
    for name in ("page.css", "main.js", "files.js", "result.js"):
        part = client.ask("GET", f"/{name}")
        assert part.status == 200
        assert not re.search(rb"https?://|@import", part.content)


def test_a_call_from_upload_to_download(client: Client) -> None:
    visit = client.new_visit()
    number = client.upload(visit).json["number"]
    states = events(client, visit)
    assert next(states) == {"call": None, "result": None}
    assert client.ask("POST", f"{visit}/check", json.dumps({"files": [number]}).encode()).json["count"] == 1
    assert client.ask("POST", f"{visit}/call", json.dumps({"files": [number]}).encode()).status == 200
    state = next(state for state in states if state["call"] and state["call"]["state"] not in ("waiting", "running"))
    assert (state["call"]["state"], state["result"]["views"]) == ("done", ["a.png"])
    assert client.ask("GET", f"{visit}/scene").content.startswith(b"<!-- ")
    assert client.ask("GET", f"{visit}/views/0/depth").content.startswith(b"\x89PNG")
    assert client.ask("GET", f"{visit}/views/0/point?x=9&y=9").json["depth"] == 2
    ply = client.ask("GET", f"{visit}/downloads/ply?confidence=0")
    assert (ply.content[:3], ply.headers["Content-Disposition"]) == (b"ply", 'attachment; filename="scene.ply"')
    assert client.ask("POST", f"{visit}/leave", b"{}").status == 200
    assert list(states) == [{}]  # that it has ended
    assert client.ask("GET", f"{visit}/scene").status == 410
    assert list(client.visits.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "nothing at this address"),
        ("GET", "/../server.py", None, 404, "nothing at this address"),
        ("GET", "/visits/" + 32 * "x" + "/scene", None, 410, "has ended"),
        ("GET", "VISIT/scene", None, 400, "no scene yet"),
        ("GET", "VISIT/downloads/exe", None, 404, "nothing"),
        ("GET", "VISIT/views/0/point", None, 400, "no scene yet"),
        ("PUT", "VISIT/files?name=a.txt", b"hello", 400, "a.txt: .txt files are neither"),
        ("PUT", "VISIT/files", photograph(), 400, "without an ending"),
        ("POST", "VISIT/call", b'{"files": []}', 400, "no file is chosen"),
        ("POST", "VISIT/call", b'{"files": [7]}', 400, "no longer there"),
        ("POST", "VISIT/call", b"nonsense", 400, "not valid JSON"),
        ("POST", "VISIT/call", b" " * 100_001, 413, "too long"),
        ("DELETE", "VISIT/files/x", None, 404, "nothing"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(
    client: Client, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    answer = client.ask(method, path.replace("VISIT", client.new_visit()), body)
    assert (answer.status, words in answer.json["error"]) == (status, True), answer


def test_a_large_upload_is_refused_before_it_has_come(client: Client) -> None:
    visit = client.new_visit()
    with socket.create_connection(("127.0.0.1", client.port), 10) as connection:
        head = f"PUT {visit}/files?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(4000)
    assert b"400 Bad Request" in answer
    assert b"a.mp4: has 9.00 GB, and at most" in answer


def test_other_pages_and_names_are_refused(client: Client) -> None:
    assert client.ask("GET", "/", Host="evil.example").status == 403
    assert client.ask("POST", "/visits", b"{}", Origin="http://evil.example").status == 403
    assert client.ask("POST", "/visits", b"{}", Origin="null").status == 403
    own = f"http://localhost:{client.port}"
    assert client.ask("POST", "/visits", b"{}", Origin=own, Host=own.removeprefix("http://")).status == 200


def test_a_web_server_in_front_is_known_by_its_name(open_visits: Callable[..., Visits]) -> None:
    with AppServer("127.0.0.1", 0, ["Scenes.example"]) as server:
        thread = threading.Thread(target=server.serve, args=(open_visits(),))
        thread.start()
        try:
            server.visits = open_visits()
            client = Client(server)
            origin = "https://scenes.example"
            for host in ("scenes.example", f"127.0.0.1:{server.server_port}"):  # passed on, or not
                assert client.ask("POST", "/visits", b"{}", Origin=origin, Host=host).status == 200
            assert client.ask("POST", "/visits", b"{}", Origin="https://other.example").status == 403
        finally:
            server.shutdown()
            thread.join()


def test_too_many_pages_are_a_sentence(client: Client) -> None:
    client.new_visit()
    client.new_visit()
    answer = client.ask("POST", "/visits", b"{}")
    assert (answer.status, "2 pages are open" in answer.json["error"]) == (503, True)


def test_a_removed_file_is_deleted(client: Client) -> None:
    visit = client.new_visit()
    number = client.upload(visit).json["number"]
    assert client.ask("DELETE", f"{visit}/files/{number}").status == 200
    assert [path for path in client.visits.folder.rglob("*") if path.is_file()] == []


def test_a_page_that_is_gone_is_noticed(client: Client) -> None:
    visit = client.new_visit()
    client.upload(visit)
    states = events(client, visit)
    next(states)
    found = client.visits.find(visit.removeprefix("/visits/"))
    assert found.absent == 0
    states.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while not found.absent:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_taken_port_is_a_sentence() -> None:
    with (
        AppServer("127.0.0.1", 0) as server,
        pytest.raises(InputError, match=rf"port {server.server_port} of 127.0.0.1 is taken.*--port"),
    ):
        AppServer("127.0.0.1", server.server_port)


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(InputError, match="no address of this machine"):
        AppServer("192.0.2.1", 0)
    with pytest.raises(InputError, match="no address of this machine"):
        AppServer("no such name", 0)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_it_is_local_unless_told_otherwise(host: str, local: bool) -> None:
    with AppServer(host, 0) as server:
        assert server.is_local == local
        assert server.url == f"http://{host}:{server.server_port}/"
