"""Attention by compiled kernels, between two segments of a stage: loaded, given memory, and launched.

Tensors are read and written where the segments have them, (1, L, H * D) or packed (1, L, 3 * H * D), so nothing is
copied; what the kernels need besides lies in a workspace that the segments use too. Which kernels an attention
launches, what each of their arguments gets and what they leave for each other the bundle says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...bundle.bundle_files import BundleFiles
from ...bundle.kernel_attention import KernelAttention, KernelCode, product
from ...errors import ManifestError, ProfileError
from .compiled_kernel import CompiledKernel, choose_code
from .driver import ALIGNMENT, Device
from .unrecorded_launches import with_launches, with_values


class AttentionKernels:
    """The kernels that the attention of a chain needs, loaded for one GPU."""

    def __init__(
        self, device: Device, folder: Path, codes: Iterable[KernelCode], attention: Iterable[KernelAttention]
    ) -> None:
        """Load what ``attention`` needs from the bundle in ``folder``, with the GPU current.

        Raises:
            DeviceError: no kernel for this GPU is in the bundle. BackendError: the driver refuses one.
            BundleNotFoundError: a file cannot be read. IntegrityError: one has another hash than in the manifest.
            ManifestError: a kernel takes what nothing gives.
        """
        codes = tuple(with_values(code) for code in codes)
        files = BundleFiles(folder)
        self._kernels: dict[str, CompiledKernel] = {}
        for layer in attention:
            for variant in (variant for step in with_launches(layer).launches for variant in step):
                if variant in self._kernels:
                    continue
                code = choose_code(codes, variant, device.compute_capability, layer)
                self._kernels[variant] = CompiledKernel(device, files.read(code.file), code)
            self._check(layer)

    def _check(self, attention: KernelAttention) -> None:
        """Refuse kernels with an argument that neither the attention nor another kernel gives."""
        addresses = dict.fromkeys((attention.query, attention.key, attention.value, attention.out), 0)
        known = self._known(attention, 1, 1, 1, addresses, 0)
        for kernel in self._all(attention):
            try:
                values = kernel.values(known)
            except KeyError as error:
                raise ManifestError(
                    f"the attention kernel {kernel.code.variant} of the bundle takes {error.args[0]!r}, which nothing "
                    f"gives; build the bundle again"
                ) from error
            for part, value in zip(kernel.code.arguments, values, strict=True):
                if part.type != "fp32" and not isinstance(value, int):
                    raise ManifestError(
                        f"the attention kernel {kernel.code.variant} of the bundle takes {part.value} for {part.name}, "
                        f"which is no whole number; build the bundle again"
                    )

    def workspace(self, attention: KernelAttention, length: int, key_length: int | None = None) -> int:
        """Return the bytes that attention of ``length`` tokens over ``key_length`` keys needs besides its tensors; over
        as many keys if not given."""
        return _end(self._parts(attention, length, length if key_length is None else key_length))

    def enqueue(
        self,
        attention: KernelAttention,
        stream: int,
        *,
        length: int,
        view_tokens: int,
        addresses: Mapping[str, int],
        workspace: int,
        key_length: int | None = None,
    ) -> None:
        """Put the kernels into a stream.

        Args:
            length: L. view_tokens: tokens of one view, class token included.
            addresses: of the tensors that ``attention`` names.
            workspace: address of as many bytes as :meth:`workspace` says, a multiple of 256.
            key_length: K; L if not given.

        Raises:
            ProfileError: the sequence is longer than the kernels take.
        """
        known = self._known(
            attention, length, length if key_length is None else key_length, view_tokens, addresses, workspace
        )
        # All are chosen, or the sequence refused, before anything is launched.
        for kernel in [self._chosen(step, length) for step in with_launches(attention).launches]:
            kernel.launch(stream, known)

    def _known(
        self,
        attention: KernelAttention,
        length: int,
        key_length: int,
        view_tokens: int,
        addresses: Mapping[str, int],
        workspace: int,
    ) -> dict[str, float]:
        """Return the value of every name that a launch may take."""
        channels = attention.num_heads * attention.head_dim
        step = 2 * channels if attention.packed else 0  # bytes from queries to keys to values
        return {
            "length": length,
            "key_length": key_length,
            "heads": attention.num_heads,
            "batch": 1,
            "in_token": 3 * channels if attention.packed else channels,
            "view_tokens": view_tokens,
            "extra_tokens": attention.extra_tokens,
            "threshold": 1.0 if attention.threshold is None else attention.threshold,
            **{name: workspace + start for name, (start, _) in self._parts(attention, length, key_length).items()},
            "query": addresses[attention.query],
            "key": addresses[attention.key] + step,
            "value": addresses[attention.value] + 2 * step,
            "out": addresses[attention.out],
        }

    def _parts(self, attention: KernelAttention, length: int, key_length: int) -> dict[str, tuple[int, int]]:
        """Return offset and bytes of each tensor in the workspace."""
        sizes = {"length": length, "key_length": key_length, "heads": attention.num_heads}
        found: dict[str, tuple[int, int]] = {}
        for kernel in self._all(attention):
            for name, size in kernel.code.workspace.items():
                if name not in found:
                    found[name] = _end(found), int(product(size, sizes))
        return found

    def _all(self, attention: KernelAttention) -> list[CompiledKernel]:
        return [self._kernels[variant] for step in with_launches(attention).launches for variant in step]

    def _chosen(self, step: Sequence[str], length: int) -> CompiledKernel:
        """Return the first of the kernels of one launch that takes ``length`` tokens."""
        kernels = [self._kernels[variant] for variant in step]
        limits = [kernel.code.longest for kernel in kernels]
        for kernel, longest in zip(kernels, limits, strict=True):
            if longest is None or length <= longest:
                return kernel
        raise ProfileError(
            f"block-sparse attention takes up to {max(filter(None, limits))} tokens, not {length}; use fewer "
            f"or smaller views, or a bundle with --attention native"
        )


def _end(parts: Mapping[str, tuple[int, int]]) -> int:
    return max((-(-(start + size) // ALIGNMENT) * ALIGNMENT for start, size in parts.values()), default=0)
