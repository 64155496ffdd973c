"""Writing a model repository: two models, the bundle in it, and a README."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.bundle_files import while_replaced
from mapengine.runtime.bundle.file_record import MANIFEST_NAME
from mapengine.runtime.bundle.requests import AnySize
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import InputError
from mapengine.runtime.writing.folders import atomic_folder

from .models import BUNDLE, MANIFEST
from .readme import README, readme
from .settings import FILE_BYTES, FILE_PIXELS, Limits, Settings
from .tensors import ARRAY_INPUTS, FILE_INPUTS, RESULTS, Tensor

KIND = "Triton model repository"
CONFIG = "config.pbtxt"
VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MOST_INSTANCES = 64
_DTYPE_BYTES = {"UINT8": 1, "BOOL": 1, "FP32": 4, "FP64": 8}
_DEVICE = re.compile(r"cpu|gpu(?::\d{1,3}(?:,\d{1,3})*)?")


@dataclass(frozen=True)
class RepositoryOptions:
    """How a repository is written.

    Attributes:
        name: of the model of arrays; the one of files is called ``NAME_files``.
        instances: engines that are loaded, on each GPU if there are several.
        device: ``auto`` (what the bundle is for), ``cpu``, ``gpu`` (the first), or ``gpu:0,1``.
        backend: as ``Engine.load`` takes it. threads: of one instance on a processor; None: its share.
        max_views, max_pixels, max_bytes: limits of a request; None: what the bundle serves, and for files
            ``FILE_PIXELS`` an image and ``FILE_BYTES``.

    Raises:
        InputError: a value that cannot be; names it.
    """

    name: str = "mapanything"
    instances: int = 1
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    max_views: int | None = None
    max_pixels: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"name is {self.name!r}; give letters, digits, _ . and -, at most 100")
        if not 1 <= self.instances <= _MOST_INSTANCES:
            raise InputError(f"instances is {self.instances}; give a number from 1 to {_MOST_INSTANCES}")
        if self.device != "auto" and not _DEVICE.fullmatch(self.device):
            raise InputError(f"device is {self.device!r}; give auto, cpu, gpu, or gpus as gpu:0,1")

    @property
    def files_name(self) -> str:
        """The name of the model that takes files."""
        return f"{self.name}_files"

    @property
    def names(self) -> tuple[str, ...]:
        """What stands in the repository itself."""
        return self.name, self.files_name, README


def write_repository(
    bundle: str | os.PathLike[str], repository: str | os.PathLike[str], options: RepositoryOptions | None = None
) -> Bundle:
    """Write a model repository for Triton, whole or not at all.

    The bundle is copied into it, so that it can be moved to another machine or to object storage. An older repository
    of ours is replaced; other models in the folder stay.

    Returns:
        The bundle.

    Raises:
        InputError: a device that the bundle is not for.
        BundleError: the bundle is damaged, is not for the backend, or was replaced while it was read.
        OutputError: the folder holds something of these names that is not ours, or cannot be written.
    """
    chosen = options or RepositoryOptions()

    def write() -> Bundle:
        opened = Bundle.open(bundle)
        if chosen.backend != "auto":
            opened.manifest.backend(chosen.backend)
        groups = instance_groups(opened, chosen)
        with atomic_folder(repository, KIND, chosen.names) as folder, opened.unchanged():
            _write_models(folder, opened, chosen, groups)
        return opened

    return while_replaced(write)


def instance_groups(bundle: Bundle, options: RepositoryOptions) -> list[dict[str, Any]]:
    """Return where the instances of the engine run, as a configuration says it.

    Raises:
        InputError: a device that the bundle is not for.
    """
    on_gpu = bundle.manifest.format != "onnx"
    device, _, numbers = options.device.partition(":")
    if device != "auto" and (device == "gpu") != on_gpu:
        served = " and ".join(info.name for info in bundle.manifest.backends)
        raise InputError(
            f"device is {options.device}, but {bundle.folder} was built for {served}, which runs on "
            f"{'a GPU' if on_gpu else 'the processor'}; leave device out, or build another bundle"
        )
    if not on_gpu:
        return [{"count": options.instances, "kind": Word("KIND_CPU")}]
    gpus = [int(number) for number in numbers.split(",")] if numbers else [0]
    return [{"count": options.instances, "kind": Word("KIND_GPU"), "gpus": gpus}]


def default_limits(bundle: Bundle, options: RepositoryOptions) -> tuple[Limits, Limits]:
    """Return the limits of the model of arrays, and of the one of files."""
    requests = bundle.manifest.requests
    views = options.max_views or requests.views.max
    sizes = requests.sizes
    served = sizes.max**2 if isinstance(sizes, AnySize) else max(width * height for width, height in sizes)
    pixels = options.max_pixels or served
    per_pixel = sum(_DTYPE_BYTES[t.dtype] * (3 if t.axes[-1] == 3 else 1) for t in ARRAY_INPUTS if "W" in t.axes)
    size = views * (pixels * per_pixel + 1024)
    return (
        Limits(views, pixels, options.max_bytes or size),
        Limits(views, options.max_pixels or FILE_PIXELS, options.max_bytes or max(FILE_BYTES, size)),
    )


def _write_models(folder: Path, bundle: Bundle, options: RepositoryOptions, groups: list[dict[str, Any]]) -> None:
    arrays, files = default_limits(bundle, options)
    engine = folder / options.name / VERSION
    (engine / BUNDLE).mkdir(parents=True)
    for name in (MANIFEST_NAME, *(record.file for record in bundle.manifest.files())):
        with bundle.files.open(name) as source, (engine / BUNDLE / name).open("wb") as target:
            shutil.copyfileobj(source, target, 2**22)
    _write_model(
        folder / options.name,
        "ArraysModel",
        config_text(options.name, ARRAY_INPUTS, Settings(arrays, options.backend, options.threads), groups),
    )
    # One more than engines, so that the next request is decoded while the engines are busy.
    waiting = 1 + sum(group["count"] * len(group.get("gpus", "1")) for group in groups)
    _write_model(
        folder / options.files_name,
        "FilesModel",
        config_text(
            options.files_name,
            FILE_INPUTS,
            Settings(files, engine_model=options.name),
            [{"count": waiting, "kind": Word("KIND_CPU")}],
        ),
    )
    shutil.copyfile(engine / BUNDLE / MANIFEST_NAME, folder / options.files_name / VERSION / MANIFEST)
    (folder / README).write_text(readme(bundle, options.name, options.files_name, arrays, files), encoding="utf-8")


def _write_model(folder: Path, model: str, config: str) -> None:
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / VERSION / "model.py").write_text(_MODEL.format(model=model), encoding="utf-8")


_MODEL = '''"""Made by `mapengine triton`."""

try:
    from mapengine.serving.triton.models import {model} as TritonPythonModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{{error}}: install mapengine into the Python of this server; the README.md of this repository says how"
    ) from error

__all__ = ["TritonPythonModel"]
'''


class Word(str):
    """A value that stands without quotes in a configuration."""


def config_text(name: str, inputs: Sequence[Tensor], settings: Settings, groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the ``config.pbtxt`` of a model."""
    parameters = [
        {"key": key, "value": {"string_value": value}} for key, value in sorted(settings.parameters().items())
    ]
    fields: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [_tensor_fields(tensor) for tensor in inputs],
        "output": [_tensor_fields(tensor) for tensor in RESULTS],
        "instance_group": list(groups),
        "parameters": parameters,
    }
    about = "# Made by `mapengine triton`. A request is one scene; the first axis of every tensor is that of its views."
    return "\n".join([about, *_lines(fields), ""])


def _tensor_fields(tensor: Tensor) -> dict[str, Any]:
    fields = {"name": tensor.name, "data_type": Word(tensor.config_type), "dims": list(tensor.dims)}
    return fields | ({"optional": Word("true")} if tensor.optional else {})


def _lines(fields: Mapping[str, Any]) -> list[str]:
    """A message in the text format of protocol buffers."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{name} {{ {' '.join(_lines(entry))} }}" for entry in value]
        elif isinstance(value, dict):
            lines.append(f"{name} {{ {' '.join(_lines(value))} }}")
        elif isinstance(value, str) and not isinstance(value, Word):
            lines.append(f"{name}: {json.dumps(value)}")
        else:
            lines.append(f"{name}: {value}")
    return lines
