"""Optimisers and learning rate: Muon for the matrices inside the network, AdamW for everything else."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration (Jordan 2024): singular values end between 0.7 and 1.2 after five steps."""

_LEAST_SIDE = 24
"""Smaller matrices have too few directions to be worth it."""


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024), scaled by the size of the matrix (arXiv 2502.16982, 2.2).

    Unlike ``torch.optim.Muon`` it takes convolutions, as matrices of output channels by everything else, and treats
    all matrices of one shape at once, which on a CPU takes half the time.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient once; closures are not for it."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault((len(parameter), parameter.numel() // len(parameter)), []).append(parameter)
            for shape, parameters in by_shape.items():
                self._update(shape, parameters, group)

    def _update(self, shape: tuple[int, int], parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        tensors: list[Tensor] = list(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all have one
        averages = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, averages, momentum)
        update = orthogonal(torch.stack([direction.reshape(shape) for direction in directions]))
        size = 0.2 * math.sqrt(max(shape))  # root mean square of an update: 0.2 times the rate, AdamW's usual one
        torch._foreach_mul_(tensors, 1 - rate * group["weight_decay"])
        changes = [change.reshape(p.shape) for p, change in zip(parameters, update, strict=True)]
        torch._foreach_add_(tensors, changes, alpha=-rate * size)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of (N, rows, columns) near 1, by Newton-Schulz iteration, which BF16 is enough for."""
    x = matrices.bfloat16() if _multiplies_bf16(matrices.device) else matrices
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)


@functools.cache
def _multiplies_bf16(device: torch.device) -> bool:
    """Return whether there are instructions for it; products without them take nine times as long as in float32."""
    if device.type != "cpu":
        return True
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not say
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class Optimizers:
    """Both optimisers behind one interface."""

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float, matrix_factor: float) -> None:
        matrices, decayed, plain = [], [], []
        for name, parameter in network.named_parameters():
            if _is_inner_matrix(name, parameter):
                matrices.append(parameter)
            elif parameter.ndim > 1 and "token" not in name and "pos_embed" not in name:
                decayed.append(parameter)
            else:
                plain.append(parameter)
        self._factors = (matrix_factor, 1.0)
        self._all: list[torch.optim.Optimizer] = [
            Muon(matrices, learning_rate, weight_decay),
            torch.optim.AdamW(
                [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
                lr=learning_rate,
                betas=(0.9, 0.95),
                fused=True,
            ),
        ]

    def step(self, learning_rate: float) -> None:
        """Update all parameters and clear their gradients."""
        for optimizer, factor in zip(self._all, self._factors, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        """Return the states in order."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def _is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether weights are between hidden layers: not what reads pixels, tokens or numbers, nor what gives the
    outputs."""
    ends = ("patch_embed", "pos_embed", "token", "conv2.2.", "fc_rot", "fc_t", "output_proj")
    if parameter.ndim < 2 or any(end in name for end in ends):
        return False
    return min(len(parameter), parameter.numel() // len(parameter)) >= _LEAST_SIDE


def learning_rate_at(step: int, progress: float, peak: float, warmup: int, decay: float) -> float:
    """Return the learning rate: a linear rise over ``warmup`` steps, a plateau, and a linear fall to zero over the last
    ``decay`` of the run.

    ``progress`` is the share of the run that is done. The plateau lets a run be extended from any checkpoint before
    the fall.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (1 - progress) / max(decay, 1e-9))
    return peak * max(0.0, min(rise, fall))
