"""Weights: upstream's tensor names and shapes, read strictly and without running code.

Upstream stores some tensors under several names (its dense head is registered twice); the canonical name is the one
that its ``model.safetensors`` keeps. All tensors are float32 once read.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mapengine.runtime.errors import CheckpointError, ModelNotFoundError
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.reading import read_file
from mapengine.runtime.typed_json.text import Document, parse_json

from .config import PATCH_SIZE, BlockConfig, ModelConfig
from .pickles import PICKLE_SUFFIXES, read_pickle

Shapes = dict[str, tuple[int, ...]]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_LARGEST_INDEX = 2**26  # bytes
_NAMED = 3
"""How many tensors of each kind an error message names."""


# ---- names and shapes -----------------------------------------------------------------------------------------------


def expected_tensors(config: ModelConfig) -> Shapes:
    """Return canonical name -> shape of every tensor of the network, in the order of the stages.

    Linear weights are (out, in), convolutions (out, in, kh, kw), transposed convolutions (in, out, kh, kw).
    """
    return dict(_tensors(config))


def parameter_count(config: ModelConfig) -> int:
    """Return the number of learned parameters (the reference-view table is a constant, not a parameter)."""
    return sum(math.prod(s) for n, s in expected_tensors(config).items() if n != "info_sharing.view_pos_table")


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    encoder, aggregator, head = config.image_encoder, config.aggregator, config.head
    width, dim = encoder.block.dim, aggregator.block.dim
    yield "encoder.model.cls_token", (1, 1, width)
    yield "encoder.model.pos_embed", (1, 1 + encoder.grid**2, width)
    yield from _layer("encoder.model.patch_embed.proj", width, 3, PATCH_SIZE)
    for i in range(encoder.depth):
        yield from _block(f"encoder.model.blocks.{i}", encoder.block)
    if encoder.final_norm:
        yield from _norm("encoder.model.norm", width)

    geometry = config.geometry_encoder
    yield from _dense_encoder("ray_dirs_encoder", 3, geometry.rays, width)
    yield from _dense_encoder("depth_encoder", 1, geometry.depth, width)
    yield from _global_encoder("cam_rot_encoder", 4, geometry.rotation, width)
    yield from _global_encoder("cam_trans_encoder", 3, geometry.translation, width)
    yield from _global_encoder("depth_scale_encoder", 1, geometry.scale, width)
    yield from _global_encoder("cam_trans_scale_encoder", 1, geometry.scale, width)
    yield from _norm("fusion_norm_layer", width)

    yield "scale_token", (width,)
    if width != dim:
        yield from _layer("info_sharing.proj_embed", dim, width)
    if aggregator.reference_view_embedding:
        yield "info_sharing.view_pos_table", (1, dim)
    for i in range(aggregator.depth):
        yield from _block(f"info_sharing.self_attention_blocks.{i}", aggregator.block)
    yield from _norm("info_sharing.norm", dim)

    yield from _dpt("dense_head.0", (width, dim, dim, dim), head.layer_dims, head.feature_dim)
    half = head.feature_dim // 2
    yield from _layer("dense_head.1.conv1", half, head.feature_dim, 3)
    yield from _layer("dense_head.1.conv2.0", half, half, 3)
    yield from _layer("dense_head.1.conv2.2", 6, half, 1)

    hidden = head.pose_hidden
    yield from _layer("pose_head.proj", hidden, dim, 1)
    for i in range(head.pose_blocks):
        for j in (1, 2, 3):
            yield from _layer(f"pose_head.res_conv.{i}.res_conv{j}", hidden, hidden, 1)
    yield from _layer("pose_head.more_mlps.0", hidden, hidden)
    yield from _layer("pose_head.more_mlps.2", hidden, hidden)
    yield from _layer("pose_head.fc_t", 3, hidden)
    yield from _layer("pose_head.fc_rot", 4, hidden)

    yield from _layer("scale_head.proj", head.scale_hidden, dim)
    for i in range(head.scale_layers):
        yield from _layer(f"scale_head.mlp.{i}.0", head.scale_hidden, head.scale_hidden)
    yield from _layer("scale_head.output_proj", 1, head.scale_hidden)


def _layer(name: str, out: int, into: int, kernel: int = 0, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Return a linear layer, or a convolution if ``kernel`` is given."""
    yield f"{name}.weight", (out, into, kernel, kernel) if kernel else (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _block(name: str, block: BlockConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", block.dim)
    yield from _layer(f"{name}.attn.qkv", 3 * block.dim, block.dim)
    yield from _layer(f"{name}.attn.proj", block.dim, block.dim)
    yield from _norm(f"{name}.norm2", block.dim)
    if block.mlp == "swiglu":
        yield from _layer(f"{name}.mlp.w12", 2 * block.mlp_hidden, block.dim)
        yield from _layer(f"{name}.mlp.w3", block.dim, block.mlp_hidden)
    else:
        yield from _layer(f"{name}.mlp.fc1", block.mlp_hidden, block.dim)
        yield from _layer(f"{name}.mlp.fc2", block.dim, block.mlp_hidden)
    if block.layer_scale:
        yield f"{name}.ls1.gamma", (block.dim,)
        yield f"{name}.ls2.gamma", (block.dim,)


def _dense_encoder(
    name: str, channels: int, widths: tuple[int, int, int], out: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _layer(f"{name}.conv_in", widths[0], channels * PATCH_SIZE**2, 3)
    for i in (0, 1):
        before, after = widths[i], widths[i + 1]
        yield from _layer(f"{name}.encoder.{i}.conv1", after, before, 3)
        yield from _layer(f"{name}.encoder.{i}.conv2", after, after, 3)
        if before != after:
            yield from _layer(f"{name}.encoder.{i}.shortcut", after, before, 1)
    yield from _layer(f"{name}.encoder.2", out, widths[2], 1)
    yield from _norm(f"{name}.norm_layer", out)


def _global_encoder(
    name: str, channels: int, widths: tuple[int, int, int], out: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    sizes = (channels, *widths, out)
    for layer, before, after in zip(("0.0.0.0", "0.0.1", "0.1", "1"), sizes, sizes[1:], strict=False):
        yield from _layer(f"{name}.encoder.{layer}", after, before)
    yield from _norm(f"{name}.norm_layer", out)


def _dpt(
    name: str, inputs: tuple[int, ...], widths: tuple[int, ...], features: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    resize = (4, 2, 0, 3)  # transposed convolution x4, x2, nothing, strided convolution
    for i, (into, width, kernel) in enumerate(zip(inputs, widths, resize, strict=True)):
        yield from _layer(f"{name}.input_process.{i}.0.0", width, into, 1)
        if kernel:
            yield from _layer(f"{name}.input_process.{i}.0.1", width, width, kernel)
        yield from _layer(f"{name}.input_process.{i}.1", features, width, 3, bias=False)
    for i in (1, 2, 3, 4):
        refine = f"{name}.scratch.refinenet{i}"
        yield from _layer(f"{refine}.out_conv", features, features, 1)
        for unit in (1, 2) if i < 4 else (2,):  # the deepest fusion has no skip input, hence no first unit
            for conv in (1, 2):
                yield from _layer(f"{refine}.resConfUnit{unit}.conv{conv}", features, features, 3)


def canonical_name(name: str) -> str:
    """Return the one name under which a tensor is known here, whichever alias a checkpoint uses."""
    name = re.sub(r"^dpt_feature_head\.", "dense_head.0.", name)
    name = re.sub(r"^dpt_regressor_head\.", "dense_head.1.", name)
    name = re.sub(r"^dense_head\.0\.scratch\.layer_rn\.([0-3])\.", r"dense_head.0.input_process.\1.1.", name)
    return re.sub(
        r"^dense_head\.0\.scratch\.layer([1-4])_rn\.",
        lambda match: f"dense_head.0.input_process.{int(match[1]) - 1}.1.",
        name,
    )


# ---- reading --------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Read all weights: canonical name -> float32 CPU tensor, in the order of :func:`expected_tensors`.

    ``path`` is a folder with ``model.safetensors`` (or its shards and ``model.safetensors.index.json``), a
    ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file that holds a state dict, bare or under
    ``model`` or ``state_dict``. Prefixes that all names share, as wrappers of a network leave them, are taken off.
    Files are mapped into memory, not copied, so float32 weights take no memory of their own until they are used.
    Pickles are read in PyTorch's weights-only mode: what training scripts store beside the weights (OmegaConf, paths,
    callbacks) becomes inert, and any other code in them is refused, never run.

    Raises ModelNotFoundError if there are no weights at ``path`` and CheckpointError if they are damaged or do not
    fit ``config`` (see :func:`check_tensors`).
    """
    path = Path(path)
    return check_tensors(_read_folder(path) if path.is_dir() else _read_file(path), config, str(path))


def check_tensors(tensors: Mapping[str, Any], config: ModelConfig, where: str) -> dict[str, torch.Tensor]:
    """Return canonical name -> float32 CPU tensor; ``tensors`` may use aliases and any floating-point type.

    Raises CheckpointError if a tensor is missing, unexpected, of another shape, not floating point or not finite, or
    if two names of one tensor hold different values.
    """
    expected = expected_tensors(config)
    found: dict[str, torch.Tensor] = {}
    spelled: dict[str, str] = {}
    shared = len(_shared_prefix([str(name) for name in tensors]))
    for name, tensor in tensors.items():
        canonical = canonical_name(str(name)[shared:])
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{where}: {name} is a {type(tensor).__name__}, not a tensor")
        if canonical not in found:
            found[canonical], spelled[canonical] = tensor, str(name)
        elif not _same(found[canonical], tensor):
            raise CheckpointError(
                f"{where}: {spelled[canonical]} and {name} are two names of one tensor but hold different values"
            )
    _check_shapes(expected, {name: tuple(tensor.shape) for name, tensor in found.items()}, where)
    return {name: _as_float32(found.pop(name), f"{where}: {spelled[name]}") for name in expected}


def _shared_prefix(names: list[str]) -> str:
    """What wrappers (DataParallel, Lightning, torch.compile) put before all names, one in the other."""
    prefix = ""
    while names:
        added = next((p for p in _WRAPPERS if all(name.startswith(prefix + p) for name in names)), None)
        if added is None:
            break
        prefix += added
    return prefix


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of a set of weights, whatever file format, order or alias they came in.

    It covers one line per tensor, sorted by canonical name: name, shape, SHA-256 of the little-endian float32 bytes.
    """

    def line(item: tuple[str, torch.Tensor]) -> str:
        name, tensor = item
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        if sys.byteorder == "big":
            array = array.byteswap()
        return f"{name} {list(array.shape)} {hashlib.sha256(array.data).hexdigest()}\n"

    canonical = {canonical_name(name): tensor for name, tensor in tensors.items()}
    with ThreadPoolExecutor(usable_processors()) as pool:  # hashing releases the interpreter lock
        return hashlib.sha256("".join(pool.map(line, sorted(canonical.items()))).encode()).hexdigest()


def _read_folder(folder: Path) -> dict[str, Any]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return _read_file(whole)
    if index.is_file():
        return _read_shards(index)
    others = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", *PICKLE_SUFFIXES) and p.is_file()]
    if len(others) == 1:
        return _read_file(others[0])
    if others:
        names = ", ".join(p.name for p in others[:_NAMED])
        raise ModelNotFoundError(f"{folder}: several weight files and no model.safetensors; name one of them ({names})")
    raise ModelNotFoundError(f"{folder}: no weights in this folder; expected model.safetensors beside config.json")


def _read_shards(index: Path) -> dict[str, Any]:
    try:
        document = Document(str(index), "download it again", CheckpointError)
        placed = parse_json(read_file(index, _LARGEST_INDEX), document)["weight_map"]
        files = {str(name): str(file) for name, file in placed.items()}
    except (OSError, CheckpointError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not an index of weight files; download it again") from None
    tensors: dict[str, Any] = {}
    for file in sorted(set(files.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise CheckpointError(f"{index}: {file!r} is not the name of a .safetensors file in the same folder")
        for name, tensor in _read_file(index.parent / file).items():
            if files.get(name) != file:
                raise CheckpointError(f"{index.parent / file}: {name} is not listed in {index.name}")
            tensors[name] = tensor
    absent = sorted(set(files) - set(tensors))
    if absent:
        raise CheckpointError(f"{index}: {_some(absent)} listed there but not in the weight files")
    return tensors


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path)
    raise CheckpointError(f"{path}: weights are read from .safetensors, {', '.join(PICKLE_SUFFIXES)} files only")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open does not iterate
    except (SafetensorError, ValueError) as error:
        reason = f"damaged or truncated safetensors file ({error}); download it again"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    raise CheckpointError(f"{path}: {reason}")


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check_shapes(expected: Shapes, found: Shapes, where: str) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} has shape {found[name]} instead of {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_some([f'{name} {expected[name]}' for name in missing])})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected ({_some([f'{name} {found[name]}' for name in unexpected])})")
    if shapes:
        faults.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if faults:
        raise CheckpointError(f"{where}: tensors do not fit the configuration: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.layout != b.layout:
        return False
    if a.dtype != b.dtype:
        # The same number in two precisions is the same value: float64 holds all the others exactly.
        if a.dtype not in _FLOATS or b.dtype not in _FLOATS or a.layout != torch.strided:
            return False
        a, b = a.double(), b.double()
    plain = a.layout == torch.strided and a.device.type == "cpu"
    return not plain or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _as_float32(tensor: torch.Tensor, where: str) -> torch.Tensor:
    if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{where} is stored as {tensor.dtype}, not as plain floating-point numbers")
    result = tensor.detach().to(torch.float32).contiguous()
    low, high = torch.aminmax(result)  # one pass, and NaN propagates
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CheckpointError(f"{where} holds NaN or infinite values; the checkpoint is damaged")
    return result
