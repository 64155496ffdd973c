"""Build the kernels ahead of time: one cubin per variant and architecture, PTX for chips that come later, and a
manifest.

    python -m mapengine.kernels compile                       # everything, into build/kernels
    python -m mapengine.kernels compile --arch 87 --head-dim 64

The folder holds ``<variant>.sm_<architecture>.cubin``, ``<variant>.ptx`` and ``manifest.json``. A variant is compiled
again only if the hash of its source, its constants, its launch, the compiler or one of its files changed. Every file
is replaced in one step and the manifest is written last, also when the build stops half-way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import triton_compiler
from .errors import KernelCompileError, KernelInputError, KernelOutputError
from .files import remove_partials, write_atomic
from .processes import Job, compile_all, job_name
from .tuning import ARCHITECTURES, FP8_FROM, HEAD_DIMS, SPLITS
from .variants import variants

SCHEMA = 1
MANIFEST = "manifest.json"
ALIGNMENT = triton_compiler.ALIGNMENT
PTX_SOURCES = {80: "every chip from compute capability 8.0 on", FP8_FROM: "every chip from compute capability 8.9 on"}
"""Architectures whose PTX is stored. From sm_90 on Triton compiles for one chip only (``sm_90a``), and such PTX runs
nowhere else; the PTX of sm_80, and of sm_89 where FP8 is needed, is compiled by the driver of any later chip."""

Entry = dict[str, Any]


@dataclass
class Report:
    """What a build did: names as ``variant.sm_NN``, and per refusal the compiler's words."""

    compiled: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    not_applicable: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def chosen(architectures: Iterable[int], head_dims: Iterable[int], kernels: Iterable[str] = ()) -> list[Job]:
    """Return the variants to compile; ``kernels`` are beginnings of variant names, none for all."""
    starts, architectures = tuple(kernels), sorted(set(architectures))
    if not architectures or architectures[0] < ARCHITECTURES[0]:
        raise KernelInputError(
            f"the kernels need compute capability {ARCHITECTURES[0] / 10} or newer (--arch {ARCHITECTURES[0]}), "
            f"not {architectures}"
        )
    dims = set(head_dims)
    if not dims <= set(HEAD_DIMS):
        raise KernelInputError(f"head sizes are {', '.join(map(str, HEAD_DIMS))}, not {sorted(dims - set(HEAD_DIMS))}")
    found = [v for v in variants() if v.head_dim in dims and (not starts or v.name.startswith(starts))]
    if not found:
        raise KernelInputError(
            f"no kernel is called {' or '.join(starts)}; `python -m mapengine.kernels list` shows all"
        )
    return [(variant, architecture) for architecture in architectures for variant in found]


def job_key(job: Job, source: str, versions: dict[str, str]) -> str:
    """Return the SHA-256 of everything that decides the compiled code."""
    variant, architecture = job
    tile = variant.tile(architecture)
    parts = {
        "schema": SCHEMA,
        "source": source,
        "constants": variant.constants,
        "pointers": variant.pointers,
        "floats": variant.floats,
        "grid": variant.grid,
        "parameters": dict(variant.parameters),
        "given": dict(variant.given),
        "workspace": dict(variant.workspace),
        "longest": variant.longest,
        "architecture": architecture,
        "warps": tile.warps,
        "stages": tile.stages,
        "ptx": triton_compiler.PTX_VERSIONS.get(architecture),
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of ``folder``; an empty one if there is none, or one of another schema, or unreadable (all is
    built anew)."""
    empty: dict[str, Any] = {"schema": SCHEMA, "kernels": {}}
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return empty
    usable = (
        isinstance(manifest, dict) and manifest.get("schema") == SCHEMA and isinstance(manifest.get("kernels"), dict)
    )
    return manifest if usable else empty


def check_folder(folder: Path, jobs: list[Job]) -> None:
    """Refuse a folder in which something else than older kernels has the names of what would be written.

    Raises:
        KernelOutputError: naming it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if isinstance(manifest, dict) and {"schema", "kernels"} <= set(manifest):
        return
    names = [MANIFEST, *(f"{job_name(job)}.cubin" for job in jobs), *(f"{job[0].name}.ptx" for job in jobs)]
    for name in names:
        if os.path.lexists(folder / name):
            raise KernelOutputError(f"{folder / name}: is there already and not ours; choose another folder")


def _intact(folder: Path, entry: Entry) -> bool:
    """Return whether the files of ``entry`` are there and are those it was written for."""
    try:
        return all(
            hashlib.sha256((folder / record["file"]).read_bytes()).hexdigest() == record["sha256"]
            for record in (entry["cubin"], entry["ptx"])
            if record is not None
        )
    except (OSError, KeyError, TypeError):
        return False


def build(
    folder: Path,
    jobs: list[Job],
    *,
    workers: int = 1,
    force: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Bring ``folder`` up to date with ``jobs``; entries of other variants stay.

    Args:
        workers: compilations at a time, each in a process of its own.
        force: compile also what has not changed.
        progress: called with a line for each compilation.

    Raises:
        KernelUnavailableError: Triton is not installed.
        KernelOutputError: a file could not be written.
    """
    versions = triton_compiler.versions()
    check_folder(folder, jobs)
    remove_partials(folder)
    manifest = read_manifest(folder)
    known: dict[str, Entry] = manifest["kernels"]
    report, todo = Report(), []
    keys: dict[str, tuple[str, str]] = {}
    for job in jobs:
        name = job_name(job)
        if job[1] < job[0].first_architecture:
            report.not_applicable.append(name)
            continue
        source = triton_compiler.source_hash(job[0])
        keys[name] = source, job_key(job, source, versions)
        entry = known.get(name)
        if not force and entry is not None and entry.get("key") == keys[name][1] and _intact(folder, entry):
            report.kept.append(name)
        else:
            todo.append(job)
    # At the beginning, too: what a killed build leaves is then known as ours.
    write_atomic(folder / MANIFEST, (json.dumps({"alignment": ALIGNMENT, "splits": SPLITS} | manifest) + "\n").encode())
    # The slowest first, so that no worker is left with one at the end.
    todo.sort(key=lambda job: (not job[0].is_attention, -job[0].head_dim))
    try:
        for count, (job, result) in enumerate(compile_all(todo, workers), 1):
            name = job_name(job)
            if isinstance(result, KernelCompileError):
                report.refused[name] = str(result)
                known.pop(name, None)
            else:
                known[name] = _store(folder, job, result, *keys[name])
                report.compiled.append(name)
            progress(f"[{count}/{len(todo)}] {name}: {_summary(known.get(name))}")
    finally:
        manifest |= {
            "versions": versions,
            "alignment": ALIGNMENT,
            "splits": SPLITS,
            "refused": dict(sorted(report.refused.items())),
        }
        manifest["kernels"] = dict(sorted(known.items()))
        write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return report


def _summary(entry: Entry | None) -> str:
    if entry is None:
        return "refused"
    resources = entry["resources"]
    spills = resources.get("spill_stores", 0) + resources.get("spill_loads", 0)
    return f"{resources.get('registers', '?')} registers, {spills} bytes spilled, {entry['shared_bytes']} bytes shared"


def _store(folder: Path, job: Job, result: triton_compiler.Compiled, source: str, key: str) -> Entry:
    """Write the files of one compilation; its entry in the manifest."""
    variant, architecture = job

    def record(name: str, content: bytes) -> dict[str, str]:
        write_atomic(folder / name, content)
        return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}

    keeps_ptx = architecture == max(variant.first_architecture, min(PTX_SOURCES))
    return {
        "key": key,
        "source_sha256": source,
        "variant": variant.name,
        "architecture": architecture,
        "head_dim": variant.head_dim,
        "cubin": record(f"{job_name(job)}.cubin", result.cubin),
        "ptx": record(f"{variant.name}.ptx", result.ptx.encode()) if keeps_ptx else None,
        "entry": result.entry,
        "arguments": [{"name": name, "type": kind, "value": variant.value(name)} for name, kind in result.arguments],
        "scratch_pointers": result.scratch_pointers,
        "constants": variant.constants,
        "grid": [{"of": size, "per": per} for size, per in variant.grid],
        "threads": result.threads,
        "parameters": dict(variant.parameters),
        "workspace": dict(variant.workspace),
        "longest": variant.longest,
        "stages": variant.tile(architecture).stages,
        "shared_bytes": result.shared_bytes,
        "resources": result.resources,
        "tensor_cores": result.tensor_cores,
    }
