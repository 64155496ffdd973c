"""``manifest.json``: what an engine bundle holds, as typed values.

``Manifest.from_json`` accepts exactly what ``docs/bundle.md`` describes and nothing else; every deviation is a
``ManifestError`` that names the JSON path. The file names, sizes and hashes are checked against the folder in
``bundle.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import VersionError
from .backend_info import BackendInfo
from .build_record import Headroom, LayerRecord, ReducedPrecision
from .codec import Reader, encode_free
from .kernel_attention import KernelAttention, KernelCode
from .parity_record import GeometryParity, OutputParity, Parity, Tolerance
from .requests import PATCH_SIZE, AnySize, Range, ServedRequests
from .stages import DTYPES, FileRecord, StageSpec, TensorSpec

__all__ = [
    "ATTENTIONS",
    "BACKENDS_BY_FORMAT",
    "DTYPES",
    "PATCH_SIZE",
    "PRECISIONS",
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

SCHEMA_VERSION = 4
STAGES = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
RESTS = ("fp32", "fp16", "bf16")
"""What may be around 8-bit products."""
ATTENTIONS = ("mha", "attention", "matmul")
"""Contrib MultiHeadAttention, the standard ONNX Attention, and MatMul-Softmax-MatMul."""
BACKENDS_BY_FORMAT = {
    "onnx": ("onnxruntime", "openvino"),
    "onnx-cuda": ("onnxruntime-cuda",),
    "plan": ("tensorrt", "tensorrt-rtx"),
}
"""Of a plan, and of graphs for a GPU, a stage has profiles, and may be a chain."""
_TOP = (
    "schema_version", "created_by", "tools", "model", "precision", "reduced_precision", "quantization", "attention",
    "format", "backends", "profile", "stages", "kernels", "golden", "parity",
)  # fmt: skip


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
    weights_sha256: str
    parameters: int
    data_norm_type: str
    embed_dim: int
    dim: int
    extra_tokens: int
    patch_size: int = PATCH_SIZE

    @classmethod
    def read(cls, reader: Reader) -> ModelInfo:
        """Read the member ``model``."""
        fields = reader.fields(*cls.__dataclass_fields__)
        config = fields["config"].free()
        if not isinstance(config, dict):
            fields["config"].fail("must be an object")
        return cls(
            id=fields["id"].text(),
            revision=None if fields["revision"].is_null() else fields["revision"].text(),
            config=config,
            weights_sha256=fields["weights_sha256"].sha256(),
            parameters=fields["parameters"].integer(),
            data_norm_type=fields["data_norm_type"].text(),
            embed_dim=fields["embed_dim"].integer(1),
            dim=fields["dim"].integer(1),
            extra_tokens=fields["extra_tokens"].integer(0, 1),
            patch_size=fields["patch_size"].integer(PATCH_SIZE, PATCH_SIZE),
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {name: encode_free(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Quantization:
    """What INT8 or FP8 was written with.

    Attributes:
        method: of the ranges, and the recoveries. data_hash: None when no calibration data was used.
        kept_layers: layers that could be quantised and are not.
        products: number of matrix products in 8 bits, by stage; a backend has to run as many. Empty where only weights
            are in 8 bits.
        rest: precision of what is not in 8 bits: ``fp32``, ``fp16`` (as in an FP16 engine), or ``bf16`` (float32 files,
            whose transformers OpenVINO runs in bfloat16).
    """

    method: str
    data_hash: str | None
    kept_layers: tuple[str, ...] = ()
    products: Mapping[str, int] = field(default_factory=dict)
    rest: str = "fp32"

    @classmethod
    def read(cls, reader: Reader) -> Quantization:
        """Read ``{"method", "data_hash", "kept_layers", "products", "rest"}``."""
        fields = reader.fields("method", "data_hash", "kept_layers", "products", "rest")
        data_hash = None if fields["data_hash"].is_null() else fields["data_hash"].sha256()
        products = fields["products"].members()
        for name, member in products.items():
            if name not in STAGES:
                member.fail("is of no stage")
        return cls(
            fields["method"].text(),
            data_hash,
            tuple(item.text() for item in fields["kept_layers"].items()),
            {name: member.integer() for name, member in products.items()},
            fields["rest"].choice(RESTS),
        )

    @property
    def weights_only(self) -> bool:
        """Whether only weights are in 8 bits: activations have no range without data."""
        return self.data_hash is None

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {
            "method": self.method,
            "data_hash": self.data_hash,
            "kept_layers": list(self.kept_layers),
            "products": dict(self.products),
            "rest": self.rest,
        }


@dataclass(frozen=True)
class Golden:
    """The small input with its reference outputs, and the tolerance that each output must keep."""

    file: FileRecord
    tolerance: Mapping[str, Tolerance]

    @classmethod
    def read(cls, reader: Reader) -> Golden:
        """Read the member ``golden``."""
        fields = reader.fields("file", "sha256", "bytes", "tolerance")
        tolerance = {name: Tolerance.read(member) for name, member in fields["tolerance"].members().items()}
        if not tolerance:
            fields["tolerance"].fail("must name at least one output")
        return cls(FileRecord.read(fields), tolerance)

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {**self.file.to_json(), "tolerance": {name: t.to_json() for name, t in self.tolerance.items()}}


@dataclass(frozen=True)
class Manifest:
    """Everything in ``manifest.json``.

    Attributes:
        created_by: version of mapengine. tools: versions of the other tools (torch, onnx, python, ...).
        precision: one of ``PRECISIONS``; ``quantization`` is set exactly for int8 and fp8.
        reduced_precision: what a build in less than float32 kept and found; None for fp32.
        attention: one of ``ATTENTIONS``.
        format: ``onnx`` (served by onnxruntime and openvino on processors), ``onnx-cuda`` (by onnxruntime-cuda) or
            ``plan`` (by one kind of TensorRT).
        stages: the four stages of ``STAGES``, in that order.
        parity: as measured against the PyTorch reference after the build, or None.
        kernels: compiled code of the attention between the segments of stages; empty where there is none.
    """

    created_by: str
    tools: Mapping[str, str]
    model: ModelInfo
    precision: str
    reduced_precision: ReducedPrecision | None
    quantization: Quantization | None
    attention: str
    format: str
    backends: tuple[BackendInfo, ...]
    requests: ServedRequests
    stages: Mapping[str, StageSpec]
    golden: Golden
    parity: Parity | None = None
    kernels: tuple[KernelCode, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def arithmetic(self) -> str:
        """``bf16`` if the files leave it to a CPU backend to run the transformers' float32 tensors in bfloat16; else
        ``fp32``: as the files say."""
        around = self.precision if self.quantization is None else self.quantization.rest
        return "bf16" if self.format == "onnx" and around == "bf16" else "fp32"

    @classmethod
    def from_json(cls, document: object) -> Manifest:
        """Validate a parsed ``manifest.json``.

        Raises:
            VersionError: the schema is newer than this version of mapengine.
            ManifestError: anything else that ``docs/bundle.md`` does not describe; the message names the JSON path.
        """
        top = Reader(document)
        version = top.members().get("schema_version")
        if version is not None and version.integer(1) != SCHEMA_VERSION:
            newer = version.integer() > SCHEMA_VERSION
            raise VersionError(
                f"manifest.json has schema version {version.integer()} and was made by "
                f"{'a newer' if newer else 'an older'} mapengine (this one reads {SCHEMA_VERSION}); "
                f"{'upgrade mapengine or build' if newer else 'build'} the bundle again"
            )
        fields = top.fields(*_TOP)
        form = fields["format"].choice(BACKENDS_BY_FORMAT)
        manifest = cls(
            created_by=fields["created_by"].fields("mapengine")["mapengine"].text(),
            tools={name: member.text() for name, member in fields["tools"].members().items()},
            model=ModelInfo.read(fields["model"]),
            precision=fields["precision"].choice(PRECISIONS),
            reduced_precision=(
                None if fields["reduced_precision"].is_null() else ReducedPrecision.read(fields["reduced_precision"])
            ),
            quantization=None if fields["quantization"].is_null() else Quantization.read(fields["quantization"]),
            attention=fields["attention"].choice(ATTENTIONS),
            format=form,
            backends=_read_backends(fields["backends"], form),
            requests=ServedRequests.read(fields["profile"]),
            stages=_read_stages(fields["stages"], form),
            golden=Golden.read(fields["golden"]),
            parity=None if fields["parity"].is_null() else Parity.read(fields["parity"]),
            kernels=tuple(KernelCode.read(item) for item in fields["kernels"].items()),
        )
        if (manifest.quantization is not None) != (manifest.precision in ("int8", "fp8")):
            fields["quantization"].fail(
                f"must be set for int8 and fp8, and null otherwise (it is {manifest.precision})"
            )
        if (manifest.reduced_precision is None) != (manifest.precision == "fp32"):
            fields["reduced_precision"].fail(f"must be null for fp32, and set otherwise (it is {manifest.precision})")
        seen: set[str] = set()
        for record in manifest.files():
            # Without regard to case, because so are the usual file systems of Windows and macOS.
            if record.file.lower() in seen:
                fields["stages"].fail(f"lists the file {record.file!r} twice")
            seen.add(record.file.lower())
        return manifest

    def to_json(self) -> dict[str, Any]:
        """The document, ready for ``json.dumps(..., allow_nan=False)``."""
        return {
            "schema_version": self.schema_version,
            "created_by": {"mapengine": self.created_by},
            "tools": dict(self.tools),
            "model": self.model.to_json(),
            "precision": self.precision,
            "reduced_precision": self.reduced_precision.to_json() if self.reduced_precision else None,
            "quantization": self.quantization.to_json() if self.quantization else None,
            "attention": self.attention,
            "format": self.format,
            "backends": [backend.to_json() for backend in self.backends],
            "profile": self.requests.to_json(),
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "golden": self.golden.to_json(),
            "parity": self.parity.to_json() if self.parity else None,
        }

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


def _read_stages(reader: Reader, form: str) -> dict[str, StageSpec]:
    members = reader.fields(*STAGES)
    stages = {name: StageSpec.read(members[name]) for name in STAGES}
    for name, stage in stages.items():
        axes = {axis for spec in stage.inputs for axis in spec.shape if isinstance(axis, str)}
        free = {axis.rpartition("*")[2] for axis in axes}  # 14*patch_rows follows from the axis patch_rows
        if form != "onnx" and not (stage.profiles and all(free <= set(profile) for profile in stage.profiles)):
            members[name].fail("must have profiles that give a range for every dynamic axis of its inputs")
        if stage.segments and (form == "onnx" or name != "aggregator"):
            members[name].fail("must not have segments, which only the aggregator on a GPU has")
    return stages


def _read_backends(reader: Reader, form: str) -> tuple[BackendInfo, ...]:
    backends = tuple(BackendInfo.read(item, BACKENDS_BY_FORMAT[form]) for item in reader.items())
    if not backends or len({backend.name for backend in backends}) != len(backends):
        reader.fail("must name at least one backend, and none twice")
    if form == "plan" and len(backends) != 1:
        reader.fail("must name exactly one backend, because a plan is for one kind of TensorRT")
    return backends
