"""The benchmarks run and write what the tables need; no test asserts a time."""

from __future__ import annotations

import importlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where its own modules are, as for a script
    try:
        return importlib.import_module("tables")
    finally:
        sys.path.pop(0)


def run(script: str, *arguments: str) -> dict[str, Any]:
    record = Path(arguments[arguments.index("--json") + 1])
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(record.read_text(encoding="utf-8"))


def run_here(script: str, *arguments: str) -> dict[str, Any]:
    """As :func:`run`, in this process, which has PyTorch and the backends loaded."""
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        finally:
            torch.set_num_threads(threads)
    return json.loads(Path(arguments[arguments.index("--json") + 1]).read_text(encoding="utf-8"))


def check(record: dict[str, Any], tables: ModuleType) -> None:
    if record["benchmark"] == "training":  # which may have gone on elsewhere: every part says where it ran
        assert all({"device", "python", "torch"} <= set(part) for part in record["runs"])
    else:
        assert record["machine"]["cpu"]
        assert {"python", "mapengine", "numpy"} <= set(record["versions"])
    assert "commit" in record
    table = tables.RENDER[record["benchmark"]](record)
    assert table.count("\n|") >= 2


@pytest.mark.slow
def test_postprocess(tables: ModuleType, tmp_path: Path) -> None:
    options = ("--size", "112x84", "--views", "2", "--threads", "1", "2", "--runs", "1", "--stage")
    record = run("postprocess.py", *options, "--json", str(tmp_path / "a" / "record.json"))
    check(record, tables)
    assert record["size"] == "112x84"
    assert all(
        set(figures["infer_ms"]) == {"numpy", "onnxruntime", "openvino"} for figures in record["results"].values()
    )
    # From the baseline, and from an independent transcription of the same formulas.
    assert all(figures["mask_pixels_that_differ"] <= 0.005 for figures in record["results"].values())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["record.json"]


@pytest.mark.slow
def test_engine(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    what = ("--model", "preset:tiny", "--bundle", str(tiny_bundle), "--size", "84x56", "--geometry")
    options = (*what, "--rounds", "1", "--calls", "1", "--backends", "onnxruntime", "openvino")
    record = run("engine.py", *options, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    assert set(record["results"]) == {"pytorch-eager", "onnxruntime", "openvino"}
    assert record["results"]["pytorch-eager"]["times_baseline_speed"] == 1


@pytest.mark.slow
def test_build(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = (
        "--model",
        "preset:tiny",
        "--graphs",
        str(tiny_bundle),
        "--precisions",
        "fp16",
        "--requests",
        "1:2:4/140x140",
        "--stages",
        "image_encoder",
    )
    record = run("build.py", *options, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    figures = record["results"]["fp16"]["1:2:4/140x140"]["image_encoder"]
    assert (figures["fused"], figures["attention"]) == (3, 3)


@pytest.mark.slow
def test_precision(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    graphs = shutil.copytree(tiny_bundle, tmp_path / "graphs")
    options = ("--exported", str(graphs), "--size", "42x28", "--cases", "mixed")
    one = ("--precisions", "fp16", "--candidates", "none of them")
    record = run_here("studies/precision.py", *options, *one, "--json", str(tmp_path / "precision.json"))
    check(record, tables)
    assert 0 < record["results"]["fp16"]["errors"]["the policy"]["end_to_end"]["depth_abs_rel"] < 1e-2


@pytest.mark.slow
def test_dense_head(tables: ModuleType, tmp_path: Path) -> None:
    options = ("--scenes", "1", "--tasks", "image-only-2")
    record = run_here("studies/dense_head.py", *options, "--json", str(tmp_path / "dense-head.json"))
    check(record, tables)
    assert len(record["results"]) == 12


def test_the_dense_head_is_rounded_only_meanwhile() -> None:
    import torch

    from mapengine.export.model.reference import load_model

    rounded = runpy.run_path(str(ROOT / "benchmarks/studies/dense_head.py"))["rounded"]
    head = load_model("preset:tiny").dense_head
    channels = [branch[0][0].in_channels for branch in head[0].input_process]
    maps = [torch.randn(1, count, 2, 3, generator=torch.Generator().manual_seed(2)) for count in channels]
    errors = {}
    with torch.no_grad():
        expected = head(maps)
        for precision, levels in (("bf16", ("coarse",)), ("bf16", ("coarse", "fine")), ("int8", ("coarse", "fine"))):
            with rounded(head, levels, precision, False):
                errors[precision, len(levels)] = float((head(maps) - expected).norm() / expected.norm())
            assert torch.equal(head(maps), expected)
    assert 0 < errors["bf16", 1] < errors["bf16", 2] < errors["int8", 2] < 0.2


@pytest.mark.slow
def test_attention(tables: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
    kernels = tmp_path / "kernels"
    choice = ("--arch", "87", "--head-dim", "64", "--kernel", "dense-fp16", "--jobs", "1")
    command = [sys.executable, "-m", "mapengine.kernels", "compile", "--out", str(kernels), *choice]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    options = ("--kernels", str(kernels), "--views", "1", "--trained-views", "2", "--rounds", "1")
    record = run_here("attention.py", *options, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    figures = record["compiled"]["dense-fp16"]["87"]
    # 256 threads of 129 to 255 registers: one program per multiprocessor, of 48 warps that it could hold.
    assert 128 < figures["registers"] <= 255
    assert (figures["warps_per_multiprocessor"], figures["occupancy"]) == (8, round(8 / 48, 3))
    assert record["work"]["1"]["dense-fp16"]["tflop"] == pytest.approx(4 * 24 * 1370**2 * 64 / 1e12)
    if record["machine"]["gpu"] is None:
        assert "not measured" in record["speed"]


@pytest.mark.slow
def test_kept_keys(tables: ModuleType, tmp_path: Path) -> None:
    choices = ("native:kv=1", "native:kv=0.25@2", "native:kv=0.25@2+own+mean")
    record = run_here("kept_keys.py", *choices, "--scenes", "2", "--json", str(tmp_path / "record.json"))
    check(record, tables)
    same, few, variant = (result["tasks"]["images"] for result in record["results"])
    assert set(map(tuple, same.values())) == {(1.0, 0.0)}
    assert few["all"] != variant["all"]
    assert few["depth_abs_rel"][0] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_evaluation(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = (str(tiny_bundle), "--backend", "onnxruntime", "--scenes", "2", "--size", "56x42")
    some = ("--tasks", "image-only-2", "depth")
    record = run_here("evaluation.py", *options, *some, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    assert set(record["results"]) == {"image-only-2", "depth"}
    assert record["results"]["depth"]["scenes"] == 2
    table = tables.RENDER["evaluation"](record)
    assert "| `depth` | 4 |" in table
    assert "onnxruntime" in table


@pytest.mark.slow
def test_soak(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--seconds", "1", "--threads", "2", "--bundle", str(tiny_bundle), "--backends", "onnxruntime")
    record = run("soak.py", *options, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    assert record["first_difference"] is None
    assert sum(record["results"]["onnxruntime"].values()) >= 10  # a round ends with the calls that it began
    assert record["growth"].keys() == {"resident_bytes", "descriptors", "threads"}
    assert "First difference from a single thread: none." in tables.RENDER["soak"](record)


@pytest.mark.slow
def test_load(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--bundle", str(tiny_bundle), "--model", "preset:tiny", "--size", "56x56", "--backends", "onnxruntime")
    record = run("load.py", *options, "--json", str(tmp_path / "record.json"))
    check(record, tables)
    graphs = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.suffix in (".onnx", ".data"))
    assert record["weights_mb"] == graphs / 1e6
    figures = record["results"]["onnxruntime"]
    assert min(figures.values()) > 0


@pytest.mark.slow
def test_batch(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--bundle", str(tiny_bundle), "--scenes", "4", "--views", "1", "--size", "56x42", "--rounds", "1")
    record = run("batch.py", *options, "--listed", "10", "--json", str(tmp_path / "record.json"))
    check(record, tables)
    assert set(record["results"]) == {"1", "2"}
    assert record["driver"]["10"]["peak_mb"] > 0


def test_a_soak_ends_at_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    soak = importlib.import_module("soak")
    value = np.ones((1, 2, 2), np.float32)
    case = soak.Case("a call", [{}], [{"conf": value}])
    case.check([{"conf": value.copy()}])
    for other in (value * np.float32(1 + 2**-23), value.astype(float)):
        with pytest.raises(soak.Different, match="a call: conf of view 0 differs"):
            case.check([{"conf": other}])
    with pytest.raises(soak.Different, match="view 0 has other keys"):
        case.check([{}])


def test_tables_in_the_documentation_are_up_to_date(tables: ModuleType) -> None:
    for document in tables.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert tables.rendered(text) == text, f"{document.name}: run benchmarks/tables.py --write"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_shown_and_names_its_origin(path: Path, tables: ModuleType) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    check(record, tables)
    assert any(f"<!-- results: {path.stem} -->" in d.read_text(encoding="utf-8") for d in tables.DOCUMENTS)


def test_tables_are_written_into_the_named_documents(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "page.md"
    document.write_text("Before.\n<!-- results: loading -->\nold\n<!-- end -->\nAfter.\n", encoding="utf-8")
    for options, code in (([], 1), (["--write"], 0), ([], 0)):
        monkeypatch.setattr(sys, "argv", ["tables.py", str(document), *options])
        assert tables.main() == code
    text = document.read_text(encoding="utf-8")
    assert text.startswith("Before.\n<!-- results: loading -->\n| one after the other |")
    assert text.endswith("<!-- end -->\nAfter.\n")


@pytest.mark.slow
def test_sequences(tables: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--bundle", str(tiny_bundle), "--sequences", "1", "--slow", "1", "--frames", "6", "--walk", "60")
    record = tmp_path / "record.json"
    for parts in (["joins", "limits"], ["keyframes"]):  # parts that are run later go into the record that is there
        measured = run_here(
            "sequences.py", *options, "--window", "4", "--overlap", "2", "--size", "56", "42",
            "--parts", *parts, "--json", str(record),
        )  # fmt: skip
    check(measured, tables)
    assert set(measured["results"]["windows"]) == {
        *(f"windows, {join}" for join in ("align", "poses", "poses+depth")),
        "one call",
        "windows, true poses of shared frames",
    }
    choices = measured["results"]["keyframes"]
    assert choices["all"]["metrics"]["keyframes"] == 1
    assert {name: found["metrics"]["keyframes"] < 1 for name, found in choices.items() if name != "all"} == {
        "overlap": True,
        "features": True,
    }
    assert [bar["most"] for bar in measured["bars"]] == [0.7, 1.3]
    assert all(bar["met"] == (bar["value"] <= bar["most"]) for bar in measured["bars"])
