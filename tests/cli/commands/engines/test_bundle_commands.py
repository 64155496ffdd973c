"""``mapengine export``, ``build``, ``verify`` and ``info``."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from mapengine.runtime.backend_table import TENSORRT_BACKENDS
from mapengine.runtime.backends.libraries import is_installed
from mapengine.runtime.backends.registry import NAMES, available_backends
from mapengine.runtime.bundle.build_record import OutputParity
from mapengine.runtime.bundle.manifest import ATTENTIONS, EVERY_STAGE, Manifest
from mapengine.runtime.bundle.store import Bundle

from ....stage_files import change_manifest

DATA = Path(__file__).resolve().parents[3] / "data"


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (("build", "preset:tiny", "out", "--backend"), NAMES),
        (("run", "bundle", "a.png", "--backend"), ("auto", *NAMES)),
        (("verify", "bundle", "--backend"), ("all", "auto", *NAMES)),
        (("export", "preset:tiny", "out", "--attention"), ("auto", *ATTENTIONS)),
    ],
)
def test_other_values_are_refused_with_what_there_is(
    cli: Any, arguments: tuple[str, ...], values: tuple[str, ...]
) -> None:
    result = cli(*arguments, "nonsense")
    assert result.code == 2
    assert f"'nonsense' is not one of {', '.join(values)}" in " ".join(re.sub("[│╭╮╰╯─]", " ", result.err).split())


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("matmul:kv=2", "no share of the keys above 0 and up to 1"),
        ("mha:kv=0.25@1", "blocks with attention over all views, which it is for, are 0, 2, 4"),
        ("int8:kv=0.25", "names kernels, which bundles have; use mapengine build"),
        ("mha:kv=0.5@0/matmul:kv=0.5@2", "in 2 forms"),
    ],
)
def test_export_refuses_keys_that_cannot_be_kept(cli: Any, attention: str, words: str, tmp_path: Path) -> None:
    result = cli("export", "preset:tiny", tmp_path / "onnx", "--attention", attention)
    assert result.code == 2
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", result.err).split())
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces")
def test_export_keeps_a_share_of_the_keys(cli: Any, tmp_path: Path) -> None:
    result = cli("export", "preset:tiny", tmp_path / "onnx", "--attention", "mha:kv=0.5@4/native:kv=0.25@0")
    assert result.code == 0, result.err
    graph = ir.load(tmp_path / "onnx" / "aggregator.onnx").graph
    layers = {str(node.name).rpartition("/")[0] for node in graph if node.op_type == "Gather"} - {"info_sharing"}
    assert layers == {f"info_sharing.self_attention_blocks.{block}.attn" for block in (0, 4)}


@pytest.mark.slow
def test_info_and_verify_know_of_fewer_keys(cli: Any, few_keys_bundle: Path) -> None:
    result = cli("info", few_keys_bundle)
    assert "25% in block 0, 50% in block 4 of the aggregator, all in the others" in " ".join(result.out.split())
    result = cli("verify", few_keys_bundle, "--model", "preset:tiny", "--backend", "onnxruntime")
    assert result.code == 0, result.err


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces")
def test_build_prints_the_parity(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    result = cli("build", "preset:tiny", out, "--views", "1:2:9", "--resolution", "112x84,84x112")
    assert result.code == 0, result.err
    manifest = Bundle.open(out).manifest
    assert (manifest.requests.views.min, manifest.requests.views.opt, manifest.requests.views.max) == (1, 2, 9)
    assert manifest.requests.sizes == ((112, 84), (84, 112))
    assert manifest.parity is not None
    for word in (*manifest.parity.outputs, *manifest.parity.cases, "depth AbsRel", "rotation, degrees", str(out)):
        assert word in result.out
    for step in (*(f"exporting {stage}" for stage in EVERY_STAGE), "measuring parity with PyTorch"):
        assert step in result.err.splitlines()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--precision int8"),
        (("--precision", "fp16"), "--precision int8"),
        (("--precision", "int8", "--calibration", "a.json"), "--weights-only"),
    ],
)
def test_weights_only_is_a_usage_error_without_int8(
    cli: Any, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    result = cli("build", "preset:tiny", tmp_path / "engine", "--weights-only", *options)
    assert result.code == 2
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_its_own_weights(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    result = cli("build", tiny_bundle, tmp_path / "engine", "--backend", "tensorrt-rtx", "--weights-only")
    assert result.code == 2
    assert "--weights-only" in result.err


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces")
def test_export_writes_the_stages(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    result = cli("export", "preset:tiny", out, "--attention", "matmul")
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{stage}.onnx" for stage in EVERY_STAGE), "mapengine.json"]
    )
    for word in (*EVERY_STAGE, "opset", "18", "14*patch_rows", "view_features_3", str(out)):
        assert word in result.out


@pytest.mark.slow
def test_verify_against_pytorch(cli: Any, tiny_bundle: Path) -> None:
    result = cli("verify", tiny_bundle, "--model", "preset:tiny", "--backend", "onnxruntime", "--threads", 1)
    assert result.code == 0, result.err
    assert "Against PyTorch, onnxruntime" in result.out
    assert "not metric" in result.out


@pytest.mark.slow
def test_verify_checks_every_installed_backend(cli: Any, tiny_bundle: Path) -> None:
    result = cli("verify", tiny_bundle)
    assert result.code == 0, result.err
    for name in available_backends():
        assert f"Golden check, {name}" in result.out
    assert result.out.count("metric_scaling_factor") == len(available_backends())


def tighten(bundle: Path, out: Path) -> Path:
    """A copy of a bundle whose tolerance nothing keeps."""
    shutil.copytree(bundle, out)

    def change(document: dict[str, Any]) -> None:
        for tolerance in document["golden"]["tolerance"].values():
            tolerance.update(atol=1e-30, rtol=1e-30)

    change_manifest(out, change)
    return out


@pytest.mark.slow
def test_verify_fails_outside_the_tolerance(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    result = cli("verify", tighten(tiny_bundle, tmp_path / "tight"))
    assert result.code == 1
    assert "Verified" not in result.out
    assert len(result.problems) == len(available_backends())
    for name, line in zip(available_backends(), result.problems, strict=True):
        assert line.startswith(f"Error: {name}")
        assert "times its tolerance" in line


@pytest.mark.slow
def test_verify_one_backend(cli: Any, tiny_bundle: Path) -> None:
    result = cli("verify", tiny_bundle, "--backend", "onnxruntime", "--threads", 1)
    assert result.code == 0
    assert "openvino" not in result.out + result.err
    result = cli("verify", tiny_bundle, "--backend", "auto")
    assert result.out.count("Golden check") == 1
    assert result.out.endswith(": inside its tolerances with onnxruntime\n")


def test_verify_where_no_backend_is_installed(cli: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapengine.runtime.backends.registry.is_installed", lambda name: False)
    result = cli("verify", tiny_bundle)
    assert result.code == 1
    assert "pip install 'mapengine[cpu]'" in result.problems[0]


@pytest.mark.slow
def test_verify_refuses_another_model(cli: Any, tiny_bundle: Path) -> None:
    result = cli("verify", tiny_bundle, "--model", DATA / "v11_tiny")
    assert result.code == 1
    assert len(result.problems) == 1
    assert "is not the model of this bundle" in result.problems[0]
    assert "preset:tiny" in result.problems[0]


@pytest.mark.slow
def test_verify_fails_far_from_pytorch(cli: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Bundle.open(tiny_bundle).manifest.parity
    assert recorded is not None
    parity = replace(recorded, outputs={**recorded.outputs, "pts3d": OutputParity(1.0, 0.01)})
    monkeypatch.setattr("mapengine.export.bundles.onnx.measure", lambda engine, model: parity)
    result = cli("verify", tiny_bundle, "--model", "preset:tiny", "--backend", "onnxruntime")
    assert result.code == 1
    assert "differs from PyTorch: pts3d by 1.0e-02" in result.problems[0]
    monkeypatch.setattr("mapengine.export.bundles.onnx.measure", lambda engine, model: recorded)
    assert cli("verify", tiny_bundle, "--model", "preset:tiny", "--backend", "onnxruntime").code == 0


@pytest.mark.slow
def test_info_of_this_machine(cli: Any) -> None:
    result = cli("info")
    assert result.code == 0
    facts = json.loads(cli("info", "--json").out)
    assert list(facts["backends"]) == available_backends()
    for name, version in facts["backends"].items():
        assert f"{name} {version}" in result.out
    assert facts["device"] in result.out
    assert facts["gpu"] in result.out
    assert set(facts["plan compilers"]) == {name for name in TENSORRT_BACKENDS if is_installed(name)}


def test_info_where_onnxruntime_is_for_gpus(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapengine.cli.commands.engines.info.available_backends", lambda: ["onnxruntime-cuda"])
    facts = json.loads(cli("info", "--json").out)
    assert facts["backends"] == {"onnxruntime-cuda": importlib.metadata.version("onnxruntime")}


@pytest.mark.slow
def test_info_of_a_bundle(cli: Any, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    result = cli("info", tiny_bundle)
    assert result.code == 0
    for word in ("preset:tiny", "fp32", "mha", "1 to 32", "14 to 518", manifest.model.weights_sha256, "modality_flags"):
        assert word in result.out
    assert re.search(r"depth_along_ray +\d\.\de-\d\d", result.out)
    document = json.loads(cli("info", tiny_bundle, "--json").out)
    assert Manifest.from_json(document) == manifest


@pytest.mark.slow
def test_info_without_parity_and_of_no_bundle(cli: Any, bundle_folder: Path, tmp_path: Path) -> None:

    def change(document: dict[str, Any]) -> None:
        document["parity"] = None
        document["profile"]["sizes"] = [[518, 392]]

    change_manifest(bundle_folder, change)
    result = cli("info", bundle_folder)
    assert result.code == 0
    assert "not measured" in result.out
    assert "518x392" in result.out
    (bundle_folder / "manifest.json").write_text("{")
    assert (cli("info", bundle_folder).code, cli("info", tmp_path / "none").code) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "out", "words"),
    [
        ("preset:nano-that-is-not", "new", "preset:tiny, preset:giant"),
        ("no/such/folder", "new", "no/such/folder"),
        ("preset:tiny", "file/x", "a part of the path is a file"),
        ("preset:tiny", "file", "it is a file, not a folder"),
    ],
)
@pytest.mark.parametrize("command", ["build", "export"])
def test_build_and_export_refuse(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, model: str, out: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    result = cli(command, model, out)
    assert result.code == 1
    assert len(result.problems) == 1
    assert words in result.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("command", ["build", "export"])
def test_a_folder_with_other_things_is_left_alone(cli: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    result = cli(command, "preset:tiny", tmp_path)
    assert result.code == 1
    assert len(result.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "export"])
def test_a_full_disk_leaves_nothing(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def full(network: object, folder: Path, **_: object) -> None:
        (folder / "image_encoder.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mapengine.export.bundles.onnx.export_stages", full)
    result = cli(command, "preset:tiny", tmp_path / "new" / "out")
    assert result.code == 1
    assert "the disk is full" in result.problems[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_during_a_build(tmp_path: Path) -> None:
    # A shell that starts the tests in the background lets its children ignore SIGINT; not this one.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{listen}; from mapengine.cli import main; main()"]
    command = [*program, "build", "preset:tiny", str(tmp_path / "new" / "engine")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("exporting"):
            break
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert [line for line in errors.splitlines() if not line.startswith("exporting")] == [
        "Interrupted: nothing half-written is left"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_samples(cli: Any, tmp_path: Path) -> None:
    result = cli("samples", tmp_path / "s", "--views", 2)
    assert result.code == 0
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "depth", "mapengine.json", "sample_0.png", "sample_1.png", "views.json",
    ]  # fmt: skip


def test_build_refuses_the_folder_before_it_loads_the_model(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = cli("build", "preset:nope", tmp_path)
    assert done.code == 1
    assert len(done.problems) == 1
    assert "holds no engine bundle" in done.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
