"""Which attention layers of the aggregator our own kernels compute: the option ``attention`` of a build."""

from __future__ import annotations

from dataclasses import dataclass

from mapengine.runtime.bundle.kernel_attention import KERNELS, Kernel, kernel_name
from mapengine.runtime.bundle.manifest import ATTENTIONS
from mapengine.runtime.errors import InputError

from ..model.config import ModelConfig

NATIVE = "native"
LAYER = "info_sharing.self_attention_blocks.{}.attn"


@dataclass(frozen=True)
class KernelChoice:
    """What computes a layer's attention.

    Attributes:
        kernel: one of :data:`KERNELS`. threshold: share of the mass that a sparse one keeps.
    """

    kernel: str
    threshold: float | None = None

    @property
    def traits(self) -> Kernel:
        """What the kernel does."""
        return KERNELS[self.kernel]

    def __str__(self) -> str:
        return kernel_name(self.kernel, self.threshold)


NAMES = tuple(f"{name}:<threshold>" if kernel.sparse else name for name, kernel in KERNELS.items())
"""How a build names the kernels."""


def parse_choice(text: str) -> KernelChoice:
    """One of :data:`NAMES`, such as ``flash`` or ``sparse:0.9``.

    Raises:
        InputError: anything else.
    """
    name, colon, number = text.partition(":")
    if name in KERNELS and KERNELS[name].sparse:
        try:
            threshold = float(number)
        except ValueError:
            threshold = 0.0
        if 0 < threshold <= 1:
            return KernelChoice(name, threshold)
        raise InputError(f"attention {text!r} has no threshold above 0 and up to 1; write it as in {name}:0.9")
    if name in KERNELS and not colon:
        return KernelChoice(name)
    raise InputError(f"attention {text!r} is no kernel; use {', '.join(NAMES)}")


@dataclass(frozen=True)
class AttentionChoice:
    """What computes attention.

    Attributes:
        form: how the library's own attention is written: ``auto``, or one of the manifest's ``ATTENTIONS``.
        kernels: our kernels with the blocks of the aggregator that they serve; None for all with global attention.
    """

    form: str = "auto"
    kernels: tuple[tuple[KernelChoice, tuple[int, ...] | None], ...] = ()

    @classmethod
    def parse(cls, text: str) -> AttentionChoice:
        """``auto``, ``native``, a form, a kernel, or kernels with their blocks as in ``int8@0,2/sparse:0.9@4``.

        Raises:
            InputError: anything else; the message names the values that it takes.
        """
        if not isinstance(text, str):
            raise InputError(f"attention is a {type(text).__name__}; give auto, native or kernels, as in sparse:0.9")
        if text in ("auto", NATIVE, *ATTENTIONS):
            return cls("auto" if text == NATIVE else text)
        kernels = []
        for part in text.split("/"):
            name, at, numbers = part.partition("@")
            try:
                blocks = tuple(int(number) for number in numbers.split(",")) if at else None
            except ValueError:
                raise InputError(
                    f"attention {part!r} names no blocks behind the @; write their numbers as in int8@0,2"
                ) from None
            try:
                kernels.append((parse_choice(name), blocks))
            except InputError as error:
                forms = ", ".join(("auto", NATIVE, *ATTENTIONS))
                raise InputError(f"{error}, or {forms}") from None
        return cls(kernels=tuple(kernels))

    def layers(self, config: ModelConfig) -> dict[str, KernelChoice]:
        """Name of each attention module that a kernel serves, in running order.

        Raises:
            InputError: a block that is not there, that attends within views, or that is named twice.
        """
        blocks = range(0, config.aggregator.depth, 2)  # the others attend within each view
        found: dict[int, KernelChoice] = {}
        for choice, wanted in self.kernels:
            for block in blocks if wanted is None else wanted:
                if block not in blocks:
                    raise InputError(
                        f"attention {choice} is asked for in block {block} of the aggregator; blocks with attention "
                        f"over all views, which kernels are for, are {', '.join(map(str, blocks))}"
                    )
                if block in found:
                    raise InputError(
                        f"attention names block {block} twice, for {found[block]} and {choice}; name it once"
                    )
                found[block] = choice
        return {LAYER.format(block): found[block] for block in sorted(found)}
