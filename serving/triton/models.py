"""The two models that Triton's Python backend runs, each in processes of its own; Triton calls their methods.

``triton_python_backend_utils`` exists only there. A request that cannot be answered is answered with a sentence, and
the instance goes on.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime import Engine
from mapengine.runtime.bundle.manifest import Manifest, manifest_document
from mapengine.runtime.errors import (
    BackendError,
    InputError,
    MapEngineError,
    MemoryLimitError,
    kept_warnings,
    one_line,
)
from mapengine.runtime.geometry import Array
from mapengine.runtime.options import OUTPUTS
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.typed_json.text import parse_json

from .image_files import array_tensors
from .requests import engine_views, options_of_request, result_tensors
from .settings import Settings
from .tensors import ARRAY_INPUTS, FILE_INPUTS, Tensor

BUNDLE = "bundle"
"""Folder of the bundle in a version of the model of arrays."""
MANIFEST = "manifest.json"
"""The bundle's manifest in a version of the model of files."""


class _Refusal(Exception):
    """What another model answered in place of tensors: a ``TritonError``."""


class _Model:
    """What both models do: read a request, answer it, and never end."""

    inputs: tuple[Tensor, ...]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load what the model needs.

        Args:
            args: of Triton: configuration, version, folder, and which device this instance is for.
        """
        import triton_python_backend_utils as triton

        self._triton = triton
        _check_tensors(triton)
        config = json.loads(args["model_config"])
        self._settings = Settings.read(config)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        # Triton counts requests that are answered with an error as successes.
        self._count_refused = _counter(triton, "mapengine_refused_requests", "Requests answered with an error", labels)
        self._count_views = _counter(triton, "mapengine_views", "Views of the requests that were answered", labels)
        self._load(Path(args["model_repository"]) / args["model_version"], args, config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, with the tensors that it asks for or with one sentence."""
        return [self._response(request) for request in requests]

    def _load(self, folder: Path, args: Mapping[str, str], config: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _answer(self, tensors: dict[str, Array], names: set[str], parameters: dict[str, Any]) -> list[Any]:
        """Return the tensors of Triton that answer a request."""
        raise NotImplementedError

    def _response(self, request: Any) -> Any:
        triton = self._triton
        code = triton.TritonError
        if request.is_cancelled():
            return self._refused("the request was cancelled", code.CANCELLED)
        try:
            with kept_warnings() as warnings:
                parameters = json.loads(request.parameters() or "{}")
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                answer = self._answer(tensors, set(request.requested_output_names()), parameters)
            for warning in warnings:
                triton.Logger.log_warn(f"{request.request_id() or 'a request'}: {warning}")
            self._count_views(len(tensors[self.inputs[0].name]))
            return triton.InferenceResponse(answer)
        except _Refusal as refusal:
            self._count_refused(1)
            return triton.InferenceResponse(error=refusal.args[0])
        except InputError as error:
            return self._refused(str(error), code.INVALID_ARG)
        except (MemoryLimitError, MemoryError) as error:
            text = str(error) or "the request takes more memory than there is; give fewer or smaller views"
            return self._refused(text, code.UNAVAILABLE)
        except MapEngineError as error:
            return self._refused(str(error), code.INTERNAL)
        except Exception as error:  # whatever it is, the next request may be right
            triton.Logger.log_error(traceback.format_exc())
            return self._refused(f"unexpected {type(error).__name__}: {one_line(error)}", code.INTERNAL)

    def _refused(self, text: str, code: int) -> Any:
        self._count_refused(1)
        return self._triton.InferenceResponse(error=self._triton.TritonError(" ".join(text.split()), code))


class ArraysModel(_Model):
    """The model that has the engine: uint8 images of a size that the bundle serves, and what is known of them."""

    inputs = ARRAY_INPUTS

    def _load(self, folder: Path, args: Mapping[str, str], config: Mapping[str, Any]) -> None:
        threads = self._settings.threads
        if args["model_instance_kind"] == "GPU":
            # Before a library looks for GPUs: engines use the first one.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_instance(args["model_instance_device_id"], visible)
        elif threads is None:
            instances = sum(group.get("count", 1) for group in config["instance_group"])
            threads = max(1, usable_processors() // instances)
        self._engine = Engine.load(folder / BUNDLE, self._settings.backend, threads=threads)
        self._triton.Logger.log_info(f"{args['model_instance_name']}: {self._engine.label}, {self._engine.where}")

    def _answer(self, tensors: dict[str, Array], names: set[str], parameters: dict[str, Any]) -> list[Any]:
        options = options_of_request(parameters)
        views = engine_views(tensors, self._settings.limits, self._engine.data_norm_type)
        # A request that names no outputs gets all; infer knows which there are with these options.
        wanted = None if names == set(OUTPUTS) else names
        results = result_tensors(self._engine.infer(views, outputs=wanted, **options), OUTPUTS)
        return [self._triton.Tensor(name, values) for name, values in results.items()]


class FilesModel(_Model):
    """The model in front: the bytes of image files, which it reads and resizes for the model of arrays."""

    inputs = FILE_INPUTS

    def _load(self, folder: Path, args: Mapping[str, str], config: Mapping[str, Any]) -> None:
        document = parse_json((folder / MANIFEST).read_bytes(), manifest_document())
        self._requests = Manifest.from_json(document).requests

    def _answer(self, tensors: dict[str, Array], names: set[str], parameters: dict[str, Any]) -> list[Any]:
        triton = self._triton
        options = options_of_request(parameters)
        arrays = array_tensors(tensors, self._settings.limits, self._requests)
        inner = triton.InferenceRequest(
            model_name=self._settings.engine_model,
            inputs=[triton.Tensor(name, np.ascontiguousarray(array)) for name, array in arrays.items()],
            requested_output_names=sorted(names),
            # Fractions as text, which is what parameters of inner requests can hold.
            parameters={name: repr(value) if isinstance(value, float) else value for name, value in options.items()},
        )
        response = inner.exec()
        if response.has_error():
            raise _Refusal(response.error())
        return list(response.output_tensors())


def gpu_of_instance(number: str, visible: str | None) -> str:
    """Return what ``CUDA_VISIBLE_DEVICES`` has to be for an instance to see its GPU alone.

    Args:
        number: of the GPU among those that the server sees.
        visible: the variable as the server has it.
    """
    return visible.split(",")[int(number)] if visible else number


def _counter(triton: Any, name: str, about: str, labels: dict[str, str]) -> Callable[[int], None]:
    """Return what counts on in a metric of the server; the instances of a model share it."""
    try:
        family = triton.MetricFamily(name=name, description=about, kind=triton.MetricFamily.COUNTER)
        metric = family.Metric(labels=labels)
    except triton.TritonModelException:  # the server was started without metrics
        return lambda count: None

    def count_on(count: int, family: Any = family) -> None:  # a metric ends with its family
        metric.increment(count)

    return count_on


def _check_tensors(triton: Any) -> None:
    """Refuse a Python backend whose tensors do not carry their values, as that of 2.51 with NumPy 2.

    Raises:
        BackendError: with what to install.
    """
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    if not np.array_equal(triton.Tensor("values", values).as_numpy(), values):
        raise BackendError(
            f"tensors of this server's Python backend lose their values with NumPy {np.__version__}; install "
            "'numpy<2' for it"
        )
