"""``mapengine triton``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...conftest import Cli


def test_a_repository_is_written(cli: Cli, bundle_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    result = cli("triton", bundle_folder, out, "--name", "rooms", "--instances", 2, "--max-bytes", "100MB")
    assert (result.code, result.err) == (0, "")
    assert "Wrote rooms (2 engines of preset:tiny) and rooms_files to" in result.out
    assert f"python -m mapengine.serving.triton {out}" in result.out
    text = (out / "rooms" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'key: "max_bytes" value { string_value: "100000000" }' in text
    assert "instance_group { count: 2 kind: KIND_CPU }" in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--name", "a/b"), "Error: name is 'a/b'; give letters, digits, _ . and -, at most 100"),
        (
            ("--device", "gpu"),
            "Error: device is gpu, but {bundle} was built for onnxruntime and openvino,",
        ),
        (("--device", "tpu"), "Error: device is 'tpu'; give auto, cpu, gpu, or gpus as gpu:0,1"),
        (("--instances", "0"), "Error: Invalid value for '--instances'"),
        (("--max-bytes", "much"), "Error: Invalid value for --max-bytes: max_bytes is 'much'; give a size"),
    ],
)
def test_options_that_cannot_be(
    cli: Cli, bundle_folder: Path, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    result = cli("triton", bundle_folder, tmp_path / "models", *options)
    assert result.code in (1, 2)
    assert len(result.problems) == 1
    assert result.problems[0].startswith(problem.format(bundle=bundle_folder))
    assert not (tmp_path / "models").exists()


def test_the_bundle_is_not_written_over(cli: Cli, bundle_folder: Path) -> None:
    for target in (bundle_folder, bundle_folder / "models"):
        before = sorted(bundle_folder.iterdir())
        result = cli("triton", bundle_folder, target)
        assert result.code == 2
        assert len(result.problems) == 1
        assert sorted(bundle_folder.iterdir()) == before


def test_a_folder_that_is_no_bundle(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cli("triton", tmp_path / "empty", tmp_path / "models")
    assert (result.code, len(result.problems)) == (1, 1)
    assert "is no engine bundle" in result.problems[0]
