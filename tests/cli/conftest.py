"""Running the command line inside the test process, and small inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mapengine.calibration.data.samples import write_samples
from mapengine.cli import main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines of stderr that are not about progress."""
        return [line for line in self.err.splitlines() if line.startswith(("Error", "Warning", "Interrupted"))]


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``mapengine ARGUMENTS...``."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            main([str(argument) for argument in arguments])
        code = leave.value.code
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small images, their depth maps and ``views.json``."""
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, 2, 112, 84)
    return folder


SIZE = ("--size", "112x84", "--backend", "onnxruntime")


@pytest.fixture
def quick() -> tuple[str, ...]:
    """Options that make ``run`` quick."""
    return SIZE
