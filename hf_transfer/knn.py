"""Floor 3: kNN-MT (Khandelwal 2021, arXiv:2010.00710): a translation model that looks up how training text went on.

Nothing is trained. Every target token of some in-domain pairs is stored under the decoder state that the model had just
before it. While translating, the tokens of the nearest states vote on the next one, and their distribution is mixed
with the model's own (equations 2 and 3 of the paper).

The state is what the output layer reads, which every family of checkpoints has; the paper takes the input of the last
feed-forward layer instead, which has another place in each of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.errors import InputError
from hf_transfer.eval_mode import in_eval_mode
from hf_transfer.records import Batch

EXACT_LIMIT = 300_000
"""Up to so many tokens every stored state is compared: 8 ms per state of 256 numbers on one core, in batches of 16."""
PROBE_RECALL = 0.95
"""Share of the true neighbours that the search in lists must find; as many lists are looked through as that takes."""
RECALL_QUERIES = 500
RECALL_NEIGHBOURS = 16
KMEANS_ROUNDS = 10
STATES_AT_ONCE = 128
KEYS_AT_ONCE = 65_536
"""Search holds distances of 128 states to 65,536 keys at once: 34 MB."""
SCHEMA = "hf-transfer/knn/1"
RECORD_NAME = "knn.json"


@dataclass(frozen=True)
class Lists:
    """Stored states sorted into lists by their nearest centroid, so that a search looks through a few lists only."""

    centroids: np.ndarray
    """[lists, width] fp32."""
    list_of_key: np.ndarray
    """[tokens] int32: the list that holds each state."""
    probes: int
    """Lists that a search looks through."""
    recall: float
    """Share of the true nearest neighbours that a search finds, measured on stored states."""


@dataclass(frozen=True)
class KnnGrid:
    """What ``choose`` tries: every combination of neighbours, interpolation and temperature."""

    neighbours: tuple[int, ...] = (4, 8, 16)
    interpolations: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(9))
    """Weights of the neighbours' distribution, at least 0 (the model alone) and below 1."""
    temperatures: tuple[float, ...] = (10.0, 100.0)
    """In units of squared distance, as in the paper."""
    relative_temperatures: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """In units of the median squared distance to a neighbour: what fits grows with the width and scale of the states,
    from about 10 in the paper's model to thousands in others."""


@dataclass(frozen=True)
class KnnChoice:
    """Settings of the interpolation, and the validation that chose them."""

    neighbours: int
    interpolation: float
    temperature: float
    nll: float
    """Nats per target token of the validation text with these settings."""
    plain_nll: float
    """The same for the model alone."""
    tokens: int
    """Target tokens validated on."""
    median_distance: float
    """Median squared distance between a validation state and one of its neighbours."""
    table: tuple[tuple[int, float, float, float], ...] = ()
    """(neighbours, interpolation, temperature, nll) of all that was tried."""


@dataclass(frozen=True)
class TeacherForced:
    """What a validation text's target tokens got from the model and from the datastore, before they are mixed."""

    log_probabilities: np.ndarray
    """[tokens] float64: log probability of each target token by the model alone."""
    distances: np.ndarray
    """[tokens, k] float64: squared distances to the nearest stored states, ascending."""
    hits: np.ndarray
    """[tokens, k] bool: whether the neighbour's token is the target token."""

    def mixed(self, neighbours: int, interpolation: float, temperature: float) -> np.ndarray:
        """[tokens] log probabilities after interpolation with the nearest ``neighbours`` (equations 2 and 3)."""
        _check_settings(neighbours, interpolation, temperature)
        distances, hits = self.distances[:, :neighbours], self.hits[:, :neighbours]
        weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)
        votes = (weights * hits).sum(axis=1) / weights.sum(axis=1)
        with np.errstate(divide="ignore"):  # no vote, or no interpolation: log 0 is what is meant
            log_votes = np.log(interpolation) + np.log(votes)
        return np.logaddexp(np.log1p(-interpolation) + self.log_probabilities, log_votes)


class Datastore:
    """Decoder states and the token that followed each; built by ``build_datastore`` or ``make_datastore``.

    Up to ``EXACT_LIMIT`` tokens the search is exact and needs no package beside torch. It takes 4 * width + 4 bytes per
    token (100,000 tokens of width 512: 205 MB), and twice that in lists, because faiss keeps its own copy.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, lists: Lists | None = None, weights_sha256: str = ""
    ) -> None:
        """``keys``: [tokens, width] fp32; ``values``: [tokens] int32; ``weights_sha256``: of the model."""
        self.keys = keys
        self.values = values
        self.lists = lists
        self.weights_sha256 = weights_sha256
        self._half_norms = keys.square().sum(dim=1) / 2
        self._index = _index_of(keys, lists) if lists else None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def width(self) -> int:
        return self.keys.shape[1]

    def search(self, states: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The stored states nearest to each of ``states``: [n, width].

        Returns:
            Squared L2 distances [n, k] fp32, ascending, and the tokens that followed [n, k] int64, both on the device
            of ``states``; k is ``neighbours``, or all tokens where there are fewer.

        Raises:
            InputError: ``states`` of another width, from another model.
        """
        if states.shape[1] != self.width:
            raise InputError(
                f"The datastore holds states of width {self.width}, but the model's have {states.shape[1]}: "
                "build the datastore with this model."
            )
        neighbours = min(neighbours, len(self))
        queries = states.detach().to(self.keys.device, torch.float32)
        distances = torch.empty(len(queries), neighbours, device=self.keys.device)
        tokens = torch.empty(len(queries), neighbours, dtype=torch.long, device=self.keys.device)
        for start in range(0, len(queries), STATES_AT_ONCE):
            some = slice(start, start + STATES_AT_ONCE)
            found = self._nearest(queries[some], neighbours)
            # measured anew: |x|^2 + |y|^2 - 2xy, by which they were found, loses what is left after cancelling
            exact = (self.keys[found] - queries[some, None]).square().sum(dim=2)
            distances[some], order = exact.sort(dim=1, stable=True)
            tokens[some] = self.values[found.gather(1, order)].long()
        return distances.to(states.device), tokens.to(states.device)

    def _nearest(self, queries: torch.Tensor, neighbours: int) -> torch.Tensor:
        """Positions [n, neighbours] of the nearest keys, in any order."""
        if self._index is None:
            return self._nearest_of_all(queries, neighbours)
        _faiss()
        found = torch.from_numpy(self._index.search(np.ascontiguousarray(queries.cpu().numpy()), neighbours)[1])
        few = (found < 0).any(dim=1)  # the lists that were looked through hold fewer than that
        if few.any():
            found[few] = self._nearest_of_all(queries[few], neighbours)
        return found

    def _nearest_of_all(self, queries: torch.Tensor, neighbours: int) -> torch.Tensor:
        """[queries, neighbours] rows by exact search, block of keys by block. For 16 to 64 states at a time,
        which is what decoding asks for, 3 to 15 times as fast as faiss's flat index, which compares so few one by one.
        """
        near, where = [], []
        for start in range(0, len(self), KEYS_AT_ONCE):
            some = slice(start, start + KEYS_AT_ONCE)
            # half the squared distance, less the query's own square, which all have in common
            block = torch.addmm(self._half_norms[some], queries, self.keys[some].T, alpha=-1)
            values, positions = block.topk(min(neighbours, block.shape[1]), largest=False)
            near.append(values)
            where.append(positions + start)
        best = torch.cat(near, dim=1).topk(neighbours, largest=False).indices
        return torch.cat(where, dim=1).gather(1, best)

    def save(self, folder: Path, choice: KnnChoice | None = None) -> None:
        """Write arrays (.npy) and ``knn.json`` into ``folder``; the record is written last, so half is not mistaken."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD_NAME).unlink(missing_ok=True)
        arrays = {"keys": self.keys.cpu().numpy(), "values": self.values.cpu().numpy()}
        if self.lists:
            arrays |= {"centroids": self.lists.centroids, "list_of_key": self.lists.list_of_key}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        record = {
            "schema": SCHEMA,
            "weights_sha256": self.weights_sha256,
            "tokens": len(self),
            "width": self.width,
            "lists": {"probes": self.lists.probes, "recall": self.lists.recall} if self.lists else None,
            "choice": asdict(choice) if choice else None,
            "files": {f"{name}.npy": _sha256(folder / f"{name}.npy") for name in arrays},
        }
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, weights_sha256: str = "") -> tuple[Datastore, KnnChoice | None]:
        """What ``save`` wrote; searches give the same as before.

        Raises:
            InputError: damaged or incomplete files, or states of a model other than ``weights_sha256`` ("": not
                checked); faiss is missing where the states are in lists.
        """
        record = _read_record(folder)
        if weights_sha256 and record["weights_sha256"] != weights_sha256:
            raise InputError(
                f"{folder} holds states of a model with sha256 {record['weights_sha256'] or '(none)'}, but this model "
                f"has {weights_sha256}: build the datastore with this model."
            )
        arrays = {name.removesuffix(".npy"): _read_array(folder / name, sha) for name, sha in record["files"].items()}
        tokens, width = record["tokens"], record["width"]
        shapes = {"keys": (tokens, width), "values": (tokens,), "list_of_key": (tokens,)}
        shapes["centroids"] = (len(arrays.get("centroids", ())), width)
        for name, array in arrays.items():
            kind = np.float32 if array.ndim == 2 else np.int32
            if array.shape != shapes[name] or array.dtype != kind:
                raise InputError(_damaged(folder / f"{name}.npy", f"{array.dtype} {list(array.shape)} inside"))
        try:
            lists = Lists(arrays["centroids"], arrays["list_of_key"], **record["lists"]) if record["lists"] else None
            choice = KnnChoice(**record["choice"]) if record["choice"] else None
            if choice:
                _check_settings(choice.neighbours, choice.interpolation, choice.temperature)
                choice = replace(choice, table=tuple((k, lam, heat, nll) for k, lam, heat, nll in choice.table))
        except (TypeError, ValueError) as error:
            raise InputError(_damaged(folder / RECORD_NAME, str(error))) from None
        keys, values = torch.from_numpy(arrays["keys"]), torch.from_numpy(arrays["values"])
        return cls(keys, values, lists, record["weights_sha256"]), choice


def build_datastore(
    model: nn.Module,
    batches: Sequence[Batch],
    device: torch.device | str,
    most_tokens: int | None = None,
    seed: int = 0,
    weights_sha256: str = "",
    on_batch: Callable[[int], object] | None = None,
) -> Datastore:
    """Run ``model`` over ``batches`` of pairs with their own targets and store state and token of every target token.

    Args:
        batches: ``inputs`` hold ``input_ids``, ``attention_mask`` and ``decoder_input_ids``; ``labels`` [batch,
            target_len], -100 where ignored: the state at each position predicts the label there.
        most_tokens: keep so many tokens, drawn by ``seed``; None keeps all.
        weights_sha256: names the weights; what was built with others is refused by ``Datastore.load``.
        on_batch: called with the number of examples of each batch, for progress.

    Raises:
        InputError: no target token at all; more than ``EXACT_LIMIT`` tokens without faiss.
    """
    counts = [int((batch.labels != -100).sum()) for batch in batches]
    total = sum(counts)
    if not total:
        raise InputError("The text for the kNN datastore has no target tokens: give at least one translated pair.")
    kept = np.ones(total, dtype=bool)
    if most_tokens is not None and most_tokens < total:
        kept[:] = False
        kept[np.random.default_rng(seed).choice(total, most_tokens, replace=False)] = True
    if kept.sum() > EXACT_LIMIT:
        _faiss()  # before the long part
    keys = torch.empty(int(kept.sum()), _output_layer(model).weight.shape[1])
    values = torch.empty(len(keys), dtype=torch.int32)
    seen = stored = 0
    passes = _teacher_forced(model, batches, device)
    for batch, count, (states, targets, _) in zip(batches, counts, passes, strict=True):
        mask = torch.from_numpy(kept[seen : seen + count])
        rows = slice(stored, stored + int(mask.sum()))
        keys[rows], values[rows] = states.cpu()[mask].float(), targets.cpu()[mask].int()
        seen, stored = seen + count, rows.stop
        if on_batch:
            on_batch(len(batch.labels))
    return make_datastore(keys, values, weights_sha256, seed)


def make_datastore(
    keys: torch.Tensor, values: torch.Tensor, weights_sha256: str = "", seed: int = 0, exact_limit: int = EXACT_LIMIT
) -> Datastore:
    """A datastore of ``keys`` [tokens, width] fp32 and ``values`` [tokens] int32, in lists beyond ``exact_limit``.

    There are 4 * sqrt(tokens) lists, faiss's advice for up to a million vectors. Of them a search looks through 1, 2,
    4, ... : the first number that finds ``PROBE_RECALL`` of the 16 true neighbours of 500 stored states, each of which
    is not its own neighbour.
    """
    if len(keys) <= exact_limit:
        return Datastore(keys, values, None, weights_sha256)
    faiss = _faiss()
    vectors = keys.numpy()
    count = min(round(4 * math.sqrt(len(keys))), len(keys))
    kmeans = faiss.Kmeans(keys.shape[1], count, niter=KMEANS_ROUNDS, seed=seed + 1, max_points_per_centroid=64)
    kmeans.cp.min_points_per_centroid = 1  # silences a warning for small sets
    kmeans.train(vectors)
    list_of_key = kmeans.index.search(vectors, 1)[1][:, 0].astype(np.int32)

    drawn = np.random.default_rng(seed).choice(len(keys), min(RECALL_QUERIES, len(keys)), replace=False)
    queries = torch.from_numpy(vectors[drawn])
    wanted = min(RECALL_NEIGHBOURS + 1, len(keys))
    store = Datastore(keys, values)
    true = np.concatenate([store._nearest_of_all(part, wanted).numpy() for part in queries.split(STATES_AT_ONCE)])
    index = _index_of(keys, Lists(kmeans.centroids, list_of_key, 1, 0.0))
    probes, recall = 0, 0.0
    while recall < PROBE_RECALL and probes < count:
        probes = min(max(1, 2 * probes), count)
        index.nprobe = probes
        found = index.search(vectors[drawn], wanted)[1]
        recall = _recall(found, true, drawn)
    return Datastore(keys, values, Lists(kmeans.centroids, list_of_key, probes, recall), weights_sha256)


def _recall(found: np.ndarray, true: np.ndarray, queries: np.ndarray) -> float:
    """Share of the ``true`` neighbours [n, k] that are among the ``found`` [n, k], each query's own key left out."""
    others = true != queries[:, None]
    return float(((true[:, :, None] == found[:, None, :]).any(axis=2) & others).sum() / others.sum())


@contextmanager
def knn_logits(
    model: nn.Module, datastore: Datastore, neighbours: int, interpolation: float, temperature: float
) -> Iterator[None]:
    """While the context lasts, ``model(...)`` returns log(interpolation * p_kNN + (1 - interpolation) * p_model) as its
    logits (equations 2 and 3), so that ``generate`` and whatever else reads logits work with the mixture.

    It stands before everything that ``generate`` does to scores: a token that is forced or forbidden stays so, and the
    rows of a beam search need no bookkeeping. Interpolation 0 leaves the model's output alone.
    """
    _check_settings(neighbours, interpolation, temperature)
    if interpolation == 0:
        yield
        return
    with _captured_states(model) as captured:

        def mix(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            states = captured.pop()
            distances, tokens = datastore.search(states.flatten(0, -2), neighbours)
            logits = output.logits.flatten(0, -2)
            output.logits = _mixed(logits, distances, tokens, interpolation, temperature).view_as(output.logits)
            return output

        hook = _without_adapters(model).register_forward_hook(mix)
        try:
            yield
        finally:
            hook.remove()


def teacher_forced(
    model: nn.Module, datastore: Datastore, batches: Sequence[Batch], device: torch.device | str, neighbours: int
) -> TeacherForced:
    """One pass over ``batches`` (as for ``build_datastore``) and one search for the nearest ``neighbours``.

    Everything that ``choose`` compares follows from it. The pairs must not be in the datastore: a state would be its
    own neighbour, and the target token with it.
    """
    log_probabilities, distances, hits = [], [], []
    for states, targets, logits in _teacher_forced(model, batches, device):
        log_p = torch.log_softmax(logits.double(), dim=-1).gather(1, targets[:, None])[:, 0]
        near, tokens = datastore.search(states, neighbours)
        log_probabilities.append(log_p.cpu().numpy())
        distances.append(near.double().cpu().numpy())
        hits.append((tokens == targets[:, None]).cpu().numpy())
    if not sum(len(part) for part in log_probabilities):
        raise InputError("The validation text for kNN-MT has no target tokens: give at least one translated pair.")
    return TeacherForced(np.concatenate(log_probabilities), np.concatenate(distances), np.concatenate(hits))


def choose(
    model: nn.Module,
    datastore: Datastore,
    batches: Sequence[Batch],
    device: torch.device | str,
    grid: KnnGrid | None = None,
) -> KnnChoice:
    """The settings of ``grid`` with the least negative log-likelihood per target token of validation ``batches``.

    The likelihood of given translations stands for the quality of own ones, which would take a decoding of the
    validation text for each setting. Among equals the least interpolation wins, then the fewest neighbours; where that
    is 0 the neighbours do not help.

    Raises:
        InputError: an empty grid, or values outside their range.
    """
    grid = grid or KnnGrid()
    if not (grid.neighbours and grid.interpolations and (grid.temperatures or grid.relative_temperatures)):
        raise InputError(f"{grid} leaves nothing to choose from: give at least one value of each.")
    for values in itertools.product(
        grid.neighbours, grid.interpolations, (*grid.temperatures, *grid.relative_temperatures)
    ):
        _check_settings(*values)
    evidence = teacher_forced(model, datastore, batches, device, max(grid.neighbours))
    median = float(np.median(evidence.distances))
    # where most states are stored exactly, multiples of their distance say nothing
    relative = [factor * median for factor in grid.relative_temperatures if median > 0]
    temperatures = sorted({*grid.temperatures, *relative}) or [1.0]
    settings = itertools.product(sorted(grid.interpolations), sorted(grid.neighbours), temperatures)
    table = tuple((k, lam, heat, float(-evidence.mixed(k, lam, heat).mean())) for lam, k, heat in settings)
    best = min(table, key=lambda row: row[3])
    plain = float(-evidence.log_probabilities.mean())
    return KnnChoice(*best, plain, len(evidence.log_probabilities), median, table)


def _mixed(
    logits: torch.Tensor, distances: torch.Tensor, tokens: torch.Tensor, interpolation: float, temperature: float
) -> torch.Tensor:
    """[n, vocabulary] fp32 log probabilities of the mixture from ``logits`` and ``distances``, ``tokens`` [n, k]."""
    log_model = torch.log_softmax(logits.float(), dim=-1) + math.log1p(-interpolation)
    log_weights = torch.log_softmax(-distances / temperature, dim=-1)
    # only k tokens per row have a vote; each of them gets the votes of all neighbours that say the same
    same = tokens[:, :, None] == tokens[:, None, :]
    log_votes = torch.where(same, log_weights[:, None, :], -torch.inf).logsumexp(dim=2) + math.log(interpolation)
    return log_model.scatter(1, tokens, torch.logaddexp(log_model.gather(1, tokens), log_votes))


def _teacher_forced(
    model: nn.Module, batches: Sequence[Batch], device: torch.device | str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """States [n, width], targets [n] and logits [n, vocabulary] of each batch's n target tokens, without dropout."""
    with in_eval_mode(model), _captured_states(model) as captured:
        for batch in batches:
            with torch.no_grad():
                logits = model(**{name: tensor.to(device) for name, tensor in batch.inputs.items()}).logits
            labels = batch.labels.to(device)
            real = labels != -100
            yield captured.pop()[real], labels[real], logits[real]


@contextmanager
def _captured_states(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that holds what the output layer read in the last forward pass."""
    captured: list[torch.Tensor] = []

    def capture(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        captured[:] = [arguments[0].detach()]

    hook = _output_layer(model).register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        hook.remove()


def _output_layer(model: nn.Module) -> Any:
    layer = _without_adapters(model).get_output_embeddings()
    if layer is None:
        raise InputError(f"{type(model).__name__} has no output layer over a vocabulary: kNN-MT needs a seq2seq model.")
    return layer


def _without_adapters(model: Any) -> Any:
    """The module whose ``forward`` gives logits: PEFT's ``generate`` goes round its own wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_settings(neighbours: int, interpolation: float, temperature: float) -> None:
    problems = []
    if neighbours < 1:
        problems.append(f"kNN neighbours {neighbours}: give 1 or more.")
    if not 0 <= interpolation < 1:
        problems.append(f"kNN interpolation {interpolation}: give a weight from 0 up to, but not, 1.")
    if not 0 < temperature < math.inf:
        problems.append(f"kNN temperature {temperature}: give a number over 0.")
    if problems:
        raise InputError(problems)


def _faiss() -> Any:
    """The module faiss, on as many threads as torch."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            f"A kNN datastore of more than {EXACT_LIMIT:,} tokens needs faiss ({error}): "
            'pip install "hf-transfer-learning[knn]", or keep fewer tokens.'
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _index_of(keys: torch.Tensor, lists: Lists) -> Any:
    """A faiss index of ``keys`` in their ``lists``; nothing is computed, so that it is the same each time."""
    faiss = _faiss()
    coarse = faiss.IndexFlatL2(keys.shape[1])
    coarse.add(lists.centroids)
    index = faiss.IndexIVFFlat(coarse, keys.shape[1], len(lists.centroids))
    vectors, places = np.ascontiguousarray(keys.numpy()), lists.list_of_key.astype(np.int64)
    assert 0 <= places.min() <= places.max() < len(lists.centroids), "a state in a list that is not there"
    index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(places))
    index.nprobe = lists.probes
    return index


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(_damaged(path, str(error))) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of schema {SCHEMA}: it was written by something else.")
    kinds = {"weights_sha256": str, "tokens": int, "width": int, "files": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    wrong += [name for name in ("lists", "choice") if not isinstance(record.get(name, ""), dict | None)]
    expected = ["keys.npy", "values.npy"] + (["centroids.npy", "list_of_key.npy"] if record.get("lists") else [])
    if wrong or sorted(record["files"]) != sorted(expected):
        raise InputError(_damaged(path, f"{', '.join(wrong or ['files'])} missing or of the wrong kind"))
    return record


def _read_array(path: Path, sha256: str) -> np.ndarray:
    try:
        if _sha256(path) != sha256:
            raise ValueError("its sha256 is not the one that was written down")
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(_damaged(path, str(error))) from None


def _damaged(path: Path, what: str) -> str:
    return f"{path} is missing or damaged ({what}): build the datastore again."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
