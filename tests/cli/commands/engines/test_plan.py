"""``mapengine build``, ``verify`` and ``info`` with TensorRT plans, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.bundle.store import Bundle

NO_GPU = "this machine has no NVIDIA driver (libcuda.so.1 is missing)"


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("export.bundles.compilers", "export.tensorrt.limits", "runtime.backends.tensorrt.backend"):
        monkeypatch.setattr(f"mapengine.{module}.driver_problem", lambda: NO_GPU)
    monkeypatch.setattr("mapengine.runtime.backends.cuda.driver.driver_problem", lambda: NO_GPU)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_plans")
def test_a_bundle_of_graphs_is_compiled_shown_and_checked(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    result = cli(
        "build", tiny_bundle, out, "--backend", "tensorrt-rtx", "--target", "sm_89, 12.0", "--memory-limit", "64GiB"
    )
    assert result.code == 0, result.err
    manifest = Bundle.open(out).manifest
    assert manifest.backends[0].compute_capability == ("8.9", "12.0")
    for word in ("attention fused", "0 of 6", "Float x Float -> Float", "of onnxruntime", "Built preset:tiny (fp32)"):
        assert word in result.out
    for stage in manifest.stages:
        assert f"compiling {stage}" in result.err.splitlines()
        assert f"compiling {stage}: 100%" in result.err.splitlines()
    assert any("aggregator: 6 of 6 attention blocks are not fused" in line for line in result.problems)  # float32

    shown = cli("info", out)
    assert shown.code == 0
    assert "tensorrt-rtx" in shown.out
    assert "0 of 3" in shown.out

    required = cli("verify", out)
    assert (required.code, len(required.problems)) == (1, 1)
    assert f"needs an NVIDIA GPU, and {NO_GPU}" in required.problems[0]

    optional = cli("verify", out, "--device", "optional")
    assert optional.code == 0
    assert "Not fused in aggregator: info_sharing.self_attention_blocks.0.attn" in optional.out
    assert f"Not run: the backend tensorrt-rtx needs an NVIDIA GPU, and {NO_GPU}" in optional.out
    assert "its results were not checked on this machine" in optional.out

    shown = cli("demo", out, "--out", tmp_path / "demo")
    assert (shown.code, len(shown.problems)) == (1, 1)
    skipped = cli("demo", out, "--out", tmp_path / "demo", "--device", "optional")
    assert (skipped.code, skipped.problems) == (0, [])
    (line,) = skipped.out.splitlines()
    assert line.startswith("No demonstration on this machine: the backend tensorrt-rtx needs an NVIDIA GPU, and ")
    assert NO_GPU in line
    assert not (tmp_path / "demo").exists()

    plan = out / "aggregator.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    altered = cli("verify", out, "--device", "optional")
    assert altered.code == 1
    assert "aggregator.plan differs from the hash" in altered.problems[0]


@pytest.mark.slow
def test_what_a_source_bundle_has_decided_cannot_be_chosen_again(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    for option, value in (
        ("--precision", "fp16"),
        ("--views", "1:2:4"),
        ("--resolution", "all"),
        ("--attention", "matmul"),
        ("--revision", "main"),
    ):
        result = cli("build", tiny_bundle, tmp_path / "out", "--backend", "tensorrt-rtx", option, value)
        assert result.code == 2
        assert option in result.problems[0]
        assert "is a bundle, which has its own" in result.problems[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("int8@0", "has its attention in float32; build it in fp16"),
        ("sparse-int8", "'sparse-int8' has no threshold above 0 and up to 1; write it as in sparse-int8:0.9"),
    ],
)
def test_kernels_can_be_chosen_for_a_source_bundle(
    attention: str, words: str, cli: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = cli("build", tiny_bundle, tmp_path / "out", "--backend", "tensorrt-rtx", "--attention", attention)
    assert (result.code, len(result.problems)) == (1, 1)
    assert words in result.problems[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--backend", "tensorrt-rtx", "--precision", "fp16", "--target", "sm_87"),
            "not for sm_87; build on a machine",
        ),
        (("--backend", "tensorrt-rtx", "--attention", "attention"), "use --attention mha, or --precision fp16"),
        (("--backend", "tensorrt-rtx", "--views", "1:8:512"), "use --precision fp16 or bf16"),
        (("--precision", "bf16"), "precision 'bf16' is not built for onnxruntime"),
        (("--target", "sm_89"), "targets, memory_limit and optimization_level are options of tensorrt and tens"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(
    cli: Any, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = cli("build", "preset:tiny", tmp_path / "out", *arguments)
    assert (result.code, len(result.problems)) == (1, 1)
    assert words in result.problems[0]
    assert "exporting" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("build", "preset:tiny", "x"), "--memory-limit"),
        (("plan", "bundle"), "--memory"),
        (("run", "bundle", "a.jpg"), "--memory"),
    ],
)
def test_a_size_in_bytes_needs_a_unit(cli: Any, tmp_path: Path, arguments: tuple[str, ...], option: str) -> None:
    for text, words in (("8", "did you mean 8GB"), ("lots", "give a size such as 8GB or 512MiB"), ("0GB", "8GB or")):
        result = cli(*arguments, option, text)
        assert (result.code, len(result.problems)) == (2, 1)
        assert f"{option}: memory is {text!r}" in result.problems[0]
        assert words in result.problems[0]


def test_layers_belong_to_a_model(cli: Any, tiny_bundle: Path) -> None:
    result = cli("verify", tiny_bundle, "--layers")
    assert result.code == 2
    assert "--layers" in result.problems[0]


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_files_of_verify_belong_to_layers(cli: Any, tiny_bundle: Path, tmp_path: Path, option: str) -> None:
    result = cli("verify", tiny_bundle, option, tmp_path / "x")
    assert (result.code, len(result.problems)) == (2, 1)
    assert f"{option}: it belongs to --layers" in result.problems[0]
