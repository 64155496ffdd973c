"""The rules of the source tree: who may import whom, how large a folder or a file may be, what no file may contain."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "calibration": {"runtime"},
    "cli": {"calibration", "export", "kernels", "runtime", "serving"},
    "export": {"calibration", "kernels", "runtime"},
    "kernels": set(),
    "package": {"cli"},
    "ros2": {"runtime"},
    "runtime": set(),
    "serving": {"runtime"},
}
PACKAGES_OF_THEIR_OWN = {"ros2"}
"""Folders with packages that are not part of ``mapengine``."""
RUNTIME_ALWAYS = {"numpy", "PIL", "platformdirs", "psutil"}
RUNTIME_INSIDE_FUNCTIONS = {
    "av",
    "laspy",
    "onnxruntime",
    "openvino",
    "rerun",
    "scipy",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
}
CLI_INSIDE_FUNCTIONS = {"export", "kernels", "serving"}
CLI_ALWAYS = {"typer", "rich", "click"}
LEAF_ROOMS = {
    "runtime.system": {"runtime.errors"},
    "runtime.typed_json": {"runtime.errors"},
    "runtime.writing": {"runtime.errors", "runtime.system", "runtime.typed_json"},
    "runtime.memory": {"runtime.bundle", "runtime.errors", "runtime.system", "runtime.typed_json", "runtime.writing"},
    "calibration.ranges": set(),
    "calibration.scenes": set(),
    "export.model": set(),
    "export.tensorrt": set(),
}
"""Folders that others stand on, and what of their own package they may import."""
MAX_LINES = 450
MAX_MODULES = 12
MAX_MODULES_OF_FLAT_PACKAGES = {"kernels": 22}
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


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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
        elif not isinstance(node, ast.expr):  # which holds no statement
            yield from imports(node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def import_graph(sources: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which modules each module imports, at any place of its text.

    ``sources`` maps paths below the root (``runtime/bundle/store.py``) to trees; the result maps dotted names.
    """
    names = {path: ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__") for path in sources}
    modules = set(names.values())
    graph = {}
    for path, tree in sources.items():
        graph[names[path]] = set[str]()
        for name, _, _ in imports(tree):
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


def room_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return which rooms import each other: folders directly in a package, and the modules beside them."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room, *others = (".".join(name.split(".")[:2]) for name in (module, *imported))
        rooms.setdefault(room, set()).update(set(others) - {room})
    return rooms


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
        for name, line, lazy in imports(parsed(path)):
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
        ("runtime", "class A:\n    import laspy", "inside functions only"),
        ("runtime", "def f():\n    import onnxruntime", None),
        ("runtime", "import os, numpy.linalg\nfrom PIL import Image\nfrom . import x\nfrom .y import z", None),
        ("runtime", "if TYPE_CHECKING:\n    import openvino", None),
        ("runtime", "if TYPE_CHECKING:\n    import torch", "may not import torch"),
        ("kernels", "from mapengine.runtime import x", "may not import runtime"),
        ("calibration", "from mapengine.runtime import x", None),
        ("calibration", "from mapengine.export import x", "may not import export"),
        ("export", "from mapengine.calibration import x\nimport torch", None),
        ("export", "from mapengine.cli import x", "may not import cli"),
        ("ros2", "from mapengine.runtime import x\nimport rclpy", None),
        ("ros2", "from mapengine.serving import x", "may not import serving"),
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
    trees = {path.relative_to(ROOT).as_posix(): parsed(path) for path in sources()}
    graph = import_graph(trees)
    assert import_circles(graph) == []
    rooms = room_graph(graph)
    assert import_circles(rooms) == []
    for room, allowed in LEAF_ROOMS.items():
        package = room.partition(".")[0]
        assert {other for other in rooms[room] if other.startswith(f"{package}.")} <= allowed, room


def test_rooms_are_the_folders_of_a_package() -> None:
    graph = {
        "runtime.a": {"runtime.b.c", "runtime.d"},
        "runtime.b.c": {"runtime.b.e.f"},
        "runtime.b.e.f": {"runtime.a"},
        "runtime.d": set[str](),
    }
    assert room_graph(graph) == {
        "runtime.a": {"runtime.b", "runtime.d"},
        "runtime.b": {"runtime.a"},
        "runtime.d": set(),
    }
    assert import_circles(room_graph(graph)) == ["runtime.a -> runtime.b -> runtime.a"]


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
    assert import_circles(import_graph({path: ast.parse(text) for path, text in sources.items()})) == circles


def test_every_package_of_the_tree_has_rules() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(MAY_IMPORT) - PACKAGES_OF_THEIR_OWN


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
    heavy = ("onnxruntime", "openvino", "laspy", "trimesh", "scipy", "matplotlib")
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


# What a test may touch

BY_NAME = ("setattr", "getattr", "patch")
DEFINED = re.compile(r"(?:^|\bself\.|\bdef |\bclass )(_[a-zA-Z]\w*)", re.MULTILINE)
SUSPECT = re.compile(r"(?<!\bself)(?<!\bcls)\._[a-zA-Z]|\bimport\b[^\n]* _|\(\n +_|[\"']_[a-z]")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def called(node: ast.Call) -> str:
    """Return the last name of what is called."""
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def private_names(paths: Iterable[Path]) -> set[str]:
    """Return the private functions, classes, variables and attributes that modules make."""
    return {name for path in paths for name in DEFINED.findall(path.read_text(encoding="utf-8"))}


def private_access(tree: ast.AST, of_product: set[str], of_tests: set[str]) -> list[str]:
    """Return what a test imports, reads or replaces of the product that begins with an underscore.

    An attribute of a module of the product counts always; of anything else, if the product has a private name like it
    and no test does.
    """
    modules, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mapengine"):
            modules.update(alias.asname or alias.name for alias in node.names)
            found += [alias.name for alias in node.names if is_private(alias.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules or (not is_self(node.value) and node.attr in of_product - of_tests):
                found.append(f"{owner}.{node.attr}")
        elif isinstance(node, ast.Call) and called(node) in ("setattr", "getattr", "patch"):
            given = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            named = [text for text in given if is_private(text.rpartition(".")[2])]
            found += [text for text in named if text.rpartition(".")[2] in of_product - of_tests]
    return found


def test_tests_reach_no_private_name_of_the_product() -> None:
    callers = [path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    of_product, of_tests = private_names(sources()), private_names(callers)
    suspects = [path for path in callers if SUSPECT.search(path.read_text(encoding="utf-8"))]
    found = {
        str(path.relative_to(ROOT)): names
        for path in suspects
        if (names := private_access(parsed(path), of_product, of_tests))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from mapengine.runtime.a import _b, c, __version__", ["_b"]),
        ("from mapengine.runtime import a\na._unknown", ["a._unknown"]),
        ("engine.load(1)._bundle.x", ["engine.load(1)._bundle"]),
        ("monkeypatch.setattr(thing, '_bundle', 1)", ["_bundle"]),
        ("monkeypatch.setattr('mapengine.runtime.a._bundle', 1)", ["mapengine.runtime.a._bundle"]),
        ("self._bundle = 1\nstand_in._tensors\nrow._replace(a=1)\nname.endswith('_bundle')", []),
    ],
)
def test_the_search_for_private_names_itself(source: str, found: list[str]) -> None:
    assert bool(SUSPECT.search(source)) or not found
    assert private_access(ast.parse(source), {"_bundle", "_tensors"}, {"_tensors"}) == found
