"""Griffe extension: the docstrings' ``:meth:`.Engine.infer``` become Markdown before a page is made of them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?\.*([\w.]+)`")
_LITERAL = re.compile(r"``([^`]+)``")


class DocstringRoles(Extension):
    """Write a reference as its name in code type, without the path to the module that holds it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return the docstring with references and literals in Markdown's code type."""
    return _LITERAL.sub(r"`\1`", _ROLE.sub(lambda match: f"`{_short(match[1])}`", docstring))


def _short(path: str) -> str:
    """Keep the class of a method, and the last name of anything else: ``Engine.infer``, ``load_images``."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1]
