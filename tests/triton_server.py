"""Test against a real Triton server: as a program, makes an environment that has one, and runs the tests in it.

The server needs NumPy 1.26 and Python 3.10 to 3.12, so the environment is not that of the other tests. Where there is
no such Python, or the packages cannot be had, the tests are skipped, and this program says so; all else that fails,
fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-triton"
PYTHON = ENVIRONMENT / "bin" / "python"
BUNDLE = ROOT / "build" / "triton-bundle"
SERVER = ("nvidia-pytriton>=0.7,<0.8", "pytest>=8.4", "hypothesis>=6.130", "filelock>=3.16")
OURS = ".[cpu,triton-server]"
VERSIONS = ((3, 12), (3, 11), (3, 10))
SECONDS_TO_INSTALL = 600


def python_for_the_server() -> str | None:
    """Return a Python that the server runs models of; None if there is none here."""
    if sys.version_info[:2] in VERSIONS:
        return sys.executable
    for version in VERSIONS:
        found = shutil.which(f"python{version[0]}.{version[1]}")
        if found and subprocess.run([found, "-c", "import venv"], check=False, capture_output=True).returncode == 0:
            return found
    return None


def install(python: str) -> bool:
    """Make the environment, unless it is there; return whether its packages could be had."""
    stamp = ENVIRONMENT / ".installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + repr(SERVER).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return True
    subprocess.run([python, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet"]
    try:
        if subprocess.run([*pip, *SERVER], check=False, timeout=SECONDS_TO_INSTALL).returncode != 0:
            return False
    except subprocess.TimeoutExpired:
        return False
    subprocess.run([*pip, "-e", OURS], cwd=ROOT, check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return True


def build() -> None:
    """Build the bundle that the tests serve, from traces that other tests use again."""
    from mapengine.export import build_engine, load_model

    from .shared_traces import share_traces

    with pytest.MonkeyPatch.context() as patch:
        share_traces(patch, ROOT / ".pytest_cache" / "d" / "traces")
        build_engine(load_model("preset:tiny"), BUNDLE)


def main() -> int:
    python = python_for_the_server()
    if not sys.platform.startswith("linux") or python is None:
        print("No Triton server for this system: it needs Linux and Python 3.10 to 3.12; its tests are skipped")
        return 0
    if not install(python):
        print("No Triton server: its packages cannot be had here; its tests are skipped")
        return 0
    build()
    tests = "tests/serving/triton/test_real_server.py"
    command = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-q", tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "MAPENGINE_TRITON_BUNDLE": str(BUNDLE)}).returncode


if __name__ == "__main__":
    sys.exit(main())
