"""The program as a whole: help, version, exit codes, and one readable line for every error."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from mapengine.cli import program as program_module
from mapengine.runtime.backend_table import EIGHT_BIT, NAMES, PRECISIONS
from mapengine.runtime.bundle.store import Bundle

COMMANDS = (
    "export",
    "calibrate",
    "build",
    "verify",
    "run",
    "map",
    "batch",
    "plan",
    "profile",
    "plot",
    "demo",
    "eval",
    "view",
    "app",
    "triton",
    "info",
)
PROGRAM = Path(sys.executable).parent / "mapengine"


def test_help_lists_every_command_with_a_whole_summary(cli: Any) -> None:
    result = cli("--help")
    assert result.code == 0
    listed = result.out.split("Commands:")[1].splitlines()
    assert tuple(line.split()[0] for line in listed if line.strip()) == COMMANDS
    assert "..." not in result.out.split("Commands:")[1]
    assert cli("-h").out == result.out


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, "samples"])
def test_help_of_a_command_is_complete(cli: Any, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    summary, example = result.out.splitlines()[2].strip(), result.out.split("Example:")[1]
    assert summary.endswith(".")
    assert f"  mapengine {command}" in example
    group = typer.main.get_command(program_module.make_app())
    for parameter in group.commands[command].params:  # type: ignore[attr-defined]
        help_text = getattr(parameter, "help", None)
        assert help_text or parameter.name == "help", f"{command}: {parameter.name} is not explained"
        assert (help_text or "")[-1:] in (".", "")


def test_no_arguments_show_the_help_and_are_a_usage_error(cli: Any) -> None:
    result = cli()
    assert result.code == 2
    assert "Commands:" in result.out
    assert result.err == ""


def test_version(cli: Any) -> None:
    assert cli("--version") == (0, f"mapengine {importlib.metadata.version('mapengine')}\n", "")


@pytest.mark.parametrize("command", ["build", "verify", "run", "plan", "profile", "demo", "eval", "app"])
def test_help_names_every_backend(cli: Any, command: str) -> None:
    text = re.sub(r"\s+", "", cli(command, "--help").out)
    assert all(name in text for name in NAMES)


@pytest.mark.slow
def test_help_names_every_precision(cli: Any) -> None:
    assert "|".join(PRECISIONS) in cli("build", "--help").out
    assert "|".join(name for name in PRECISIONS if name not in EIGHT_BIT) + " " in cli("export", "--help").out
    assert "|".join(EIGHT_BIT) + " " in cli("calibrate", "--help").out


@pytest.mark.slow
@pytest.mark.parametrize("program", [[str(PROGRAM)], [sys.executable, "-m", "mapengine.cli"]])
def test_both_ways_to_start(program: list[str]) -> None:
    result = subprocess.run([*program, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("mapengine ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frob"], "--frob"),
        (["run"], "BUNDLE"),
        (["run", "b"], "INPUTS"),
        (["run", "b", "a.jpg", "--threads", "0"], "--threads"),
        (["run", "b", "a.jpg", "--threads", "x"], "--threads"),
        (["run", "b", "a.jpg", "--backend", "abacus"], "onnxruntime"),
        (["run", "b", "a.jpg", "--size", "100"], "518x392"),
        (["run", "b", "a.jpg", "--size", "100x100"], "98x98"),
        (["run", "b", "a.jpg", "--size", "0x14"], "multiple of 14"),
        (["run", "b", "a.jpg", "--confidence-percentile", "101"], "--confidence-percentile"),
        (["run", "b", "a.jpg", "--max-points", "-1"], "--max-points"),
        (["run", "b", "a.jpg", "--minibatch-size", "0"], "--minibatch-size"),
        (["run", "b", "a.jpg", "--out", "a.obj"], ".glb, .ply, .npz"),
        (["run", "b", "a.jpg", "--out", "a.ply", "--format", "obj"], "--format"),
        (["run", "b", "a.jpg", "--out", "a", "--format", "ply", "--format", "npz"], "2 for 1 --out"),
        (["run", "b", "a.jpg", "--preview", "a.jpg"], "--preview"),
        (["run", "b", "a.png", "--preview", "a.png"], "one of the inputs"),
        (["run", "b", "a.jpg", "--out", "b"], "one of the inputs"),
        (["run", "b", "a.jpg", "--out", "x.ply", "--out", "./x.ply"], "twice"),
        (["build", "preset:tiny", "x", "--views", "3"], "1:4:32"),
        (["build", "preset:tiny", "x", "--views", "4:1:2"], "1:4:32"),
        (["build", "preset:tiny", "x", "--resolution", "518"], "518x392"),
        (["build", "preset:tiny", "x", "--resolution", "518x392,100x14"], "98x14"),
        (["build", "preset:tiny", "x", "--precision", "fp12"], "fp32"),
        (["verify", "b", "--revision", "main"], "--model"),
        (["view", "s.npz", "--port", "65536"], "--port"),
        (["app", "b", "--port", "65536"], "--port"),
        (["app", "b", "--max-upload", "12"], "--max-upload"),
        (["app", "b", "--memory", "lots"], "--memory"),
        (["app", "b", "--share"], "--share"),
    ],
)
def test_usage_errors(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("Error: ")
    assert words in result.err
    assert "--help" in result.err
    assert list(tmp_path.iterdir()) == []


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Bundle, "open", fail)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Input/output error", "disk"), "Error: disk: Input/output error"),
        (OSError(errno.EIO, "Input/output error"), "Error: Input/output error"),
        (MemoryError(), "Error: out of memory; "),
        (
            ZeroDivisionError("a\nb \x1b[31m"),
            r"Error: unexpected ZeroDivisionError: a b \x1b[31m; run it again with --d",
        ),
        (KeyboardInterrupt(), "Interrupted: "),
    ],
)
def test_what_nobody_expected_is_one_line_too(
    cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str
) -> None:
    fail_with(monkeypatch, error)
    result = cli("info", "x")
    assert result.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(line)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_adds_the_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    fail_with(monkeypatch, ZeroDivisionError("why"))
    arguments = ["info", "x"]
    arguments.insert(place, "--debug")
    result = cli(*arguments)
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("Error: unexpected ZeroDivisionError: why")


def test_warnings_are_one_line(cli: Any, monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    opened = Bundle.open

    def warn(*arguments: Any, **options: Any) -> Bundle:
        warnings.warn("first\nsecond", stacklevel=1)
        return opened(*arguments, **options)

    monkeypatch.setattr(Bundle, "open", warn)
    show = warnings.showwarning
    result = cli("info", bundle_folder)
    assert result.code == 0
    assert result.err == "Warning: first second\n"
    assert warnings.showwarning is show


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_noise() -> None:
    process = subprocess.Popen([PROGRAM, "info", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (1, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_output_to_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([PROGRAM, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "Error: No space left on device\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the shell of POSIX closes streams")
def test_closed_and_full_streams_do_not_lose_the_result(tmp_path: Path) -> None:
    """What is written gets no number of a closed stream, and progress that nobody reads is no reason to fail."""
    for number, streams in enumerate((">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full")):
        out = tmp_path / str(number)
        command = f'exec "$0" samples "$1" --views 1 {streams}'
        result = subprocess.run(["sh", "-c", command, PROGRAM, str(out)], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        with Image.open(out / "sample_0.png") as image:
            image.load()
        assert json.loads((out / "views.json").read_text())
    refused = subprocess.run(
        ["sh", "-c", 'exec "$0" samples "$1" --views 1 2>&-', PROGRAM, str(tmp_path / "0" / "views.json")], check=False
    )
    assert refused.returncode == 1


@pytest.mark.slow
def test_tables_in_a_pipe_are_whole_and_any_encoding_will_do(bundle_folder: Path) -> None:
    folder = bundle_folder.rename(bundle_folder.with_name("b\u00fcndel"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
    result = subprocess.run([PROGRAM, "info", folder], capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "SHA-256 " + "0" * 64 in result.stdout
    assert "(views, 3, height, width)" in result.stdout
    assert "\u2026" not in result.stdout


BLOCKED = ("torch", "onnx", "onnxscript", "transformers", "safetensors", "huggingface_hub")
WITHOUT_TORCH = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Blocker())
from mapengine.cli import main
main()
"""


@pytest.fixture
def without_torch() -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call


@pytest.mark.slow
def test_a_runtime_alone_runs_verifies_and_informs(
    without_torch: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    scene = tmp_path / "scene.ply"
    for arguments in (
        ["run", tiny_bundle, samples, "--out", scene, *quick],
        ["verify", tiny_bundle, "--backend", "onnxruntime"],
        ["eval", tiny_bundle, "--backend", "onnxruntime", "--scenes", 1, "--size", "56x42", "--tasks", "mixed"],
        ["info", tiny_bundle],
    ):
        result = without_torch(*arguments)
        assert result.returncode == 0, result.stderr
    assert scene.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("command", [["build", "preset:tiny"], ["export", "preset:tiny"], ["verify", "--model=x"]])
def test_what_needs_torch_says_so(without_torch: Any, tmp_path: Path, command: list[str]) -> None:
    result = without_torch(*command, tmp_path / "x")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: this command needs ")
    assert "pip install 'mapengine[export]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
