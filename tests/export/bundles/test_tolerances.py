"""What our attention kernels cost a bundle, measured without PyTorch; and that a finished bundle can take them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.export import build_engine, compile_engine
from mapengine.export.attention.choice import AttentionChoice, KernelChoice, rounds
from mapengine.export.attention.twins import exact_attention, select_blocks, twin_attention
from mapengine.export.bundles import chains as chain_plans
from mapengine.export.bundles import tolerances
from mapengine.export.bundles.tolerances import kernel_tolerance, widen
from mapengine.export.model.config_json import parse_config
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.backends.libraries import is_installed
from mapengine.runtime.bundle.kernel_attention import KERNELS, KernelAttention
from mapengine.runtime.bundle.store import MANIFEST_NAME, Bundle
from mapengine.runtime.errors import BackendUnavailableError, ExportError, InputError

from ...interpreted_kernels import MISSING, import_interpreted
from ...stage_files import change_manifest

pytestmark = pytest.mark.slow  # its fixtures take seconds

HEADS, DIM = 2, 32
needs_rtx = pytest.mark.skipif(
    not is_installed("tensorrt-rtx") or importlib.util.find_spec("triton") is None,
    reason="needs tensorrt-rtx and triton",
)


def entry(kernel: str, dtype: str = "float16", threshold: float | None = None) -> KernelAttention:
    if threshold is None and KERNELS[kernel].sparse:
        threshold = 0.4
    return KernelAttention("blocks.0.attn", kernel, threshold, HEADS, DIM, dtype, "qkv", "qkv", "qkv", "out", 1)


def packed(length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((1, length, 3 * HEADS * DIM)).astype(np.float16)


def plain_twin(attention: KernelAttention, qkv: np.ndarray, view_tokens: int) -> np.ndarray:
    """The twin in PyTorch that the kernel itself is tested with."""
    import torch

    from mapengine.kernels.selection import Selection

    from ...kernels.twins import dense_attention_reference, int8_attention_reference, sparse_attention_reference

    kind = attention.traits
    parts = torch.from_numpy(qkv).to(getattr(torch, attention.dtype)).reshape(1, -1, 3, HEADS, DIM).unbind(2)
    if attention.threshold is not None:
        selection = Selection(attention.threshold, view_tokens=view_tokens, extra_tokens=1)
        out = sparse_attention_reference(*parts, selection, int8=kind.int8, fp8_values=kind.fp8)
    elif kind.int8:
        out = int8_attention_reference(*parts, fp8_values=kind.fp8)
    else:
        out = dense_attention_reference(*parts)
    return out.float().reshape(1, qkv.shape[1], -1).numpy()


@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("length", "view_tokens"), [(1, 1), (15, 7), (137, 34), (641, 80)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_twin_computes_what_the_twin_in_pytorch_does(kernel: str, length: int, view_tokens: int, dtype: str) -> None:
    import_interpreted()
    attention, qkv = entry(kernel, dtype), packed(length)
    found = twin_attention(attention, {"qkv": qkv}, view_tokens)
    wanted = plain_twin(attention, qkv, view_tokens)
    assert found.dtype == np.float32
    if not KERNELS[kernel].int8:
        unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        np.testing.assert_allclose(found, wanted, rtol=2 * unit, atol=2 * unit * np.abs(wanted).max())
        return
    # The mean of the keys is summed in another order, so a few of the many roundings to INT8 fall otherwise.
    error = rms(wanted - exact_attention(attention, {"qkv": qkv}))
    assert rms(found - wanted) <= error / 10


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("length", "view_tokens", "extra"), [(64, 21, 0), (641, 320, 1), (1025, 256, 0), (1370, 37, 1)]
)
def test_the_kept_blocks(threshold: float, length: int, view_tokens: int, extra: int) -> None:
    import_interpreted()
    import torch

    from mapengine.kernels.selection import Selection

    from ...kernels.twins import select_reference

    query, key = np.random.default_rng(length).standard_normal((2, HEADS, length, DIM)).astype(np.float32)
    found = select_blocks(query, key, threshold, view_tokens, extra)
    parts = [torch.from_numpy(part).transpose(0, 1)[None] for part in (query, key)]
    choice = Selection(threshold, view_tokens=view_tokens, extra_tokens=extra)
    np.testing.assert_array_equal(found, select_reference(*parts, choice)[0])


def test_queries_keys_and_values_may_be_tensors_of_their_own() -> None:
    qkv = packed(40)
    apart = replace(entry("int8-fp8"), query="q", key="k", value="v")
    tensors = dict(zip("qkv", np.split(qkv, 3, axis=2), strict=True))
    np.testing.assert_array_equal(twin_attention(apart, tensors, 8), twin_attention(entry("int8-fp8"), {"qkv": qkv}, 8))


@pytest.fixture(scope="module")
def half(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle in FP16."""
    folder = tmp_path_factory.mktemp("half") / "engine"
    build_engine(reference("preset:tiny"), folder, precision="fp16", views=(1, 2, 4), resolutions=[(56, 42)])
    return folder


def choices(bundle: Path, attention: str) -> dict[str, KernelChoice]:
    return AttentionChoice.parse(attention).layers(parse_config(Bundle.open(bundle).manifest.model.config, "test"))


@pytest.mark.slow
def test_what_kernels_add_is_what_they_round(
    half: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    view_tokens = set()

    def twin(attention: KernelAttention, tensors: Any, tokens: int) -> Any:
        view_tokens.add(tokens)
        return twin_attention(attention, tensors, tokens)

    monkeypatch.setattr(tolerances, "twin_attention", twin)
    assert not rounds(choices(half, "flash"))
    assert rounds(choices(half, "flash@0/int8@2"))
    found = {}
    for name in ("flash", "int8@2", "int8", "int8-fp8"):
        scratch = tmp_path_factory.mktemp("scratch")
        found[name] = kernel_tolerance(Bundle.open(half), choices(half, name), scratch)
    assert view_tokens == {4 * 3 + 1}  # patches of 56x42, and the extra token
    for key in ("pts3d", "conf", "cam_trans"):
        # Dense: rounded probabilities alone, below one unit in the last place of FP16.
        assert found["flash"][key] < 2.0**-11 < found["int8"][key] < found["int8-fp8"][key] < 0.1
        assert 0 < found["int8@2"][key] < 1.5 * found["int8"][key]


def test_a_wider_golden_check(half: Path) -> None:
    golden = Bundle.open(half).manifest.golden
    wider = widen(golden, {"pts3d": 3e-3})
    for key, old in golden.tolerance.items():
        added = 3e-3 if key == "pts3d" else 0.0
        assert wider.tolerance[key].rtol == pytest.approx(old.rtol + added)
        assert wider.tolerance[key].atol / old.atol == pytest.approx((old.rtol + added) / old.rtol)
    assert wider.file == golden.file


def test_a_layer_that_the_bundle_lacks(half: Path, tmp_path: Path) -> None:
    kernels = {"info_sharing.self_attention_blocks.9.attn": KernelChoice("int8")}
    with pytest.raises(ExportError, match=r"9.attn: there is no attention that int8 could compute"):
        kernel_tolerance(Bundle.open(half), kernels, tmp_path)


@pytest.mark.slow
@needs_rtx
def test_a_finished_bundle_takes_kernels_without_pytorch(half: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    program = f"""
import sys
sys.modules["torch"] = None
from mapengine.export import compile_engine
from mapengine.export.tensorrt.settings import PlanSettings
settings = PlanSettings(("8.9",))
compile_engine({str(half)!r}, {str(out)!r}, backend="tensorrt-rtx", attention="int8-fp8@2", settings=settings)
"""
    blocked = tmp_path / "blocked"  # for the compiler's processes as well
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ModuleNotFoundError('torch is blocked', name='torch')", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(blocked)},
    )
    assert result.returncode == 0, result.stderr
    source, made = Bundle.open(half).manifest, Bundle.open(out).manifest
    stage = made.stages["aggregator"]
    assert [(item.name, item.layer[-7:]) for item in stage.attention] == [("int8-fp8", ".2.attn")]
    assert len(stage.segments) == 2
    assert {code.variant for code in made.kernels} >= {"int8-fp8-fp16-d32", "values-fp8-fp16-d32"}
    for key, old in source.golden.tolerance.items():
        assert old.rtol < made.golden.tolerance[key].rtol < old.rtol + 0.1
    assert (made.golden.file, made.parity) == (source.golden.file, source.parity)


@pytest.fixture
def as_it_was(half: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """The bundle with another word in its manifest."""

    def change(old: str, new: str) -> Path:
        folder = Path(shutil.copytree(half, tmp_path / "changed"))
        text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
        assert old in text
        change_manifest(folder, lambda document: document.update(json.loads(text.replace(old, new))))
        return folder

    return change


def test_a_bundle_that_has_no_place_for_kernels(
    tiny_bundle: Path, half: Path, as_it_was: Callable[[str, str], Path], tmp_path: Path
) -> None:
    if not is_installed("tensorrt-rtx"):
        pytest.skip("needs tensorrt-rtx")
    for bundle, attention, message in (
        (tiny_bundle, "int8", r"takes the place of mha, and .* has its attention in float32; build it in fp16$"),
        (as_it_was('"mha"', '"matmul"'), "flash", r"written as matmul; build it with --attention mha$"),
        (half, "attention", r"a way of writing it, and .* has its own \(mha\); leave it out, or build from the model"),
        (half, "flash@1", r"block 1 of the aggregator"),
        (half, "flesh", r"is no kernel"),
    ):
        with pytest.raises(InputError, match=message):
            compile_engine(bundle, tmp_path / "out", backend="tensorrt-rtx", attention=attention)
    settings = PlanSettings(("8.6",))
    with pytest.raises(InputError, match=r"int8-fp8 needs compute capability 8.9 or newer, which has FP8, not 8.6"):
        compile_engine(half, tmp_path / "out", backend="tensorrt-rtx", attention="int8-fp8", settings=settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_plans")
def test_without_triton(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_installed("tensorrt-rtx"):
        pytest.skip("needs tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendUnavailableError, match=r"Triton, which is not installed; run: .*'mapengine\[kernels\]'"):
        compile_engine(half, tmp_path / "out", backend="tensorrt-rtx", attention="flash")
    monkeypatch.setattr(chain_plans, "choose_attention", lambda *_: (KernelChoice("flash"), "attention: flash"))
    said: list[str] = []
    settings = PlanSettings(("8.9",))
    manifest = compile_engine(half, tmp_path / "out", backend="tensorrt-rtx", settings=settings, progress=said.append)
    assert said[0] == "attention: native, because Triton, which compiles our kernels, is not installed"
    assert manifest.kernels == ()


def test_auto_says_what_it_chose(half: Path, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = compile_engine(half, tmp_path / "out", backend="onnxruntime-cuda", progress=said.append)
    assert said[0].startswith("attention: native, because ")
    assert manifest.stages["aggregator"].segments == ()
