"""Our own kernels as the runtime launches them: the Triton kernels themselves, on the addresses that they are given."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.export.bundles.chains import with_launches
from mapengine.kernels.tuning import LEAST_OF, least_blocks
from mapengine.kernels.variants import variants
from mapengine.runtime.backends.cuda import unrecorded_launches
from mapengine.runtime.backends.cuda.attention import AttentionKernels
from mapengine.runtime.backends.cuda.compiled_kernel import choose_code
from mapengine.runtime.backends.cuda.driver import Device, Stream
from mapengine.runtime.backends.cuda.unrecorded_launches import with_values
from mapengine.runtime.bundle import kernel_attention
from mapengine.runtime.bundle.kernel_attention import KernelAttention, KernelCode, product
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.errors import (
    BackendError,
    BundleNotFoundError,
    DeviceError,
    IntegrityError,
    ManifestError,
    ProfileError,
)

from ....interpreted_kernels import import_interpreted
from .stand_in_driver import StandInDriver
from .stand_in_kernels import write_kernels

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
HEADS, DIM = 2, 32


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    import_interpreted()
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def codes(tmp_path: Path) -> tuple[KernelCode, ...]:
    return write_kernels(BundleWriter(tmp_path), DIM)


@pytest.fixture
def device(driver: StandInDriver) -> Iterator[Device]:
    device = Device()
    with device.current():
        yield device


def layer(kernel: str, threshold: float | None = None, *, packed: bool = True, dtype: str = "float16") -> Any:
    names = ("qkv", "qkv", "qkv") if packed else ("q", "k", "v")
    return with_launches(KernelAttention("blocks.0.attn", kernel, threshold, HEADS, DIM, dtype, *names, "out", 1))


def attend(
    device: Device, kernels: AttentionKernels, entry: KernelAttention, qkv: np.ndarray, view_tokens: int, keys: int = 0
) -> np.ndarray:
    """Through "GPU" memory: (L, 3 * H * D) float16 -> (L, H * D), over the first ``keys`` tokens if there are any."""
    length, width = len(qkv), HEADS * DIM
    with contextlib.ExitStack() as stack:

        def buffer(array: np.ndarray | None, size: int) -> Any:
            made = device.allocate(size)
            stack.callback(made.free)
            if array is not None:
                pinned = device.pinned(array.shape, array.dtype)
                stack.callback(pinned.free)
                pinned.array[...] = array
                stream.upload(pinned, made.address)
            return made

        stream: Stream = device.stream()
        stack.callback(stream.free)
        if entry.packed:
            addresses = {"qkv": buffer(qkv, qkv.nbytes).address}
        else:
            query, *others = np.split(qkv, 3, axis=1)
            parts = [np.ascontiguousarray(part) for part in (query, *(other[: keys or length] for other in others))]
            addresses = {
                name: buffer(part, part.nbytes).address for name, part in zip(("q", "k", "v"), parts, strict=True)
            }
        out = buffer(None, 2 * length * width)
        workspace = buffer(None, kernels.workspace(entry, length, keys or None))
        kernels.enqueue(
            entry,
            stream.handle,
            length=length,
            view_tokens=view_tokens,
            addresses={**addresses, "out": out.address},
            workspace=workspace.address,
            key_length=keys or None,
        )
        result = device.pinned((length, width), np.float16)
        stack.callback(result.free)
        stream.download(out.address, result)
        stream.synchronize()
        return result.array.copy()


def values(length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((length, 3 * HEADS * DIM)).astype(np.float16)


def split(qkv: np.ndarray) -> Any:
    """(L, 3 * H * D) as PyTorch's queries, keys and values (1, L, H, D)."""
    return torch.from_numpy(qkv).reshape(1, len(qkv), 3, HEADS, DIM).unbind(2)


def exact(qkv: np.ndarray) -> np.ndarray:
    query, key, value = qkv.astype(np.float64).reshape(len(qkv), 3, HEADS, DIM).transpose(1, 2, 0, 3)
    scores = query @ key.transpose(0, 2, 1) / DIM**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(qkv), -1)


def test_block_sizes_come_with_the_code(device: Device, codes: tuple[KernelCode, ...], tmp_path: Path) -> None:
    """Kernels with other blocks than ours have need other memory, and take another number of tokens."""

    def halved(code: KernelCode) -> KernelCode:
        sizes = {name: re.sub(r"(?<=/)\d+", lambda found: str(int(found[0]) // 2), size)
                 for name, size in code.workspace.items()}  # fmt: skip
        if "sums" in sizes:
            sizes["sums"] = f"{4 * 16 * DIM}*heads"
        return replace(code, workspace=sizes, longest=code.longest and code.longest // 2)

    sparse, int8 = layer("sparse", 0.9), layer("int8")
    length = 20480
    for given, queries, keys, group, splits in (
        (codes, 160, 320, 640, 32),
        ([*map(halved, codes)], 320, 640, 1280, 16),
    ):
        kernels = AttentionKernels(device, tmp_path, given, [sparse, int8])
        pooled, lists = 4 * HEADS * (queries + keys) * DIM, 2 * HEADS * queries * keys
        assert kernels.workspace(sparse, length) == pooled + lists + 4 * HEADS * queries
        scales, sums = 4 * HEADS * (group + keys), 4 * HEADS * splits * DIM
        assert kernels.workspace(int8, length) == 2 * HEADS * length * DIM + scales + sums
    addresses = dict.fromkeys(("qkv", "out"), 0)
    with pytest.raises(ProfileError, match=r"takes up to 65536 tokens, not 65537"):
        kernels.enqueue(sparse, 0, length=65537, view_tokens=100, addresses=addresses, workspace=0)


def test_bundles_from_before_the_launches_were_recorded(codes: tuple[KernelCode, ...]) -> None:
    """They are launched as the same kernels are now."""
    sizes = {
        "length": 300,
        "key_length": 300,
        "heads": HEADS,
        "batch": 1,
        "in_token": 7,
        "view_tokens": 30,
        "extra_tokens": 1,
    }
    tensors = {"query", "key", "value", "out", *(name for code in codes for name in code.workspace)}
    known = {**sizes, "threshold": 0.5, **{name: 1000 + number for number, name in enumerate(sorted(tensors))}}
    for code in codes:
        bare = tuple(replace(argument, value=None) for argument in code.arguments)
        older = with_values(replace(code, arguments=bare, parameters={}, workspace={}, longest=None))
        assert (older.parameters, older.longest) == (code.parameters, code.longest)
        for part, other in zip(code.arguments, older.arguments, strict=True):
            assert part.value is not None
            assert other.value is not None
            assert product(part.value, known) == product(other.value, known), (code.variant, part.name)
        assert {name: product(size, sizes) for name, size in code.workspace.items()} == {
            name: product(size, sizes) for name, size in older.workspace.items()
        }
    for name, kernel in kernel_attention.KERNELS.items():
        for dtype in ("float16", "bfloat16"):
            entry = layer(name, 0.3 if kernel.sparse else None, dtype=dtype)
            assert entry.launches
            assert unrecorded_launches.with_launches(replace(entry, launches=())) == entry


def test_a_bundle_without_a_choice_of_key_blocks(device: Device, codes: tuple[KernelCode, ...], tmp_path: Path) -> None:
    others = [code for code in codes if not code.variant.startswith("select")]
    with pytest.raises(DeviceError, match=r"attention kernel select-512-d32 was not compiled"):
        AttentionKernels(device, tmp_path, others, [layer("sparse", 0.9)])


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [1, 15, 64, 137])
def test_flash_is_attention(
    length: int, packed: bool, device: Device, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    entry, qkv = layer("flash", packed=packed), values(length)
    found = attend(device, AttentionKernels(device, tmp_path, codes, [entry]), entry, qkv, 8)
    np.testing.assert_allclose(found, exact(qkv), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "keys"), [("flash", 2), ("flash", 65), ("int8", 65), ("int8-fp8", 65)])
def test_fewer_keys_than_tokens(
    kernel: str, keys: int, device: Device, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    from mapengine.kernels.dense import dense_attention
    from mapengine.kernels.int8 import int8_attention

    entry, qkv = replace(layer(kernel, packed=False), key_share=0.5), values(137)
    found = attend(device, AttentionKernels(device, tmp_path, codes, [entry]), entry, qkv, 8, keys)
    query, key, value = split(qkv)
    given = (query.contiguous(), key[:, :keys].contiguous(), value[:, :keys].contiguous())
    wanted = dense_attention(*given) if kernel == "flash" else int8_attention(*given, fp8_values=entry.traits.fp8)
    np.testing.assert_array_equal(found, wanted.reshape(137, -1))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "packed"), [(1, True), (15, True), (64, True), (137, True), (137, False)])
@pytest.mark.parametrize(("kernel", "error"), [("int8", 0.02), ("int8-fp8", 0.05)])
def test_int8_is_what_triton_launches(
    kernel: str,
    error: float,
    length: int,
    packed: bool,
    device: Device,
    codes: tuple[KernelCode, ...],
    tmp_path: Path,
) -> None:
    from mapengine.kernels.int8 import int8_attention

    entry, qkv = layer(kernel, packed=packed), values(length)
    found = attend(device, AttentionKernels(device, tmp_path, codes, [entry]), entry, qkv, 8)
    wanted = int8_attention(*split(qkv), fp8_values=entry.traits.fp8)
    np.testing.assert_array_equal(found, wanted.reshape(length, -1))
    # The bounds of the kernels' own tests.
    difference = found - exact(qkv)
    assert np.sqrt(np.square(difference).mean()) < error * np.sqrt(np.square(exact(qkv)).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "length", "view_tokens", "packed"),
    [
        *((kernel, 15, 7, True) for kernel in ("sparse", "sparse-int8", "sparse-int8-fp8")),
        *((kernel, 457, 57, False) for kernel in ("sparse", "sparse-int8", "sparse-int8-fp8")),
        # Where something is left out: `sparse-int8` has the values of one and the scores of the other.
        *((kernel, 641, 320, True) for kernel in ("sparse", "sparse-int8-fp8")),
    ],
)
def test_sparse_is_what_triton_launches(
    kernel: str,
    length: int,
    view_tokens: int,
    packed: bool,
    device: Device,
    codes: tuple[KernelCode, ...],
    tmp_path: Path,
) -> None:
    from mapengine.kernels.selection import Selection
    from mapengine.kernels.sparse import sparse_attention

    from ....kernels.twins import select_reference, sparse_attention_reference

    entry, qkv = layer(kernel, 0.3, packed=packed), values(length)
    found = attend(device, AttentionKernels(device, tmp_path, codes, [entry]), entry, qkv, view_tokens)
    parts = split(qkv)
    choice = Selection(0.3, view_tokens=view_tokens, extra_tokens=1)
    wanted, _ = sparse_attention(*parts, choice, int8=entry.traits.int8, fp8_values=entry.traits.fp8)
    np.testing.assert_array_equal(found, wanted.reshape(length, -1))
    if kernel == "sparse":
        np.testing.assert_allclose(found, sparse_attention_reference(*parts, choice).reshape(length, -1), atol=2e-3)
    if length > 600:
        assert not select_reference(parts[0], parts[1], choice).all()  # something was left out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sparse", "dense"), [("sparse", "flash"), ("sparse-int8", "int8"), ("sparse-int8-fp8", "int8-fp8")]
)
def test_sparse_with_threshold_1_is_dense_bit_by_bit(
    sparse: str, dense: str, device: Device, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    entries = [layer(sparse, 1.0), layer(dense)]
    kernels = AttentionKernels(device, tmp_path, codes, entries)
    found = [attend(device, kernels, entry, values(300), 30) for entry in entries]
    np.testing.assert_array_equal(*found)


def test_a_kernel_is_in_a_graph(
    device: Device, driver: StandInDriver, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    entry, qkv = layer("flash"), values(20)
    kernels = AttentionKernels(device, tmp_path, codes, [entry])
    stream, source = device.stream(), device.pinned(qkv.shape, qkv.dtype)
    source.array[...] = qkv
    memory, out = device.allocate(qkv.nbytes), device.allocate(2 * 20 * HEADS * DIM)
    with stream.capture() as graph:
        kernels.enqueue(
            entry,
            stream.handle,
            length=20,
            view_tokens=8,
            addresses={"qkv": memory.address, "out": out.address},
            workspace=0,
        )
    stream.synchronize()
    assert driver.kernels == {}
    stream.upload(source, memory.address)
    stream.launch(graph)
    stream.synchronize()
    assert driver.kernels == {"dense-fp16-d32": 1}
    found = np.frombuffer((ctypes.c_byte * out.size).from_address(out.address), np.float16)[: 20 * HEADS * DIM]
    np.testing.assert_allclose(found.reshape(20, -1), exact(qkv), atol=2e-3)


def test_ptx_serves_a_gpu_without_code_of_its_own(
    device: Device, driver: StandInDriver, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    entry = layer("flash")
    (dense,) = (code for code in codes if code.variant == "dense-fp16-d32")
    (tmp_path / "dense.ptx").write_bytes((tmp_path / dense.file.file).read_bytes())
    ptx = replace(dense, file=BundleWriter(tmp_path).record("dense.ptx"), architecture=80)
    other = replace(dense, architecture=90)
    found = attend(device, AttentionKernels(device, tmp_path, [other, ptx], [entry]), entry, values(9), 4)
    np.testing.assert_allclose(found, exact(values(9)), atol=2e-3)


def test_no_code_for_this_gpu(device: Device, codes: tuple[KernelCode, ...], tmp_path: Path) -> None:
    others = [replace(code, architecture=90) for code in codes]
    with pytest.raises(DeviceError, match=r"dense-fp16-d32 was not compiled for compute capability 8.9; build"):
        AttentionKernels(device, tmp_path, others, [layer("flash")])


def test_fp8_on_a_gpu_without_it(codes: tuple[KernelCode, ...]) -> None:
    """Building again for that GPU would be refused, so the advice is another kernel."""
    entry = replace(layer("sparse"), kernel="sparse-int8-fp8", threshold=0.9)
    ptx = replace(codes[0].file, file="kernel.ptx")
    newer = [replace(codes[0], file=ptx, variant="values-fp8-fp16-d32", architecture=89)]
    expected = r"attention sparse-int8-fp8:0.9 needs compute capability 8.9 or newer, and this GPU has 8.6; build .* "
    with pytest.raises(DeviceError, match=f"{expected}--attention sparse-int8:0.9$"):
        choose_code(newer, "values-fp8-fp16-d32", "8.6", entry)
    dense = [replace(codes[0], file=ptx, variant="dense-fp16-d32", architecture=80)]
    with pytest.raises(DeviceError, match=r"needs compute capability 8.0 or newer.*--attention native$"):
        choose_code(dense, "dense-fp16-d32", "7.5", layer("flash"))


def test_a_file_that_is_gone_or_no_code(device: Device, codes: tuple[KernelCode, ...], tmp_path: Path) -> None:
    path = tmp_path / "dense-fp16-d32.sm_89.cubin"
    path.write_text("no code", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"dense-fp16-d32.sm_89.cubin differs from the hash in its manifest"):
        AttentionKernels(device, tmp_path, codes, [layer("flash")])
    record = BundleWriter(tmp_path).record(path.name)
    listed = [replace(code, file=record) if code.file.file == path.name else code for code in codes]
    with pytest.raises(BackendError, match=r"load the kernel dense-fp16-d32 \(CUDA_ERROR_INVALID_IMAGE\)"):
        AttentionKernels(device, tmp_path, listed, [layer("flash")])
    path.unlink()
    with pytest.raises(BundleNotFoundError, match=r"dense-fp16-d32.sm_89.cubin cannot be read"):
        AttentionKernels(device, tmp_path, codes, [layer("flash")])


@pytest.mark.parametrize("kernel", ["sparse", "sparse-int8-fp8"])
def test_a_sequence_that_no_selection_takes(
    kernel: str, device: Device, codes: tuple[KernelCode, ...], tmp_path: Path
) -> None:
    entry = layer(kernel, 0.9)
    kernels = AttentionKernels(device, tmp_path, codes, [entry])
    addresses = dict.fromkeys(("qkv", "out"), 0)
    with pytest.raises(ProfileError, match=r"takes up to 131072 tokens, not 131073"):
        kernels.enqueue(entry, 0, length=131073, view_tokens=100, addresses=addresses, workspace=0)


def test_every_kernel_that_is_launched_is_compiled_and_every_compiled_one_launched() -> None:
    used = {
        variant
        for name, kernel in kernel_attention.KERNELS.items()
        for dtype in ("float16", "bfloat16")
        for launch in layer(name, 0.5 if kernel.sparse else None, dtype=dtype).launches
        for variant in launch
    }
    assert used == {variant.name for variant in variants() if variant.head_dim == DIM}


def test_an_argument_that_nothing_gives(device: Device, codes: tuple[KernelCode, ...], tmp_path: Path) -> None:
    def odd(code: KernelCode, value: str) -> KernelCode:
        return replace(code, arguments=(replace(code.arguments[0], value=value), *code.arguments[1:]))

    for value, problem in (
        ("2*bias", "takes 'bias', which nothing gives"),
        ("0.5", "takes 0.5 for query, which is no"),
    ):
        with pytest.raises(ManifestError, match=f"dense-fp16-d32 of the bundle {problem}"):
            AttentionKernels(device, tmp_path, [odd(code, value) for code in codes], [layer("flash")])


def test_products_are_rounded_up_factor_by_factor() -> None:
    assert product("4*heads*length/64", {"heads": 3, "length": 65}) == 24
    assert product("64*length/64", {"length": 1}) == 64
    assert product("0.5", {}) == 0.5
    for blocks in range(1, 3000):
        assert product(f"length/{64 * LEAST_OF}", {"length": 64 * blocks}) == least_blocks(blocks)
