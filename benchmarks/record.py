"""What every benchmark record says about where it was measured, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from mapengine.runtime.system.machine import cpu_name


def origin(*packages: str) -> dict[str, Any]:
    """Machine, versions of the named packages as far as they are installed, and the commit of the checkout."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system(), "gpu": None}
    return {"machine": machine, "versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit that was measured; ``-dirty`` when files other than results differ from it.

    ``MAPENGINE_COMMIT`` names it where the files were copied without their history, as to a machine with a GPU.
    """
    if "MAPENGINE_COMMIT" in os.environ:
        return os.environ["MAPENGINE_COMMIT"]
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = [*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"]
        dirty = subprocess.run(changed, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if dirty else "")


def write_record(record: dict[str, Any], path: Path | None) -> None:
    """Write the record as JSON, complete or not at all; nothing when there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
