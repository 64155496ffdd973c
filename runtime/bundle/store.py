"""Opening and writing engine bundles: a folder with ``manifest.json``, the stage files and ``golden.npz``.

Opening checks the schema, the presence, the size and the SHA-256 of every file before a backend sees any of them:
a plan is executable code. The format is described in ``docs/reference/bundle.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    BundleError,
    BundleNotFoundError,
    IntegrityError,
    ManifestError,
    MapEngineError,
    OutputError,
)
from ..system.machine import usable_processors
from ..typed_json.text import parse_json
from ..writing.files import output_error
from ..writing.folders import atomic_folder
from ..writing.replacement import is_staging
from ..writing.staging import recover_folder
from .file_record import MANIFEST_NAME, FileRecord
from .manifest import STAGES, Manifest, manifest_document

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_GOLDEN_BYTES = 512 * 2**20
"""Uncompressed size of ``golden.npz``: a small input with its outputs takes a few MB."""
HASH_BLOCK = 4 * 2**20
HASH_THREADS = 8
"""hashlib releases the GIL on large blocks; more threads than files or cores gain nothing."""
_STAGE = rf"(?:{'|'.join(STAGES)})"
_OUR_NAMES = re.compile(rf"{re.escape(MANIFEST_NAME)}|golden\.npz|{_STAGE}(?:_\d+)?\.(?:onnx|onnx\.data|plan)")
_LISTED_NAMES = re.compile(rf"{_STAGE}[\w.-]*\.(?:onnx|data|plan)|[\w.-]+\.(?:cubin|ptx)")
"""What else the files of a bundle are called; whatever other names a manifest lists are not removed with it."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its validated manifest, and the SHA-256 of ``manifest.json``.

    The manifest names the hash of every other file, so ``digest`` identifies the whole bundle.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> Bundle:
        """Check the bundle in the folder ``path``; nothing in it is run or deserialised.

        Args:
            path: the folder.
            verify: also compare the SHA-256 of every file. Without it only presence and size are checked.

        Raises:
            BundleNotFoundError: the folder, its manifest or a file that the manifest names is missing or unreadable.
            VersionError: the manifest was made by a newer mapengine.
            ManifestError: ``manifest.json`` does not follow the schema.
            IntegrityError: a file has another size or SHA-256, or is a link that leaves the folder.
        """
        folder = Path(path)
        recover_folder(folder)
        raw = _read_manifest(folder)
        name = str(folder / MANIFEST_NAME)
        manifest = Manifest.from_json(parse_json(raw, manifest_document(name)), name)
        bundle = cls(folder, manifest, hashlib.sha256(raw).hexdigest())
        for record in manifest.files():
            _check_size(folder, record)
        if verify:
            bundle.check_hashes()
        return bundle

    def check_hashes(self) -> None:
        """Compare the SHA-256 of every file with the manifest's.

        Raises:
            BundleNotFoundError: a file is gone or unreadable.
            IntegrityError: a file has another SHA-256.
        """
        # Longest first, so that no thread ends alone with the largest file.
        records = sorted(self.manifest.files(), key=lambda record: -record.bytes)
        workers = min(HASH_THREADS, len(records), usable_processors())
        with ThreadPoolExecutor(workers) as pool:
            for record, digest in zip(records, pool.map(lambda r: _hash(self.folder, r.file), records), strict=True):
                if digest != record.sha256:
                    raise _broken(self.folder, record.file, "differs from the hash in its manifest")

    def stage_path(self, name: str) -> Path:
        """The file of the stage ``name``: a graph (``.onnx``) or a plan (``.plan``).

        Raises:
            ManifestError: the stage is a chain of several files.
        """
        record = self.manifest.stages[name].file
        if record is None:
            raise ManifestError(f"{self.folder}: the stage {name} is a chain of plans; run it with its own backend")
        return self.folder / record.file

    def golden(self) -> dict[str, np.ndarray]:
        """The arrays of ``golden.npz``: inputs and reference outputs, never unpickled.

        Raises:
            BundleNotFoundError: the file is gone or cannot be read.
            IntegrityError: the file is not an archive of plain arrays, or is implausibly large.
        """
        name = self.manifest.golden.file.file
        path = self.folder / name
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_GOLDEN_BYTES:
                    raise _broken(self.folder, name, f"unpacks to more than {MAX_GOLDEN_BYTES} bytes")
            with np.load(path, allow_pickle=False) as arrays:
                golden = {key: arrays[key] for key in arrays.files}
        except MapEngineError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged archives
            raise _broken(self.folder, name, "is not an archive of plain arrays") from error
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in golden.values()):
            raise _broken(self.folder, name, "holds something other than arrays of numbers")
        return golden


class BundleWriter:
    """Fills the temporary folder of a bundle that is being written; made by ``write_bundle``.

    Attributes:
        folder: where the stage files go, under the names that they keep.
        bundle: what is there, opened; None until the manifest is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle: Bundle | None = None

    def record(self, name: str) -> FileRecord:
        """Name, SHA-256 and size of the finished file ``name`` in the folder, for the manifest."""
        return FileRecord(name, _hash(self.folder, name), (self.folder / name).stat().st_size)

    def golden(self, arrays: Mapping[str, np.ndarray], name: str = "golden.npz") -> FileRecord:
        """Write the golden arrays (numbers only, any shape) and return the record of the file."""
        for key, array in arrays.items():
            if np.asarray(array).dtype.kind not in "biuf":
                raise OutputError(f"golden array {key!r} has dtype {np.asarray(array).dtype}; pass numbers or booleans")
        contents: dict[str, Any] = {key: np.asarray(array) for key, array in arrays.items()}
        np.savez_compressed(self.folder / name, **contents)
        return self.record(name)

    def write_manifest(self, manifest: Manifest) -> Bundle:
        """Validate ``manifest``, write it, and return the bundle as :meth:`Bundle.open` would.

        May be called again, for example with the parity that was measured by running the bundle.

        Raises:
            ManifestError: the manifest does not follow its own schema.
            BundleNotFoundError, IntegrityError: a file that it names is not in the folder as described.
        """
        try:
            text = json.dumps(manifest.to_json(), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ManifestError(f"the manifest cannot be written as JSON: {error}; use finite, plain values") from error
        checked = Manifest.from_json(parse_json(text, manifest_document()))
        for record in checked.files():
            _check_size(self.folder, record)
        raw = text.encode()
        (self.folder / MANIFEST_NAME).write_bytes(raw)
        self.bundle = Bundle(self.folder, checked, hashlib.sha256(raw).hexdigest())
        return self.bundle


@contextmanager
def write_bundle(path: str | os.PathLike[str]) -> Iterator[BundleWriter]:
    """Build a bundle under a temporary name and move it to ``path`` when the block succeeds.

    A bundle that is already there is replaced (its other files, such as a saved scene, stay). If the block fails in any
    way, the interrupt key included, ``path`` is as it was before. The block must call ``write_manifest``.

    Raises:
        OutputError: ``path`` holds something else than a bundle, or could not be written (disk full, no permission).
    """
    with atomic_folder(path, "engine bundle", ours=files_of_old_bundle) as folder:
        writer = BundleWriter(folder)
        yield writer
        if writer.bundle is None:
            raise OutputError(f"{path}: could not be written: the bundle has no manifest; call write_manifest first.")


def files_of_old_bundle(target: Path) -> list[str]:
    """Names of the files of the bundle in ``target``, of any schema version; empty if there is nothing there.

    Raises:
        OutputError: there is something else than a bundle, which a new one must not replace.
    """
    try:
        if not target.is_dir() or all(is_staging(entry.name) for entry in target.iterdir()):
            return []
        document = parse_json(_read_manifest(target), manifest_document())
    except BundleError:
        document = None
    except OSError as error:
        raise output_error(target, error) from error
    if not isinstance(document, dict) or not _is_manifest(document):
        raise OutputError(
            f"{target}: could not be written: the folder is not empty and holds no engine bundle; "
            f"choose another folder or empty it."
        )
    names: set[str] = set()
    queue: list[Any] = [document]
    while queue:
        value = queue.pop()
        if isinstance(value, dict) and isinstance(value.get("file"), str):
            names.add(value["file"])
        queue.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    # Only names that we give: a manifest that was tampered with must not get other files removed.
    ours = {name for name in names if _LISTED_NAMES.fullmatch(name)}
    ours |= {entry.name for entry in target.iterdir() if _OUR_NAMES.fullmatch(entry.name)}
    return sorted(name for name in ours if (target / name).is_file())


def _is_manifest(document: dict[str, Any]) -> bool:
    """Whether a JSON object is a manifest of ours, of any schema version."""
    stages = document["stages"] if {"schema_version", "created_by", "stages"} <= set(document) else None
    return isinstance(stages, dict) and any(name in STAGES for name in stages)


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            reason = "is a file, not a folder" if folder.exists() else "does not exist"
            raise BundleNotFoundError(f"{folder} {reason}; give the folder that mapengine build wrote")
        if not path.exists():
            raise BundleNotFoundError(f"{folder} is no engine bundle: it has no {MANIFEST_NAME}; run mapengine build")
        mode = _inside(folder, MANIFEST_NAME).st_mode
        if not stat.S_ISREG(mode):
            raise ManifestError(f"{path} is not a regular file; build the bundle again")
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        if isinstance(error, MapEngineError):
            raise
        raise _unreadable(path, error) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, so it is no manifest; build it again")
    return raw


def _inside(folder: Path, name: str) -> os.stat_result:
    """Status of a file of the bundle; ``IntegrityError`` if it is a link that leads out of the folder."""
    path = os.path.realpath(folder / name)
    if Path(os.path.realpath(folder)) not in Path(path).parents:
        raise _broken(folder, name, "is a link that leaves the folder")
    return os.stat(path)


def _check_size(folder: Path, record: FileRecord) -> None:
    try:
        status = _inside(folder, record.file)
    except FileNotFoundError as error:
        fix = "copy the whole folder or build the bundle again"
        raise BundleNotFoundError(f"{folder} lacks the file {record.file} of its manifest; {fix}") from error
    except OSError as error:
        raise _unreadable(folder / record.file, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise _broken(folder, record.file, "is not a regular file")
    if status.st_size != record.bytes:
        raise _broken(folder, record.file, f"has {status.st_size} bytes, but its manifest says {record.bytes}")


def _hash(folder: Path, name: str) -> str:
    """SHA-256 of a file, read in large blocks into one buffer."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BLOCK))
    try:
        with (folder / name).open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
    except OSError as error:
        raise _unreadable(folder / name, error) from error
    return digest.hexdigest()


def _broken(folder: Path, name: str, problem: str) -> IntegrityError:
    return IntegrityError(f"{folder / name} {problem}; copy the whole folder again or build the bundle again")


def _unreadable(path: Path, error: OSError) -> BundleNotFoundError:
    reason = error.strerror or str(error)
    return BundleNotFoundError(f"{path} cannot be read ({reason}); check that it exists and its permissions")
