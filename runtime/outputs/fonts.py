"""The font of labels: Pillow's own where it has all letters, else the one that comes with us, else one of the system.

Pillow's has no accents. Ours is a part of DejaVu Sans: Latin, Greek and Cyrillic. Chinese, Japanese and Korean need a
font of the system.
"""

from __future__ import annotations

import functools
import io
import itertools
import unicodedata
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

from PIL import ImageFont

_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansJP-Regular.ttf",
    "SourceHanSans-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "ipagp.ttf",
    "NanumGothic.ttf",
    "uming.ttc",
    "unifont.otf",
    "unifont.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    # Arabic, Hebrew and others
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
    "Arial.ttf",
)
"""Files that Pillow looks for in the folders of fonts of the system."""
_NOBODYS = "\U0010ffff"
"""A character that no font has: what is drawn for it is what is drawn for every missing one."""


def font_and_text(text: str, size: int) -> tuple[Any, str]:
    """Return a font of ``size`` pixels for a text, and the text as one line that it can draw.

    Without a font that has every letter, the one that lacks fewest is taken, and these letters lose their accents, or
    become ``?``: a picture shows no empty boxes.
    """
    line = unicodedata.normalize("NFC", "".join(c if c.isprintable() else "?" for c in text))
    best, fewest = None, len(line) + 1
    system = (functools.partial(_of_system, name) for name in _SYSTEM_FONTS)
    loaders: Iterable[Callable[[int], Any]] = itertools.chain((_of_pillow, _own), system)
    for load in loaders:
        font = load(size)
        lacks = fewest if font is None else len(_missing(font, line))
        if lacks < fewest:
            best, fewest = font, lacks
        if not fewest:
            break
    missing = _missing(best, line)
    return best, "".join(_without_accents(c) if c in missing else c for c in line)


@functools.lru_cache(maxsize=32)
def _of_pillow(size: int) -> Any:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=32)
def _own(size: int) -> Any:
    return ImageFont.truetype(io.BytesIO(files(__package__).joinpath("DejaVuSans-labels.ttf").read_bytes()), size)


@functools.lru_cache(maxsize=256)
def _of_system(name: str, size: int) -> Any:
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # it is not there
        return None


def _missing(font: Any, text: str) -> set[str]:
    box = _shape(font, _NOBODYS)
    return {c for c in set(text) if not c.isascii() and _shape(font, c) == box}


def _shape(font: Any, character: str) -> tuple[Any, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _without_accents(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character)[0]
    return plain if plain.isascii() else "?"
