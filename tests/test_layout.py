"""The rules of the source tree: who may import whom, how large a folder or a file may be, what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "calibration": {"runtime"},
    "cli": {"calibration", "export", "kernels", "runtime"},
    "export": {"calibration", "kernels", "runtime"},
    "kernels": set(),
    "package": {"cli"},
    "runtime": set(),
}
RUNTIME_ALWAYS = {"numpy", "PIL", "platformdirs", "psutil"}
RUNTIME_INSIDE_FUNCTIONS = {"onnxruntime", "openvino", "trimesh", "tensorrt", "tensorrt_rtx", "cuda"}
CLI_INSIDE_FUNCTIONS = {"export", "kernels"}
CLI_ALWAYS = {"typer", "rich", "click"}
MAX_LINES = 450
MAX_MODULES = 12
MAX_MODULES_OF_FLAT_PACKAGES = {"cli": 22, "kernels": 22}
BLOCKED = ("torch", "onnx", "transformers", "onnxscript")
BLOCK = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
"""


def sources() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every imported name as (dotted name with leading dots, line, whether it waits for a call)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module + "." if node.module else "")
            yield from ((module + alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            # Only type checkers run this; the package may still not be one that the rules forbid.
            for child in node.body:
                yield from imports(ast.Module([child], []), True)
            yield from imports(ast.Module(node.orelse, []), lazy)
        else:
            yield from imports(node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules each module imports, at any place of its text.

    ``sources`` maps paths below the root (``runtime/bundle/store.py``) to texts; the result maps dotted names.
    """
    names = {path: ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__") for path in sources}
    modules = set(names.values())
    graph = {}
    for path, source in sources.items():
        graph[names[path]] = set[str]()
        for name, _, _ in imports(ast.parse(source)):
            level = len(name) - len(name.lstrip("."))
            parts = [*Path(path).parts[:-level], *name[level:].split(".")] if level else name.split(".")[1:]
            if level or name.startswith("mapengine."):
                while parts and ".".join(parts) not in modules:  # what follows the module are its members
                    parts.pop()
                graph[names[path]].add(".".join(parts))
        graph[names[path]] -= {"", names[path]}
    return graph


def import_circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a shortest circle through every module that is part of one, each circle once, as ``a -> b -> a``."""
    circles = {}
    for start in sorted(graph):
        paths = deque([[start]])
        seen = set[str]()
        while paths:
            path = paths.popleft()
            if start in graph[path[-1]]:
                circles.setdefault(frozenset(path), " -> ".join([*path, start]))
                break
            following = sorted(graph[path[-1]] - seen)
            seen.update(following)
            paths.extend([*path, module] for module in following)
    return list(circles.values())


def complaint(package: str, depth: int, name: str, lazy: bool) -> str | None:
    """Why a file ``depth`` folders below ``package`` may not import ``name``; None if it may."""
    if name.startswith("."):
        level = len(name) - len(name.lstrip("."))
        return "a relative import leaves the package" if level > depth + 1 else None
    top, _, rest = name.partition(".")
    if top == "mapengine":
        other = rest.partition(".")[0]
        if other == package:
            return "inside one package, imports are relative"
        if other not in MAY_IMPORT[package]:
            return f"{package} may not import {other or 'mapengine'}"
        if package == "cli" and other in CLI_INSIDE_FUNCTIONS and not lazy:
            return f"the command line imports {other} inside functions, because not every installation can"
        return None
    if top in sys.stdlib_module_names:
        return None
    if package == "runtime" and top not in RUNTIME_ALWAYS:
        if top not in RUNTIME_INSIDE_FUNCTIONS:
            return f"the runtime may not import {top}"
        return None if lazy else f"the runtime imports {top} inside functions only"
    if package == "cli" and top not in CLI_ALWAYS and not lazy:
        return f"the command line imports {top} inside functions only"
    return None


def test_imports_follow_the_layering() -> None:
    problems = []
    for path in sources():
        relative = path.relative_to(ROOT)
        for name, line, lazy in imports(ast.parse(path.read_text(encoding="utf-8"))):
            reason = complaint(relative.parts[0], len(relative.parts) - 2, name, lazy)
            if reason:
                problems.append(f"{relative}:{line}: {name}: {reason}")
    assert problems == []


@pytest.mark.parametrize(
    ("package", "source", "reason"),
    [
        ("runtime", "import torch", "may not import torch"),
        ("runtime", "def f():\n    from onnx import helper", "may not import onnx"),
        ("runtime", "from ..export import x", "leaves the package"),
        ("runtime", "from mapengine.export import x", "may not import export"),
        ("runtime", "from mapengine import export", "may not import export"),
        ("runtime", "import mapengine.runtime.errors", "relative"),
        ("runtime", "import onnxruntime", "inside functions only"),
        ("runtime", "class A:\n    import trimesh", "inside functions only"),
        ("runtime", "def f():\n    import onnxruntime", None),
        ("runtime", "import os, numpy.linalg\nfrom PIL import Image\nfrom . import x\nfrom .y import z", None),
        ("runtime", "if TYPE_CHECKING:\n    import openvino", None),
        ("runtime", "if TYPE_CHECKING:\n    import torch", "may not import torch"),
        ("kernels", "from mapengine.runtime import x", "may not import runtime"),
        ("calibration", "from mapengine.runtime import x", None),
        ("calibration", "from mapengine.export import x", "may not import export"),
        ("export", "from mapengine.calibration import x\nimport torch", None),
        ("export", "from mapengine.cli import x", "may not import cli"),
        ("cli", "from mapengine.export import x", "inside functions"),
        ("cli", "import torch", "inside functions"),
        ("cli", "from mapengine.runtime import x\nfrom mapengine.calibration import y", None),
        ("cli", "import typer\ndef f():\n    from mapengine.export import x", None),
    ],
)
def test_the_checker_itself(package: str, source: str, reason: str | None) -> None:
    found = [complaint(package, 0, name, lazy) for name, _, lazy in imports(ast.parse(source))]
    complaints = [text for text in found if text]
    if reason is None:
        assert complaints == []
    else:
        assert len(complaints) == 1
        assert reason in complaints[0]


def test_no_modules_import_each_other_in_a_circle() -> None:
    texts = {str(path.relative_to(ROOT).as_posix()): path.read_text(encoding="utf-8") for path in sources()}
    assert import_circles(import_graph(texts)) == []


@pytest.mark.parametrize(
    ("sources", "circles"),
    [
        (
            {
                "runtime/a.py": "from . import b",
                "runtime/b.py": "def f():\n    from .c.d import x",
                "runtime/c/d.py": "",
            },
            [],
        ),
        (
            {
                "runtime/__init__.py": "from .a import A",
                "runtime/a.py": "from .b.c import C",
                "runtime/b/c.py": "if TYPE_CHECKING:\n    from .. import A",
            },
            ["runtime -> runtime.a -> runtime.b.c -> runtime"],
        ),
        (
            {
                "runtime/a.py": "def f():\n    from mapengine.export.b import x",
                "export/b.py": "import mapengine.runtime.a",
            },
            ["export.b -> runtime.a -> export.b"],
        ),
        ({"runtime/a.py": "from ..runtime import b", "runtime/b.py": "import numpy\nfrom mapengine import export"}, []),
        (
            {
                "kernels/a.py": "from .b import x\nfrom .c import x",
                "kernels/b.py": "from . import a, c",
                "kernels/c.py": "from . import d",
                "kernels/d.py": "from . import c",
            },
            ["kernels.a -> kernels.b -> kernels.a", "kernels.c -> kernels.d -> kernels.c"],
        ),
    ],
)
def test_the_search_for_circles_itself(sources: dict[str, str], circles: list[str]) -> None:
    assert import_circles(import_graph(sources)) == circles


def test_every_package_of_the_tree_has_rules() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("module", ["mapengine.runtime", "mapengine.cli"])
def test_imports_without_torch_and_onnx(module: str) -> None:
    check = f"import {module}\nassert not set({BLOCKED!r}) & set(sys.modules)\nprint('imported')"
    result = subprocess.run([sys.executable, "-c", BLOCK + check], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "imported"), result.stderr


def test_the_blocker_blocks() -> None:
    result = subprocess.run([sys.executable, "-c", BLOCK + "import torch"], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "torch is blocked" in result.stderr


def test_importing_the_runtime_does_not_load_a_backend() -> None:
    heavy = ("onnxruntime", "openvino", "trimesh", "scipy", "matplotlib")
    check = f"import sys, mapengine.runtime\nprint(sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def test_folders_stay_small() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources() if path.name != "__init__.py")
    allowed = dict.fromkeys(counts, MAX_MODULES) | MAX_MODULES_OF_FLAT_PACKAGES
    assert {folder: count for folder, count in counts.items() if count > allowed[folder]} == {}


def test_no_file_names_somebodys_machine() -> None:
    personal = re.compile(r"(?<![\w./])/(?:home|Users|root|work|mnt)/\w|\bfile:///|[A-Z]:\\\\?Users\b")
    kinds = {".py", ".md", ".toml", ".json", ".yml", ".sh", ""}
    folders = [*MAY_IMPORT, "tests", "benchmarks", "docs", ".ci"]
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert personal.search("see /home" + "/someone")
    problems = []
    for path in paths:
        if path.suffix in kinds and path.name != ".git":  # a file in a linked worktree
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if personal.search(line):
                    problems.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert problems == []
