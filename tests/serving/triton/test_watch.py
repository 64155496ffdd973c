"""Models that lost a process are loaded again, and nothing is loaded again and again."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from mapengine.serving.triton.watch import STUB, Instance, Watch, instance_of


class Server:
    """A process with children, as far as a watch looks."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.names: list[str] = []

    def children(self) -> list[Any]:
        return [Child(["/usr/bin/other"]), *(Child(self.command(name)) for name in self.names), Child([])]

    def command(self, name: str) -> list[str]:
        program = self.models / name.rpartition("_")[0].rpartition("_")[0] / "1" / "model.py"
        return [f"/opt/{STUB}", str(program), "region", "1048576", "17", name, "DEFAULT"]


class Child:
    def __init__(self, command: list[str]) -> None:
        self._command = command

    def cmdline(self) -> list[str]:
        if not self._command:
            raise psutil.ZombieProcess(1)
        return self._command


@pytest.fixture
def server(tmp_path: Path) -> Server:
    program = tmp_path / "rooms" / "1" / "model.py"
    program.parent.mkdir(parents=True)
    program.touch()
    os.utime(program, (1, 1))
    return Server(tmp_path)


class Watched:
    """A watch, and the times at which it had models loaded."""

    def __init__(self, server: Server) -> None:
        self.reports: list[str] = []
        self.watch = Watch(server, self.reports.append)  # type: ignore[arg-type]

    def look(self, *times: float) -> bool:
        return [self.watch.look(now) for now in times][-1]


def test_an_instance_is_known_by_its_command() -> None:
    command = [f"/x/{STUB}", "/models/a/1/model.py", "shm", "1", "a_0_1", "DEFAULT"]
    assert instance_of(command) == Instance(Path("/models/a/1/model.py"), "a_0_1")
    assert instance_of(["/x/python", *command[1:]]) is None
    assert instance_of([*command[:4], "a", "DEFAULT"]) is None  # it only reads the configuration
    assert instance_of([]) is None


def test_a_lost_process_has_its_model_loaded_again_once(server: Server, tmp_path: Path) -> None:
    watched = Watched(server)
    server.names = ["rooms_0_0", "rooms_0_1"]
    assert watched.look(0, 1)
    server.names = ["rooms_0_1"]
    assert watched.look(2, 3, 4)
    assert watched.reports == []
    assert watched.look(5, 6, 7)
    assert watched.reports == ["the process of rooms_0_0 is gone; its model is loaded again"]
    assert (tmp_path / "rooms" / "1" / "model.py").stat().st_mtime > 1e9
    server.names = ["rooms_0_0", "rooms_0_1"]
    assert watched.look(8, 100, 200)
    assert len(watched.reports) == 1


def test_a_reload_is_no_loss(server: Server) -> None:
    watched = Watched(server)
    server.names = ["rooms_0_0"]
    watched.look(0)
    server.names = []
    watched.look(1, 2)
    server.names = ["rooms_0_0"]
    assert watched.look(3, 10, 20)
    assert watched.reports == []


def test_a_model_that_fails_to_load_is_tried_less_and_less(server: Server) -> None:
    watched = Watched(server)
    asked: list[int] = []
    for second in range(400):
        # It ends two seconds after each start, and starts two seconds after it was asked for.
        starts = [0, *(when + 2 for when in asked)]
        server.names = ["rooms_0_0"] if 0 <= second - starts[-1] < 2 else []
        assert watched.look(second)
        if len(watched.reports) > len(asked):
            asked.append(second)
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert waits == [10, 16, 28, 52, 64, 64, 64, 64]


def test_a_server_that_starts_nothing_is_started_again(server: Server) -> None:
    watched = Watched(server)
    server.names = ["rooms_0_0"]
    watched.look(0)
    server.names = []
    assert watched.look(1, 4, 20)
    assert not watched.look(25)


def test_a_repository_that_cannot_be_written_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(server)
    server.names = ["rooms_0_0"]
    watched.look(0)
    server.names = []

    def refuse(self: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "touch", refuse)
    assert watched.look(1)
    assert not watched.look(4)


def test_instances_that_are_taken_away_are_not_missed(server: Server, tmp_path: Path) -> None:
    watched = Watched(server)
    server.names = ["rooms_0_0", "rooms_0_1"]
    watched.look(0)
    server.names = []
    watched.look(1, 4)
    server.names = ["rooms_0_0"]  # loaded again, with one instance
    assert watched.look(6, 30, 100)
    assert len(watched.reports) == 2
    (tmp_path / "rooms" / "1" / "model.py").unlink()
    server.names = []
    assert watched.look(101, 200, 300)
    assert len(watched.reports) == 2
