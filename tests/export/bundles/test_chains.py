"""A bundle whose attention is left to our kernels, compiled on the CPU by TensorRT-RTX and Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mapengine.export import build_engine
from mapengine.export.attention.choice import KernelChoice
from mapengine.export.bundles.chains import kernel_architectures, segment_profiles
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.backends.libraries import is_installed
from mapengine.runtime.bundle.manifest import Range, TensorSpec
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import InputError

from ...shared_plans import REQUESTS

LAYER = "info_sharing.self_attention_blocks.{}.attn"
needs_rtx = pytest.mark.skipif(
    not is_installed("tensorrt-rtx") or importlib.util.find_spec("triton") is None,
    reason="needs tensorrt-rtx and triton",
)


@pytest.mark.slow
@needs_rtx
@pytest.mark.usefixtures("shared_kernels", "shared_plans")
@pytest.mark.parametrize(
    "names", [("flash", "int8", "sparse:0.9"), ("int8-fp8", "sparse-int8:0.9", "sparse-int8-fp8:0.9")]
)
def test_a_chain_is_compiled_with_its_kernels(names: tuple[str, ...], reference: Any, tmp_path: Path) -> None:
    build_engine(
        reference("preset:tiny"),
        tmp_path / "engine",
        backend="tensorrt-rtx",
        precision="fp16",
        attention="/".join(f"{name}@{block}" for name, block in zip(names, (0, 2, 4), strict=True)),
        **REQUESTS,
    )
    bundle = Bundle.open(tmp_path / "engine")
    stage = bundle.manifest.stages["aggregator"]
    assert stage.file is None
    assert tuple(entry.name for entry in stage.attention) == names
    assert [entry.layer for entry in stage.attention] == [LAYER.format(block) for block in (0, 2, 4)]
    assert len(stage.segments) == 4
    assert stage.layers is not None
    assert (stage.layers.attention, stage.layers.fused) == (3, 3)  # the frame-wise ones, as before
    variants = {name for entry in stage.attention for launch in entry.launches for name in launch}
    assert len(variants) >= len(names)
    assert {code.variant for code in bundle.manifest.kernels} == variants
    for variant in variants:
        codes = [code for code in bundle.manifest.kernels if code.variant == variant]
        wanted = {(89, False), (89, True)} if "fp8" in variant else {(80, False), (80, True), (89, False)}
        assert {(code.architecture, code.is_ptx) for code in codes} == wanted
        assert all(argument.value for code in codes for argument in code.arguments)
    named = {record.file for record in bundle.manifest.files()}
    assert {path.name for path in bundle.folder.iterdir()} == named | {"manifest.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "onnxruntime"},
            r"'flash' is for onnxruntime-cuda, tensorrt, tensorrt-rtx, .*leave it out",
        ),
        ({"precision": "fp32"}, r"'flash' is in 16 bits; use the precision fp16 or bf16, or attention native"),
        ({"attention": "flash@1"}, r"block 1 of the aggregator"),
        ({"attention": "flesh"}, r"'flesh' is no kernel; use flash, int8, int8-fp8, sparse:<threshold>, .* native"),
        (
            {"attention": "flash@0/int8-fp8@2", "settings": PlanSettings(("8.9", "8.6"))},
            r"attention int8-fp8 needs compute capability 8.9 or newer, which has FP8, not 8.6; leave that target out, "
            r"or use attention int8$",
        ),
        (
            {"attention": "sparse-int8-fp8:0.9", "settings": PlanSettings(("8.0",))},
            r"attention sparse-int8-fp8:0.9 needs .* not 8.0; .* or use attention sparse-int8:0.9$",
        ),
    ],
)
def test_what_is_refused_before_anything_is_exported(
    options: dict[str, Any], message: str, reference: Any, tmp_path: Path
) -> None:
    if not is_installed("tensorrt-rtx"):
        pytest.skip("needs tensorrt-rtx")
    given = {"backend": "tensorrt-rtx", "precision": "fp16", "attention": "flash", **options}
    with pytest.raises(InputError, match=message):
        build_engine(reference("preset:tiny"), tmp_path / "engine", **given)
    assert not (tmp_path / "engine").exists()


def test_kernels_with_fp8_are_compiled_for_the_gpus_of_a_range_that_have_it() -> None:
    choices = [KernelChoice("flash"), KernelChoice("int8-fp8")]

    def architectures(form: str, *values: int) -> tuple[int, ...]:
        return kernel_architectures(SimpleNamespace(format=form, architectures=lambda: values), choices)  # type: ignore[arg-type]

    assert architectures("plan") == (80, 86, 89, 120)  # TensorRT-RTX's default range
    assert architectures("plan", 120) == (80, 89, 120)  # whose PTX serves later ones
    assert architectures("onnx-cuda", 80, 86, 90) == (80, 86, 89, 90)
    with pytest.raises(InputError, match=r"not 8.7; leave that target out"):
        architectures("onnx-cuda", 80, 87)
    with pytest.raises(InputError, match=r"not 8.6; leave that target out"):
        architectures("plan", 86, 120)


@needs_rtx
def test_a_target_that_no_kernel_has(reference: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"need compute capability 8.0 or newer, not 7.5; leave that target out"):
        build_engine(
            reference("preset:tiny"),
            tmp_path / "engine",
            backend="tensorrt-rtx",
            precision="fp16",
            attention="flash",
            settings=PlanSettings(("7.5",)),
        )


def test_profiles_of_a_segment_know_how_many_tokens_all_views_have() -> None:
    profiles = ({"views": Range(1, 2, 4), "patch_rows": Range(3, 3, 3), "patch_columns": Range(2, 4, 5)},)
    tensors = [TensorSpec("x", "float16", (1, "tokens", 64)), TensorSpec("y", "float16", ("views", 1, 64))]
    (found,) = segment_profiles(profiles, tensors, 1)
    keys = TensorSpec("k", "float16", (1, "keys_0.25", 64))
    assert segment_profiles(profiles, [keys], 1, [0.25]) == ({"keys_0.25": Range(8, 19, 38)},)
    assert found == {"views": Range(1, 2, 4), "tokens": Range(1 * 7 + 1, 2 * 13 + 1, 4 * 16 + 1)}
