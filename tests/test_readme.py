"""What README and docs tell people to type is run here, in a folder made like a fresh checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


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


@pytest.mark.slow
def test_readme_commands_in_order(checkout: Path) -> None:
    first, more, checkpoint, tests, plans = blocks(ROOT / "README.md", "sh")
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

    assert tests.strip() == "make test"
    planned = run("make -n test", checkout)
    assert planned.returncode == 0
    assert "-m pytest" in planned.stdout

    compiled = run(plans, checkout)
    assert compiled.returncode == 0, compiled.stderr
    assert re.search(r"\b([1-9]\d*) of \1\b", compiled.stdout), "attention is not fused"
    # Where there is a GPU the plans run, and else one line says that they cannot.
    shown = compiled.stdout.count("No demonstration on this machine: ") + compiled.stdout.count("demo.png")
    assert shown == plans.count("make engine")
    assert (checkout / "build" / "plans" / "aggregator.plan").exists()

    for block in blocks(ROOT / "README.md", "python"):
        script = checkout / "example.py"
        script.write_text(block, encoding="utf-8")
        example = run(".venv/bin/python example.py", checkout)
        assert example.returncode == 0, example.stderr
        assert "112, 140" in example.stdout
    assert (checkout / "build" / "scene.ply").stat().st_size > 10_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_json_examples_parse() -> None:
    examples = [block for document in DOCUMENTS for block in blocks(document, "json")]
    assert len(examples) >= 2
    for example in examples:
        json.loads(example)


def test_documented_make_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([A-Z]+)` \|.*\| `?([^`|]*?)`? ?\|$", (ROOT / "docs/quickstart.md").read_text(), re.M)
    assert {name for name, _ in table} >= {"MODEL", "PRECISION", "BACKEND", "VIEWS", "RESOLUTION", "OUT"}
    for name, default in table:
        written = re.search(rf"^{name}\s*\?=[ ]*(.*)$", makefile, re.M)
        assert written, f"the Makefile has no variable {name}"
        assert written[1] == ("" if default == "the default branch" else default)
