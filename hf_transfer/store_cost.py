"""Floor 5: what a store of frozen states (features.py) would hold of train, and what it would spare a run.

Plan. The stages of a run fall into stretches in which nothing new begins to learn. In each of them the store holds what
lies below everything that has learnt so far: what the head reads, where that is the whole body, else the states that
enter the lowest layer that learns. It is filled by one pass of each train example through what is frozen, and what a
stretch has put into it stays when the next one, whose states are others, begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_transfer.adapt import Stage
from hf_transfer.cost import SOURCE_LENGTH, Shapes, Trace, frozen_prefix, operations, shapes_of, without_prefix
from hf_transfer.feature_store import FeatureStore, memory_limit
from hf_transfer.features import StoredFeatures, stored_features
from hf_transfer.output_layer import output_layer
from hf_transfer.rehearsal import Rehearsal, StageCost, example, mark, watch

NUMBER_BYTES = 4


@dataclass(frozen=True)
class _Stretch:
    """Stages one after the other, of which the first alone lets something new learn."""

    stages: tuple[StageCost, ...]
    trained: frozenset[int]
    """Ids of all parameters that have learnt by its end."""

    @property
    def name(self) -> str:
        return ", ".join(stage.plan.stage.name for stage in self.stages)

    @property
    def examples(self) -> int:
        return sum(stage.examples for stage in self.stages)

    def operations(self, run: Rehearsal) -> float:
        """With nothing stored."""
        return float(sum(stage.operations(run.flat).sum() for stage in self.stages))


@dataclass(frozen=True)
class _Kept:
    """What a stretch keeps of all train examples."""

    layers: int
    holds: str
    bytes: int
    to_fill: float
    """Operations of the pass that computes it."""
    to_read: float
    """Operations of the stretch if all of it is looked up."""


def stored_cost(run: Rehearsal, stages: Sequence[StageCost]) -> dict[str, Any]:
    """Bytes of the store, and operations of the run with and without it.

    Returns:
        ``stages``: of each stretch that keeps something its ``name``, ``layers`` below what learns, what it ``holds``,
        ``bytes`` and ``stored_share``; ``of_layers``; ``bytes`` of all and ``limit_bytes``; ``operations_without``,
        ``operations_with``, of which ``operations_to_fill``.
    """
    limit = memory_limit() + run.settings.feature_cache_bytes
    if run.config.adapt.strategy == "knn":
        return _datastore(run, stages)
    rows: list[Mapping[str, Any]] = []
    filled: dict[tuple[int, str], tuple[float, float]] = {}  # share of the examples seen, and of those what fitted
    without = with_store = to_fill = 0.0
    free = float(limit)
    for stretch in _stretches(stages):
        plain = stretch.operations(run)
        without += plain
        kept = _kept(run, stretch)
        if kept is None:
            with_store += plain
            continue
        what = (kept.layers, kept.holds)
        before, _ = filled.get(what, (0.0, 1.0))  # the same states as an earlier stretch's are there already
        seen = max(before, min(1.0, stretch.examples / len(run.source)))
        size = round(kept.bytes * (seen - before))
        share = min(1.0, free / size) if size else filled[what][1]
        fill = kept.to_fill * (seen - before) * share
        filled[what] = (seen, share)
        free -= size * share
        to_fill += fill
        with_store += share * kept.to_read + (1 - share) * plain + fill
        rows.append(
            {"name": stretch.name, "layers": kept.layers, "holds": kept.holds, "bytes": size, "stored_share": share}
        )
    return {
        "stages": rows,
        "of_layers": len(run.adapted.parts.layers),
        "bytes": sum(row["bytes"] for row in rows),
        "limit_bytes": limit,
        "operations_without": without,
        "operations_with": with_store,
        "operations_to_fill": to_fill,
    }


def _datastore(run: Rehearsal, stages: Sequence[StageCost]) -> dict[str, Any]:
    """Of kNN-MT, whose datastore is always there: a state and a piece for each target token."""
    size = int(run.target.sum()) * (output_layer(run.pretrained.model)[0].shape[1] + 1) * NUMBER_BYTES
    row = {"name": "", "layers": 0, "holds": "decoder states (kNN-MT)", "bytes": size, "stored_share": 1.0}
    spent = float(sum(stage.operations(run.flat).sum() for stage in stages))
    return {
        "stages": [row],
        "of_layers": len(run.adapted.parts.layers),
        "bytes": size,
        "limit_bytes": size,
        "operations_without": spent,
        "operations_with": spent,
        "operations_to_fill": 0.0,
    }


def _stretches(stages: Sequence[StageCost]) -> Iterator[_Stretch]:
    trained: frozenset[int] = frozenset()
    own: list[StageCost] = []
    for stage in stages:
        new = trained | {id(p) for p in stage.trained}
        if own and new != trained:
            yield _Stretch(tuple(own), trained)
            own = []
        trained = new
        own.append(stage)
    yield _Stretch(tuple(own), trained)


def _kept(run: Rehearsal, stretch: _Stretch) -> _Kept | None:
    """What the store of the run would: it is asked, with the first train examples."""
    parts = run.adapted.parts
    if not stretch.trained:
        return None  # one pass is all that there is
    if not frozen_prefix(parts.layers, parts.embeddings, set(stretch.trained)):
        return None
    with _store_of(run, stretch, FeatureStore()) as features:
        depth, layers = features.depth, features.layers
    if not depth:
        return None
    everything = shapes_of([np.array([i]) for i in range(len(run.source))], run.source, run.target)
    if depth.startswith("the body"):
        return _whole_body(run, stretch, everything)
    first = stretch.stages[0].trace
    width = first.widths.get(layers, first.widths[layers - 1])
    return _Kept(
        layers=layers,
        holds="states of every token",
        bytes=int(run.source.sum()) * width * NUMBER_BYTES,
        to_fill=float(operations(first, everything, run.flat)[: layers + 1, 0].sum()),
        to_read=float(sum(without_prefix(stage.operations(run.flat), layers).sum() for stage in stretch.stages)),
    )


@contextmanager
def _store_of(run: Rehearsal, stretch: _Stretch, store: FeatureStore) -> Iterator[StoredFeatures]:
    """What answers for the frozen part from ``store`` while ``stretch`` is trained."""
    trial = run.functions.make_batch(run.encoded.train[: min(2, len(run.source))])
    trained = tuple(p for p in run.adapted.model.parameters() if id(p) in stretch.trained)
    with stored_features(run.adapted, "plan", store, trial.inputs) as features:
        features.begin(Stage(stretch.name, trained))
        yield features


def _whole_body(run: Rehearsal, stretch: _Stretch, everything: Shapes) -> _Kept:
    """Of a body in which nothing has learnt: what the head reads of it."""
    sizes = []
    heads: list[Trace] = []
    for length in (SOURCE_LENGTH, 2 * SOURCE_LENGTH):
        store = FeatureStore()
        with _store_of(run, stretch, store):
            with torch.no_grad():
                run.adapted.model(**example(run, length))
            sizes.append(store.bytes)
            for stage in stretch.stages if not heads else ():
                mark(run, stage.plan)
                heads.append(watch(run))  # the body is looked up
    per_token = (sizes[1] - sizes[0]) // SOURCE_LENGTH
    per_example = sizes[0] - per_token * SOURCE_LENGTH
    whole, head = (operations(seen, everything, run.flat)[:, 0].sum() for seen in (stretch.stages[0].trace, heads[0]))
    spent = [
        operations(head, stage.shapes, run.flat).sum() * stage.scale
        for head, stage in zip(heads, stretch.stages, strict=True)
    ]
    return _Kept(
        layers=len(run.adapted.parts.layers),
        holds="states of every token" if per_token else "one vector per example",
        bytes=per_example * len(run.source) + per_token * int(run.source.sum()),
        to_fill=float(whole - head),
        to_read=float(sum(spent)),
    )
