"""A TensorRT library that has exactly the names of a release and pretends to build."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ...tensorrt_api import load, strict_library


class Memory(bytes):
    """``IHostMemory``: a buffer with a size."""

    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class Pretence:
    """What the library does, and what was asked of it.

    Attributes:
        plan: the result of a build, or None to fail. errors: what it logs then.
        accepts: timings that it takes as this device's. inspection: the inspector's JSON.
        calls: settings of the build by name.
    """

    plan: bytes | None = b"plan" * 100
    errors: tuple[str, ...] = ()
    accepts: tuple[bytes, ...] = (b"",)
    inspection: str = '{"Layers": [{"Name": "a/MatMul", "LayerType": "gemm"}]}'
    loads: bool = True
    calls: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False

    def library(self, release: str) -> Any:
        """The module."""
        names = load(release)
        phases = ("Building engine", None, 2), ("Timing", "Building engine", 3)

        def tensor(name: str, shape: tuple[int, ...]) -> Any:
            return SimpleNamespace(name=name, dtype=SimpleNamespace(name="HALF"), shape=shape)

        def build(builder: Any, network: Any, config: Any) -> Memory | None:
            self.calls["verbosity"] = config.profiling_verbosity
            self.calls["level"] = vars(config).get("builder_optimization_level")
            self.calls["timings_used"] = vars(config)["_cache"]._timings if "_cache" in vars(config) else None
            monitor = config.progress_monitor
            for name, parent, steps in phases:
                monitor.phase_start(name, parent, steps)
                for step in range(steps):
                    if not monitor.step_complete(name, step):
                        self.cancelled = True
                        return None
                monitor.phase_finish(name)
            for line in self.errors:
                builder._logger.log(SimpleNamespace(name="ERROR"), line)
            if "_cache" in vars(config):
                config._cache._timings += b"+new"
            return None if self.plan is None else Memory(self.plan)

        def add_profile(config: Any, shapes: Any) -> int:
            self.calls.setdefault("profiles", []).append(dict(shapes._shapes))
            return len(self.calls["profiles"]) - 1

        def create_timing_cache(config: Any, timings: bytes) -> Any:
            cache = self._library.ITimingCache()
            cache._timings = timings
            return cache

        def set_timing_cache(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if cache._timings not in self.accepts:
                return False
            config._cache = cache
            return True

        def deserialize(runtime: Any, plan: Any) -> Any:
            assert bytes(plan) == self.plan
            engine = self._library.ICudaEngine()
            return engine if self.loads else None

        def create_network(builder: Any, flags: int) -> Any:
            self.calls["flags"] = flags
            return self._library.INetworkDefinition()

        def parse(parser: Any, path: str) -> bool:
            self.calls["parsed"] = path
            return True

        def add_shape(shapes: Any, name: str, low: Any, opt: Any, high: Any) -> None:
            shapes._shapes[name] = (low, opt, high)

        behaviour: dict[str, dict[str, Any]] = {
            "ILogger": {"__init__": lambda self: None},
            "IProgressMonitor": {"__init__": lambda self: None},
            "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": 1},
            "ProfilingVerbosity": {"DETAILED": "detailed"},
            "MemoryPoolType": {"WORKSPACE": "workspace"},
            "LayerInformationFormat": {"JSON": "json"},
            "TensorIOMode": {"INPUT": "input"},
            "Builder": {
                "__init__": lambda builder, logger: object.__setattr__(builder, "_logger", logger),
                "create_network": create_network,
                "create_builder_config": lambda builder: self._library.IBuilderConfig(),
                "create_optimization_profile": lambda builder: self._library.IOptimizationProfile(),
                "build_serialized_network": build,
            },
            "OnnxParser": {"__init__": lambda parser, network, logger: None, "parse_from_file": parse},
            "INetworkDefinition": {
                "num_inputs": 1,
                "get_input": lambda network, index: tensor("images", (-1, 3, -1, -1)),
                "num_outputs": 1,
                "get_output": lambda network, index: tensor("features", (-1, -1, -1, 8)),
                "num_layers": 0,
            },
            "IOptimizationProfile": {
                "__init__": lambda shapes: object.__setattr__(shapes, "_shapes", {}),
                "set_shape": add_shape,
            },
            "IBuilderConfig": {
                "add_optimization_profile": add_profile,
                "create_timing_cache": create_timing_cache,
                "set_timing_cache": set_timing_cache,
                "get_timing_cache": lambda config: vars(config).get("_cache"),
                "set_memory_pool_limit": lambda config, pool, size: self.calls.update(memory=(pool, size)),
            },
            "ITimingCache": {"serialize": lambda cache: Memory(cache._timings)},
            "Runtime": {"__init__": lambda runtime, logger: None, "deserialize_cuda_engine": deserialize},
            "ICudaEngine": {
                "create_engine_inspector": lambda engine: self._library.EngineInspector(),
                "device_memory_size_v2": 12345,
                "num_io_tensors": 2,
                "get_tensor_name": lambda engine, index: ("images", "features")[index],
                "get_tensor_mode": lambda engine, name: "input" if name == "images" else "output",
                "get_tensor_dtype": lambda engine, name: SimpleNamespace(name="HALF"),
                "get_tensor_shape": lambda engine, name: tensor(name, (-1, 3, -1, -1)).shape,
                "get_tensor_profile_shape": lambda engine, name, index: self.calls["profiles"][index][name],
            },
            "EngineInspector": {"get_engine_information": lambda inspector, form: self.inspection},
        }
        missing = {f"{c}.{m}" for c, ms in behaviour.items() for m in ms if m[0] != "_" and m not in names.get(c, ())}
        assert not missing, f"{release} has no {missing}"
        self._library = strict_library(release, behaviour)
        return self._library
