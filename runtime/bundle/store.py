"""Opening and writing engine bundles: a folder with ``manifest.json``, the stage files and ``golden.npz``.

Opening checks the schema, the presence, the size and the SHA-256 of every file before a backend sees any of them:
a plan is executable code. The format is described in ``docs/reference/bundle.md``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    BundleError,
    BundleNotFoundError,
    ManifestError,
    MapEngineError,
    OutputError,
)
from ..typed_json.text import parse_json
from ..writing.files import output_error
from ..writing.folders import atomic_folder
from ..writing.replacement import is_staging
from ..writing.staging import recover_folder
from .bundle_files import BundleFiles, while_replaced
from .file_record import MANIFEST_NAME, FileRecord
from .manifest import EVERY_STAGE, SCHEMA_VERSION, STAGES, Manifest, manifest_document
from .manifest_text import check_manifest_text, manifest_text
from .stage_graphs import MAX_GRAPH_BYTES, graph_problem, graphs

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_GOLDEN_BYTES = 512 * 2**20
"""Uncompressed size of ``golden.npz``: a small input with its outputs takes a few MB."""
_STAGE = rf"(?:{'|'.join(EVERY_STAGE)})"
_OUR_NAMES = re.compile(rf"{re.escape(MANIFEST_NAME)}|golden\.npz|{_STAGE}(?:_\d+)?\.(?:onnx|onnx\.data|plan)")
_LISTED_NAMES = re.compile(rf"{_STAGE}[\w.-]*\.(?:onnx|data|plan)|[\w.-]+\.(?:cubin|ptx)")
"""What else the files of a bundle are called; whatever other names a manifest lists are not removed with it."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its validated manifest, and the SHA-256 of ``manifest.json``.

    The manifest names the hash of every other file, so ``digest`` identifies the whole bundle. ``files`` knows which
    files were opened, so that nothing is read from a bundle that took this one's place.
    """

    folder: Path
    manifest: Manifest
    digest: str
    files: BundleFiles = field(compare=False, repr=False)

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
            IntegrityError: the manifest or a file has another SHA-256 or size, a file is a link that leaves the folder,
                or a graph refers to a file that is not listed or has other tensors than the manifest says.
            BundleReplacedError: the bundle was replaced again and again while it was being read.
        """
        return while_replaced(lambda: cls._open(Path(path), verify))

    @classmethod
    def _open(cls, folder: Path, verify: bool) -> Bundle:
        recover_folder(folder)
        files = BundleFiles(folder)
        raw = _read_manifest(files)
        name = str(folder / MANIFEST_NAME)
        document = parse_json(raw, manifest_document(name))
        manifest = Manifest.from_json(document, name)
        check_manifest_text(raw, document, name)
        bundle = cls(folder, manifest, hashlib.sha256(raw).hexdigest(), files)
        with bundle.unchanged():
            for record in manifest.files():
                files.check_presence(record)
            if verify:
                bundle.check_hashes()
            bundle.check_graphs()
        return bundle

    def check_hashes(self) -> None:
        """Compare the SHA-256 of every file with the manifest's, unless that was done.

        Raises:
            BundleNotFoundError: a file is gone or unreadable.
            IntegrityError: a file has another SHA-256, or was replaced since the bundle was opened.
        """
        self.files.check_hashes(self.manifest.files())

    def check_graphs(self) -> None:
        """Compare every graph with the manifest: tensors, opset, and the files with weights that it refers to.

        Raises:
            BundleNotFoundError: a graph is gone or unreadable.
            IntegrityError: a graph is none, or not the one that the manifest describes.
        """
        if self.manifest.format == "plan":
            return
        for stage in self.manifest.stages.values():
            for record, spec in graphs(stage):
                if record.bytes > MAX_GRAPH_BYTES:
                    raise self.files.broken(record.file, "is larger than an ONNX graph can be")
                with self.files.open(record.file) as file:
                    problem = graph_problem(file.read(record.bytes), spec)
                if problem is not None:
                    raise self.files.broken(record.file, problem)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Refuse what the block read, or failed to read, if the bundle was replaced or written to meanwhile.

        Raises:
            BundleReplacedError: it was.
        """
        try:
            yield
        except MapEngineError:
            self.files.check_unchanged()  # parts of two bundles fail in many ways, none of which says so
            raise
        self.files.check_unchanged()

    def stage_path(self, name: str) -> Path:
        """The file of the stage ``name``: a graph (``.onnx``) or a plan (``.plan``).

        Raises:
            ManifestError: the stage is a chain of several files.
        """
        record = self.manifest.stages[name].file
        if record is None:
            raise ManifestError(f"{self.folder}: the stage {name} is a chain of plans; run it with its own backend")
        return self.files.place / record.file

    def golden(self) -> dict[str, np.ndarray]:
        """The arrays of ``golden.npz``: inputs and reference outputs, never unpickled.

        Raises:
            BundleNotFoundError: the file is gone or cannot be read.
            IntegrityError: the file is not the one of the manifest, not an archive of plain arrays, or implausibly
                large.
        """
        record = self.manifest.golden.file
        content = io.BytesIO(self.files.read(record, MAX_GOLDEN_BYTES))
        try:
            with zipfile.ZipFile(content) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_GOLDEN_BYTES:
                    raise self.files.broken(record.file, f"unpacks to more than {MAX_GOLDEN_BYTES} bytes")
            with np.load(content, allow_pickle=False) as arrays:
                golden = {key: arrays[key] for key in arrays.files}
        except MapEngineError:
            raise
        except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged archives
            raise self.files.broken(record.file, "is not an archive of plain arrays") from error
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in golden.values()):
            raise self.files.broken(record.file, "holds something other than arrays of numbers")
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
        return FileRecord(name, BundleFiles(self.folder).hash(name), (self.folder / name).stat().st_size)

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
            BundleNotFoundError, IntegrityError: a file that it names is not in the folder as described, or a graph is
                not as described.
        """
        raw = manifest_text(replace(manifest, schema_version=SCHEMA_VERSION).to_json())
        checked = Manifest.from_json(parse_json(raw, manifest_document()))
        files = BundleFiles(self.folder)
        bundle = Bundle(self.folder, checked, hashlib.sha256(raw).hexdigest(), files)
        for record in checked.files():
            files.check_presence(record)
        bundle.check_graphs()
        (self.folder / MANIFEST_NAME).write_bytes(raw)
        self.bundle = bundle
        return bundle


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
        document = parse_json(_read_manifest(BundleFiles(target)), manifest_document())
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


def _read_manifest(files: BundleFiles) -> bytes:
    folder = files.folder
    path = folder / MANIFEST_NAME
    try:
        if not folder.is_dir():
            reason = "is a file, not a folder" if folder.exists() else "does not exist"
            raise BundleNotFoundError(f"{folder} {reason}; give the folder that mapengine build wrote")
        if not path.exists():
            raise BundleNotFoundError(f"{folder} is no engine bundle: it has no {MANIFEST_NAME}; run mapengine build")
        if not path.is_file():
            raise ManifestError(f"{path} is not a regular file; build the bundle again")
        with files.open(MANIFEST_NAME) as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        if isinstance(error, MapEngineError):
            raise
        raise files.unreadable(MANIFEST_NAME, error) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, so it is no manifest; build it again")
    return raw
