"""Floor 1: losses of a large output layer, a few target positions at a time, so that all logits are never held.

The gradient of a chunk of positions is known as soon as its logits are (softmax minus target), so it is taken during
the forward and only sums are kept: the gradient of the hidden states, of the weight and of the bias. The backward
multiplies them by the incoming gradient. The three matrix products are those of the plain form; what falls away is
[targets, vocabulary] tensors: 1 GB each for 4,096 targets and 65,000 pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

MOST_BYTES = {"cpu": 120_000_000, "cuda": 1_000_000_000}
"""What a call may hold beside its inputs and the gradients of weight and bias: about 430 positions of 65,000 pieces on
a CPU, whose products are as fast as of many. A GPU wants thousands in a product, and goes over the whole weight for
each. What the matrix library takes for itself comes on top."""
LEAST_POSITIONS = 16
"""However large the vocabulary, as many positions are taken at once."""
VOCABULARY_SLICE = 8192
"""Pieces whose weight gradient is computed at once where it comes in half precision and is added up in single."""


def smoothed_cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
    most_bytes: int | None = None,
) -> torch.Tensor:
    """Label-smoothed cross-entropy (Szegedy 2016, section 7) of ``hidden @ weight.T + bias``, summed over the targets.

    Equals ``torch.nn.functional.cross_entropy(..., label_smoothing=label_smoothing, reduction="sum")``. Under autocast
    the logits are computed in its type, the softmax in single precision. Under fp16 the gradient's products are in
    single precision, because they are taken before the loss is scaled and their small values would vanish.

    Args:
        hidden: [targets, width], what the output layer reads.
        weight: [vocabulary, width].
        bias: [vocabulary], or None.
        targets: [targets] int64.
        label_smoothing: Share of the target's weight that is spread evenly over the vocabulary, 0 to 1.
        most_bytes: Decides how many positions are taken at once; by default that of the device (``MOST_BYTES``).

    Returns:
        A scalar, float32 (float64 of float64). One backward goes through it: what it needs is released then.
    """
    return _ChunkedLoss.apply(
        hidden.unsqueeze(0), weight, bias, targets, label_smoothing, 0.0, most_bytes, torch.is_grad_enabled()
    )


def r_drop_sum(
    hidden_pair: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
    alpha: float = 1.0,
    most_bytes: int | None = None,
) -> torch.Tensor:
    """R-Drop (Liang et al. 2021, equations 2 to 4): the mean of two passes' cross-entropies plus
    alpha/2 (KL(p1 || p2) + KL(p2 || p1)), summed over the targets.

    The paper adds the two cross-entropies where this takes their mean, so its alpha of 5 is 2.5 here.

    Args:
        hidden_pair: [2, targets, width]: the same targets under two draws of dropout.
        weight, bias, targets, label_smoothing, most_bytes: As in ``smoothed_cross_entropy_sum``.
    """
    assert hidden_pair.shape[0] == 2, f"two passes are compared, found {hidden_pair.shape[0]}"
    return _ChunkedLoss.apply(
        hidden_pair, weight, bias, targets, label_smoothing, alpha, most_bytes, torch.is_grad_enabled()
    )


class _ChunkedLoss(torch.autograd.Function):
    """Loss of one pass, or of two with their divergence; ``hidden`` is [passes, targets, width]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        label_smoothing: float,
        alpha: float,
        most_bytes: int | None,
        wants_gradient: bool,
    ) -> torch.Tensor:
        # Plan: choose number formats and the chunk; for each chunk of targets: logits, losses and, in place
        # of the logits, their gradient; multiply that out into the gradients that were asked for.
        to_hidden, to_weight, to_bias = (wants_gradient and needed for needed in ctx.needs_input_grad[:3])
        passes, count, width = hidden.shape
        vocabulary = weight.shape[0]
        product, softmax = _formats(hidden)
        backward_product = torch.float32 if product == torch.float16 else product
        new: Any = {"device": hidden.device, "dtype": softmax}
        of_hidden = torch.zeros(hidden.shape, **new) if to_hidden else None
        # the sum over chunks of a half-precision weight's gradient is rounded once, at the end
        of_weight = torch.zeros(weight.shape, **new) if to_weight else None
        of_bias = torch.zeros(vocabulary, **new) if to_bias else None

        if most_bytes is None:
            most_bytes = MOST_BYTES.get(hidden.device.type, MOST_BYTES["cpu"])
        low = product != softmax
        buffers = 1 if passes == 1 else 4
        held = (passes * count * width * softmax.itemsize) if to_hidden else 0
        if weight.dtype != product:
            held += weight.numel() * product.itemsize
        each = vocabulary * (buffers * softmax.itemsize + low * product.itemsize)
        step = min(max((most_bytes - held) // each, LEAST_POSITIONS), max(count, 1))
        with torch.autocast(hidden.device.type, enabled=False):
            weight_in = weight.detach().to(product)
            weight_back = weight.detach().to(backward_product)
            space = [torch.empty(step, vocabulary, **new) for _ in range(buffers)]
            half = torch.empty(step, vocabulary, device=hidden.device, dtype=product) if low else None
            losses = torch.zeros(count, **new)
            for first in range(0, count, step):
                where = slice(first, first + step)
                size = len(targets[where])
                read = [hidden[i, where].to(product) for i in range(passes)]
                work = [buffer[:size] for buffer in space]
                for i in range(passes):
                    _logits(read[i], weight_in, bias, work[i], half)
                if passes == 1:
                    losses[where] = _one_pass(work, targets[where], label_smoothing)
                else:
                    losses[where] = _two_passes(work, targets[where], label_smoothing, alpha)
                for i in range(passes):
                    gradient = work[i]
                    if of_bias is not None:
                        of_bias += gradient.sum(0)
                    if low and backward_product == product and half is not None:
                        gradient = half[:size].copy_(gradient)
                    if of_hidden is not None:
                        of_hidden[i, where] = (gradient @ weight_back).to(softmax)
                    if of_weight is not None:
                        _add_product(of_weight, gradient, read[i].to(backward_product))
        ctx.gradients = (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
        )
        ctx.hidden_dtype = hidden.dtype
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a chunked loss keeps its gradients for one backward only: compute the loss again.")
        # in place and let go of: a copy of the weight's gradient would cost as much as the weight
        of_hidden, of_weight, of_bias = (g if g is None else g.mul_(incoming) for g in ctx.gradients)
        ctx.gradients = None
        return (None if of_hidden is None else of_hidden.to(ctx.hidden_dtype), of_weight, of_bias, *[None] * 5)


def _formats(hidden: torch.Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Number formats of the matrix products and of the softmax, as autocast would have them."""
    kind = hidden.device.type
    if hidden.dtype == torch.float64:
        return torch.float64, torch.float64
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind), torch.float32
    return hidden.dtype, torch.float32


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, into: torch.Tensor, half: torch.Tensor | None
) -> None:
    """Logits [rows, vocabulary] in the softmax's format, by way of ``half`` where the product has another."""
    if half is None:
        torch.mm(hidden, weight.t(), out=into)
    else:
        into.copy_(torch.mm(hidden, weight.t(), out=half[: len(hidden)]))
    if bias is not None:
        into.add_(bias.detach())


def _one_pass(work: list[torch.Tensor], targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Losses [rows]; ``work[0]``, logits [rows, vocabulary], becomes their gradient."""
    values = work[0]
    targets = targets.unsqueeze(1)
    values -= values.amax(1, keepdim=True)
    of_target = values.gather(1, targets)
    mean = values.mean(1, keepdim=True) if label_smoothing else of_target
    total = values.exp_().sum(1, keepdim=True)
    losses = total.log() - (1 - label_smoothing) * of_target - label_smoothing * mean
    values *= total.reciprocal()
    _subtract_target(values, targets, label_smoothing)
    return losses.squeeze(1)


def _two_passes(work: list[torch.Tensor], targets: torch.Tensor, label_smoothing: float, alpha: float) -> torch.Tensor:
    """Losses [rows] of R-Drop; ``work[0]`` and ``work[1]``, both passes' logits, become their gradients.

    With l = log p, KL1 = KL(p1 || p2), KL2 = KL(p2 || p1): d(KL1 + KL2)/d(logits 1) = p1 (l1 - l2 - KL1) + p1 - p2.
    """
    first, second, p1, p2 = work
    targets = targets.unsqueeze(1)
    losses = torch.zeros_like(first[:, :1])
    for values, p in ((first, p1), (second, p2)):
        values -= values.amax(1, keepdim=True)
        torch.exp(values, out=p)
        total = p.sum(1, keepdim=True)
        values -= total.log()
        p *= total.reciprocal()
        mean = values.mean(1, keepdim=True) if label_smoothing else losses
        losses = losses - 0.5 * ((1 - label_smoothing) * values.gather(1, targets) + label_smoothing * mean)
    first -= second  # l1 - l2
    kl1 = torch.mul(first, p1, out=second).sum(1, keepdim=True)
    kl2 = -torch.mul(first, p2, out=second).sum(1, keepdim=True)
    second.copy_(first).neg_()
    for gap, mine, other, kl in ((first, p1, p2, kl1), (second, p2, p1, kl2)):
        gap.sub_(kl).add_(1.0).mul_(mine).sub_(other).mul_(alpha / 2)
    for gap, mine in ((first, p1), (second, p2)):
        _subtract_target(mine, targets, label_smoothing)
        gap.add_(mine, alpha=0.5)
    return (losses + alpha / 2 * (kl1 + kl2)).squeeze(1)


def _subtract_target(values: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> None:
    """Probabilities [rows, vocabulary] less the smoothed target, in place: the gradient of the cross-entropy."""
    if label_smoothing:
        values -= label_smoothing / values.shape[1]
    values.scatter_add_(1, targets, torch.full_like(targets, -(1 - label_smoothing), dtype=values.dtype))


def _add_product(total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
    """``total += gradient.T @ hidden`` ([vocabulary, width]), in slices where the number formats differ."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    for first in range(0, len(total), VOCABULARY_SLICE):
        total[first : first + VOCABULARY_SLICE] += gradient[:, first : first + VOCABULARY_SLICE].t() @ hidden
