"""Fonts of labels: letters, not boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mapengine.runtime.outputs import fonts
from mapengine.runtime.outputs.drawing import draw_label
from mapengine.runtime.outputs.fonts import font_and_text


def little_font(path: Path, letters: str) -> Path:
    """A font that has these letters, each a bar of another width."""
    builder_module = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")

    def bar(width: int) -> Any:
        pen = pens.TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 700), (width, 700), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    builder = builder_module.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf({name: bar(900 - 20 * index) for index, name in enumerate(names)})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Little", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Fonts that are installed, by file name; none at first."""
    installed: dict[str, Path] = {}
    real = ImageFont.truetype

    def truetype(font: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(font, str):
            return real(font, *arguments, **options)  # Pillow's own
        if font not in installed:
            raise OSError("cannot open resource")
        return real(installed[font], *arguments, **options)

    monkeypatch.setattr(fonts.ImageFont, "truetype", truetype)
    return installed


SIZES = iter(range(11, 200))  # a font is looked for once per size


def test_accents_need_no_other_font(system: dict[str, Path]) -> None:
    font, text = font_and_text("größe_é_ñ_Å.jpg", next(SIZES))
    assert text == "größe_é_ñ_Å.jpg"
    assert font.getname()[0] == "DejaVu Sans"
    assert font_and_text("Ελλάδα Москва", next(SIZES))[1] == "Ελλάδα Москва"


def test_plain_letters_have_the_font_of_everything_else(system: dict[str, Path]) -> None:
    font, _ = font_and_text("view 0", next(SIZES))
    assert font.getname() == ImageFont.load_default(12).getname()


def test_other_letters_come_from_a_font_that_is_found(system: dict[str, Path], tmp_path: Path) -> None:
    system["NotoSansCJK-Regular.ttc"] = little_font(tmp_path / "cjk.ttf", "abc日本")
    font, text = font_and_text("日本abc", next(SIZES))
    assert (text, font.getname()[0]) == ("日本abc", "Little")


def test_without_a_font_there_are_no_boxes(system: dict[str, Path]) -> None:
    assert font_and_text("日本.jpg", next(SIZES))[1] == "??.jpg"
    assert font_and_text("ṩ", next(SIZES))[1] in ("ṩ", "s")
    assert font_and_text("a\nb\x1b", next(SIZES))[1] == "a?b?"


def test_a_decomposed_name_is_composed(system: dict[str, Path]) -> None:
    assert font_and_text("gro\u0308ße", next(SIZES))[1] == "größe"


def test_labels_are_drawn_in_it(system: dict[str, Path], tmp_path: Path) -> None:
    system["malgun.ttf"] = little_font(tmp_path / "korean.ttf", "한글")
    canvas = Image.new("RGB", (200, 40), (255, 255, 255))
    draw_label(ImageDraw.Draw(canvas), (0, 0), "한글", 30, 190, (0, 0, 0))
    dark = (np.asarray(canvas)[..., 0] < 128).any(axis=0)
    assert dark[:20].all()  # a bar
    assert dark.sum() == pytest.approx((880 + 860) * 30 / 1000, abs=3)
