"""Floor 4: what a run does about layers: how many of the checkpoint are kept, and the probe on their states.

Both look at the pooled states of every layer, which one pass over train and validation gives. They stay in memory with
the text, for the other seeds and runs of a comparison: 4 bytes x (layers + 1) x width an example, 11 KB with MiniLM.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_transfer.adapt import Adapted
from hf_transfer.config import ModelConfig, RunConfig
from hf_transfer.encoding import encode
from hf_transfer.errors import InputError
from hf_transfer.launch import start_processes
from hf_transfer.layer_probe import LayerChoice, Targets, choose_probe
from hf_transfer.layers import (
    WAYS,
    LayerProbe,
    ProbeOutput,
    StateReader,
    check_layers,
    depth_of,
    make_reader,
    pooled_states,
)
from hf_transfer.metrics import choose_metrics, score
from hf_transfer.pretrained import Checkpoint, find_checkpoint, load_pretrained
from hf_transfer.records import (
    EncodedSplits,
    LabelSpace,
    Pretrained,
    Selection,
    Text,
    TrainableSummary,
    TrainResult,
    not_by_the_loop,
)
from hf_transfer.tasks import TASKS, TaskFunctions


@dataclasses.dataclass(frozen=True)
class LayersTold:
    """What there is to tell of layers."""

    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """As results.json has it under ``layers``: ``model`` and ``probe``."""


def body_key(pretrained: Pretrained, seed: int, layers: int | None) -> str:
    """Names the weights of the body: equal for runs that start from the same ones. Random weights are the seed's, and
    those of the size of the vocabulary, which texts may decide (``scratch:marian-...``)."""
    size = pretrained.model.config.vocab_size
    weights = pretrained.sha256 or f"{pretrained.checkpoint_id} random {seed} of {size} pieces"
    return f"{weights} {pretrained.revision} {layers or 'all'} layers"


def store_key(adapted: Adapted, pretrained: Pretrained, seed: int) -> str:
    """``body_key``, and the seed where a parameter that the checkpoint did not hold (a pooler, say) stays as it was
    drawn: what frozen layers compute is then the seed's too."""
    key = body_key(pretrained, seed, pretrained.layers)
    learning = {id(p) for stage in adapted.stages for p in stage.trainable}
    new = set(pretrained.newly_initialised)
    drawn = any(name in new and id(p) not in learning for name, p in pretrained.model.named_parameters())
    return f"{key} drawn by {seed}" if drawn else key


def settle_layers(
    config: RunConfig, model: ModelConfig, found: Checkpoint, labels: LabelSpace, text: Text
) -> tuple[ModelConfig, LayersTold]:
    """``model`` with ``layers`` as a number, chosen where it was ``auto``; what is asked of layers is checked first.

    Raises:
        InputError: layers that the checkpoint does not have, or cannot do without; no weights were loaded.
    """
    wanted = config.adapt.probe_layers if config.adapt.strategy == "probe" else None
    if wanted is not None:
        number = None if wanted in ("auto", *WAYS) else int(wanted)
        depth = check_layers(
            found.id,
            found.config,
            f"--adapt.probe_layers {wanted}",
            number,
            may_share=model.layers is None,
            trust_remote_code=model.trust_remote_code,
        )
        kept = None if model.layers in (None, "auto") else int(model.layers)
        if number is not None and kept is not None and kept < number <= depth:
            raise InputError(
                f"--adapt.probe_layers {number} reads a layer that --model.layers {kept} drops: give a number up to "
                f"{kept}, or leave --model.layers out, since a probe drops by itself what it does not read."
            )
    if model.layers is None:
        return model, LayersTold()
    if model.layers != "auto":
        return model, _told_of_number(int(model.layers), found)
    return _choose_kept(config, model, labels, text)


def _told_of_number(kept: int, found: Checkpoint) -> LayersTold:
    depth = depth_of(found.config)
    note = f"the {kept} lowest of {depth} layers are kept (--model.layers)."
    return LayersTold((note,), {"model": {"kept": kept, "of": depth, "rule": "as given"}})


def _choose_kept(
    config: RunConfig, model: ModelConfig, labels: LabelSpace, text: Text
) -> tuple[ModelConfig, LayersTold]:
    """The layer whose pooled states tell the labels best is the last that is kept.

    Random weights (the control ``scratch``) get as many layers as the checkpoint whose shape they have.
    """
    whole = dataclasses.replace(model, layers=None, checkpoint=model.checkpoint.removeprefix("scratch:"))
    found, task = find_checkpoint(whole), TASKS[config.task]
    depth = check_layers(found.id, found.config, "--model.layers auto", trust_remote_code=model.trust_remote_code)
    started = time.perf_counter()
    opened = load_pretrained(whole, found, "AutoModel", {}, keep_head=True, seed=config.seed)
    accelerator = start_processes(config.train, found.model_type, 0)
    opened.model.to(accelerator.device)
    encoded, _ = encode(text, labels, opened, task, config.data.max_length)
    metric = choose_metrics(config.evaluate, labels.problem, len(text.splits.validation))[0]
    functions = task.bind(labels, opened, config, [metric])
    states = _States(make_reader(opened.model), body_key(opened, config.seed, None), functions, config, accelerator)
    ways = [str(layer) for layer in range(1, depth + 1)]
    choice = _choose(states, encoded, ways, labels, metric, config, text.shared)
    kept = int(choice.layers)
    note = (
        f"the {kept} lowest of {depth} layers are kept: {choice.rule} of linear probes on the states of each "
        f"({_in_words(choice, metric)})."
    )
    facts = {"kept": kept, "of": depth, **_facts(choice, metric), "seconds": time.perf_counter() - started}
    return dataclasses.replace(model, layers=kept), LayersTold((note,), {"model": facts})


def solve_probe(
    adapted: Adapted,
    encoded: EncodedSplits,
    functions: TaskFunctions,
    pretrained: Pretrained,
    labels: LabelSpace,
    config: RunConfig,
    metric: str,
    shared: dict[Any, Any],
    accelerator: Accelerator,
) -> tuple[Adapted, TrainResult, LayersTold]:
    """Choose the layers of ``adapted.model`` (a ``LayerProbe``), solve its head and drop what it does not read.

    The model changes in place; the summary in what is returned counts the head, since nothing else was learnt.
    """
    probe: Any = adapted.model
    started = time.perf_counter()
    wanted, depth = str(config.adapt.probe_layers), depth_of(probe.config)
    key = body_key(pretrained, config.seed, None)  # the states of a cut body are the first of the whole one
    states = _States(make_reader(probe.body), key, functions, config, accelerator)
    ways = [*map(str, range(depth + 1)), *WAYS] if wanted == "auto" else [wanted]
    choice = _choose(states, encoded, ways, labels, metric, config, shared)
    probe.settle(
        choice.layers,
        states.reader.final_norm,
        torch.from_numpy(choice.head.weight),
        torch.from_numpy(choice.head.bias),
    )
    seconds = time.perf_counter() - started
    names = tuple(name for name, _ in probe.named_parameters() if name.startswith("head."))
    summary = TrainableSummary(
        trainable=sum(p.numel() for p in probe.head.parameters()),
        total=sum(p.numel() for p in probe.parameters()),
        names=names,
    )
    kept = depth_of(probe.config)
    reads = {"mean": "the mean of all states", "all": "all states side by side"}.get(
        choice.layers, f"the states of layer {choice.layers}"
    )
    dropped = f"; the {depth - kept} layers above are dropped" if kept < depth else ""
    chosen = f", chosen by {choice.rule} ({_in_words(choice, metric)})" if len(ways) > 1 else ""
    note = (
        f"probe on {reads} of {depth} layers{chosen}; C = {choice.strength:g}; {summary.trainable:,} parameters "
        f"solved{dropped} ({seconds:.0f} s with the pass over train and validation)."
    )
    value = next(item.score for item in choice.candidates if item.layers == choice.layers)
    rule = "in_domain_validation" if choice.rule == "in-domain validation" else choice.rule
    trained = not_by_the_loop(Selection(rule, metric, 0, value), seconds, len(encoded.train))
    facts = {"kept": kept, "of": depth, **_facts(choice, metric), "seconds": seconds}
    adapted = dataclasses.replace(adapted, summary=summary, head_names=names)
    return adapted, trained, LayersTold((note,), {"probe": facts})


@dataclasses.dataclass(frozen=True)
class _States:
    """Where states come from."""

    reader: StateReader
    key: str
    """Of the body's weights."""
    functions: TaskFunctions
    config: RunConfig
    accelerator: Accelerator

    def of(self, rows: Any, shared: dict[Any, Any]) -> np.ndarray:
        """[states, rows, width] of encoded ``rows``; computed once for all runs that share the text."""
        wanted = depth_of(self.reader.body.config) + 1
        key = ("pooled states", self.key, rows._fingerprint)
        if key not in shared or len(shared[key]) < wanted:
            accelerator = self.accelerator
            shared[key] = pooled_states(
                self.reader,
                rows,
                self.functions.make_batch,
                self.config.evaluate.tokens_per_batch,
                lambda states: _summed(states, accelerator),
                accelerator.process_index,
                accelerator.num_processes,
            )
        return shared[key][:wanted]


def _summed(states: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """``states`` [states, rows, width] on the host, in place the sum over all processes, which all call it; one state
    after the other is on the device."""
    if accelerator.num_processes > 1:
        for state in states:
            state.copy_(accelerator.reduce(state.to(accelerator.device), reduction="sum"))
    return states


def _choose(
    states: _States,
    encoded: EncodedSplits,
    ways: Sequence[str],
    labels: LabelSpace,
    metric: str,
    config: RunConfig,
    shared: dict[Any, Any],
) -> LayerChoice:
    """``choose_probe`` over the encoded splits; validation decides where ``evaluate.selection`` lets it."""
    validation = None
    if len(encoded.validation):
        held_out = Targets(np.asarray(encoded.validation["labels"]), labels)
        validation = (states.of(encoded.validation, shared), held_out)
    return choose_probe(
        states.of(encoded.train, shared),
        Targets(np.asarray(encoded.train["labels"]), labels),
        validation,
        ways,
        config.seed,
        by_validation=config.evaluate.selection != "last",
        score=_scorer(states.functions, encoded.validation, metric),
    )


def _scorer(functions: TaskFunctions, rows: Any, metric: str) -> Callable[[np.ndarray], float]:
    """What scores logits [rows, outputs] as the run scores a model."""

    def scored(logits: np.ndarray) -> float:
        probabilities = functions.read_outputs(ProbeOutput(torch.from_numpy(logits))).numpy()
        return score(metric, functions.to_predictions(rows, probabilities))

    return scored


def _facts(choice: LayerChoice, metric: str) -> dict[str, Any]:
    return {
        "layers": choice.layers,
        "pooling": "mean over tokens",
        "strength": choice.strength,
        "rule": choice.rule,
        "metric": metric,
        "candidates": [dataclasses.asdict(candidate) for candidate in choice.candidates],
    }


def _in_words(choice: LayerChoice, metric: str) -> str:
    """What each candidate reached: its loss where it was chosen by, its score where there is one."""
    parts = []
    for candidate in choice.candidates:
        by_validation = choice.rule == "in-domain validation"
        loss = candidate.validation_loss if by_validation else candidate.cross_validation_loss
        parts.append(f"{candidate.layers} {loss:.3f}")
    return f"loss by layer: {', '.join(parts)}"


def is_unsolved(model: Any) -> bool:
    """Whether it is a probe that waits for its head."""
    return isinstance(model, LayerProbe) and model.head is None
