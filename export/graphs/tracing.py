"""Trace the stages into ONNX files with a dynamic number of views and dynamic image size."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from torch import nn
from torch.export import Dim

from mapengine.runtime.errors import ExportError

from ..model.config import PATCH_SIZE
from ..model.network import MapAnythingNetwork
from ..model.network.transformer import Attention, AttentionForm
from .recording import record_graph
from .stages import HEIGHT, WIDTH, Stage, StageTensor, make_normalizer_stage, make_scene_stage, make_stages
from .trace import trace_graph
from .weights import save_model

AttentionExport = Literal["mha", "attention", "matmul"]
"""How attention is written: contrib ``MultiHeadAttention`` (ONNX Runtime, OpenVINO, TensorRT-RTX), the standard
``Attention`` operator (TensorRT 10.14 and later), or MatMul-Softmax-MatMul (TensorRT 10.3 of JetPack 6.2)."""

_OLDEST_OPSET = 18
"""The newest without Gelu as one operator, so the oldest parsers in use read every node of it."""
_FORMS: Mapping[str, tuple[AttentionForm, int]] = {
    "mha": ("mha", 20),
    "attention": ("sdpa", 23),  # the opset that introduced Attention
    "matmul": ("sdpa", _OLDEST_OPSET),
}

_MAX_VIEWS = 65536
_MAX_PATCHES = 4096
_MIN_PATCHES = {"dense_head": 3}
"""Fewest patches of a side that the tracer is told of, where it is not 1. Told of fewer it refuses the head's resizing
and traces it a second time; the graph computes them all the same."""


@dataclass(frozen=True)
class ExportedStage:
    """Files and interface of one written stage."""

    name: str
    path: Path
    data_path: Path | None
    opset: int
    inputs: tuple[StageTensor, ...]
    outputs: tuple[StageTensor, ...]


def export_stages(
    network: MapAnythingNetwork,
    folder: Path,
    *,
    attention: AttentionExport = "mha",
    mha_layers: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    stages: Collection[str] | None = None,
) -> list[ExportedStage]:
    """Write ``<stage>.onnx`` (and ``<stage>.onnx.data`` for large weights) for every stage.

    Args:
        network: float32 network in eval mode.
        folder: existing folder to write into.
        attention: see :data:`AttentionExport`.
        mha_layers: names of attention modules that are ``mha`` whatever ``attention`` says.
        metadata: stored in every file as model metadata; the stage name is added.
        progress: called with the name of each stage before it is traced.
        stages: names of those to write; all if not given.

    Returns:
        One record per stage, in running order.

    Raises:
        ExportError: tracing failed, or the written file has another opset than asked for.
    """
    form, opset = _FORMS[attention]
    written = []
    with _attention_form(network, form, mha_layers), _quiet():
        for stage in make_stages(network).values():
            if stages is not None and stage.name not in stages:
                continue
            if progress is not None:
                progress(stage.name)
            written.append(_export_stage(stage, folder, opset, {**(metadata or {}), "mapengine.stage": stage.name}))
    return written


def export_added_stages(
    folder: Path,
    data_norm_type: str,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[ExportedStage]:
    """Write the stages around the network: in float32, and with operators of the oldest parsers, for every bundle.

    Args:
        folder: existing folder to write into.
        data_norm_type: how images are normalised.
        metadata, progress: see :func:`export_stages`.

    Returns:
        One record per stage of :data:`mapengine.runtime.bundle.stages.ADDED_STAGES`.

    Raises:
        ExportError: as in :func:`export_stages`.
    """
    written = []
    for stage in (make_normalizer_stage(data_norm_type), make_scene_stage(data_norm_type)):
        if progress is not None:
            progress(stage.name)
        written.append(_record_stage(stage, folder, {**(metadata or {}), "mapengine.stage": stage.name}))
    return written


def _record_stage(stage: Stage, folder: Path, metadata: Mapping[str, str]) -> ExportedStage:
    try:
        model = record_graph(
            stage.module,
            stage.examples(),
            dynamic_axes={spec.name: dict(_dynamic_axes(spec)) for spec in (*stage.inputs, *stage.outputs)},
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            opset_version=_OLDEST_OPSET,
        )
    except ExportError as error:
        raise ExportError(f"{stage.name}: {error}") from error
    return _write(model, stage, folder, _OLDEST_OPSET, metadata)


def _export_stage(stage: Stage, folder: Path, opset: int, metadata: Mapping[str, str]) -> ExportedStage:
    try:
        model = trace_graph(
            stage.module,
            stage.examples(),
            dynamic_shapes=(_dynamic_shapes(stage),),
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            opset_version=opset,
        )
    except ExportError as error:
        raise ExportError(f"{stage.name}: {error}") from error
    return _write(model, stage, folder, opset, metadata)


def _write(model: ir.Model, stage: Stage, folder: Path, opset: int, metadata: Mapping[str, str]) -> ExportedStage:
    """Write a traced stage with the names of the contract."""
    written_opset = model.opset_imports[""]
    if written_opset != opset:
        # Asked for an opset that it does not know, the exporter falls back silently.
        raise ExportError(f"{stage.name}: asked for opset {opset}, but the exporter wrote {written_opset}.")
    _name_axes(model, stage)
    _name_nodes(model, stage)
    _drop_default_attributes(model)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = "mapengine", metadata.get("mapengine.version", "")
    model.graph.name = stage.name
    path = folder / f"{stage.name}.onnx"
    data_path = save_model(model, path)
    onnx.checker.check_model(str(path))
    return ExportedStage(stage.name, path, data_path, opset, stage.inputs, stage.outputs)


def _dynamic_axes(spec: StageTensor) -> Iterator[tuple[int, str]]:
    yield from ((index, axis) for index, axis in enumerate(spec.axes) if isinstance(axis, str))


def _dynamic_shapes(stage: Stage) -> tuple[dict[int, object], ...]:
    least = _MIN_PATCHES.get(stage.name, 1)
    rows, columns = (Dim(name, min=least, max=_MAX_PATCHES) for name in ("patch_rows", "patch_columns"))
    dims = {
        stage.leading_axis: Dim(stage.leading_axis, min=1, max=_MAX_VIEWS),
        "patch_rows": rows,
        "patch_columns": columns,
        HEIGHT: PATCH_SIZE * rows,
        WIDTH: PATCH_SIZE * columns,
    }
    return tuple({i: dims[a] for i, a in _dynamic_axes(spec)} for spec in stage.inputs)


def _name_axes(model: ir.Model, stage: Stage) -> None:
    """Give inputs and outputs the axis names of the contract: the tracer loses those that it derives."""
    for values, specs in ((model.graph.inputs, stage.inputs), (model.graph.outputs, stage.outputs)):
        for value, spec in zip(values, specs, strict=True):
            if value.name != spec.name:
                raise ExportError(f"{stage.name}: tensor {spec.name} was traced as {value.name}.")
            value.shape = ir.Shape(list(spec.axes))


def _name_nodes(model: ir.Model, stage: Stage) -> None:
    """Name nodes and weights after the network's modules, and drop the exporting machine's stack traces.

    Builders report what they fused and in which precision by node name, so a name has to say which layer it is. The
    tracer folds the transposition of a linear layer into its weight and forgets the name: it gets it back here.
    """
    used: dict[str, int] = {}
    modules: dict[ir.Node | None, str] = {}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if len(scopes) > 1 and scopes[-2].startswith("network."):
            module = scopes[-2].removeprefix("network.")
        elif not scopes and node.inputs and node.inputs[0] is not None:
            # Made by the optimizer, which forgets where: it belongs to what it reads, as a split of query, key, value.
            module = modules.get(node.inputs[0].producer(), stage.name)
        else:
            module = stage.name
        modules[node] = module
        name = f"{module}/{node.op_type}"
        used[name] = used.get(name, 0) + 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        for value in node.inputs:
            if value is None or value.name is None or not value.is_initializer():
                continue
            if value.name.startswith("network."):
                value.name = value.name.removeprefix("network.")
            elif node.op_type == "MatMul" and f"{module}.weight" not in model.graph.initializers:
                value.name = f"{module}.weight"
            elif (weight := _folded_weight(value)) is not None and weight not in model.graph.initializers:
                value.name = weight
    for node in model.graph:
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()


def _drop_default_attributes(model: ir.Model) -> None:
    """Leave out of ``Attention`` what says nothing: TensorRT's parser does not know these attributes at all."""
    for node in model.graph:
        if node.op_type == "Attention":
            for name in ("softcap", "qk_matmul_output_mode"):
                if name in node.attributes and node.attributes[name].value == 0:
                    del node.attributes[name]


def _folded_weight(value: ir.Value) -> str | None:
    """Name of the only weight that a folded constant was computed from."""
    sources = ast.literal_eval(value.metadata_props.get("pkg.onnxscript.optimizer.folded_from", "[]"))
    weights = [name.removeprefix("network.") for name in sources if name.startswith("network.")]
    return weights[0] if len(weights) == 1 else None


@contextlib.contextmanager
def _attention_form(network: nn.Module, form: AttentionForm, mha_layers: Collection[str]) -> Iterator[None]:
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Attention)}
    before = [layer.form for layer in layers.values()]
    try:
        for name, layer in layers.items():
            layer.form = "mha" if name in mha_layers else form
        yield
    finally:
        for layer, old in zip(layers.values(), before, strict=True):
            layer.form = old


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself (missing torchvision, its own deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
