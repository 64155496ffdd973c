"""Build the documentation site into ``build/site``; ``make docs`` runs this.

The pages of ``docs/`` and a few of the project's other Markdown files are copied to ``build/docs/pages``, where the
generated pages join them (the command line, the examples). Zensical then builds the site strictly, and the result is
checked: every page is in the navigation, every link and anchor leads somewhere, nothing is loaded from another host,
and every public name has a docstring and a place in the reference.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import docstring_roles

from mapengine.runtime.options import option_help
from mapengine.runtime.outputs.formats.options import SaveOptions
from mapengine.runtime.outputs.formats.table import FORMATS
from mapengine.runtime.system.children import child_command, child_environment

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "docs" / "pages"
SITE = ROOT / "build" / "site"

PACKAGES = ("calibration", "cli", "export", "kernels", "runtime", "serving")
PUBLIC_MODULES = (
    "mapengine.runtime",
    "mapengine.export",
    "mapengine.kernels",
    "mapengine.calibration.evaluation",
    "mapengine.calibration.ranges",
    "mapengine.calibration.scenes",
    "mapengine.calibration.sequences",
)
"""The modules whose ``__all__`` is the public interface."""

MOVED = {
    "CHANGELOG.md": "contributing/changes.md",
    "CODE_OF_CONDUCT.md": "contributing/conduct.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "SECURITY.md": "contributing/security.md",
    "examples/README.md": "guide/examples.md",
    "export/weights/nano/README.md": "guide/model-card.md",
}
"""Pages of the site that stand elsewhere in the project: path in the project to path in the site."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.S | re.M)


class SiteError(Exception):
    """Something that a reader of the site would stumble over; the message names the page."""


def main() -> int:
    """Build and check the site, with ``--write`` after the blocks that are made from the source.

    Returns:
        1, after a line per problem, if there is any.
    """
    for page in WRITTEN:
        new = renewed(page)
        if new != page.read_text(encoding="utf-8"):
            if "--write" not in sys.argv[1:]:
                print(f"{page.relative_to(ROOT)} is out of date; run docs/make_site.py --write", file=sys.stderr)
                return 1
            page.write_text(new, encoding="utf-8")
    try:
        check_public_names()
        write_pages()
        build()
        check_site()
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Wrote {SITE.relative_to(ROOT)}/index.html")
    return 0


def write_pages() -> None:
    """Fill ``build/docs`` with the pages of the site and a tree of links in which the packages can be found."""
    shutil.rmtree(PAGES.parent, ignore_errors=True)
    packages = PAGES.parent / "packages" / "mapengine"
    packages.mkdir(parents=True)
    for package in PACKAGES:
        (packages / package).symlink_to(ROOT / package)
    for source in sorted(DOCS.rglob("*")):
        if source.is_file() and source.suffix in (".css", ".json", ".md", ".png"):
            copy_page(source, source.relative_to(DOCS).as_posix())
    for source_name, place in MOVED.items():
        copy_page(ROOT / source_name, place)
    with (PAGES / MOVED["examples/README.md"]).open("a", encoding="utf-8") as page:
        for program in sorted((ROOT / "examples").glob("*.py")):
            page.write(f"\n## {program.name}\n\n```python\n{program.read_text(encoding='utf-8')}```\n")
    (PAGES / "reference" / "cli.md").write_text(command_line_page(), encoding="utf-8")


def copy_page(source: Path, place: str) -> None:
    """Copy a file to ``place`` in the site, with the links of a Markdown page leading where their targets now are."""
    target = PAGES / place
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".md":
        shutil.copyfile(source, target)
        return

    def moved(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        if "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = link.partition("#")
        linked = (source.parent / path).resolve()
        if not linked.exists():
            raise SiteError(f"{source.relative_to(ROOT)}: there is no {link}")
        inside = place_in_site(linked)
        if inside is None:
            return text  # a file of the project that has no page
        relative = os.path.relpath(PAGES / inside, target.parent).replace(os.sep, "/")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"

    text = source.read_text(encoding="utf-8")
    blocks = FENCED.findall(text)
    outside = [LINK.sub(moved, part) for part in FENCED.split(text)]
    target.write_text("".join(a + b for a, b in zip(outside, [*blocks, ""], strict=True)), encoding="utf-8")


def place_in_site(path: Path) -> str | None:
    """Return where a file of the project stands in the site; None if it is no page of it."""
    name = path.relative_to(ROOT).as_posix()
    if name in MOVED:
        return MOVED[name]
    if name == "README.md":
        return "index.md"
    return path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) and path.is_file() else None


def command_line_page() -> str:
    """Return the reference of all commands, from their own help."""
    import typer

    from mapengine.cli.program import make_app

    group: Any = typer.main.get_command(make_app())
    lines = ["# Command line", "", "What `mapengine COMMAND --help` says, command by command.", ""]
    for name in sorted(group.commands):
        command = group.commands[name]
        context = command.make_context(f"mapengine {name}", [], resilient_parsing=True)
        description, _, example = (command.help or "").replace("\b", "").partition("Example:")
        paragraphs = [" ".join(paragraph.split()) for paragraph in description.split("\n\n") if paragraph.strip()]
        commands = [line.strip() for line in example.splitlines() if line.strip()]
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## mapengine {name}", "", *"\n\n".join(paragraphs).splitlines(), ""]
        lines += ["```text", f"mapengine {name} {usage}", "```", ""]
        if commands:
            lines += ["```sh", *commands, "```", ""]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                option, meaning = (" ".join(text.split()) for text in record)
                lines.append(f"* `{option}`: {meaning}")
        lines.append("")
    return "\n".join(lines)


def error_tree() -> str:
    """Return the classes of ``runtime/errors.py`` as a nested list: what each also is, and when it is raised."""
    classes = [node for node in syntax("mapengine.runtime.errors").body if isinstance(node, ast.ClassDef)]

    def lines(base: str, depth: int) -> Iterator[str]:
        for error in classes:
            bases = [ast.unparse(each) for each in error.bases]
            if bases[0] == base:
                also = f" (`{bases[1]}`)" if len(bases) > 1 else ""
                yield f"{'    ' * depth}* `{error.name}`{also}: {first_line(error)}"
                yield from lines(error.name, depth + 1)

    return "\n".join(lines("Exception", 0))


def rooms() -> str:
    """Return the folders of the packages as a nested list, each with the first line of its docstring."""
    entries = []
    for package in sorted(PACKAGES):
        for file in sorted((ROOT / package).rglob("__init__.py")):
            folder = file.parent.relative_to(ROOT)
            about = first_line(ast.parse(file.read_text(encoding="utf-8")))
            entries.append(f"{'    ' * (len(folder.parts) - 1)}* `{folder.as_posix()}/`: {about}")
    return "\n".join(entries)


def output_formats() -> str:
    """Return the table of the formats of scenes, and a list of their options, from the package itself."""
    lines = ["| format | ending | holds | options | extra | read by |", "|---|---|---|---|---|---|"]
    for form in FORMATS:
        ending = ", ".join(f"`{suffix}`" for suffix in form.suffixes) or "a folder"
        options = ", ".join(f"`{name}`" for name in form.options)
        extra = ""
        for changed, note in (({}, ""), ({"map_format": "exr"}, " for exr")):
            needed = form.needs(SaveOptions(**changed))
            extra = extra or (f"`{needed.extra}`{note}" if needed else "")
        lines.append(f"| `{form.name}` | {ending} | {form.holds} | {options} | {extra} | {form.read_by} |")
    lines.append("")
    lines += [
        f"* `{option.name}` (`--{option.name.replace('_', '-')}`): {option_help(option.name, SaveOptions)}"
        for option in fields(SaveOptions)
    ]
    return "\n".join(lines)


def first_line(node: ast.Module | ast.ClassDef) -> str:
    """Return the first sentence of a docstring as Markdown."""
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return docstring_roles.as_markdown(text)


WRITTEN = {
    ROOT / "docs" / "contributing" / "architecture.md": ("rooms", rooms),
    ROOT / "docs" / "guide" / "outputs.md": ("formats", output_formats),
    ROOT / "docs" / "reference" / "errors.md": ("errors", error_tree),
}
"""Pages with a block that is made from the source: the block's name, and what makes it."""


def renewed(page: Path) -> str:
    """Return the text of a page of ``WRITTEN`` with its block made anew."""
    name, make = WRITTEN[page]
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
    return block.sub(lambda match: f"{match[1]}\n{make()}\n\n{match[2]}", page.read_text(encoding="utf-8"))


def build() -> None:
    """Run Zensical, whose strict mode refuses links and anchors that lead nowhere."""
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run(
        child_command("zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"),
        cwd=ROOT, env=child_environment(NO_COLOR="1"), capture_output=True, text=True,
    )  # fmt: skip
    lines = f"{done.stdout}{done.stderr}".partition("Traceback")[0].splitlines()
    if done.returncode or any(line.startswith("griffe:") for line in lines):
        raise SiteError("\n".join(lines) or f"zensical ended with {done.returncode}")


def check_public_names() -> None:
    """Refuse a public name without a docstring, or without a place in the reference (SiteError).

    Public methods and properties of public classes need a docstring too. Nothing is imported.
    """
    places = {
        target
        for page in (DOCS / "reference").glob("*.md")
        for target in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
    }
    problems = []
    for module in PUBLIC_MODULES:
        for name in exported(module):
            home, body, index = definition(module, name)
            if not places & {module, home, f"{module}.{name}", f"{home}.{name}"}:
                problems.append(f"{module}.{name} has no place in docs/reference")
            problems += [f"{home}.{missing} has no docstring" for missing in undocumented(body, index, name)]
    if problems:
        raise SiteError("\n".join(problems))


def exported(module: str) -> list[str]:
    """Return the names in ``__all__`` of a package."""
    for statement in syntax(module).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise SiteError(f"{module} has no __all__")


def definition(module: str, name: str) -> tuple[str, list[ast.stmt], int]:
    """Return the module that defines ``name`` of ``module``, that module's statements, and which of them it is."""
    body = syntax(module).body
    for index, statement in enumerate(body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return module, body, index
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return module, body, index
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.ImportFrom) and node.level and name in {alias.name for alias in node.names}:
            package = module if source_file(module).name == "__init__.py" else module.rpartition(".")[0]
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            return definition(".".join([*base, *(node.module or "").split(".")]), name)
    raise SiteError(f"{module} does not say where {name} comes from")


def undocumented(body: list[ast.stmt], index: int, name: str) -> list[str]:
    """Return ``name`` if the statement has no docstring, and ``name.method`` of its methods that have none."""
    statement = body[index]
    if not isinstance(statement, ast.ClassDef | ast.FunctionDef):
        following = body[index + 1] if index + 1 < len(body) else None
        value = following.value if isinstance(following, ast.Expr) else None
        return [] if isinstance(value, ast.Constant) and isinstance(value.value, str) else [name]
    missing = [] if ast.get_docstring(statement) else [name]
    if isinstance(statement, ast.ClassDef):
        methods = [m for m in statement.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
        missing += [f"{name}.{method.name}" for method in methods if not ast.get_docstring(method)]
    return missing


def syntax(module: str) -> ast.Module:
    """Parse the source of a module of the project."""
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def source_file(module: str) -> Path:
    """Return the file of a module: the folders of the project are the packages inside ``mapengine``."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def check_site() -> None:
    """Refuse a page outside the navigation, a link or anchor that leads nowhere, and a file of another host."""
    import yaml

    listed = set(navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")}
    problems = [f"{page} is not in the navigation of mkdocs.yml" for page in sorted(written - listed)]
    problems += [f"mkdocs.yml lists {page}, which is not there" for page in sorted(listed - written)]
    pages = {page: Page.read(page) for page in sorted(SITE.rglob("*.html")) if page.name != "404.html"}
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{path.relative_to(SITE)}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                problems.append(f"{path.relative_to(SITE)}: {link} has no such anchor")
        problems += [f"{path.relative_to(SITE)} loads {link}" for link in sorted(page.loaded) if urlsplit(link).netloc]
    if problems:
        raise SiteError("\n".join(problems))


def navigation(entry: Any) -> Iterator[str]:
    """Return the pages that a navigation lists, depth first."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(part)


class Page(HTMLParser):
    """The anchors of an HTML page, the links that a reader can follow, and the files that a browser loads with it."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = {"__top"}
        self.links: set[str] = set()
        self.loaded: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> Page:
        """Parse the file at ``path``."""
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag brings."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.add(values["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in values:
            self.loaded.add(values["src"])


if __name__ == "__main__":
    sys.exit(main())
