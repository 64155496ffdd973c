"""Where a record was made: the machine, the versions of packages, and the commit of the source."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from .machine import cpu_name, gpu_state, usable_processors

_CHECKOUT = Path(__file__).resolve().parents[2]


def record_origin(*packages: str) -> dict[str, Any]:
    """Return ``machine``, the ``versions`` of those of ``packages`` that are installed, and the ``commit`` if this is a
    checkout."""
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": usable_processors(),
            "system": platform.system(),
            "gpu": gpu_state(),
        },
        "versions": {"python": platform.python_version()} | installed_versions(*packages),
        "commit": source_commit(),
    }


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those of ``packages`` that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def source_commit(checkout: Path = _CHECKOUT) -> str | None:
    """Return the commit of the source that runs, with ``-dirty`` when files other than results differ from it.

    ``MAPENGINE_COMMIT`` names it where the files were copied without their history, as to a machine with a GPU. A
    package that is installed inside the repository of another project has no commit of its own.

    Args:
        checkout: the folder that is the root of a git work tree with this project, or else has no commit.
    """
    if "MAPENGINE_COMMIT" in os.environ:
        return os.environ["MAPENGINE_COMMIT"]
    try:
        project = (checkout / "pyproject.toml").read_text(encoding="utf-8")
        if re.search(r'^name = "mapengine"$', project, re.MULTILINE) is None:
            return None
        if Path(_git(checkout, "rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return None
        commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
