"""Floor 3: weights between the start and the adapted model, and what that gives up on either side.

theta(alpha) = (1 - alpha) theta_start + alpha theta_adapted (Wortsman 2022, Robust fine-tuning of zero-shot models; for
translation Freitag and Al-Onaizan 2016 average the models' predictions). It costs no training, only validations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.config import AdaptConfig

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WITHOUT_GENERAL = 0.5
"""What is taken where no general text says what the start is worth: Wortsman's recommendation."""

Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class TradeOff:
    """Validation scores along the line from the start to the adapted weights."""

    alpha: float
    """The share of the adapted weights that was chosen, or given."""
    curve: tuple[dict[str, float], ...]
    """``alpha, in_domain, general`` of each point; general is nan where there is no general text."""

    @property
    def value(self) -> float:
        """In-domain validation at the chosen point."""
        return next(point["in_domain"] for point in self.curve if point["alpha"] == self.alpha)


def start_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters, by name."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def interpolate(
    model: nn.Module, start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], alpha: float
) -> None:
    """Put (1 - alpha) x ``start`` + alpha x ``end`` into ``model``; exactly either side at 0 and 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                start[name] if alpha == 0 else end[name] if alpha == 1 else torch.lerp(start[name], end[name], alpha)
            )


def choose_interpolation(
    model: nn.Module,
    start: Mapping[str, torch.Tensor],
    adapt: AdaptConfig,
    higher_is_better: bool,
    validate: Validate,
    validate_general: Validate | None,
) -> TradeOff:
    """Walk from ``start`` to the weights in ``model``, and leave it at the chosen point.

    The point is ``adapt.interpolation`` where it is given. Else it is the best weighted mean of in-domain and general
    validation (``adapt.general_weight``), or, without general text, the middle: in-domain validation alone knows
    nothing of what is forgotten.
    """
    end = start_weights(model)
    chosen = adapt.interpolation
    if chosen is None and validate_general is None:
        chosen = WITHOUT_GENERAL
    points = sorted({*ALPHAS, *([] if chosen is None else [chosen])})
    curve = []
    for alpha in points:
        interpolate(model, start, end, alpha)
        general = validate_general(model) if validate_general else math.nan
        curve.append({"alpha": alpha, "in_domain": validate(model), "general": general})
    if chosen is None:
        sign, weight = (1 if higher_is_better else -1), adapt.general_weight
        best = max(curve, key=lambda point: sign * ((1 - weight) * point["in_domain"] + weight * point["general"]))
        chosen = best["alpha"]
    interpolate(model, start, end, chosen)
    return TradeOff(chosen, tuple(curve))
