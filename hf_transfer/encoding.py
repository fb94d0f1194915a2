"""Floor 2: text as token ids, made once for all runs that read it in the same way."""

from __future__ import annotations

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
    key = ("encoded", name, pretrained.revision, len(tokenizer), limit, labels.problem, labels.names)
    if key not in text.shared:
        text.shared[key] = task.encode(text.splits, labels, tokenizer, limit)
    return text.shared[key], limit
