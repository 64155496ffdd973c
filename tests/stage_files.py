"""Graphs of no use that are what a manifest says of them, and manifests that a test has changed."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.file_record import MANIFEST_NAME
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.manifest_text import manifest_text


@cache
def graph_bytes(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], opset: int = 20, data: str = "", stored: int = 100
) -> bytes:
    """A graph without nodes, with ``stored`` bytes of weights; or with weights in the file ``data``."""
    import onnx  # here, because most tests need none
    from onnx import TensorProto, helper

    def values(specs: Sequence[TensorSpec]) -> list[Any]:
        types = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}
        return [helper.make_tensor_value_info(spec.name, types[spec.dtype], spec.shape) for spec in specs]

    weight = TensorProto(name="weight", data_type=TensorProto.UINT8, dims=[stored])
    if data:
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=data)
    else:
        weight.raw_data = bytes(index % 251 for index in range(stored))
    graph = helper.make_graph([], "stage", values(inputs), values(outputs), [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(onnx.ModelProto.SerializeToString(model))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a bundle, and its hash of itself with it."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_bytes(manifest_text(document))


def exchange(one: Path, other: Path) -> None:
    """Let two folders take each other's place in one step."""
    here, exchange_both = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    if ctypes.CDLL(None, use_errno=True).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange_both):
        raise OSError(ctypes.get_errno(), "the folders cannot be exchanged")
