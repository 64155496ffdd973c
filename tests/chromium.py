"""A Chromium for tests of pages: one that is installed, or Playwright's own; as a program, says which."""

from __future__ import annotations

import os
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


if __name__ == "__main__":
    found = chromium_path()
    print(found or MISSING)
    sys.exit(0 if found else 1)
