"""TensorRT's errors as one sentence: what is wrong, in which node, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mapengine.runtime.errors import ExportError

_LONGEST = 160
_NOISE = re.compile(r"catchCudaError|cudaError 35")
"""Without a driver the library complains of that while it cleans up after any other error."""
_SOURCES = re.compile(r"\(?\[[\w.]+\.(?:cpp|h)[^\]]*\]\s*")
_PREFIXES = re.compile(
    r"^(?:\w+::\w+: |Error Code \d+: |(?:Internal Error|API Usage Error|Cuda Runtime|Myelin)\s*\(?"
    r"|\w+Exception: |\w+\.cpp:\d+: )+"
)
_SENTENCE = re.compile(r"(?<=[\w)])\. (?=\S)|;|\s*\(?\bIn \w+ at /|\s*\(?See https?:")
_REQUESTED = re.compile(r"Requested size was (\d+) bytes")
_KNOWN: tuple[tuple[re.Pattern[str], str | None, str], ...] = (
    (
        re.compile("not supported by a dedicated kernel"),
        "no fused kernel serves this attention and the operator Attention has no other",
        "export with --attention mha, or build with --precision fp16",
    ),
    (
        re.compile("workspace|OutOfMemory|out of memory", re.IGNORECASE),
        "the memory limit leaves no kernel for the largest request",
        "raise --memory-limit, or build for fewer views or smaller sizes",
    ),
    (re.compile("HW-specific datatypes"), None, "leave out the --target that lacks the datatype"),
    (re.compile("CUDA driver|cudaError"), "it needs a GPU", "build on a machine with an NVIDIA GPU and its driver"),
)
"""What an error says, what it means (None: as it is), and what to do."""
_OTHERWISE = "try another --attention or --precision, or another version of {backend}"


def parser_error(name: str, backend: str, version: str, errors: Sequence[Any], lines: Sequence[str]) -> ExportError:
    """Say why the ONNX parser refused the stage ``name``.

    Args:
        errors: the parser's ``ParserError`` objects.
        lines: what the library logged as errors, for a parser that keeps none.
    """
    parser = f"the parser of {backend} {version}"
    if not errors:
        return ExportError(f"{name}: {parser} refuses the graph ({useful_line(lines)}); export the stage again")
    error = errors[0]
    node, operator = str(error.node_name() or ""), str(error.node_operator() or "")
    code, text = str(getattr(error.code(), "name", error.code())), useful_line([str(error.desc())])
    if code.startswith("UNSUPPORTED_NODE") or "Plugin not found" in text:
        return ExportError(
            f"{name}: {parser} does not know the operator {operator} of the node {node}; export with another "
            f"--attention (matmul needs the least), or install a newer {backend}"
        )
    where = f" at the node {node} ({operator})" if node else ""
    return ExportError(f"{name}: {parser} refuses the graph{where}: {text}; export the stage again")


def builder_error(name: str, backend: str, lines: Sequence[str], nodes: Sequence[str] = ()) -> ExportError:
    """Say why the builder gave no plan of the stage ``name``.

    Args:
        lines: what the library logged as errors, oldest first.
        nodes: names of the graph's nodes; one that an error mentions is named.
    """
    text = " ".join(line for line in lines if not _NOISE.search(line)) or " ".join(lines)
    meaning, remedy = None, _OTHERWISE.format(backend=backend)
    for pattern, known, fix in _KNOWN:
        if pattern.search(text):
            meaning, remedy = known, fix
            break
    requested = [int(size) for size in _REQUESTED.findall(text)]
    if requested:
        meaning = f"a kernel asks for {-(-max(requested) // 2**20)} MiB of workspace at the largest request"
    said = meaning or useful_line(lines)
    node = max((node for node in nodes if "/" in node and node in text), key=len, default="")
    where = f" at {node}" if node and node not in said else ""
    return ExportError(f"{name}: {backend} could not build the plan{where}: {said}; {remedy}")


def useful_line(lines: Sequence[str]) -> str:
    """Return the first error that says something, without source files, codes and what follows its first sentence."""
    said = [line for line in lines if not _NOISE.search(line)] or list(lines)
    for line in said:
        text = _PREFIXES.sub("", _SOURCES.sub("", " ".join(line.split())))
        text = _SENTENCE.split(text)[0].strip(" .,;:([")
        text += ")" * (text.count("(") - text.count(")"))
        if text:
            return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} ..."
    return "it gives no reason"
