"""Ahead-of-time compilation, with no GPU: what it writes, what it builds again, and what it says when it cannot."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mapengine.kernels.__main__ import main
from mapengine.kernels.compile import MANIFEST, chosen, job_key, read_manifest
from mapengine.kernels.errors import KernelInputError, KernelOutputError
from mapengine.kernels.files import write_atomic
from mapengine.kernels.tuning import ARCHITECTURES, HEAD_DIMS, tile_for
from mapengine.kernels.variants import Variant, variants

PACKAGE = Path(__file__).parents[2] / "kernels"
Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, named ``copied``, to edit and to run as ``python -m copied``."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(PACKAGE, folder / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def compile_in(python: Python, sources: Path, *options: str) -> str:
    out = ("--out", str(sources / "built"))
    done = python("-m", "copied", "compile", *out, "--jobs", "1", *options, path=sources)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def manifest_of(sources: Path) -> dict[str, Any]:
    manifest = json.loads((sources / "built" / MANIFEST).read_text(encoding="utf-8"))
    assert isinstance(manifest, dict)
    return manifest


CHOICE = ("--arch", "80", "89", "--head-dim", "64", "--kernel", "pool-keys-fp16", "int8-fp8-fp16")


@pytest.mark.slow
def test_builds_once_and_again_only_what_changed(python: Python, sources: Path) -> None:
    assert "3 compiled, 0 unchanged, 1 not applicable (FP8 before sm_89), 0 refused" in compile_in(
        python, sources, *CHOICE
    )
    built = sources / "built"
    manifest = manifest_of(sources)
    kernels = manifest["kernels"]
    assert list(kernels) == ["int8-fp8-fp16-d64.sm_89", "pool-keys-fp16-d64.sm_80", "pool-keys-fp16-d64.sm_89"]
    assert {"triton", "ptxas"} <= set(manifest["versions"])
    assert (manifest["alignment"], manifest["splits"]) == (16, 32)
    for name, entry in kernels.items():
        code = (built / entry["cubin"]["file"]).read_bytes()
        assert entry["cubin"] == {"file": f"{name}.cubin", "sha256": hashlib.sha256(code).hexdigest()}
        assert code.startswith(b"\x7fELF")
        assert entry["entry"].encode() in code
        assert str(sources).encode() not in code  # the path of the source
        assert 0 < entry["resources"]["registers"] <= 255
        assert entry["resources"]["spill_stores"] == entry["resources"]["spill_loads"] == 0
        assert entry["scratch_pointers"] >= 0
    attention = kernels["int8-fp8-fp16-d64.sm_89"]
    assert attention["grid"] == [{"of": "length", "per": 128}, {"of": "batch*heads", "per": 1}]
    assert attention["threads"] == 32 * tile_for(89, 64, "dense").warps
    assert [a["type"] for a in attention["arguments"]][:3] == ["*i8", "*i8", "*fp8e4nv"]
    assert [a["name"] for a in attention["arguments"]][7:10] == ["length", "key_length", "heads"]
    assert any("s8.s8" in name for name in attention["tensor_cores"])
    assert any("e4m3.e4m3" in name for name in attention["tensor_cores"])
    # PTX of the first architecture that has the kernel; it is for no chip in particular.
    assert [name for name, entry in kernels.items() if entry["ptx"]] == [*kernels][:2]
    for name in ("int8-fp8-fp16-d64", "pool-keys-fp16-d64"):
        text = (built / f"{name}.ptx").read_text(encoding="utf-8")
        assert ".target sm_89" in text or ".target sm_80" in text
        assert ".version 8.4" in text

    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir() if path.name != MANIFEST}
    assert "0 compiled, 3 unchanged" in compile_in(python, sources, *CHOICE)
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir() if path.name != MANIFEST} == before
    assert manifest_of(sources) == manifest

    # An edited kernel, a damaged file and a missing one.
    path = sources / "copied" / "pooling.py"
    text = path.read_text(encoding="utf-8")
    assert "block = tl.program_id(0)" in text
    path.write_text(text.replace("block = tl.program_id(0)", "block = tl.program_id(0) + 0"), encoding="utf-8")
    (built / "int8-fp8-fp16-d64.sm_89.cubin").write_bytes(b"damaged")
    assert "3 compiled, 0 unchanged" in compile_in(python, sources, *CHOICE)
    changed = manifest_of(sources)["kernels"]
    assert changed["int8-fp8-fp16-d64.sm_89"] == attention  # the same source gives the same code
    for name in list(kernels)[1:]:
        assert changed[name]["source_sha256"] != kernels[name]["source_sha256"]
    (built / "pool-keys-fp16-d64.sm_89.cubin").unlink()
    assert "1 compiled, 2 unchanged" in compile_in(python, sources, *CHOICE)


@pytest.mark.slow
def test_a_chip_that_the_compiler_does_not_know_is_named(python: Python, sources: Path) -> None:
    options = (
        "--out",
        str(sources / "unknown"),
        "--jobs",
        "1",
        "--head-dim",
        "64",
        "--kernel",
        "pool-keys-bf16",
        "values-fp8-bf16",
    )
    done = python("-m", "copied", "compile", "--arch", "89", "130", *options, path=sources)
    assert done.returncode == 1
    assert "2 compiled" in done.stdout
    assert "2 refused" in done.stdout
    assert "refused: pool-keys-bf16-d64" in done.stderr
    assert "sm_130" in done.stderr
    assert "Traceback" not in done.stderr
    manifest = json.loads((sources / "unknown" / MANIFEST).read_text(encoding="utf-8"))
    assert sorted(manifest["kernels"]) == ["pool-keys-bf16-d64.sm_89", "values-fp8-bf16-d64.sm_89"]
    assert sorted(manifest["refused"]) == ["pool-keys-bf16-d64.sm_130", "values-fp8-bf16-d64.sm_130"]


def test_interpreted_kernels_are_not_compiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
    assert main(["compile", "--out", str(tmp_path), "--arch", "80", "--kernel", "pool-keys-fp16"]) == 1
    assert "unset" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_triton_it_says_what_to_install(python: Python, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import mapengine.kernels, mapengine.kernels.__main__ as cli\n"
        "assert not {'torch', 'triton'} & {name for name, module in sys.modules.items() if module}\n"
        f"code = cli.main(['compile', '--out', {str(tmp_path / 'out')!r}, '--kernel', 'pool-keys-fp16'])\n"
        "try: mapengine.kernels.dense_attention\n"
        "except ImportError as error: print(type(error).__name__)\n"
        "sys.exit(code)"
    )
    done = python("-c", script)
    assert done.returncode == 1
    assert "pip install 'mapengine[kernels]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == "KernelUnavailableError"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_pytorch_kernels_are_compiled_but_not_run(python: Python, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"  # the compiler's processes get the path as well
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')", encoding="utf-8")
    options = ["--out", str(tmp_path / "out"), "--arch", "89", "--head-dim", "32", "--kernel", "int8-fp8-fp16"]
    script = (
        f"import sys; sys.path.insert(0, {str(blocked)!r})\n"
        "import mapengine.kernels, mapengine.kernels.__main__ as cli\n"
        f"code = cli.main(['compile', *{options!r}])\n"
        "try: mapengine.kernels.dense_attention\n"
        "except ImportError as error: print(error)\n"
        "sys.exit(code)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert "1 compiled" in done.stdout
    assert "dense_attention needs Triton and PyTorch (no torch); run: pip install" in done.stdout


def test_variants() -> None:
    found = variants()
    names = [variant.name for variant in found]
    assert len(set(names)) == len(names)
    assert {variant.head_dim for variant in found} == set(HEAD_DIMS)
    for variant in found:
        assert (PACKAGE / f"{variant.module}.py").exists()
        for architecture in ARCHITECTURES:
            assert variant.tile(architecture).warps in (4, 8)
        uses_fp8 = "fp8e4nv" in variant.pointers.values()
        assert variant.first_architecture == (89 if uses_fp8 else 80)


def test_everything_that_decides_the_code_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = next(v for v in variants() if v.name == "dense-fp16-d64")
    changes: list[tuple[Variant, int, str, str]] = [
        (variant, 80, "source", "3.9"),
        (variant, 86, "source", "3.9"),
        (variant, 80, "other source", "3.9"),
        (variant, 80, "source", "4.0"),
        (replace(variant, constants={**variant.constants, "BLOCK_N": 32}), 80, "source", "3.9"),
        (replace(variant, pointers={**variant.pointers, "out": "fp32"}), 80, "source", "3.9"),
        (replace(variant, parameters={"splits": 32}), 80, "source", "3.9"),
    ]
    keys = {job_key((v, architecture), source, {"triton": version}) for v, architecture, source, version in changes}
    tuned = variant.tile(80)
    others = [replace(tuned, warps=2 * tuned.warps), replace(tuned, stages=tuned.stages + 1)]
    for tile in others:
        monkeypatch.setattr("mapengine.kernels.variants.tile_for", lambda *_, tile=tile: tile)
        keys.add(job_key((variant, 80), "source", {"triton": "3.9"}))
    assert len(keys) == len(changes) + len(others)


def test_choices_that_name_nothing_are_refused() -> None:
    assert len(chosen([80, 87], [64], ["dense-fp16"])) == 2
    with pytest.raises(KernelInputError, match="no kernel is called nonsense"):
        chosen([80], [64], ["nonsense"])
    with pytest.raises(KernelInputError, match="head sizes are"):
        chosen([80], [48])
    with pytest.raises(KernelInputError, match="or newer"):
        chosen([75, 80], [64])


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 99, "kernels": {}}', '{"schema": 1}'])
def test_a_manifest_that_cannot_be_used_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    assert read_manifest(tmp_path) == {"schema": 1, "kernels": {}}


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == [variant.name for variant in variants()]


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b", b"one")
    write_atomic(tmp_path / "a" / "b", b"two")
    assert (tmp_path / "a" / "b").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(KernelOutputError, match="could not be written"):
        write_atomic(tmp_path / "a" / "b" / "c", b"three")
