"""The training loop: CPU or CUDA, one process or several, interrupted and resumed at any step.

Several processes each take a share of every batch and average their gradients. On a CPU that is much faster than one
process with several threads, because most operations of a small network are too short to be divided.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mapengine.calibration.evaluation import evaluate
from mapengine.runtime.errors import CheckpointError, MapEngineError
from mapengine.runtime.files import atomic_write

from ..config_json import parse_config
from ..presets import save_model
from ..reference import MapAnything, load_model
from .batch import Batch, Sampler
from .config import TrainingConfig
from .dataset import load_scenes, prepare_scenes
from .losses import training_loss
from .network import TrainableNetwork, balance_heads, new_network
from .optimizer import Optimizers, learning_rate_at

VALIDATION_SEED = 1_500_000
"""First of the scenes that a run is watched on; results are reported on others (``evaluation.HELD_OUT_SEED``)."""
_LOG_EVERY = 25
_VALIDATION_TASKS = ("image-only-4", "posed", "depth", "depth-completion")

Report = Callable[[str], None]


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
            start: a model whose weights a new run begins with, as :func:`..reference.load_model` takes it.

        Raises:
            CheckpointError: a damaged checkpoint, or a ``start`` of another shape.
            ModelNotFoundError, ConfigError: as ``load_model`` for ``start``.
        """
        self.config, self.folder, self.device, self._report = config, folder, torch.device(device), report
        folder.mkdir(parents=True, exist_ok=True)
        network = new_network(parse_config(config.model, "training configuration"), config.seed).to(self.device)
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
        with atomic_write(self.folder / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def _log(self, record: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(self._seconds, 1), **record}) + "\n")

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self, until: float | None = None) -> bool:
        """Train to the end, or until the clock (``time.time()``) reaches ``until``; returns whether it is the end."""
        config = self.config
        if self._rank == 0:
            with atomic_write(self.folder / "config.json") as temporary:
                temporary.write_text(json.dumps(config.to_json(), indent=1) + "\n", encoding="utf-8")
            files = self._scene_files()
        if self._world > 1:
            dist.barrier()
            files = self._scene_files()
        scenes = load_scenes(files)
        self._report(f"{len(scenes)} scenes of {scenes.images.shape[1]} views")
        if self._fresh:
            samples = max(1, 8 // max(config.view_counts))  # the same ones in every process
            first = Sampler(scenes, config.mix, config.seed).batch(0, samples, max(config.view_counts))
            balance_heads(self.network, first.to(self.device))
        sampler = Sampler(scenes, config.mix, config.seed, self._rank)
        sums: dict[str, float] = {}
        started = time.perf_counter()
        for batch in _ahead(self._batches(sampler)):
            values, stop = self._train(batch, until is not None and time.time() >= until)
            now = time.perf_counter()
            self._seconds += now - started
            started = now
            self.step += 1
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / _LOG_EVERY
            finished = self.step >= config.steps
            if self._rank == 0:
                if self.step % _LOG_EVERY == 0:
                    self._log({"train": {name: round(value, 5) for name, value in sums.items()}})
                    text = " ".join(f"{name} {value:.3f}" for name, value in sums.items())
                    self._report(f"step {self.step}/{config.steps}  {self._seconds:.0f} s  {text}")
                if self.step % config.checkpoint_every == 0 or finished or stop:
                    self.save()
                if self.step % config.evaluate_every == 0 or finished:
                    self.evaluate()
            if self.step % _LOG_EVERY == 0:
                sums = {}
            started = time.perf_counter()  # saving and evaluating is not training time
            if finished or stop:
                break
        return self.step >= config.steps

    def _scene_files(self) -> list[Path]:
        config = self.config

        def rendered(done: int, wanted: int) -> None:
            self._report(f"rendered {done} of {wanted} files of scenes")

        return prepare_scenes(
            self.folder.parent / "scenes", config.scenes, config.width, config.height, progress=rendered
        )

    def _batches(self, sampler: Sampler) -> Iterator[Callable[[], Batch]]:
        for step in range(self.step, self.config.steps):
            phase = self.config.phase_at(step)
            views = int(np.random.default_rng((self.config.seed, step, 1)).choice(self.config.view_counts))
            samples = max(1, phase.views_per_step // (views * self._world))
            yield lambda s=step, n=samples, v=views, p=phase: sampler.batch(s, n, v, p.shrink)  # type: ignore[misc]

    def _train(self, batch: Batch, stop: bool) -> tuple[dict[str, float], bool]:
        """One step: the loss, its terms and the gradient's norm, and whether any process wants to stop."""
        config = self.config
        offset = np.random.default_rng((config.seed, self.step, 2)).integers(2, size=2)
        predicted, targets = self._model(batch.to(self.device), (int(offset[0]), int(offset[1])))
        loss, terms = training_loss(predicted, targets, config.loss)
        loss.backward()
        stop = self._average_gradients(stop)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        if not math.isfinite(norm.item()):
            raise MapEngineError(f"step {self.step}: the gradient is not finite; lower the learning rate")
        rate = learning_rate_at(self.step, config.steps, config.learning_rate, config.warmup, config.decay)
        self._optimizers.step(rate)
        values = {"loss": loss, **terms, "norm": norm}
        return {name: value.item() for name, value in values.items()}, stop

    def _average_gradients(self, stop: bool) -> bool:
        """Average over the processes, in one message; whether any of them wants to stop."""
        if self._world == 1:
            return stop
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        parts = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
        message = torch.cat([*parts, torch.tensor([float(stop)], device=self.device)])
        dist.all_reduce(message)
        message /= self._world
        position = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(message[position : position + parameter.numel()].view_as(parameter))
            position += parameter.numel()
        return bool(message[-1].item() > 0)

    # ---- results ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Metrics on held-out scenes at the size of the current phase."""
        config = self.config
        shrink = config.phase_at(self.step - 1).shrink
        self.network.eval()
        result = evaluate(
            self.network,
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
        """Write the network in upstream's format, weights in float16 (:func:`..presets.save_model`)."""
        tensors = {
            name: x.detach().to("cpu", torch.float16).contiguous() for name, x in self.network.state_dict().items()
        }
        return save_model(folder, self.config.model, tensors)


def _ahead(jobs: Iterator[Callable[[], Batch]]) -> Iterator[Batch]:
    """Results of jobs in order, the next one made while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for job in jobs:
            following = pool.submit(job)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
