"""The manifest reader: what it accepts, what it refuses and where it says so, and fuzzing."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.runtime.bundle.backend_info import parse_version
from mapengine.runtime.bundle.kernel_attention import GridSide, KernelCode
from mapengine.runtime.bundle.manifest import (
    EVERY_STAGE,
    OLDEST_VERSION,
    SCHEMA_VERSION,
    AnySize,
    BackendInfo,
    Headroom,
    LayerRecord,
    Manifest,
    Quantization,
    Range,
    ReducedPrecision,
    ServedRequests,
    StageSpec,
    manifest_document,
)
from mapengine.runtime.errors import BundleError, DeviceError, ImageSizeError, ManifestError, ProfileError, VersionError
from mapengine.runtime.typed_json.codec import encode
from mapengine.runtime.typed_json.text import parse_json


def parse(text: str | bytes) -> Any:
    return parse_json(text, manifest_document())


SHARED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
DELETE = object()


def change(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of ``document`` with the value at ``path`` (``a.b.0.c``) replaced, or removed for ``DELETE``."""
    result = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = result
    for part in parents:
        target = target[part]
    if value is DELETE:
        del target[last]
    else:
        target[last] = value
    return result


def test_parameters_of_kernels_may_be_missing(manifest: Manifest) -> None:
    """Bundles of this schema were written before they were recorded; nothing else may be missing."""
    sides = (GridSide("splits", 1), GridSide("batch*heads", 1))
    file = replace(manifest.golden.file, file="statistics.ptx")
    code = KernelCode(file, "statistics", 80, "f", (), 0, sides, 32, 0, {"splits": 32})
    document = encode(replace(manifest, kernels=(code,)))
    assert Manifest.from_json(document).kernels == (code,)
    older = Manifest.from_json(change(document, "kernels.0.parameters", DELETE))
    assert older.kernels == (replace(code, parameters={}),)
    with pytest.raises(ManifestError, match=r"kernels\[0\].parameters.splits must be a number, not a string"):
        Manifest.from_json(change(document, "kernels.0.parameters.splits", "32"))
    with pytest.raises(ManifestError, match=r"kernels\[0\] lacks the field 'threads'"):
        Manifest.from_json(change(document, "kernels.0.threads", DELETE))


def test_round_trip(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), allow_nan=False)
    assert Manifest.from_json(parse(text)) == manifest
    assert Manifest.from_json(json.loads(text)).to_json() == manifest.to_json()


def test_round_trip_of_a_quantised_plan(manifest: Manifest) -> None:
    stages = {
        name: replace(
            stage,
            opset=None,
            optimization_profiles=tuple(
                {a: Range(1, opt, 700) for a in ("views", "height", "width")} for opt in (4, 64)
            ),
            layers=LayerRecord(2, 1, ("blocks.1.attn",), {"Int8 x Int8 -> Half": 8}, {"Int8 x Int8 -> Half": 4096}),
            data=(),
        )
        for name, stage in manifest.stages.items()
    }
    plan = replace(
        manifest,
        precision="int8",
        reduced_precision=ReducedPrecision(("head: fc",), (Headroom("head", "fc/MatMul", 9000.0, 7.3),)),
        quantization=Quantization("entropy", "b" * 64, ("head.0", "head.1"), {"aggregator": 24}),
        format="plan",
        attention="matmul",
        backends=(BackendInfo("tensorrt", "10.3.0", "10.3", "10.3", ("8.7",)),),
        requests=ServedRequests(Range(1, 2, 8), ((518, 392), (518, 518))),
        stages=stages,
        parity=None,
    )
    assert Manifest.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_infinities_of_the_configuration_survive_strict_json(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), allow_nan=False)
    assert '"vmax": "Infinity"' in text
    config = Manifest.from_json(json.loads(text)).model.config
    assert config["adaptor"] == {"vmax": math.inf, "vmin": -math.inf, "indices": [7, 11]}


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("schema_version", DELETE, "the top level lacks the field 'schema_version'"),
        ("schema_version", "1", "schema_version must be an integer, not a string"),
        ("schema_version", True, "schema_version must be an integer, not a boolean"),
        ("schema_version", 0, "schema_version must be from 1"),
        ("extra", 1, "the top level has the unknown field 'extra'"),
        ("created_by", "0.1.0", "created_by must be an object, not a string"),
        ("tools.torch", None, "tools.torch must be a string, not null"),
        ("model.weights_sha256", "0" * 63, "model.weights_sha256 must be a SHA-256"),
        ("model.weights_sha256", "G" * 64, "model.weights_sha256 must be a SHA-256"),
        ("model.weights_sha256", "A" * 64, "model.weights_sha256 must be a SHA-256"),
        ("model.parameters", -1, "model.parameters must be from 0"),
        ("model.parameters", 2**63, "model.parameters must be from 0"),
        ("model.parameters", 1.0, "model.parameters must be an integer, not a number"),
        ("model.patch_size", 16, "model.patch_size must be from 14 to 14"),
        ("model.extra_tokens", 2, "model.extra_tokens must be from 0 to 1"),
        ("model.config", [], "model.config must be an object"),
        ("model.config.name", math.nan, "model.config.name must be a finite number"),
        ("model.config.adaptor", math.inf, "model.config.adaptor must be a finite number"),
        ("precision", "fp64", "precision must be one of fp32, fp16"),
        ("precision", "int8", "quantization must be set for int8"),
        (
            "quantization",
            {"method": "m", "data_hash": None, "kept_layers": [], "products": {}, "rest": "fp32"},
            "quantization must be set for int8",
        ),
        ("attention", "flash", "attention must be one of mha"),
        ("format", "engine", "format must be one of onnx, onnx-cuda, plan"),
        ("format", "plan", "backends[0].name must be one of tensorrt"),
        ("backends", [], "backends must name at least one backend"),
        ("backends.1.name", "onnxruntime", "backends must name at least one backend, and none twice"),
        ("backends.0.minimum_version", "new", "backends[0].minimum_version must start with a number"),
        ("backends.0.compute_capability", [8.7], "backends[0].compute_capability[0] must be a string"),
        ("profile.views.min", 5, "profile.views.opt must be from 5"),
        ("profile.views.max", 3, "profile.views.max must be from 4"),
        ("profile.sizes", [], "profile.sizes must name at least one size"),
        ("profile.sizes", [[518, 518], [518, 518]], "profile.sizes must name at least one size, and none twice"),
        ("profile.sizes", [[518, 500]], "profile.sizes[0][1] must be a multiple of 14"),
        ("profile.sizes", [[518]], "profile.sizes[0] must have 2 elements, not 1"),
        ("profile.sizes.any.min", 0, "profile.sizes.any.min must be from 14"),
        ("profile.sizes.any.multiple", 16, "profile.sizes.any.multiple must be a multiple of 14"),
        ("profile.chunks.aggregator", 4, "profile.chunks names 'aggregator'"),
        ("profile.chunks.image_encoder", 0, "profile.chunks.image_encoder must be from 1"),
        ("stages.dense_head", DELETE, "stages lacks the field 'dense_head'"),
        ("stages.aggregator.file", "/etc/passwd", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "../x.onnx", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "a/b.onnx", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "C:x.onnx", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "a\\b.onnx", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "..", "stages.aggregator.file must be a plain file name"),
        ("stages.aggregator.file", "", "stages.aggregator.file must be 1 to"),
        ("stages.aggregator.file", "a\n.onnx", "stages.aggregator.file must be 1 to"),
        ("stages.aggregator.file", "Manifest.JSON", "stages.aggregator.file must not be the manifest"),
        ("stages.aggregator.file", "DENSE_HEAD.onnx", "stages lists the file 'dense_head.onnx' twice"),
        ("stages.aggregator.bytes", -5, "stages.aggregator.bytes must be from 0"),
        ("stages.aggregator.data.0.file", "..\\..", "stages.aggregator.data[0].file must be a plain file name"),
        ("stages.aggregator.inputs", {}, "stages.aggregator.inputs must be a list, not an object"),
        ("stages.aggregator.inputs", [], "stages.aggregator.inputs must name at least one tensor"),
        ("stages.aggregator.inputs.1.shape", "views", "stages.aggregator.inputs[1].shape must be a list, not a string"),
        ("stages.aggregator.inputs.1.shape", [-1], "stages.aggregator.inputs[1].shape[0] must be from 1"),
        ("stages.aggregator.inputs.1.name", "x", "stages.aggregator.inputs[1] repeats the tensor name 'x'"),
        ("stages.aggregator.outputs.0.name", "x", "stages.aggregator.outputs[0] repeats the tensor name 'x'"),
        ("stages.aggregator.outputs.0.dtype", "float", "stages.aggregator.outputs[0].dtype must be one of"),
        ("stages.aggregator.profiles.0.batch", {"min": 1, "opt": 1, "max": 1}, "aggregator.profiles[0] names the axis"),
        ("stages.aggregator.profiles", {}, "stages.aggregator.profiles must be a list"),
        ("stages.aggregator.layers", {}, "stages.aggregator.layers lacks the field"),
        (
            "stages.aggregator.layers",
            {"attention": 2, "fused": 1, "unfused": [], "gemms": {}, "macs": {}},
            "stages.aggregator.layers.unfused must name the 1 attention blocks",
        ),
        (
            "stages.aggregator.layers",
            {"attention": 0, "fused": 0, "unfused": [], "gemms": {"Half x Half -> Half": 1}, "macs": {}},
            "stages.aggregator.layers.macs must have the datatypes of gemms",
        ),
        ("reduced_precision", {"kept_layers": [], "headroom": []}, "reduced_precision must be null for fp32"),
        ("precision", "fp16", "reduced_precision must be null for fp32, and set otherwise (it is fp16)"),
        ("parity.measured_with", "", "parity.measured_with must be 1 to"),
        ("golden.tolerance", {}, "golden.tolerance must name at least one output"),
        ("golden.tolerance.depth_z.atol", -1e-3, "golden.tolerance.depth_z.atol must be a finite number"),
        ("golden.tolerance.depth_z.atol", math.inf, "golden.tolerance.depth_z.atol must be a finite number"),
        ("golden.tolerance.depth_z.rtol", True, "golden.tolerance.depth_z.rtol must be a number, not a boolean"),
        ("parity.geometry.ray_degrees", math.nan, "parity.geometry.ray_degrees must be a finite number"),
        ("parity.geometry.roll", 1.0, "parity.geometry has the unknown field 'roll'"),
    ],
)  # fmt: skip
def test_each_deviation_is_named(manifest: Manifest, path: str, value: object, where: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(change(manifest.to_json(), path, value))
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_schema_says_what_to_do_whatever_else_it_holds() -> None:
    with pytest.raises(VersionError, match=r"made by a newer mapengine.*upgrade mapengine or build the bundle again"):
        Manifest.from_json({"schema_version": SCHEMA_VERSION + 1, "unheard_of": []})
    with pytest.raises(VersionError, match=r"made by an older mapengine.*; build the bundle again"):
        Manifest.from_json({"schema_version": OLDEST_VERSION - 1, "unheard_of": []})


def test_a_plan_needs_a_range_for_every_dynamic_axis(manifest: Manifest) -> None:
    document = change(manifest.to_json(), "format", "plan")
    backend = BackendInfo("tensorrt", "10.3.0", "10.3", "10.3", ("8.7",))
    document["backends"] = [encode(backend)]
    with pytest.raises(ManifestError, match=r"stages.image_normalizer must have profiles that give a range"):
        Manifest.from_json(document)


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}])
def test_absurd_nesting(manifest: Manifest, wrap: Callable[[Any], Any]) -> None:
    Manifest.from_json(change(manifest.to_json(), "model.config", {"deep": nested(20, wrap)}))
    document = manifest.to_json()
    document["model"]["config"] = {"deep": nested(500, wrap)}
    with pytest.raises(ManifestError, match=r"model\.config\.deep.* nested more than 32 levels"):
        Manifest.from_json(document)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "the token NaN is not JSON"),
        (b'{"a": -Infinity}', "the token -Infinity is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' appears twice"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "more than 64 bits"),
        (b'{"a": 99999999999999999999}', "more than 64 bits"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_not_strict_json(text: bytes, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        parse(text)


def test_values_that_json_does_not_have(manifest: Manifest) -> None:
    for value in (10**5000, (1, 2), {1: 2}, {"": 1}, object(), b"x", {"a": {1, 2}}, "\ud800"):
        for path in ("model.config.name", "model.parameters", "golden.tolerance.depth_z.atol", "tools"):
            if value == "\ud800" and path == "model.config.name":
                continue  # a configuration may hold any string; JSON escapes it
            with pytest.raises(ManifestError):
                Manifest.from_json(change(manifest.to_json(), path, value))
    for document in (None, [], "x", 1, {1: 2}):
        with pytest.raises(ManifestError):
            Manifest.from_json(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["../x", "Infinity", "fp16", "a" * 64, "views", "manifest.json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue:
        container = queue.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        queue += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found


@pytest.mark.slow
@SHARED
@given(data=st.data())
def test_mutations_are_refused_or_round_trip(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(json.dumps(manifest.to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        spots = places(document)
        if not spots:
            break
        container, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        action = data.draw(st.sampled_from(["drop", "replace", "insert", "copy"]))
        if action == "drop":
            del container[key]
        elif action == "replace":
            container[key] = data.draw(JSON)
        elif action == "copy":
            other, source = spots[data.draw(st.integers(0, len(spots) - 1))]
            container[key] = copy.deepcopy(other[source]) if source in other or isinstance(other, list) else None
        elif isinstance(container, list):
            container.insert(key, data.draw(JSON))
        else:
            container[data.draw(st.text(max_size=8))] = data.draw(JSON)
    result, message = None, "accepted"
    try:
        result = Manifest.from_json(document)
    except BundleError as error:
        message = str(error)
    if result is not None:
        assert Manifest.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result
    assert message.isascii()  # so it reaches any terminal, whatever the file held
    assert message.isprintable()


@pytest.mark.slow
@SHARED
@given(raw=st.binary(max_size=200) | st.text(alphabet='[]{}",:0123eE.-tfn\\u ', max_size=80).map(str.encode))
def test_random_bytes(raw: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(parse(raw))


def test_truncated_text_is_refused_at_every_length(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json()).encode()
    for length in (*range(0, 60), *range(60, len(text), 37), len(text) - 1):
        with pytest.raises(ManifestError):
            Manifest.from_json(parse(text[:length]))


def test_profile_accepts_what_was_built() -> None:
    any_size = ServedRequests(Range(1, 4, 32), AnySize(14, 518))
    listed = ServedRequests(Range(2, 2, 2), ((518, 392), (392, 518)))
    any_size.check(1, 14, 518)
    any_size.check(32, 518, 14)
    listed.check(2, 392, 518)
    listed.check(2, 518, 392)


def test_profile_names_the_build_option_that_covers_the_request() -> None:
    requests = ServedRequests(Range(2, 4, 32), ((518, 392),))
    with pytest.raises(ProfileError, match=r"64 views in one call.*built for 2 to 32.*--views 2:4:64"):
        requests.check(64, 392, 518)
    with pytest.raises(ProfileError, match=r"1 view in one call.*--views 1:4:32"):
        requests.check(1, 392, 518)
    with pytest.raises(ProfileError, match=r"518x518 .*\(518x392\).*--resolution 518x518"):
        requests.check(4, 518, 518)
    with pytest.raises(ProfileError, match=r"392x518 .*--resolution 392x518"):
        requests.check(4, 518, 392)
    with pytest.raises(ProfileError, match="at least 1 view"):
        requests.check(0, 392, 518)
    with pytest.raises(ProfileError, match=r"sides from 28 to 280 in steps of 28.*--resolution 42x56"):
        ServedRequests(Range(1, 1, 1), AnySize(28, 280, 28)).check(1, 56, 42)


@pytest.mark.parametrize(("height", "width"), [(500, 518), (518, 1), (0, 14), (-14, 14)])
def test_sizes_that_no_bundle_serves(height: int, width: int) -> None:
    with pytest.raises(ImageSizeError, match="not a positive multiple of 14") as caught:
        ServedRequests(Range(1, 4, 32), AnySize(14, 518)).check(1, height, width)
    assert isinstance(caught.value, AssertionError | ValueError)


@pytest.mark.slow
@given(views=st.integers(-3, 50), height=st.integers(-30, 700), width=st.integers(-30, 700))
@settings(deadline=None, max_examples=200)
def test_profile_agrees_with_its_definition(views: int, height: int, width: int) -> None:
    requests = ServedRequests(Range(2, 4, 32), AnySize(28, 518))
    fits = 2 <= views <= 32 and all(28 <= side <= 518 and side % 14 == 0 for side in (height, width))
    if fits:
        requests.check(views, height, width)
    else:
        with pytest.raises((ProfileError, ImageSizeError)):
            requests.check(views, height, width)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2026.4.1-22222-releases/2026/4", (2026, 4, 1)),
        ("1.22", (1, 22)),
        ("1.22.0rc1", (1, 22, 0)),
        ("10.13.3.9", (10, 13, 3, 9)),
        ("dev", ()),
        ("", ()),
        ("1." + "9" * 5000, (1,)),
        ("1.²", (1,)),
    ],
)
def test_parse_version(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(text) == numbers


def test_backend_version_bounds() -> None:
    runtime = BackendInfo("onnxruntime", "1.32.0", "1.22.0")
    for installed in ("1.22", "1.22.0", "1.22.0+cu12", "1.9999", "2.0"):
        runtime.check_version(installed)
    for installed in ("1.21.9", "0.9", "unknown", ""):
        with pytest.raises(VersionError, match=r"needs onnxruntime 1.22.0 or newer.*upgrade"):
            runtime.check_version(installed)
    plan = BackendInfo("tensorrt", "10.3.0", "10.3", "10.3")
    plan.check_version("10.3.0.26")
    for installed in ("10.2.9", "10.4.0", "11.0"):
        with pytest.raises(VersionError, match=r"tensorrt 10.3 or"):
            plan.check_version(installed)


def test_backend_devices() -> None:
    BackendInfo("onnxruntime", "1.32.0", "1.22").check_device(None)
    plan = BackendInfo("tensorrt", "10.3.0", "10.3", "10.3", ("8.7", "8.9"))
    plan.check_device("8.9")
    for device in ("9.0", None):
        with pytest.raises(DeviceError, match=r"built for compute capability 8\.7, 8\.9.*build the bundle again"):
            plan.check_device(device)


def test_backend_by_name(manifest: Manifest) -> None:
    assert manifest.backend("openvino").version == "2026.4.1"
    with pytest.raises(VersionError, match=r"for onnxruntime and openvino, not for tensorrt.*--backend tensorrt"):
        manifest.backend("tensorrt")


def test_files_are_listed_once_each(manifest: Manifest) -> None:
    names = [record.file for record in manifest.files()]
    assert len(names) == len(set(names)) == len(EVERY_STAGE) + 2
    assert {"aggregator.onnx.data", "golden.npz"} <= set(names)
    assert isinstance(manifest.stages["aggregator"], StageSpec)


def test_the_example_in_the_documentation_is_valid() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "bundle.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    manifest = Manifest.from_json(parse(example))
    assert manifest.to_json() == json.loads(example)
    for name in manifest.to_json():
        assert f"`{name}`" in page, f"the page does not explain {name}"
