"""Floor 1: what an encoder-decoder model writes for encoded sources, greedily or by beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

from hf_transfer.batching import sorted_batches
from hf_transfer.eval_mode import in_eval_mode
from hf_transfer.flattened import flattened
from hf_transfer.on_device import Room

TOKENS_PER_BATCH = 4096
"""Rows x longest source x beams of one batch, unless told otherwise."""


def decode(
    model: nn.Module,
    input_ids: Sequence[Sequence[int]],
    forced: Sequence[int | None],
    pad_token_id: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    beams: int = 1,
    length_penalty: float = 1.0,
    on_batch: Callable[[int], None] | None = None,
    logits_processor: Sequence[Callable[..., torch.Tensor]] | None = None,
) -> list[list[int]]:
    """Tokens that ``model`` writes for each source, in the order of ``input_ids``.

    Each answer is what stock ``generate`` gives for that source alone, up to rounding: batches hold sources of similar
    length, and what is forced is forced row by row, so that neither the neighbours nor the budget change an answer.
    Every answer ends after at most ``most_new_tokens`` tokens. All else (banned words, repetition penalties, early
    stopping) is as the model's ``generation_config`` says, which stays as it is; sampling is off. The model is in eval
    mode while at work.

    Args:
        model: Any transformers encoder-decoder with a language head, or PEFT's wrapper of one.
        input_ids: One encoded source per row with its special tokens, unpadded, at least one token each.
        forced: First token of each answer (the target language); None where the model's own settings decide.
        tokens_per_batch: Upper bound of rows x longest source x beams; a source over it travels alone. Half of it where
            memory runs out.
        beams: 1 is greedy.
        length_penalty: Exponent of the length that a hypothesis's log-probability is divided by; beams only.
        on_batch: Called after each batch with its number of rows.
        logits_processor: As in ``generate``; called after the model's own and before anything is forced.

    Returns:
        New tokens without the start, the forced first, the end and padding.
    """
    assert len(input_ids) == len(forced), f"{len(input_ids)} sources but {len(forced)} forced tokens"
    lengths = [len(source) for source in input_ids]
    answers: list[list[int]] = [[] for _ in lengths]
    stock: Any = model
    device = next(stock.parameters()).device
    ends = end_tokens(stock)
    own_first = stock.generation_config.forced_bos_token_id
    positions = getattr(stock.config, "max_position_embeddings", None)

    def write(chosen: np.ndarray) -> None:
        longest = lengths[chosen[0]]
        rows = torch.full((len(chosen), longest), pad_token_id)
        mask = torch.zeros_like(rows)
        for row, which in enumerate(chosen):
            rows[row, : lengths[which]] = torch.tensor(input_ids[which])
            mask[row, : lengths[which]] = 1
        firsts = [own_first if forced[which] is None else forced[which] for which in chosen]
        limits = [most_new_tokens(lengths[which], positions) for which in chosen]
        boundaries = ForcedTokens(firsts, limits, ends[0], beams, device)
        with torch.no_grad(), flattened(model, mask):  # what the encoder pads is thrown away
            states = stock.get_encoder()(input_ids=rows.to(device), attention_mask=mask.to(device))
        written = stock.generate(
            encoder_outputs=states,
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList([*(logits_processor or ()), boundaries]),
            max_length=1 + max(limits),  # the start token counts
            **_settings(stock, beams, length_penalty),
        )
        for which, first, tokens in zip(chosen, firsts, written[:, 1:].tolist(), strict=True):
            answers[which] = _between(tokens, first, ends, pad_token_id)
        if on_batch is not None:
            on_batch(len(chosen))

    room = Room()
    with in_eval_mode(model):
        for chosen in sorted_batches(lengths, max(1, tokens_per_batch // beams)):
            room.run(write, chosen, lengths[chosen[0]])
    return answers


def most_new_tokens(source_length: int, positions: int | None) -> int:
    """Longest answer in tokens, its end included: twice the source and 20, within the decoder's ``positions``.

    Translations of natural sentences stay far below; an answer that long repeats itself.
    """
    wanted = 2 * source_length + 20
    return wanted if positions is None else min(wanted, positions - 1)


def end_tokens(model: Any) -> list[int]:
    """Tokens that end an answer of ``model``."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    assert ends is not None, "the model has no end token"
    return ends if isinstance(ends, list) else [ends]


class ForcedTokens(LogitsProcessor):
    """Forces each row's first token and its end at the row's limit, like stock's two classes, but row by row."""

    def __init__(
        self, firsts: Sequence[int | None], limits: Sequence[int], end: int, beams: int, device: torch.device
    ) -> None:
        self.firsts = torch.tensor([-1 if first is None else first for first in firsts], device=device)
        self.limits = torch.tensor(limits, device=device)
        self.firsts, self.limits = self.firsts.repeat_interleave(beams), self.limits.repeat_interleave(beams)
        self.end = end
        self.shortest = min(limits)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids``: [rows x beams, tokens so far with the start]; ``scores``: [rows x beams, vocabulary]."""
        position = input_ids.shape[1]  # of the token that is chosen now; the start is position 0
        if 1 < position < self.shortest:
            return scores  # known without waiting for the device
        tokens = torch.full_like(self.firsts, -1)
        if position == 1:
            tokens = self.firsts
        if position >= self.shortest:
            tokens = torch.where(position >= self.limits, self.end, tokens)
        rows = (tokens >= 0).nonzero()[:, 0]
        if not len(rows):
            return scores
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, tokens[rows]] = 0.0
        return scores


def _settings(model: Any, beams: int, length_penalty: float) -> dict[str, Any]:
    """Arguments of ``generate`` that win over ``generation_config``; None where another choice makes a value void."""
    own = model.generation_config
    return {
        "num_beams": beams,
        "length_penalty": length_penalty if beams > 1 else None,
        "early_stopping": own.early_stopping if beams > 1 else None,
        "do_sample": False,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "num_return_sequences": 1,
        "max_new_tokens": None,
        # ForcedTokens does both; stock's would hide the model's scores from processors that read them
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "use_cache": True,  # a model in training may have it off
        "return_dict_in_generate": False,
    }


def _between(tokens: Sequence[int], first: int | None, ends: Sequence[int], pad_token_id: int) -> list[int]:
    """What stands between the forced first token and the end."""
    kept = []
    for token in tokens[1:] if first is not None else tokens:
        if token in ends:
            break
        kept.append(token)
    return [token for token in kept if token != pad_token_id]
