"""The process that compiles: what becomes of a crash, an interrupt and a parent that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapengine.export.tensorrt import build_plan, process, stage_profiles
from mapengine.export.tensorrt.compile import PlanRequest
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.errors import ExportError, OutputError
from mapengine.runtime.system.children import child_command
from mapengine.runtime.typed_json.codec import encode

from ...refusals import refused
from .conftest import PROFILE, Stage


@pytest.fixture
def build(rtx: Flavour, stage: Callable[..., Stage], tmp_path: Path) -> Callable[..., Any]:
    """Builds the tiny image encoder into ``tmp_path / "new" / "x.plan"``."""

    def run(progress: Callable[[float, str], None] | None = None) -> Any:
        made = stage("image_encoder")
        return build_plan(
            rtx,
            made.path,
            tmp_path / "new" / "x.plan",
            name="image_encoder",
            inputs=made.inputs,
            outputs=made.outputs,
            profiles=stage_profiles(PROFILE, "image_encoder", rtx.name),
            progress=progress,
        )

    return run


def becomes(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The child process runs this instead."""
    command = [sys.executable, "-c", f"import json, os, signal, sys\n{code}"]
    monkeypatch.setattr(process, "child_command", lambda module: command)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "image_encoder|tensorrt-rtx crashed|SIGSEGV|--attention"),
        ("sys.stderr.write('first\\nfatal: it broke.\\n'); os.abort()", "SIGABRT (fatal: it broke)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "image_encoder|not enough memory"),
        ("print(json.dumps({'error': ['MemoryError', '']}))", "not enough memory"),
        ("sys.exit(3)", "status 3"),
        (
            "sys.stdin.readline(); print(json.dumps({'error': ['ExportError', 'it is so; do this']}))",
            "it is so; do this",
        ),
    ],
)
def test_a_child_that_fails(
    code: str, words: str, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    becomes(monkeypatch, code)
    refused(ExportError, words, build)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    becomes(monkeypatch, "print(json.dumps({'os_error': [28, 'No space left on device']}))")
    refused(OutputError, "x.plan|the disk is full", build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_ends_the_child(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    children: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        children.append(original(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(process.subprocess, "Popen", start)

    def interrupt(fraction: float, phase: str) -> None:
        if phase == "building engine":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(interrupt)
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import pickle, signal, sys
from pathlib import Path
from mapengine.export.tensorrt import build_plan
from mapengine.runtime.backends.tensorrt.flavour import load_flavour
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
path, plan, arguments = sys.argv[1], sys.argv[2], pickle.load(open(sys.argv[3], "rb"))
def progress(fraction, phase):
    print(phase, flush=True)
try:
    rtx = load_flavour("tensorrt-rtx")
    build_plan(rtx, Path(path), Path(plan), name="image_encoder", progress=progress, **arguments)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(stage: Callable[..., Stage], tmp_path: Path) -> None:
    import pickle

    made = stage("image_encoder")
    profiles = stage_profiles(PROFILE, "image_encoder", "tensorrt-rtx")
    (tmp_path / "arguments").write_bytes(
        pickle.dumps({"inputs": made.inputs, "outputs": made.outputs, "profiles": profiles})
    )
    plan = tmp_path / "new" / "x.plan"
    command = [sys.executable, "-c", SCRIPT, str(made.path), str(plan), str(tmp_path / "arguments")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line.strip() == "building engine":
                break
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.read().split()[-1] == "interrupted"
    assert parent.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["arguments"]


@pytest.mark.slow
def test_the_child_ends_with_its_parent(stage: Callable[..., Stage], tmp_path: Path) -> None:
    made = stage("image_encoder")
    request = PlanRequest(
        "tensorrt-rtx", "image_encoder", str(made.path), str(tmp_path / "x.plan"), made.inputs, made.outputs,
        stage_profiles(PROFILE, "image_encoder", "tensorrt-rtx"),
    )  # fmt: skip
    with subprocess.Popen(
        child_command("mapengine.export.tensorrt.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(encode(request)) + "\n")
        child.stdin.flush()
        assert "progress" in json.loads(child.stdout.readline())
        # What the system does for a parent that was killed.
        child.stdin.close()
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        rest = child.stdout.read()
    assert child.returncode == 1
    assert "result" not in rest
