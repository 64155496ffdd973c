"""A Chromium for tests of pages: one that is installed, or Playwright's own; as a program, says which."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MISSING = "there is no Chromium; install one, or run `playwright install chromium`"
# The page is drawn without a graphics processor, everywhere alike.
ARGUMENTS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


def chromium_path() -> str | None:
    """Return the program: ``CHROMIUM``, else one that is found; None without."""
    chosen = os.environ.get("CHROMIUM")
    found = chosen or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


@contextmanager
def browser(path: str) -> Iterator[Any]:
    """Yield a Playwright browser."""
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root, as whom continuous integration often runs.
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *root])
        try:
            yield opened
        finally:
            opened.close()


def unnamed_controls(page: Any) -> list[str]:
    """Return the controls of a page that have no name for those who do not see them, as HTML."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll(
            "input, button, select, canvas, summary, iframe, meter, progress, [role=application], [role=tabpanel]"
        )].filter((element) => !["aria-label", "aria-labelledby", "title"].some((name) => element.getAttribute(name))
            && !element.textContent.trim() && !element.closest("[aria-hidden=true]")
            && ![...(element.labels ?? [])].some((label) => label.textContent.trim()))
            .map((element) => element.outerHTML)"""
    )
    return found


def lowest_contrast(page: Any) -> float:
    """Return the least contrast of the words of a page with what they stand on, as WCAG 2.1 has it."""
    pairs = page.evaluate(
        """() => [...document.querySelectorAll(
            "h1, h2, p, label, legend, button, output, dt, dd, th, td, caption, a, small, input[type=number]"
        )].map((element) => {
            let paper = element;
            while (getComputedStyle(paper).backgroundColor === "rgba(0, 0, 0, 0)") paper = paper.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(paper).backgroundColor];
        })"""
    )
    assert len(pairs) > 20
    return min(_contrast(*pair) for pair in pairs)


def _contrast(text: str, paper: str) -> float:
    lights = []
    for color in (text, paper):
        shares = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        lights.append(sum(share * part for share, part in zip(linear, (0.2126, 0.7152, 0.0722), strict=True)) + 0.05)
    return max(lights) / min(lights)


if __name__ == "__main__":
    found = chromium_path()
    print(found or MISSING)
    sys.exit(0 if found else 1)
