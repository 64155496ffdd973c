"""What the README and the guide tell people to type is run here, in a folder made like a fresh checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapengine.cli import main
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.bundle.bundle_files import FileIdentity
from mapengine.runtime.profiling import memory as measurement

from .documents import GUIDE, ROOT, blocks, commands


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makefile and metadata of the project, with this environment as its ``.venv``, already installed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".installed":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".installed").touch()
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "MAPENGINE_CACHE": str(folder / "cache"),
    }
    return subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run ``mapengine ARGUMENTS...`` in this process."""
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    assert leave.value.code == 0, f"{' '.join(arguments)}: {capsys.readouterr().err}"


@pytest.mark.slow
def test_readme_commands_in_order(checkout: Path) -> None:
    first, more, checkpoint, runtime_alone, tests = (block.text for block in blocks(ROOT / "README.md", "sh"))
    done = run(first, checkout)
    assert done.returncode == 0, done.stderr
    assert "depth" in done.stdout.lower()
    assert "Try it on images:" in done.stdout
    for name in ("scene.glb", "scene.png", "demo/demo.png", "demo/demo.glb", "demo/truth.glb"):
        assert (checkout / "build" / name).stat().st_size > 10_000
        assert name.startswith("scene") or f"Wrote build/{name}" in done.stdout

    given = run(more, checkout)
    assert given.returncode == 0, given.stderr
    assert "images, intrinsics, dense depth" in given.stdout

    # No hub here: the command says so in a sentence, and nothing is left behind.
    refused = run(checkpoint, checkout)
    assert refused.returncode != 0
    errors = [line for line in refused.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "facebook/map-anything-apache" in errors[0]
    assert "Traceback" not in refused.stderr
    assert not (checkout / "build" / "apache").exists()

    # Installing is what test_packaging.py does, from a wheel.
    assert runtime_alone == 'pip install ".[cpu]"\n'
    planned = run(tests.replace("make", "make -n"), checkout)
    assert planned.returncode == 0
    assert "-m pytest" in planned.stdout

    for block in blocks(ROOT / "README.md", "python"):
        script = checkout / "example.py"
        script.write_text(block.text, encoding="utf-8")
        example = run(".venv/bin/python example.py", checkout)
        assert example.returncode == 0, example.stderr
        assert "112, 140" in example.stdout
    assert (checkout / "build" / "scene.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces", "shared_plans")
def test_plans_are_made_as_the_guide_says(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process, which has the traces of other tests; test_readme_commands_in_order runs `make engine` itself.
    planned = run("make -n engine BACKEND=tensorrt-rtx PRECISION=fp16 MODEL=preset:tiny OUT=build/plans", checkout)
    assert planned.returncode == 0, planned.stderr
    monkeypatch.chdir(checkout)
    called = [words for words in commands(planned.stdout.replace("\\\n", " ")) if words[0] == ".venv/bin/mapengine"]
    assert [arguments[0] for _, *arguments in called] == ["build", "verify", "samples", "demo"]
    for _, *arguments in called:
        call(arguments, capsys)
    shown = capsys.readouterr().out
    assert re.search(r"\b([1-9]\d*) of \1\b", shown), "attention is not fused"
    # Where there is a GPU the plans run, and else one line says that they cannot.
    assert shown.count("No demonstration on this machine: ") + shown.count("demo.png") == 1
    assert (checkout / "build" / "plans" / "aggregator.plan").exists()

    planned = run("make -n engine BACKEND=tensorrt-rtx PRECISION=fp16 TARGET=sm_89 ATTENTION=flash", checkout)
    for option in ("--target", "sm_89", "--attention", "flash", "--device optional"):
        assert option in planned.stdout


@pytest.fixture(scope="module")
def stages_compiled_once() -> Iterator[None]:
    """Commands that run in this process after each other take over a stage from each other, if its file is the same."""
    compiled: dict[tuple[object, ...], Any] = {}
    load_stage = OpenVinoBackend.load_stage

    def load_once(backend: OpenVinoBackend, name: str, path: Path, arithmetic: str = "fp32") -> Any:
        key = (name, FileIdentity.of(path.stat()), arithmetic, backend.threads)
        if key not in compiled:
            compiled[key] = load_stage(backend, name, path, arithmetic)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVinoBackend, "load_stage", load_once)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces", "stages_compiled_once")
@pytest.mark.parametrize("page", [page.name for page in GUIDE])
def test_guide_commands(
    page: str, made_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # `mapengine plan` measures more calls, and takes longer; that it fits a line to them is shown by its own tests.
    monkeypatch.setattr(measurement, "measuring_shapes", lambda requests: [(3, 140, 112)])
    monkeypatch.chdir(made_engine)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "guide" / page, "sh", "python"):
        if block.not_run is not None:
            continue
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
            continue
        for program, *arguments in commands(block.text):
            if program == "make":
                assert arguments == ["engine"]  # that the README's test runs
                continue
            assert program == ".venv/bin/mapengine"
            call(arguments, capsys)
