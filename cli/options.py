"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.runtime.backend_table import NAMES
from mapengine.runtime.bundle.manifest import ATTENTIONS
from mapengine.runtime.bundle.requests import PATCH_SIZE, rounded_to_patches
from mapengine.runtime.errors import InputError
from mapengine.runtime.mapping.keyframes import KEYFRAMES
from mapengine.runtime.mapping.windows import JOINS
from mapengine.runtime.options import LIMITS, option_help
from mapengine.runtime.system.sizes import parse_pixels

RANDOM_PRESETS = ("preset:tiny", "preset:giant")
"""Models whose results mean nothing."""


def one_of(values: Sequence[str]) -> dict[str, Any]:
    """Arguments of ``typer.Option`` for a value that is one of ``values``."""

    def value(text: str) -> str:
        if text not in values:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(values)}")
        return text

    return {"parser": value, "metavar": "|".join(values)}


def _attention_form(text: str) -> str:
    """Read a form of attention, or forms with shares of the keys, which the export reads further."""
    return text if ":" in text else str(one_of(("auto", *ATTENTIONS))["parser"](text))


class Device(str, Enum):
    """What to do where the device of a bundle is missing."""

    required = "required"
    optional = "optional"


class Rest(str, Enum):
    """What int8 may leave the rest in."""

    fp32 = "fp32"
    bf16 = "bf16"


class AccuracyMetric(str, Enum):
    """What the accuracy of a rounded network is measured by."""

    outputs = "outputs"
    geometry = "geometry"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face Hub id (facebook/map-anything-apache), a folder in upstream's format, a weight file with "
        "config.json beside it, or a preset (preset:nano is trained; preset:tiny and preset:giant are random).",
    ),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `mapengine build` wrote.")]
AttentionOption = Annotated[
    str,
    typer.Option(
        parser=_attention_form,
        metavar="|".join(("auto", *ATTENTIONS)),
        help="How attention is written: mha (ONNX Runtime, OpenVINO, TensorRT-RTX), attention (TensorRT 10.14 and "
        "later), matmul (older parsers, such as JetPack's TensorRT 10.3); auto is what the backend fuses (mha for a "
        "plain export). Behind it a share of the keys of some layers, as in mha:kv=0.25@2,4.",
    ),
]
BuildAttentionOption = Annotated[
    str,
    typer.Option(
        metavar="auto|native|flash|int8|int8-fp8|sparse:SHARE|...",
        help="What computes attention over all views on a GPU: native is the library's own; flash, int8, int8-fp8, "
        "sparse:0.9, sparse-int8:0.9 and sparse-int8-fp8:0.9 are our kernels, for single blocks as in "
        "int8@0,2/sparse:0.9@4; auto is what was measured as faster. mha, attention and matmul are native in one way "
        "of writing it in the ONNX files. Behind all but sparse and auto a share of the keys may stand, on every "
        "backend: native:kv=0.25@2,4 keeps a quarter of them in blocks 2 and 4.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a Hub id.", show_default=False)
]
Backend = Annotated[
    str,
    typer.Option(
        **one_of(("auto", *NAMES)),
        help="What runs the network; auto is the fastest that is usable here and that the bundle is for.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processor threads; all that there are if not given.", show_default=False),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Size that the images are brought to; the nearest of MapAnything's table if not given.",
        show_default=False,
    ),
]
SummaryFile = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the summary as JSON too; - prints it alone.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Listen here; 0.0.0.0 lets everybody in who reaches this machine.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 is any that is free.")]
HostNames = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Further name that the page is reached by, such as that of a web server in front of it. May be given "
        "several times.",
        show_default=False,
    ),
]
ConfidencePercentile = Annotated[
    float,
    typer.Option(
        min=LIMITS["confidence_percentile"][0],
        max=LIMITS["confidence_percentile"][1],
        metavar="P",
        help=option_help("confidence_percentile"),
    ),
]
MinibatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help=option_help("minibatch_size"), show_default=False)
]
Give = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B,...",
        help="What the network gets beside the images: intrinsics, poses, depth (which brings the intrinsics). "
        "May be given several times.",
        show_default=False,
    ),
]
Join = Annotated[
    str,
    typer.Option(
        **one_of(JOINS),
        help="What the network is told of the frames that a window shares with the map: "
        + "; ".join(f"{join.name}: {join.about}" for join in JOINS.values())
        + ".",
    ),
]
Window = Annotated[int, typer.Option(min=1, metavar="N", help="Frames of a window, which one call reconstructs.")]
Overlap = Annotated[int, typer.Option(min=1, metavar="N", help="Of these, how many it shares with the one before it.")]
Keyframes = Annotated[
    str,
    typer.Option(
        **one_of(KEYFRAMES),
        help="Which frames windows are made of, the others being localised between them: "
        + "; ".join(f"{choice.name}: {choice.about}" for choice in KEYFRAMES.values())
        + ".",
    ),
]
KeyframeThreshold = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="What --keyframes compares with, above 0 and up to 1: "
        + ", ".join(f"{choice.least} for {choice.name}" for choice in KEYFRAMES.values() if choice.measure)
        + " if not given.",
        show_default=False,
    ),
]
MaskEdges = Annotated[bool, typer.Option("--mask-edges/--no-mask-edges", help=option_help("mask_edges"))]


@contextmanager
def value_of(option: str) -> Iterator[None]:
    """Turn what the runtime says of a value into a usage error that names the option."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


_GIVEN = ("images", "intrinsics", "poses", "depth")


def parse_given(give: Sequence[str]) -> set[str]:
    """The words of ``--give`` but ``images``.

    Raises:
        typer.BadParameter: an unknown word.
    """
    words = [word.strip() for part in give for word in part.split(",")]
    for word in words:
        if word not in _GIVEN:
            near = difflib.get_close_matches(word, _GIVEN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_GIVEN)}"
            raise typer.BadParameter(f"{word!r} cannot be given; {hint}", param_hint="--give")
    return set(words) - {"images"}


def parse_size(text: str, option: str) -> tuple[int, int]:
    """``518x392`` as (width, height).

    Raises:
        typer.BadParameter: not of that form, or not multiples of the patch size.
    """
    with value_of(option):
        width, height = parse_pixels(text)
    near = rounded_to_patches(width, height)
    if (width, height) != near:
        raise typer.BadParameter(
            f"{text} is not a multiple of {PATCH_SIZE} pixels on both sides; the nearest is {near[0]}x{near[1]}",
            param_hint=option,
        )
    return width, height


def parse_sizes(text: str, option: str) -> str | list[tuple[int, int]]:
    """``all``, or ``518x392,518x518`` as (width, height) pairs; errors as :func:`parse_size`."""
    return "all" if text.strip() == "all" else [parse_size(part, option) for part in text.split(",")]
