"""Optimisers and learning rate: Muon for the matrices of the transformer blocks, AdamW for everything else.

Muon (Jordan et al., 2024; scaled as in arXiv 2502.16982 by the size of the matrix) makes the momentum of a
matrix orthogonal before it is applied, which trains transformers in fewer steps than AdamW.
"""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Both optimisers behind one interface."""

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float, matrix_factor: float) -> None:
        matrices, others, plain = [], [], []
        for name, parameter in network.named_parameters():
            if "blocks." in name and parameter.ndim == 2:
                matrices.append(parameter)
            elif parameter.ndim > 1 and "token" not in name and "pos_embed" not in name:
                others.append(parameter)
            else:
                plain.append(parameter)
        self._factors = (matrix_factor, 1.0)
        self._all = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": others, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
                lr=learning_rate,
                betas=(0.9, 0.95),
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
        """States in order."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Linear rise over ``warmup`` steps, a plateau, and a linear fall to zero over the last ``decay`` of all steps.

    The plateau lets a run be extended from any checkpoint before the fall.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    fall = min(1.0, (steps - step) / max(decay * steps, 1))
    return peak * min(rise, fall)
