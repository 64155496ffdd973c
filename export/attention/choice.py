"""Which attention layers of the aggregator our own kernels compute: the option ``attention`` of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mapengine.kernels.speeds import Speed, speed_at
from mapengine.runtime.backend_table import EIGHT_BIT
from mapengine.runtime.bundle.kernel_attention import KERNELS, Kernel, kernel_name
from mapengine.runtime.bundle.manifest import ATTENTIONS
from mapengine.runtime.errors import InputError

from ..model.config import ModelConfig

NATIVE = "native"
LAYER = "info_sharing.self_attention_blocks.{}.attn"

EXACT = "flash"
"""The kernel that rounds no more than a library's own attention."""

WORTH = 1.1
"""Times as fast as native attention that ``auto`` wants of a kernel: cutting a stage costs launches and fusions."""

_AUTO, _AUTO_8_BIT = (EXACT,), (EXACT, "int8")
"""Kernels that ``auto`` compares, in 16 bits and where activations are rounded to 8 bits anyway."""


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

_KEYS = "kv="


def parse_choice(text: str) -> KernelChoice:
    """Parse one of :data:`NAMES`, such as ``flash`` or ``sparse:0.9``.

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
class LayerChoice:
    """What a layer with attention over all views does.

    Attributes:
        kernel: that computes it; None for the library's own attention.
        key_share: share of the keys that it keeps, in (0, 1].
    """

    kernel: KernelChoice | None = None
    key_share: float = 1.0

    def __str__(self) -> str:
        name = NATIVE if self.kernel is None else str(self.kernel)
        return name if self.key_share == 1 else f"{name}:{_KEYS}{self.key_share:g}"


@dataclass(frozen=True)
class AttentionChoice:
    """What computes attention.

    Attributes:
        form: how the library's own attention is written: ``auto``, or one of the manifest's ``ATTENTIONS``.
        parts: what differs from it over all keys, with the blocks of the aggregator; None for all with attention over
            all views.
    """

    form: str = "auto"
    parts: tuple[tuple[LayerChoice, tuple[int, ...] | None], ...] = ()

    @classmethod
    def parse(cls, text: str) -> AttentionChoice:
        """Parse ``auto``, ``native``, a form, a kernel, or several with their blocks.

        A share of the keys stands behind what attends to them: ``native:kv=0.25@2,4/int8@0/int8:kv=0.5@6``.

        Raises:
            InputError: anything else; the message names the values that it takes.
        """
        if not isinstance(text, str):
            raise InputError(f"attention is a {type(text).__name__}; give auto, native or kernels, as in sparse:0.9")
        if text in ("auto", NATIVE, *ATTENTIONS):
            return cls("auto" if text == NATIVE else text)
        forms: set[str] = set()
        parts = []
        for part in text.split("/"):
            name, at, numbers = part.partition("@")
            try:
                blocks = tuple(int(number) for number in numbers.split(",")) if at else None
            except ValueError:
                raise InputError(
                    f"attention {part!r} names no blocks behind the @; write their numbers as in int8@0,2"
                ) from None
            name, share = _split_share(name, part)
            if share is not None and name in (NATIVE, *ATTENTIONS):
                forms |= {name} - {NATIVE}
                parts.append((LayerChoice(None, share), blocks))
                continue
            try:
                kernel = parse_choice(name)
            except InputError as error:
                other = ", ".join(("auto", NATIVE, *ATTENTIONS))
                raise InputError(f"{error}, or {other}") from None
            if kernel.traits.sparse and share is not None:
                raise InputError(
                    f"attention {part!r} would choose among keys that were chosen before; leave out {_KEYS} or use "
                    f"{str(kernel).replace('sparse-', '').partition(':')[0].replace('sparse', EXACT)}:{_KEYS}{share:g}"
                )
            parts.append((LayerChoice(kernel, 1.0 if share is None else share), blocks))
        if len(forms) > 1:
            raise InputError(
                f"attention {text!r} writes the library's own in {len(forms)} forms, {' and '.join(sorted(forms))}; "
                "use one of them, or native"
            )
        return cls(forms.pop() if forms else "auto", tuple(parts))

    @property
    def kernels(self) -> tuple[KernelChoice, ...]:
        """The kernels that are asked for."""
        return tuple(part.kernel for part, _ in self.parts if part.kernel is not None)

    @property
    def keeps_all_keys(self) -> bool:
        """Whether no layer keeps a share of its keys alone."""
        return all(part.key_share == 1 for part, _ in self.parts)

    def layers(self, config: ModelConfig) -> dict[str, KernelChoice]:
        """Name of each attention module that a kernel serves, in running order.

        Raises:
            InputError: a block that is not there, that attends within views, or that is named twice.
        """
        found = self._by_block(config)
        return {LAYER.format(block): part.kernel for block, part in found.items() if part.kernel is not None}

    def key_shares(self, config: ModelConfig) -> dict[int, float]:
        """Share of the keys in each block that does not keep all; raises as :meth:`layers`."""
        return {block: part.key_share for block, part in self._by_block(config).items() if part.key_share < 1}

    def _by_block(self, config: ModelConfig) -> dict[int, LayerChoice]:
        blocks = range(0, config.aggregator.depth, 2)  # the others attend within each view
        found: dict[int, LayerChoice] = {}
        for choice, wanted in self.parts:
            for block in blocks if wanted is None else wanted:
                if block not in blocks:
                    raise InputError(
                        f"attention {choice} is asked for in block {block} of the aggregator; blocks with attention "
                        f"over all views, which it is for, are {', '.join(map(str, blocks))}"
                    )
                if block in found:
                    raise InputError(
                        f"attention names block {block} twice, for {found[block]} and {choice}; name it once"
                    )
                found[block] = choice
        return dict(sorted(found.items()))


def _split_share(name: str, part: str) -> tuple[str, float | None]:
    """Split what stands before the blocks into its name and the share of the keys, None if it has none.

    Raises:
        InputError: a share that is not above 0 and up to 1.
    """
    name, colon, number = name.partition(f":{_KEYS}")
    if not colon:
        return name, None
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(
            f"attention {part!r} has no share of the keys above 0 and up to 1; write it as in {name}:{_KEYS}0.25"
        )
    return name, share


def rounds(kernels: Mapping[str, KernelChoice]) -> bool:
    """Return whether any of the kernels rounds more than a library's own attention."""
    return any(choice.kernel != EXACT for choice in kernels.values())


def choose_attention(architectures: Sequence[int], length: int, precision: str) -> tuple[KernelChoice | None, str]:
    """Choose what computes attention over all views for ``--attention auto``.

    That is native attention, unless a kernel of ours was measured to be :data:`WORTH` times as fast.

    Args:
        architectures: compute capabilities, times ten, that the plan is for; empty if it is for a range of them.
        length: tokens of the usual request.
        precision: of the bundle. INT8 scores are for bundles that round activations anyway.

    Returns:
        The kernel, or None for native attention; and a sentence for the user that says why.
    """
    if not architectures:
        return None, "attention: native, because the plan is for a range of GPUs"
    names = _AUTO_8_BIT if precision in EIGHT_BIT else _AUTO
    speeds: list[Speed] = []
    for architecture in architectures:
        found = speed_at(architecture, length)
        if found is None:
            return None, f"attention: native, because no kernel was timed on compute capability {architecture / 10}"
        speeds.append(found)
    # A plan is the same for all of its targets, so the kernel has to be worth it on the worst of them.
    gains = {name: min(speed.native / speed.kernels[name] for speed in speeds) for name in names}
    best = max(names, key=lambda name: gains[name])
    what = f"{best} was {gains[best]:.2f} times as fast on {speeds[0].gpu} at {speeds[0].length} tokens"
    if gains[best] >= WORTH:
        return KernelChoice(best), f"attention: {best}, because {what}"
    return None, f"attention: native, because {what}, below {WORTH} times"
