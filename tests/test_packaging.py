"""The wheel: everything is inside, and the runtime works from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # its fixtures take seconds

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_every_package_is_listed() -> None:
    folders = {folder: name for name, folder in SETUPTOOLS["package-dir"].items()}
    found = set()
    for init in ROOT.glob("*/**/__init__.py"):
        top, *below = init.parent.relative_to(ROOT).parts
        if top in folders:
            found.add(".".join([folders[top], *below]))
    assert found == set(SETUPTOOLS["packages"])


def test_every_python_file_is_in_a_package() -> None:
    for folder in SETUPTOOLS["package-dir"].values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.relative_to(ROOT)} would be missing from the wheel"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ["pyproject.toml", "README.md", "LICENSE", *SETUPTOOLS["package-dir"].values()]:
        if (ROOT / name).is_dir():
            for path in (ROOT / name).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    copy = source / path.relative_to(ROOT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = python(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("mapengine-*.whl")
    return path


def test_the_wheel_holds_every_module_and_the_type_markers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in SETUPTOOLS["package-dir"].values():
        for path in (ROOT / folder).rglob("*.py"):
            assert f"mapengine/{path.relative_to(ROOT).as_posix().removeprefix('package/')}" in names
    for path in (ROOT / "serving/app/page").iterdir():
        assert f"mapengine/serving/app/page/{path.name}" in names
    assert "mapengine/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel alone is installed in."""
    folder = tmp_path_factory.mktemp("installed") / "target"
    installed = python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel))
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.mark.slow
def test_the_runtime_works_from_the_wheel_alone(target: Path) -> None:
    # -S leaves out the editable install of the checkout; NumPy and Pillow come back by their folder.
    site = Path(__import__("numpy").__file__).parents[1]
    script = (
        f"import sys; sys.path += [{str(site)!r}]\n"
        "import mapengine.runtime, mapengine.runtime.bundle.store as bundle\n"
        "print(mapengine.__version__)\n"
        "print(mapengine.runtime.__file__)\n"
        "try: bundle.Bundle.open('nowhere')\n"
        "except mapengine.runtime.errors.BundleNotFoundError: print('typed error')"
    )
    result = python("-S", "-c", script, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    version, place, _ = result.stdout.split("\n", 2)
    assert version == PROJECT["project"]["version"]
    assert place.startswith(str(target))
    assert "typed error" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["checkout", "elsewhere"])
def test_the_wheel_as_a_program(folder: str, target: Path, tmp_path: Path) -> None:
    """Also in the folder of a checkout."""
    site = Path(__import__("numpy").__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-S", "-m", "mapengine", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT if folder == "checkout" else tmp_path,
        env={**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{site}"},
    )
    assert (result.returncode, result.stdout) == (0, f"mapengine {PROJECT['project']['version']}\n"), result.stderr


@pytest.mark.slow
def test_the_checkout_as_a_program() -> None:
    script = "import mapengine, mapengine.runtime; print(mapengine.__version__, mapengine.runtime.__file__)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.split() == [PROJECT["project"]["version"], str(ROOT / "runtime" / "__init__.py")], (
        result.stderr
    )
    help_ = subprocess.run([sys.executable, "-m", "mapengine", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert help_.returncode == 0, help_.stderr
    assert help_.stdout.startswith("Usage: mapengine ")
