"""Floor 2: text as token ids, made once for all runs that read it in the same way."""

from __future__ import annotations

import math
from dataclasses import replace

from datasets import concatenate_datasets

from hf_transfer.batching import Mixture
from hf_transfer.errors import InputError
from hf_transfer.pretrained import longest_input
from hf_transfer.records import EncodedSplits, LabelSpace, Pretrained, Text
from hf_transfer.tasks import Task


def encode(
    text: Text, labels: LabelSpace, pretrained: Pretrained, task: Task, max_length: int
) -> tuple[EncodedSplits, int]:
    """The splits of ``text`` as token ids, and the length limit used: the checkpoint's own or ``max_length``.

    What another run over the same ``text`` has encoded with the same tokenizer, limit and classes is taken from there.
    """
    tokenizer = pretrained.tokenizer
    limit = longest_input(pretrained.model, tokenizer, max_length)
    name = pretrained.checkpoint_id.removeprefix("scratch:")
    origin = tokenizer.name_or_path  # a vocabulary that a run has learnt lies in a folder of that run
    key = ("encoded", name, pretrained.revision, origin, len(tokenizer), limit, replace(labels, class_weights=()))
    if key not in text.shared:
        text.shared[key] = task.encode(text.splits, labels, pretrained, limit)
    return text.shared[key], limit


def mix_general(encoded: EncodedSplits, share: float, seed: int) -> tuple[EncodedSplits, str]:
    """``encoded`` with general text mixed into train, and a sentence about how much.

    General examples make up ``share`` of the tokens of an epoch (mixed fine-tuning, Chu, Dabre and Kurohashi 2017, who
    repeat the smaller side: here the in-domain side sets how long an epoch is, and each epoch has other general
    examples until all had their turn).

    Raises:
        InputError: there is no general example to learn from.
    """
    assert encoded.general is not None
    if not len(encoded.general):
        raise InputError(
            f"--data.general_source has nothing to mix in, and {share:.0%} of the training tokens should be general: "
            "its rows are all of test or validation, or longer than --data.max_length on one side. Give it train rows, "
            "raise that limit, or choose another strategy than mixed and leave out --data.general_share."
        )
    own_tokens = sum(encoded.train["length"][:])
    general_tokens = sum(encoded.general["length"][:])
    wanted = own_tokens * share / (1 - share)
    count = min(math.ceil(len(encoded.general) * wanted / general_tokens), len(encoded.general))
    mixture = Mixture(len(encoded.train), len(encoded.general), count, seed)
    tokens = general_tokens * count / len(encoded.general)
    sentence = (
        f"{count:,} of {len(encoded.general):,} general examples are mixed into each pass over train "
        f"({tokens / (tokens + own_tokens):.0%} of its tokens)."
    )
    train = concatenate_datasets([encoded.train, encoded.general])
    return replace(encoded, train=train, mixture=mixture), sentence
