"""Documents say what is so: links, paths, options, imports and generated parts are held against the source."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from mapengine.cli.program import make_app

from .documents import DOCUMENTS, ROOT, blocks, commands

NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


@pytest.fixture(scope="module")
def make_site() -> ModuleType:
    """The program that builds the site."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("make_site")
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def group() -> Any:
    """The command line."""
    return typer.main.get_command(make_app())


@pytest.mark.slow
def test_every_public_name_has_a_docstring_and_a_place_in_the_reference(make_site: ModuleType) -> None:
    make_site.check_public_names()


def test_a_public_name_without_docstring_or_place_is_named(
    make_site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, reference = tmp_path / "runtime", tmp_path / "docs" / "reference"
    package.mkdir()
    reference.mkdir(parents=True)
    (package / "__init__.py").write_text('from .tool import Tool, made\n\n__all__ = ["Tool", "made"]\n')
    (package / "tool.py").write_text('class Tool:\n    """A tool."""\n\n    def use(self): ...\n\n\nmade = 1\n')
    (reference / "runtime.md").write_text("# Reference\n\n::: mapengine.runtime.Tool\n")
    monkeypatch.setattr(make_site, "ROOT", tmp_path)
    monkeypatch.setattr(make_site, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(make_site, "PUBLIC_MODULES", ("mapengine.runtime",))
    with pytest.raises(make_site.SiteError) as refused:
        make_site.check_public_names()
    assert str(refused.value).splitlines() == [
        "mapengine.runtime.tool.Tool.use has no docstring",
        "mapengine.runtime.made has no place in docs/reference",
        "mapengine.runtime.tool.made has no docstring",
    ]


def test_dead_links_and_foreign_files_of_a_built_page_are_named(
    make_site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, site = tmp_path / "pages", tmp_path / "site"
    for folder in (pages, site):
        folder.mkdir()
    (tmp_path / "mkdocs.yml").write_text("nav: [a.md, gone.md]\n")
    for name in ("a", "b"):
        (pages / f"{name}.md").write_text("# Page\n")
    (site / "a.html").write_text('<h1 id="x"></h1><a href="b.html#y"></a><a href="c.html"></a><a href="#x"></a>')
    (site / "b.html").write_text('<script src="https://example.org/x.js"></script><a href="https://example.org"></a>')
    for name, value in (("ROOT", tmp_path), ("PAGES", pages), ("SITE", site)):
        monkeypatch.setattr(make_site, name, value)
    with pytest.raises(make_site.SiteError) as refused:
        make_site.check_site()
    assert str(refused.value).splitlines() == [
        "b.md is not in the navigation of mkdocs.yml",
        "mkdocs.yml lists gone.md, which is not there",
        "a.html: b.html#y has no such anchor",
        "a.html: c.html leads nowhere",
        "b.html loads https://example.org/x.js",
    ]


def test_blocks_that_are_made_from_the_source_are_up_to_date(make_site: ModuleType) -> None:
    for page in make_site.WRITTEN:
        stale = f"{page.name} is out of date; run docs/make_site.py --write"
        assert make_site.renewed(page) == page.read_text(encoding="utf-8"), stale


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", NAMES)
def test_paths_of_the_project_exist(name: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    top = "runtime|export|calibration|kernels|cli|tests|benchmarks|examples|docs"
    for path in re.findall(rf"`((?:{top})/[\w./-]*)`", text):
        made = path == "benchmarks/results/gpu_test.json" or "NAME" in path
        assert made or (ROOT / path).exists(), f"{name} names {path}"


def test_paths_that_the_source_names_in_the_documentation_exist() -> None:
    for package in ("runtime", "export", "calibration", "kernels", "cli", "benchmarks"):
        for source in (ROOT / package).rglob("*.py"):
            for path in re.findall(r"\bdocs/[\w./-]+\.(?:md|png|json)", source.read_text(encoding="utf-8")):
                assert (ROOT / path).exists(), f"{source.relative_to(ROOT)} names {path}"


def test_json_examples_parse() -> None:
    examples = [block for document in DOCUMENTS for block in blocks(document, "json")]
    assert len(examples) >= 2
    for example in examples:
        json.loads(example.text)


def test_documented_make_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    quickstart = (ROOT / "docs" / "guide" / "quickstart.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([A-Z_]+)` \|.*\| `?([^`|]*?)`? ?\|$", quickstart, re.M)
    assert {name for name, _ in table} >= {"MODEL", "PRECISION", "BACKEND", "VIEWS", "RESOLUTION", "OUT"}
    for name, default in table:
        written = re.search(rf"^{name}\s*\?=[ ]*(.*)$", makefile, re.M)
        assert written, f"the Makefile has no variable {name}"
        assert written[1] == ("" if default == "the default branch" else default)


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named = {target for target in re.findall(r"`make ([a-z-]+)", text)}
        named |= {
            words[1] for b in blocks(document, "sh", "console") for words in commands(b.text) if words[0] == "make"
        }
        assert named <= targets, document.name


@pytest.mark.parametrize("name", NAMES)
def test_documented_commands_and_options_exist(group: Any, name: str) -> None:
    documented = [words for block in blocks(ROOT / name, "sh", "console") for words in commands(block.text)]
    for words in documented:
        if Path(words[0]).name == "mapengine":
            words = [word for word in words[1:] if word != "--debug"]
            command = group.commands.get(words[0])
            assert command is not None, f"{name}: there is no command {words[0]}"
            known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
            for word in words[1:]:
                if word.startswith("-"):
                    assert word.partition("=")[0] in known, f"{name}: mapengine {words[0]} has no option {word}"


@pytest.mark.parametrize("name", NAMES)
def test_documented_imports_exist(name: str) -> None:
    for block in blocks(ROOT / name, "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mapengine"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name}: {node.module} has no {alias.name}"


def test_no_document_names_a_package_host() -> None:
    hosts = re.compile(r"pypi\.org|anaconda\.org|index-url|pythonhosted", re.I)
    texts = [*DOCUMENTS, *(ROOT / ".github").rglob("*.md"), ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"]
    assert [path.name for path in texts if hosts.search(path.read_text(encoding="utf-8"))] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
