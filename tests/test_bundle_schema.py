"""The JSON Schema of the manifest: written from the runtime's annotations, and true of what is built."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mapengine.runtime.bundle.manifest import Manifest

pytestmark = pytest.mark.slow  # its fixtures take seconds

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "reference" / "bundle.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_file_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("bundle_schema", DOCS / "bundle_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.manifest_schema() == SCHEMA, "run: python docs/bundle_schema.py"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_a_built_bundle_follows_it(tiny_bundle: Path) -> None:
    VALIDATOR.validate(json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8")))


def test_the_manifest_of_a_chain_follows_it(manifest: Manifest) -> None:
    document = json.loads(json.dumps(manifest.to_json()))
    stage = document["stages"]["aggregator"]
    stage["segments"] = [copy.deepcopy(stage), copy.deepcopy(stage)]
    stage |= {"file": None, "sha256": None, "bytes": None}
    VALIDATOR.validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("precision",), "fp64"),
        (("schema_version",), 9),
        (("key_shares",), [{"block": 2}]),
        (("key_shares",), {"2": 0.25}),
        (("extra",), 1),
        (("created_by", "mapengine"), ""),
        (("model", "weights_sha256"), "A" * 64),
        (("model", "patch_size"), 16),
        (("profile", "views", "min"), 0),
        (("profile", "sizes", "any", "max"), 500),
        (("profile", "sizes"), [[518]]),
        (("profile", "chunks", "aggregator"), 4),
        (("stages", "aggregator", "file"), "../x.onnx"),
        (("stages", "aggregator", "inputs", 0, "dtype"), "float"),
        (("stages", "aggregator", "profiles", 0, "views", "max"), 2**41),
        (("golden", "tolerance", "depth_z", "atol"), -1.0),
        (("parity", "geometry", "roll"), 1.0),
    ],
    ids=str,
)
def test_it_refuses_what_a_field_cannot_be(manifest: Manifest, path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(manifest.to_json()))
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    assert not VALIDATOR.is_valid(document)
