"""``mapengine info``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.runtime.backend_table import TENSORRT_BACKENDS
from mapengine.runtime.backends.cuda.driver import driver_problem
from mapengine.runtime.backends.libraries import import_library, is_installed
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.requests import AnySize
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendUnavailableError
from mapengine.runtime.system.machine import cpu_name, usable_processors
from mapengine.runtime.system.origin import installed_versions

from ...console import megabytes, one_line, show_facts
from ...tables import manifest_rows, show_layers, show_parity, show_precision, show_stages


def info(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Folder that `mapengine build` wrote.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; of a bundle, its manifest.")] = False,
) -> None:
    """Show what BUNDLE serves, or what is installed here.

    The hashes of a bundle's files are not compared here; `mapengine verify` does that.

    \b
    Example:
      mapengine info
      mapengine info build/engine --json
    """
    if bundle is None:
        facts = _environment()
        if as_json:
            print(json.dumps(facts, indent=2))
        else:
            show_facts([(name, _text(value)) for name, value in facts.items()])
        return

    manifest = Bundle.open(bundle).manifest
    if as_json:
        print(json.dumps(manifest.to_json(), indent=2))
        return
    show_facts(_bundle_facts(bundle, manifest))
    show_stages(manifest_rows(manifest))
    show_layers(manifest)
    show_precision(manifest)
    if manifest.parity is None:
        print("Parity with PyTorch was not measured.")
    else:
        print(f"Parity with PyTorch in float32, measured at the build with {manifest.parity.measured_with}:\n")
        show_parity(manifest.parity)


def _environment() -> dict[str, Any]:

    def versions(*packages: str) -> dict[str, str | None]:
        return dict.fromkeys(packages) | installed_versions(*packages)

    return {
        "mapengine": importlib.metadata.version("mapengine"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"CPU: {cpu_name()}",
        "threads": usable_processors(),
        "gpu": driver_problem() or "usable",
        "backends": {name: _backend_version(name) for name in available_backends()},
        "plan compilers": {name: _backend_version(name) for name in TENSORRT_BACKENDS if is_installed(name)},
        "export": versions("torch", "onnx", "onnxscript"),
    }


def _backend_version(name: str) -> str:

    try:
        return str(import_library(name).__version__)
    except (BackendUnavailableError, AttributeError) as error:  # broken, or an empty folder of the name
        return one_line(str(error))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text or '(not installed)'}" for name, text in value.items()) or "none installed"
    return str(value)


def _keys(manifest: Manifest) -> str:
    shares = ", ".join(f"{share:.0%} in block {block}" for block, share in manifest.shares_by_block.items())
    return f"{shares} of the aggregator, all in the others"


def _bundle_facts(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:

    model, requests = manifest.model, manifest.requests
    installed = available_backends()
    if isinstance(requests.sizes, AnySize):
        known = requests.sizes
        sizes = f"any, sides {known.min} to {known.max} in steps of {known.multiple}"
    else:
        sizes = ", ".join(f"{width}x{height}" for width, height in requests.sizes)
    backends = [
        f"{entry.name}, {entry.minimum_version} or newer"
        + (f", up to {entry.maximum_version}" if entry.maximum_version else "")
        + (f" (here: {_backend_version(entry.name)})" if entry.name in installed else " (not installed here)")
        for entry in manifest.backends
    ]
    facts = [
        ("bundle", str(folder)),
        ("model", model.id + (f" at {model.revision}" if model.revision else "")),
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"SHA-256 {model.weights_sha256}"),
        ("precision", manifest.precision),
        ("attention", manifest.attention),
        *([("keys", _keys(manifest))] if manifest.key_shares else []),
        ("backends", "\n".join(backends)),
        ("views", f"{requests.views.min} to {requests.views.max} in one call, usually {requests.views.opt}"),
        ("sizes", sizes),
        ("chunks", ", ".join(f"{stage} {views}" for stage, views in requests.chunks.items()) or "none"),
        ("files", megabytes(sum(record.bytes for record in manifest.files()))),
        (
            "built with",
            ", ".join([f"mapengine {manifest.created_by}", *(f"{k} {v}" for k, v in manifest.tools.items())]),
        ),
    ]
    if manifest.quantization is not None:
        facts.insert(5, ("calibration", manifest.quantization.method))
    return facts
