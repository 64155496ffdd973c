from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pickle
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from mapengine.export.model.checkpoint import (
    canonical_name,
    check_tensors,
    expected_tensors,
    parameter_count,
    read_checkpoint,
    weights_sha256,
)
from mapengine.export.model.config import ModelConfig
from mapengine.export.model.config_json import read_config
from mapengine.runtime.errors import CheckpointError, ModelNotFoundError

DATA = Path(__file__).parents[2] / "data"
V11, V1 = DATA / "v11_tiny", DATA / "v1_tiny"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return read_config(V11 / "config.json")


@pytest.fixture
def tensors() -> Tensors:
    return load_file(V11 / "model.safetensors")


def aliases() -> dict[str, str]:
    return json.loads((V11 / "weights_manifest.json").read_text())["aliases"]


def synth_weights(manifest: dict[str, Any]) -> dict[str, Any]:
    path = Path(__file__).parents[2] / "synth_weights.py"
    spec = importlib.util.spec_from_file_location("synth_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.synth_weights(manifest)


def with_aliases(tensors: Tensors) -> Tensors:
    """What upstream's own ``state_dict()`` holds: every tensor under all of its names."""
    return {**tensors, **{alias: tensors[name] for alias, name in aliases().items()}}


@pytest.mark.parametrize("model", ["v11_tiny", "v1_tiny", "full_v11", "full_v1"])
def test_names_and_shapes_are_upstreams(model: str) -> None:
    manifest = json.loads((DATA / model / "weights_manifest.json").read_text())
    expected = expected_tensors(read_config(DATA / model / "config.json"))
    assert expected == {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    assert {canonical_name(name) for name in manifest["aliases"]} <= set(expected)
    assert all(canonical_name(alias) == name for alias, name in manifest["aliases"].items())
    assert all(canonical_name(name) == name for name in expected)


@pytest.mark.parametrize(("model", "count", "parameters"), [("full_v11", 736, 1228491222), ("full_v1", 804, 563335382)])
def test_published_sizes(model: str, count: int, parameters: int) -> None:
    config = read_config(DATA / model / "config.json")
    assert len(expected_tensors(config)) == count
    assert parameter_count(config) == parameters


def test_no_reference_view_table_without_the_embedding() -> None:
    names = set(expected_tensors(read_config(V11 / "config.json")))
    without = set(expected_tensors(read_config(V11 / "config_no_ref_view.json")))
    assert names - without == {"info_sharing.view_pos_table"}


@pytest.mark.parametrize("folder", [V11, V1])
def test_reads_a_folder_as_float32(folder: Path) -> None:
    config = read_config(folder / "config.json")
    read = read_checkpoint(folder, config)
    stored = load_file(folder / "model.safetensors")
    assert list(read) == list(expected_tensors(config))
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert all(torch.equal(read[name], stored[name].float()) for name in stored)


@pytest.mark.parametrize("folder", [V11, V1])
def test_generator_of_the_full_size_oracle_reproduces_the_stored_weights(folder: Path) -> None:
    """The tiny oracles were rounded to float16; the full-size ones come from the same rules without a file."""
    made = synth_weights(json.loads((folder / "weights_manifest.json").read_text()))
    stored = load_file(folder / "model.safetensors")
    assert set(made) == set(stored)
    assert all(torch.equal(torch.from_numpy(made[name]).half(), stored[name]) for name in stored)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_reads_pickles_with_all_aliases(
    tmp_path: Path, config: ModelConfig, tensors: Tensors, wrapped: bool, zipped: bool, suffix: str
) -> None:
    state: Any = with_aliases(tensors)
    path = tmp_path / f"model{suffix}"
    data = {"model": state, "epoch": 3} if wrapped else state
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    expected = weights_sha256(read_checkpoint(V11, config))
    assert weights_sha256(read_checkpoint(path, config)) == expected
    assert weights_sha256(read_checkpoint(tmp_path, config)) == expected  # the only weight file of a folder


def test_reads_shards(tmp_path: Path, config: ModelConfig, tensors: Tensors) -> None:
    names = list(tensors)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    placed = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert weights_sha256(read_checkpoint(tmp_path, config)) == weights_sha256(tensors)

    index.write_text(json.dumps({"weight_map": {**placed, "extra": "model-1-of-2.safetensors"}}))
    with pytest.raises(CheckpointError, match="extra listed there but not in the weight files"):
        read_checkpoint(tmp_path, config)
    index.write_text(json.dumps({"weight_map": {name: placed[name] for name in names[1:]}}))
    with pytest.raises(CheckpointError, match=f"{names[0]} is not listed"):
        read_checkpoint(tmp_path, config)
    index.write_text(json.dumps({"weight_map": {"x": "../model-1-of-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"not the name of a \.safetensors file in the same folder"):
        read_checkpoint(tmp_path, config)
    for text in ("", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="not an index"):
            read_checkpoint(tmp_path, config)


def test_missing_unexpected_and_misshapen_tensors_are_named(config: ModelConfig, tensors: Tensors) -> None:
    for i in range(5):
        del tensors[f"info_sharing.self_attention_blocks.{i}.attn.qkv.weight"]
    tensors["encoder.model.mask_token"] = torch.zeros(1, 48)
    tensors["pose_head.fc_rot.weight"] = torch.zeros(9, 64)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(tensors, config, "file.pth")
    assert str(caught.value) == (
        "file.pth: tensors do not fit the configuration: "
        "5 missing (info_sharing.self_attention_blocks.0.attn.qkv.weight (144, 48), "
        "info_sharing.self_attention_blocks.1.attn.qkv.weight (144, 48), "
        "info_sharing.self_attention_blocks.2.attn.qkv.weight (144, 48) and 2 more); "
        "1 unexpected (encoder.model.mask_token (1, 48)); "
        "1 of another shape (pose_head.fc_rot.weight has shape (9, 64) instead of (4, 64))"
    )


def test_weights_of_the_other_version_do_not_fit(config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        read_checkpoint(V1, config)


def test_aliases_must_agree(config: ModelConfig, tensors: Tensors) -> None:
    state = with_aliases(tensors)
    assert set(check_tensors(state, config, "x")) == set(tensors)
    alias = "dpt_feature_head.scratch.layer2_rn.weight"
    state[alias] = state[alias] + 1
    with pytest.raises(CheckpointError, match="two names of one tensor but hold different values") as caught:
        check_tensors(state, config, "x")
    assert alias in str(caught.value)
    assert "dense_head.0.input_process.1.1.weight" in str(caught.value)


def test_aliases_of_two_precisions_are_compared_by_value(config: ModelConfig, tensors: Tensors) -> None:
    state = with_aliases(tensors)
    alias = "dpt_feature_head.scratch.layer2_rn.weight"
    kept = check_tensors(state, config, "x")["dense_head.0.input_process.1.1.weight"]
    state[alias] = state[alias].double()
    read = check_tensors(state, config, "x")["dense_head.0.input_process.1.1.weight"]
    assert read.dtype == torch.float32
    assert torch.equal(read, kept)
    state[alias] = state[alias] + 1e-9  # less than float32 resolves
    with pytest.raises(CheckpointError, match="hold different values"):
        check_tensors(state, config, "x")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types_are_converted(config: ModelConfig, tensors: Tensors, dtype: torch.dtype) -> None:
    name = "scale_token"
    tensors[name] = tensors[name].to(dtype)
    read = check_tensors(tensors, config, "x")[name]
    assert read.dtype == torch.float32
    assert torch.equal(read, tensors[name].float())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(48, dtype=torch.int32), "is stored as torch.int32"),
        (torch.zeros(48, dtype=torch.bool), "is stored as torch.bool"),
        (torch.zeros(48, dtype=torch.complex64), "is stored as torch.complex64"),
        (torch.zeros(48).to_sparse(), "is stored as torch.float32, not as plain floating-point numbers"),
        (torch.zeros(48, device="meta"), "is stored as torch.float32, not as plain floating-point numbers"),
        (torch.full((48,), float("nan")), "holds NaN or infinite values"),
        (torch.tensor([float("-inf")] + [0.0] * 47), "holds NaN or infinite values"),
        (torch.full((48,), 1e300, dtype=torch.float64), "holds NaN or infinite values"),
        ([0.0] * 48, "is a list, not a tensor"),
    ],
)
def test_unusable_values_are_refused_by_name(config: ModelConfig, tensors: Tensors, value: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x: scale_token {reason}"):
        check_tensors({**tensors, "scale_token": value}, config, "x")


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, config: ModelConfig, tensors: Tensors) -> None:
    trap = tmp_path / "trap"
    for zipped in (True, False):
        path = tmp_path / "model.pth"
        torch.save({"model": tensors, "x": Payload(trap)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="refused, because it would run code"):
            read_checkpoint(path, config)
    path.write_bytes(pickle.dumps(Payload(trap)))
    with pytest.raises(CheckpointError, match=r"model\.pth: (refused|damaged)"):
        read_checkpoint(path, config)
    assert not trap.exists()


@pytest.mark.slow
def test_what_training_scripts_store_beside_the_weights(tmp_path: Path, config: ModelConfig, tensors: Tensors) -> None:
    """OmegaConf, paths and counters become inert, so that the tensors load without running code."""
    args = OmegaConf.create({"model": {"name": "mapanything", "sizes": [1, 2.5, None]}, "path": "${model.name}"})
    extra = {"args": args, "epoch": 3, "folder": Path("runs"), "counts": Counter(a=1), "default": defaultdict(list)}
    for name, key, zipped in (("a.pth", "model", True), ("b.ckpt", "state_dict", True), ("c.pt", "model", False)):
        torch.save({**extra, key: tensors}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        read = read_checkpoint(tmp_path / name, config)
        assert all(torch.equal(read[canonical_name(k)], v.float()) for k, v in tensors.items())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_that_all_names_share(tmp_path: Path, config: ModelConfig, tensors: Tensors, prefix: str) -> None:
    torch.save({"state_dict": {prefix + name: value for name, value in tensors.items()}}, tmp_path / "a.ckpt")
    assert list(read_checkpoint(tmp_path / "a.ckpt", config)) == list(expected_tensors(config))


def test_a_prefix_that_one_name_lacks_stays(config: ModelConfig, tensors: Tensors) -> None:
    first, *rest = tensors
    odd = {first: tensors[first], **{f"module.{name}": tensors[name] for name in rest}}
    with pytest.raises(CheckpointError, match="missing"):
        check_tensors(odd, config, "odd")


def test_a_file_without_a_state_dict_names_its_keys(tmp_path: Path, config: ModelConfig) -> None:
    torch.save({"optimizer": {}, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"its keys: optimizer, epoch\); expected tensors .* state_dict"):
        read_checkpoint(tmp_path / "a.pt", config)


@pytest.mark.parametrize("data", [3, {"model": 3}, {}, {"a": 1}, [torch.zeros(2)]])
def test_pickles_without_a_state_dict(tmp_path: Path, config: ModelConfig, data: Any) -> None:
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no state dict in it"):
        read_checkpoint(tmp_path / "x.pth", config)


def test_truncated_and_corrupt_files(tmp_path: Path, config: ModelConfig, tensors: Tensors) -> None:
    safe, pickled = tmp_path / "a.safetensors", tmp_path / "b.pth"
    torch.save(tensors, pickled)
    whole = {safe: (V11 / "model.safetensors").read_bytes(), pickled: pickled.read_bytes()}
    for path, content in whole.items():
        for kept in (0, 4, 100, 5000, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:kept])
            with pytest.raises(CheckpointError, match=r"damaged, truncated or|damaged or truncated"):
                read_checkpoint(path, config)
        path.write_bytes(b"not a checkpoint at all" * 10)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path, config)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 30_000), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_header_never_gives_another_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: bytes
) -> None:
    content = bytearray((V11 / "model.safetensors").read_bytes())
    content[position : position + len(value)] = value
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    path.write_bytes(content)
    config = read_config(V11 / "config.json")
    refusal = str(path)
    try:
        names = list(read_checkpoint(path, config))
    except CheckpointError as error:
        names, refusal = list(expected_tensors(config)), str(error)
    assert names == list(expected_tensors(config))
    assert str(path) in refusal


def test_nothing_to_read(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "model.safetensors", config)
    with pytest.raises(ModelNotFoundError, match="no weights in this folder"):
        read_checkpoint(tmp_path, config)
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(V11 / "model.safetensors", tmp_path / name)
    with pytest.raises(ModelNotFoundError, match=r"several weight files .* \(a.safetensors, b.safetensors\)"):
        read_checkpoint(tmp_path, config)
    (tmp_path / "weights.npz").touch()
    with pytest.raises(CheckpointError, match="files only"):
        read_checkpoint(tmp_path / "weights.npz", config)


@pytest.mark.slow
def test_hash_is_of_content_not_of_form(config: ModelConfig, tensors: Tensors) -> None:
    reference = weights_sha256(tensors)
    assert reference == "7871374f7f193613265da7b52eec19d4192f32f251ae5076af524014e6774098"
    backwards = dict(reversed([(name, tensor.double()) for name, tensor in tensors.items()]))
    assert weights_sha256(backwards) == weights_sha256(with_aliases(tensors)) == reference
    square = tensors["pose_head.more_mlps.0.weight"]
    assert weights_sha256({**tensors, "pose_head.more_mlps.0.weight": square.t()}) != reference
    transposed_twice = square.t().contiguous().t()  # the same numbers in another memory order
    assert weights_sha256({**tensors, "pose_head.more_mlps.0.weight": transposed_twice}) == reference
    reshaped = tensors["scale_token"].reshape(1, 48)
    assert weights_sha256({**tensors, "scale_token": reshaped}) != reference


def test_what_training_scripts_store_beside_the_weights_is_no_obstacle(tmp_path: Path, config: ModelConfig) -> None:
    tensors = read_checkpoint(V11, config)
    extras = {"args": argparse.Namespace(lr=1e-4), "best": np.float64(0.25), "loss": np.float32(1), "epoch": 3}
    torch.save({"model": tensors, **extras}, tmp_path / "last.pth")
    found = read_checkpoint(tmp_path / "last.pth", config)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
