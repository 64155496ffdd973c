"""``manifest.json``: what an engine bundle holds, as typed values.

``Manifest.from_json`` accepts exactly what ``docs/reference/bundle.md`` describes and nothing else; every deviation is
a ``ManifestError`` that names the JSON path. The file names, sizes and hashes are checked against the folder in
``store.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..backend_table import BACKENDS_BY_FORMAT, EIGHT_BIT, PRECISIONS, fastest_first
from ..errors import ManifestError, VersionError
from ..typed_json.codec import Fail, decode, encode
from ..typed_json.fields import ADDED, Bounds, Count, EveryKey, Key, OneOf, Positive, Sha256
from ..typed_json.text import Document, shorten
from .backend_info import BackendInfo
from .build_record import (
    GeometryParity,
    Golden,
    Headroom,
    OutputParity,
    Parity,
    Quantization,
    ReducedPrecision,
    Tolerance,
)
from .file_record import MANIFEST_NAME, FileRecord
from .kernel_attention import KernelAttention, KernelCode, KeyShare
from .requests import PATCH_SIZE, AnySize, Range, ServedRequests
from .stages import ADDED_STAGES, DTYPES, EVERY_STAGE, NORMALIZER, SCENE, STAGES, LayerRecord, StageSpec, TensorSpec

__all__ = [
    "ADDED_STAGES",
    "ATTENTIONS",
    "BACKENDS_BY_FORMAT",
    "DTYPES",
    "EVERY_STAGE",
    "NORMALIZER",
    "PATCH_SIZE",
    "PRECISIONS",
    "SCENE",
    "SCHEMA_VERSION",
    "STAGES",
    "AnySize",
    "BackendInfo",
    "FileRecord",
    "GeometryParity",
    "Golden",
    "Headroom",
    "KernelAttention",
    "KernelCode",
    "KeyShare",
    "LayerRecord",
    "Manifest",
    "ModelInfo",
    "OutputParity",
    "Parity",
    "Quantization",
    "Range",
    "ReducedPrecision",
    "ServedRequests",
    "StageSpec",
    "TensorSpec",
    "Tolerance",
]  # fmt: skip

SCHEMA_VERSION = 8
OLDEST_VERSION = 4
"""Of the schemas that are read; its manifests carry no hash of themselves. Until version 5 there is no stage ``scene``,
until version 6 no ``image_normalizer``, until version 7 no ``key_shares``."""
ATTENTIONS = ("mha", "attention", "matmul")
"""Contrib MultiHeadAttention, the standard ONNX Attention, and MatMul-Softmax-MatMul."""


def manifest_document(name: str = MANIFEST_NAME) -> Document:
    """Return what messages about a manifest say, whose file is called ``name``."""
    return Document(name, "it is damaged or was edited, build the bundle again", ManifestError)


@dataclass(frozen=True)
class ModelInfo:
    """The checkpoint that the bundle was made from, and what the runtime needs to know of its architecture.

    Attributes:
        id: Hub id, preset or folder name. revision: Hub revision, or None.
        config: upstream's ``config.json`` (with float infinities).
        weights_sha256: hash of the weights. parameters: how many there are.
        data_norm_type: image normalisation, for example ``dinov2``.
        embed_dim: channels of the image encoder. dim: channels of the aggregator.
        extra_tokens: class tokens per view that join the aggregator (1 in v1.1, 0 in v1).
    """

    id: str
    revision: str | None
    config: Mapping[str, Any]
    weights_sha256: Sha256
    parameters: Count
    data_norm_type: str
    embed_dim: Positive
    dim: Positive
    extra_tokens: Annotated[int, Bounds(0, 1)]
    patch_size: Annotated[int, Bounds(PATCH_SIZE, PATCH_SIZE)] = PATCH_SIZE


@dataclass(frozen=True)
class Manifest:
    """Everything in ``manifest.json``.

    Attributes:
        manifest_sha256: of the text that it was read from, see :mod:`.manifest_text`; None where there is none.
        created_by: version of mapengine. tools: versions of the other tools (torch, onnx, python, ...).
        precision: one of ``PRECISIONS``; ``quantization`` is set exactly for int8 and fp8.
        reduced_precision: what a build in less than float32 kept and found; None for fp32.
        attention: one of ``ATTENTIONS``.
        format: a key of ``BACKENDS_BY_FORMAT``: ``onnx`` (for backends on processors), ``onnx-cuda`` or ``plan`` (for
            one kind of TensorRT).
        stages: those of ``EVERY_STAGE``, in that order; bundles of older schemas lack those of ``ADDED_STAGES``.
        parity: as measured against the PyTorch reference after the build, or None.
        kernels: compiled code of the attention between the segments of stages; empty where there is none.
        key_shares: where a build chose fewer keys, the blocks of the aggregator with attention over all views, in
            order; empty where all of them keep all keys.
    """

    schema_version: Annotated[int, Bounds(1, SCHEMA_VERSION)] = field(default=SCHEMA_VERSION, kw_only=True)
    manifest_sha256: Annotated[Sha256 | None, ADDED] = field(default=None, kw_only=True, compare=False)
    created_by: Annotated[str, Key("created_by.mapengine")]
    tools: Mapping[str, str]
    model: ModelInfo
    precision: Annotated[str, OneOf(PRECISIONS)]
    reduced_precision: ReducedPrecision | None
    quantization: Quantization | None
    attention: Annotated[str, OneOf(ATTENTIONS)]
    format: Annotated[str, OneOf(tuple(BACKENDS_BY_FORMAT))]
    backends: tuple[BackendInfo, ...]
    requests: Annotated[ServedRequests, Key("profile")]
    stages: Annotated[Mapping[Annotated[str, OneOf(EVERY_STAGE)], StageSpec], EveryKey(added=ADDED_STAGES)]
    kernels: tuple[KernelCode, ...] = field(default=(), kw_only=True)
    key_shares: Annotated[tuple[KeyShare, ...], ADDED] = field(default=(), kw_only=True)
    golden: Golden
    parity: Parity | None = None

    @property
    def arithmetic(self) -> str:
        """``bf16`` if the files leave it to a CPU backend to run the transformers' float32 tensors in bfloat16; else
        ``fp32``: as the files say."""
        around = self.precision if self.quantization is None else self.quantization.rest
        return "bf16" if self.format == "onnx" and around == "bf16" else "fp32"

    @property
    def fastest_backends(self) -> list[str]:
        """The names of ``backends``, the one first that is the fastest with this network where all are installed."""
        return fastest_first([backend.name for backend in self.backends], self.precision, self.model.parameters)

    @property
    def shares_by_block(self) -> dict[int, float]:
        """The shares of ``key_shares`` by block, for those that do not keep all."""
        return {entry.block: entry.share for entry in self.key_shares if entry.share < 1}

    @classmethod
    def from_json(cls, document: object, name: str = MANIFEST_NAME) -> Manifest:
        """Validate a parsed ``manifest.json``, which messages call ``name``.

        Raises:
            VersionError: the schema is newer than this version of mapengine, or older.
            ManifestError: anything else that ``docs/reference/bundle.md`` does not describe; the message names the JSON
                path.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if type(version) is int and version > 0 and not OLDEST_VERSION <= version <= SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            raise VersionError(
                f"{name} has schema version {shorten(version)} and was made by "
                f"{'a newer' if newer else 'an older'} mapengine (this one reads {OLDEST_VERSION} to "
                f"{SCHEMA_VERSION}); {'upgrade mapengine or build' if newer else 'build'} the bundle again"
            )
        return decode(cls, document, manifest_document(name))

    def to_json(self) -> dict[str, Any]:
        """Return the document, ready for ``json.dumps(..., allow_nan=False)``."""
        return dict(encode(self))

    def check_fields(self, fail: Fail) -> None:
        """Refuse parts that contradict each other."""
        self._check_backends(fail)
        self._check_stages(fail)
        if (self.quantization is not None) != (self.precision in EIGHT_BIT):
            fail("quantization", f"must be set for int8 and fp8, and null otherwise (it is {self.precision})")
        if (self.reduced_precision is None) != (self.precision == "fp32"):
            fail("reduced_precision", f"must be null for fp32, and set otherwise (it is {self.precision})")
        blocks = [entry.block for entry in self.key_shares]
        if blocks != sorted(set(blocks)):
            fail("key_shares", "must name blocks in order, and none twice")
        seen: set[str] = set()
        for record in self.files():
            # Without regard to case, because so are the usual file systems of Windows and macOS.
            if record.file.lower() in seen:
                fail("stages", f"lists the file {record.file!r} twice")
            seen.add(record.file.lower())

    def _check_backends(self, fail: Fail) -> None:
        known = BACKENDS_BY_FORMAT[self.format]
        for index, backend in enumerate(self.backends):
            if backend.name not in known:
                fail(f"backends[{index}].name", f"must be one of {', '.join(known)}, not {shorten(backend.name)}")
        if not self.backends or len({backend.name for backend in self.backends}) != len(self.backends):
            fail("backends", "must name at least one backend, and none twice")
        if self.format == "plan" and len(self.backends) != 1:
            fail("backends", "must name exactly one backend, because a plan is for one kind of TensorRT")

    def _check_stages(self, fail: Fail) -> None:
        on_gpu = self.format != "onnx"
        for name, stage in self.stages.items():
            for graph in (stage, *stage.segments):
                # Backends choose how to read a file by its name, and other formats have files of their own beside them.
                if self.format != "plan" and graph.file is not None and not graph.file.file.endswith(".onnx"):
                    fail(f"stages.{name}", f"must have a file that ends in .onnx, not {shorten(graph.file.file)}")
            axes = {axis for spec in stage.inputs for axis in spec.shape if isinstance(axis, str)}
            free = {axis.rpartition("*")[2] for axis in axes}  # 14*patch_rows follows from the axis patch_rows
            profiles = stage.optimization_profiles
            if on_gpu and not (profiles and all(free <= set(profile) for profile in profiles)):
                fail(f"stages.{name}", "must have profiles that give a range for every dynamic axis of its inputs")
            if stage.segments and not (on_gpu and name == "aggregator"):
                fail(f"stages.{name}", "must not have segments, which only the aggregator on a GPU has")

    def files(self) -> Iterator[FileRecord]:
        """Every file of the bundle except the manifest."""
        for stage in self.stages.values():
            yield from stage.files()
        for kernel in self.kernels:
            yield kernel.file
        yield self.golden.file

    def backend(self, name: str) -> BackendInfo:
        """The entry of the backend ``name``; ``VersionError`` if the bundle is not for it."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        served = " and ".join(backend.name for backend in self.backends)
        raise VersionError(f"this bundle is for {served}, not for {name}; build it again with --backend {name}")
