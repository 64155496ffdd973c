"""Models whose process was lost come back: since 24.06 Triton itself starts no process of the Python backend again.

A server in the mode ``poll`` loads a model anew when its program was written to. So the ``model.py`` of a model that
lost a process gets a new time, nothing else. (At a new time of the configuration alone, instances stay as they are.) A
server that does not even start a process then waits for one that was lost while it loaded, and has to be started again
itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

STUB = "triton_python_backend_stub"
FIRST_WAIT_SECONDS = 3.0
"""How long an instance may be without a process: at a reload the new one may come after the old one went."""
LONGEST_WAIT_SECONDS = 60.0
"""Between attempts to load a model that fails to, after waits that double. One that lasts so long starts anew."""
START_SECONDS = 20.0
"""After which a server has started a process for a model that was written to."""


@dataclass(frozen=True)
class Instance:
    """An instance of a model: the program that its process runs, and the name that Triton gave the instance."""

    program: Path
    name: str


@dataclass
class _Life:
    """What is known of an instance.

    Attributes:
        since: when its process was first seen, or missed. alive: which of both.
        attempts: to have it loaded, since it last lasted. asked: when, since it was missed; None if not yet.
    """

    since: float
    alive: bool = True
    attempts: int = 0
    asked: float | None = None


@dataclass
class Watch:
    """Looks after the instances of one server.

    Attributes:
        server: its process.
        report: is told what is done.
    """

    server: psutil.Process
    report: Callable[[str], None]
    _lives: dict[Instance, _Life] = field(default_factory=dict)

    def look(self, now: float | None = None) -> bool:
        """Look once, and have models loaded anew that lost a process.

        Args:
            now: seconds of a clock; None for that of the system.

        Returns:
            Whether the server is well; False if it has to be started again.
        """
        now = time.monotonic() if now is None else now
        alive = set(instances(self.server))
        for instance in alive:
            life = self._lives.setdefault(instance, _Life(now))
            if not life.alive:
                life.alive, life.since, life.asked = True, now, None
            elif now - life.since > LONGEST_WAIT_SECONDS:
                life.attempts = 0
        loaded = {instance.program: self._lives[instance].since for instance in alive}
        for instance in [each for each in self._lives if each not in alive]:
            life = self._lives[instance]
            if life.alive:
                life.alive, life.since = False, now
            asked = life.asked
            if not instance.program.is_file() or (asked is not None and loaded.get(instance.program, 0) > asked):
                del self._lives[instance]  # the model was removed, or loaded again with fewer instances
            elif asked is not None:
                if now - asked > START_SECONDS:
                    return False
            elif now - life.since >= min(FIRST_WAIT_SECONDS * 2**life.attempts, LONGEST_WAIT_SECONDS):
                self.report(f"the process of {instance.name} is gone; its model is loaded again")
                life.attempts, life.asked = life.attempts + 1, now
                try:
                    instance.program.touch()
                except OSError:
                    return False
        return True


def instances(server: psutil.Process) -> Iterator[Instance]:
    """Yield the instances of a server whose processes live."""
    try:
        children = server.children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        try:
            instance = instance_of(child.cmdline())
        except psutil.Error:  # it ended
            continue
        if instance is not None:
            yield instance


def instance_of(command: list[str]) -> Instance | None:
    """Return the instance whose process has this command; None for any other (one only reads the configuration before a
    model is loaded)."""
    if len(command) < 2 or Path(command[0]).name != STUB:
        return None
    program = Path(command[1])
    model = program.parent.parent.name
    name = next((word for word in command if re.fullmatch(rf"{re.escape(model)}(_\d+)+", word)), None)
    return None if name is None else Instance(program, name)
