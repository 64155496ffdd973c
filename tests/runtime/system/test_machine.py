"""Facts about the machine, the cache folder, and where a record was made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mapengine.runtime.system.machine import (
    can_reset_peak,
    clocks,
    cpu_name,
    free_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
    usable_processors,
)
from mapengine.runtime.system.origin import installed_versions, record_origin, source_commit
from mapengine.runtime.writing.cache import cache_folder

ROOT = Path(__file__).resolve().parents[3]


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(text: str) -> str:
        monkeypatch.setattr(Path, "read_text", lambda self, **options: text)
        return cpu_name()

    lines = "processor : 0\nmodel\t\t: {}\nmodel name\t: AMD EPYC\ncpu family\t: 25\n\nprocessor : 1\nmodel : 9\n"
    assert named(lines.format(17)) == "AMD EPYC (family 25, model 17)"
    assert named(lines.format(17)) != named(lines.format(2))
    assert named("model name : Cortex\n") == "Cortex"
    assert named("")  # what the platform module knows


@pytest.mark.slow
def test_processors_and_memory() -> None:
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        script += "from mapengine.runtime.system.machine import usable_processors; print(usable_processors())"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "1"
    assert 2**20 < free_bytes() < 2**50
    before = resident_bytes()
    block = np.ones(2**26, np.uint8)  # larger than what allocators keep
    assert resident_bytes() - before > 0.9 * block.nbytes
    assert clocks().keys() == {"cpu_mhz", "gpu"}


@pytest.mark.skipif(not can_reset_peak(), reason="this system does not tell a process's peak memory")
def test_the_peak_begins_anew() -> None:
    block = np.ones(2**26, np.uint8)
    high = peak_bytes()
    assert high is not None
    assert high >= resident_bytes() > block.nbytes
    del block
    reset_peak()
    low = peak_bytes()
    assert low is not None
    assert low < high - 2**25


def test_versions_of_what_is_installed() -> None:
    assert installed_versions("numpy", "no-such-package") == {"numpy": np.__version__}


def make_repository(folder: Path, project: str | None) -> str:
    """A repository with one commit, whose hash is returned in 12 digits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("content")
    (folder / "benchmarks" / "results").mkdir(parents=True)
    (folder / "benchmarks" / "results" / "a.json").write_text("{}")
    if project is not None:
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    done = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


@needs_git
def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPENGINE_COMMIT", raising=False)
    commit = make_repository(tmp_path / "project", "mapengine")
    assert source_commit(tmp_path / "project") == commit
    (tmp_path / "project" / "benchmarks" / "results" / "a.json").write_text("[]")
    assert source_commit(tmp_path / "project") == commit
    (tmp_path / "project" / "file").write_text("changed")
    assert source_commit(tmp_path / "project") == f"{commit}-dirty"
    monkeypatch.setenv("MAPENGINE_COMMIT", "abc")
    assert source_commit(tmp_path / "project") == "abc"


@needs_git
def test_a_repository_around_the_package_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPENGINE_COMMIT", raising=False)
    make_repository(tmp_path / "other", "other")
    make_repository(tmp_path / "nameless", None)
    assert source_commit(tmp_path / "other") is None
    assert source_commit(tmp_path / "nameless") is None
    vendored = tmp_path / "other" / "third_party" / "mapengine"
    vendored.mkdir(parents=True)
    (vendored / "pyproject.toml").write_text('[project]\nname = "mapengine"\n')
    assert source_commit(vendored) is None
    assert source_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(tmp_path / "other") is None


@pytest.mark.slow
@needs_git
def test_an_installed_copy_in_the_repository_of_somebody_else_has_no_commit(tmp_path: Path) -> None:
    make_repository(tmp_path, "mapengine-user")
    site = tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "runtime", site / "mapengine" / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        f"import sys; sys.path += [{str(Path(np.__file__).parents[1])!r}]\n"
        "from mapengine.runtime.system import origin\n"
        "print(origin.__file__)\n"
        "print(origin.record_origin('numpy'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MAPENGINE_COMMIT"}
    result = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(site)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(site))
    assert "'commit': None" in result.stdout


def test_where_a_record_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPENGINE_COMMIT", "abc")
    record = record_origin("numpy", "no-such-package")
    assert record["machine"]["cpu"] == cpu_name()
    assert record["machine"]["cores"] == usable_processors()
    assert record["versions"] == {"python": sys.version.split()[0], "numpy": np.__version__}
    assert record["commit"] == "abc"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG variables belong to the other platforms")
def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MAPENGINE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "mapengine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "mapengine"


@pytest.mark.parametrize("found", [RuntimeError("no home folder"), Path("relative")])
def test_who_has_no_home_has_no_cache(found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def user_cache_path(*_: object, **__: object) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.delenv("MAPENGINE_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", user_cache_path)
    assert cache_folder() is None
