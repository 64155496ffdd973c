"""Compiled kernels that tests, workers and runs share: a kernel takes Triton a second or more.

The build itself finds them again: what lies in its folder and would be compiled to the same, it keeps. Kernels of other
code than the package's are thrown away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from mapengine.export.bundles import chains
from mapengine.kernels.compile import MANIFEST, read_manifest
from mapengine.runtime.bundle.kernel_attention import KernelAttention, KernelCode
from mapengine.runtime.bundle.store import BundleWriter

from .shared_folders import folder_of_code

KERNELS = Path(__file__).parents[1] / "kernels"
Compile = Callable[[Sequence[int], BundleWriter, Path, Sequence[KernelAttention]], tuple[KernelCode, ...]]


def share_kernels(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep what ``compile_kernels`` compiles in ``folder``, and let it find there what it would compile."""
    shared = folder_of_code(folder, [*KERNELS.glob("*.py"), Path(__file__)], ["triton"])
    patch.setattr(chains, "compile_kernels", _shared(chains.compile_kernels, shared))


def _shared(compile_kernels: Compile, shared: Path) -> Compile:
    lock = FileLock(f"{shared}.lock")

    def compile_once(
        architectures: Sequence[int], writer: BundleWriter, folder: Path, attention: Sequence[KernelAttention]
    ) -> tuple[KernelCode, ...]:
        variants = {name for entry in attention for launch in entry.launches for name in launch}
        with lock:
            # No others: a bundle gets all that its folder has.
            _copy(shared, folder, {f"{name}.sm_{number}" for name in variants for number in architectures})
        codes = compile_kernels(architectures, writer, folder, attention)
        with lock:
            _copy(folder, shared, set(read_manifest(folder)["kernels"]))
        return codes

    return compile_once


def _copy(source: Path, target: Path, names: set[str]) -> None:
    """Add kernels, as many of those named as there are, to what a folder has."""
    target.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(target)
    for name, entry in read_manifest(source)["kernels"].items():
        if name in names:
            manifest["kernels"][name] = entry
            for record in (entry["cubin"], entry["ptx"]):
                if record is not None:
                    shutil.copyfile(source / record["file"], target / record["file"])
    (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
