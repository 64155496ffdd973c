"""The training loop: CPU or CUDA, one process or several, interrupted and resumed at any step.

Several processes each take a share of every batch and average their gradients. On a CPU that is much faster than one
process with several threads, because most operations of a small network are too short to be divided.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mapengine.calibration.evaluation import evaluate
from mapengine.runtime.errors import CheckpointError, ConfigError, MapEngineError, OutputError
from mapengine.runtime.system.machine import cpu_name, usable_processors
from mapengine.runtime.writing.files import atomic_write, write_text

from ..model.config_json import parse_config
from ..model.presets import save_model
from ..model.reference import MapAnything, load_model
from .batch import Sampler
from .config import TrainingConfig
from .dataset import SHARD, SceneFeed, SceneStore, render_scenes
from .losses import training_loss
from .network import TrainableNetwork, balance_heads, new_network
from .optimizer import Optimizers, learning_rate_at

VALIDATION_SEED = 1_500_000
"""First of the scenes that a run is watched on; results are reported on others (``evaluation.HELD_OUT_SEED``)."""
_LOG_EVERY = 25
_VALIDATION_TASKS = ("image-only-4", "posed", "depth", "depth-completion")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Clock:
    """When a run stops: at ``until`` (``time.time()``), or at the last of its steps."""

    until: float = math.inf
    anneal: bool = False
    """The run is to be complete by then: the learning rate falls with the time, if the steps would take longer."""

    def progress(self, began: float) -> float:
        """Return the share of the time that has gone by since ``began``; 0 if the run does not have to be complete by
        then."""
        return (time.time() - began) / max(self.until - began, 1e-9) if self.anneal else 0.0

    def is_over(self) -> bool:
        """Return whether it is time to stop."""
        return time.time() >= self.until


class Trainer:
    """A run in a folder: ``config.json``, ``checkpoint.pt``, ``log.jsonl`` (one record per interval and evaluation)."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        device: str = "cpu",
        report: Report = print,
        start: str | Path | None = None,
    ) -> None:
        """Continue the run in ``folder``, or begin one there.

        Args:
            config: of the run.
            folder: of the run; the scenes are beside it.
            device: torch device.
            report: called with a line of progress.
            start: a model whose weights a new run begins with, as :func:`mapengine.export.load_model` takes it.

        Raises:
            OutputError: files of the names that a run has, which are of no run.
            CheckpointError: a damaged checkpoint, or a ``start`` of another shape.
            ModelNotFoundError, ConfigError: as ``load_model`` for ``start``.
        """
        self.config, self.folder, self.device, self._report = config, folder, torch.device(device), report
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.backends.cudnn.benchmark = True  # all batches have the same number of views
        torch.backends.cudnn.allow_tf32 = False  # convolutions outside of autocast are there to be exact
        network = new_network(parse_config(config.model, "training configuration"), config.seed).to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what tensor cores read
        self.network: MapAnything = network
        # BF16 on a CPU too: processors with matrix units gain twice the speed, others lose nothing but time.
        self._model = TrainableNetwork(network, torch.bfloat16)
        self._optimizers = Optimizers(network, config.learning_rate, config.weight_decay, config.matrix_factor)
        self.step = 0
        self._seconds = 0.0
        self._rank, self._world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        resumed = self._resume()
        if start is not None and not resumed:
            self._begin_with(start)
        self._fresh = start is None and not resumed

    # ---- state --------------------------------------------------------------------------------------------------

    def _begin_with(self, start: str | Path) -> None:
        model = load_model(start)
        if model.config != self.network.config:
            raise CheckpointError(f"{start}: not the network of this configuration; name a model of the same shape")
        self.network.load_state_dict(model.state_dict())
        self._report(f"begins with the weights of {start}")

    def _resume(self) -> bool:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self._optimizers.load_state_dict(state["optimizers"])
            self.step, self._seconds = int(state["step"]), float(state["seconds"])
        except Exception as error:
            raise CheckpointError(f"{path}: cannot resume ({error}); remove it to start anew") from None
        self._report(f"resumed at step {self.step}")
        return True

    def save(self) -> None:
        """Write the checkpoint, complete or not at all."""
        state = {
            "network": self.network.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "step": self.step,
            "seconds": self._seconds,
        }
        with atomic_write(self.folder / "checkpoint.pt", None) as temporary:
            torch.save(state, temporary)

    def _origin(self) -> dict[str, Any]:
        """Return what trains: for those who look at the log later."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else cpu_name(),
            "processes": self._world,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }

    def _log(self, record: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(self._seconds, 1), **record}) + "\n")

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self, clock: Clock | None = None, first_scenes: int | None = None) -> bool:
        """Train to the end, or as far as the clock lets it; returns whether it is the end.

        Args:
            clock: when to stop; see :class:`Clock`.
            first_scenes: begin when so many scenes are there, and render the others beside the training. Which scenes
                a step draws then depends on how fast they come. By default all are rendered first.
        """
        config, clock = self.config, clock or Clock()
        if self._rank == 0:
            write_text(self.folder / "config.json", None, json.dumps(config.to_json(), indent=1) + "\n")
            self._log({"run": self._origin()})
        store = SceneStore(config.scenes, config.width, config.height, self.device)
        if first_scenes is None:
            self._load_all(store)
            return self._loop(store, clock)
        files = render_scenes(*self._rendered, workers=max(1, usable_processors() - 2))
        with SceneFeed(store, files, min(first_scenes, config.scenes)):
            return self._loop(store, clock)

    @property
    def _rendered(self) -> tuple[Path, int, int, int, int]:
        """Folder, number, width, height and first seed of the scenes."""
        config = self.config
        return self.folder.parent / "scenes", config.scenes, config.width, config.height, config.first_seed

    def _load_all(self, store: SceneStore) -> None:
        if self._rank == 0:
            for done, _ in enumerate(render_scenes(*self._rendered), 1):
                if done % 10 == 0:
                    self._report(f"{done * SHARD} of {self.config.scenes} scenes are rendered")
        if self._world > 1:
            dist.barrier()
        for path in render_scenes(*self._rendered):  # all are there: in the order of the seeds
            store.append(path)

    def _loop(self, scenes: SceneStore, clock: Clock) -> bool:
        config = self.config
        if self._fresh:
            samples = max(1, 8 // max(config.view_counts))  # the same ones in every process
            first = Sampler(scenes, config.mix, config.seed).batch(0, samples, max(config.view_counts))
            balance_heads(self.network, first)
        sampler = Sampler(scenes, config.mix, config.seed, self._rank)
        sums: dict[str, Tensor] = {}
        summed = 0  # not always an interval: a run may have stopped within one
        began = last = time.time()
        finished, stop = self.step >= config.steps, False
        while not (finished or stop):
            progress = max(self.step / config.steps, clock.progress(began))
            values, stop = self.train_step(sampler, progress, clock.is_over())
            now = time.time()
            self._seconds += now - last
            last = now
            self.step += 1
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value
            summed += 1
            finished = self.step >= config.steps or (stop and clock.anneal)
            logged, saved = self.step % _LOG_EVERY == 0, self.step % config.checkpoint_every == 0
            if logged or saved or finished or stop:
                self._require_finite(values["loss"])
            if self._rank == 0:
                if logged:
                    means = {name: value.item() / summed for name, value in sums.items()}
                    self._log({"train": {name: round(value, 5) for name, value in means.items()}})
                    text = " ".join(f"{name} {value:.3f}" for name, value in means.items())
                    self._report(
                        f"step {self.step}/{config.steps}  {self._seconds:.0f} s  {len(scenes)} scenes  {text}"
                    )
                if saved or finished or stop:
                    self.save()
                if self.step % config.evaluate_every == 0 or finished:
                    self.evaluate()
                    last = time.time()  # evaluating is not training time
            if logged:
                sums, summed = {}, 0
        return finished

    def train_step(self, sampler: Sampler, progress: float, stop: bool) -> tuple[dict[str, Tensor], bool]:
        """Take one step; return the loss, its terms and the gradient's norm, and whether any process wants to stop."""
        config = self.config
        phase = config.phase_at(self.step)
        views = int(np.random.default_rng((config.seed, self.step, 1)).choice(config.view_counts))
        samples = max(1, phase.views_per_step // (views * self._world))
        batch = sampler.batch(self.step, samples, views, phase.shrink)
        offset = np.random.default_rng((config.seed, self.step, 2)).integers(2, size=2)
        predicted, targets = self._model(batch, (int(offset[0]), int(offset[1])))
        loss, terms = training_loss(predicted, targets, config.loss)
        loss.backward()
        stop, progress = self._average_gradients(stop, progress)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self._optimizers.step(learning_rate_at(self.step, progress, config.learning_rate, config.warmup, config.decay))
        return {"loss": loss.detach(), **terms, "norm": norm}, stop

    def _require_finite(self, loss: Tensor) -> None:
        # Looked at now and then only: reading a number waits for everything that a GPU was given to do.
        if not math.isfinite(loss.item()) or not all(bool(x.isfinite().all()) for x in self.network.parameters()):
            raise MapEngineError(
                f"step {self.step}: the network is not finite any more; lower the learning rate and go on from the "
                "last checkpoint"
            )

    def _average_gradients(self, stop: bool, progress: float) -> tuple[bool, float]:
        """Average over the processes, in one message; whether any of them wants to stop, and one progress for all."""
        if self._world == 1:
            return stop, progress
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        parts = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
        message = torch.cat([*parts, torch.tensor([float(stop), progress], device=self.device)])
        dist.all_reduce(message)
        message /= self._world
        position = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(message[position : position + parameter.numel()].view_as(parameter))
            position += parameter.numel()
        return bool(message[-2].item() > 0), message[-1].item()

    # ---- results ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Compute metrics on held-out scenes at the size of the current phase."""
        config = self.config
        shrink = config.phase_at(self.step - 1).shrink
        self.network.eval()
        result = evaluate(
            _OnHost(self.network),
            config.evaluation_scenes,
            tasks=_VALIDATION_TASKS,
            seed=VALIDATION_SEED,
            size=(config.width // shrink, config.height // shrink),
        ).to_json()
        self.network.train()
        metrics = {name: task["metrics"] for name, task in result["results"].items()}
        self._log({"validation": metrics})
        for name, values in metrics.items():
            shown = " ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)
            self._report(f"step {self.step} {name}: {shown}")
        return result

    def export(self, folder: Path) -> Path:
        """Write the network in upstream's format, weights in float16
        (:func:`mapengine.export.model.presets.save_model`)."""
        tensors = {
            name: x.detach().to("cpu", torch.float16).contiguous() for name, x in self.network.state_dict().items()
        }
        return save_model(folder, self.config.model, tensors)


class _OnHost:
    """A network for :func:`mapengine.calibration.evaluation.evaluate`, which computes with NumPy."""

    def __init__(self, network: MapAnything) -> None:
        self._network, self.data_norm_type = network, network.data_norm_type

    def infer(self, views: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
        return [{key: value.cpu() for key, value in p.items()} for p in self._network.infer(views, **options)]


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose files would be replaced or continued although they are of no training run."""
    there = [name for name in ("config.json", "checkpoint.pt", "log.jsonl") if (folder / name).exists()]
    if not there:
        return
    try:
        TrainingConfig.read(folder / "config.json")
    except ConfigError:
        raise OutputError(
            f"{folder}: holds {there[0]} and no training run; choose another folder, or empty it"
        ) from None
