"""kNN-MT: the datastore, the mixture and its choice, against the paper's equations written out in float64."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import tiny
import tiny_translation
import torch
import transformers

from hf_transfer import knn
from hf_transfer.errors import InputError
from hf_transfer.knn import KnnGrid, build_datastore, choose, knn_logits, make_datastore, teacher_forced
from hf_transfer.records import Batch

K, LAMBDA, TEMPERATURE = 4, 0.6, 5.0


def nearest(keys, values, states, k):
    """Squared distances and tokens of the k nearest keys, one subtraction at a time."""
    distances = ((np.asarray(states, np.float64)[:, None] - np.asarray(keys, np.float64)[None]) ** 2).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.asarray(values)[order]


def mixture(logits, distances, tokens, weight, temperature):
    """Equations 2 and 3 of Khandelwal 2021 as they stand there: [n, vocabulary] probabilities."""
    logits = np.asarray(logits, np.float64)
    model = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    neighbours = np.zeros_like(model)
    for row in range(len(logits)):
        for distance, token in zip(distances[row], tokens[row], strict=True):
            neighbours[row, token] += np.exp(-distance / temperature)
    neighbours /= neighbours.sum(axis=1, keepdims=True)
    return weight * neighbours + (1 - weight) * model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny_translation.make_translation_checkpoint(family, tmp_path_factory.mktemp(family))
        tokenizer = transformers.AutoTokenizer.from_pretrained(made[family])
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(made[family]).eval()
        return model, tokenizer

    return get


def make_batches(model, tokenizer, pairs, size=5):
    batches = []
    for start in range(0, len(pairs), size):
        source, target = zip(*pairs[start : start + size], strict=True)
        encoded = tokenizer(list(source), text_target=list(target), padding=True, return_tensors="pt")
        labels = encoded.pop("labels")
        labels[labels == tokenizer.pad_token_id] = -100
        first = torch.full_like(labels[:, :1], model.generation_config.decoder_start_token_id)
        before = torch.cat([first, labels[:, :-1].clamp(min=0)], dim=1)
        count = int((labels != -100).sum())
        batches.append(Batch({**encoded, "decoder_input_ids": before}, labels, tuple(source), count, 0, count))
    return batches


@pytest.fixture
def marian(checkpoint):
    model, tokenizer = checkpoint("marian")
    train = make_batches(model, tokenizer, tiny_translation.PAIRS[:40])
    validation = make_batches(model, tokenizer, tiny_translation.PAIRS[40:])
    store = build_datastore(model, train, "cpu", weights_sha256="abc")
    return SimpleNamespace(model=model, tokenizer=tokenizer, train=train, validation=validation, store=store)


def sources(marian, count=3):
    texts = [source for source, _ in tiny_translation.PAIRS[40 : 40 + count]]
    return dict(marian.tokenizer(texts, padding=True, return_tensors="pt"))


def reference_probabilities(marian, inputs, before, weight=LAMBDA, temperature=TEMPERATURE):
    """[rows, length, vocabulary] of the mixture after ``before`` [rows, length], by way of output_hidden_states."""
    with torch.no_grad():
        output = marian.model(**inputs, decoder_input_ids=before, output_hidden_states=True)
    states = output.decoder_hidden_states[-1]
    found = nearest(marian.store.keys, marian.store.values, states.flatten(0, 1), K)
    return mixture(output.logits.flatten(0, 1), *found, weight, temperature).reshape(output.logits.shape)


# --- search


@pytest.mark.parametrize(("tokens", "states", "k"), [(300, 20, 8), (300, 1, 1), (7, 3, 7)])
def test_search_finds_what_comparing_with_every_state_finds(monkeypatch, tokens, states, k):
    monkeypatch.setattr(knn, "KEYS_AT_ONCE", 64)
    monkeypatch.setattr(knn, "STATES_AT_ONCE", 8)
    random = np.random.default_rng(0)
    keys, values = random.normal(size=(tokens, 12)).astype(np.float32), random.integers(0, 9, tokens, dtype=np.int32)
    queries = random.normal(size=(states, 12)).astype(np.float32)
    distances, found = make_datastore(torch.tensor(keys), torch.tensor(values)).search(torch.tensor(queries), k)
    expected, expected_tokens = nearest(keys, values, queries, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(found, expected_tokens)


def test_order_and_distances_survive_states_far_from_the_origin():
    """|x|^2 + |y|^2 - 2xy leaves little of them in fp32: it sorts these neighbours wrongly."""
    keys = (1000 + np.random.default_rng(0).uniform(size=(30, 2))).astype(np.float32)
    store = make_datastore(torch.tensor(keys), torch.arange(30, dtype=torch.int32))
    distances, tokens = store.search(torch.tensor(keys[:3] + 0.25), 30)
    expected, expected_tokens = nearest(keys, np.arange(30), keys[:3] + np.float32(0.25), 30)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(tokens, expected_tokens)


def test_a_datastore_smaller_than_k_gives_all_it_has():
    store = make_datastore(torch.eye(3), torch.arange(3, dtype=torch.int32))
    distances, tokens = store.search(torch.eye(3)[:2], 8)
    assert distances.tolist() == [[0, 2, 2], [0, 2, 2]]
    assert sorted(tokens[1].tolist()) == [0, 1, 2]


def clustered(count, seed):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, 16))
    return (centres[random.integers(0, 40, count)] + 0.4 * random.normal(size=(count, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def in_lists():
    pytest.importorskip("faiss")
    keys = torch.tensor(clustered(6000, 0))
    return make_datastore(keys, torch.arange(6000, dtype=torch.int32), "abc", exact_limit=5000)


def test_search_in_lists_keeps_the_recall_that_it_states(in_lists):
    lists = in_lists.lists
    assert len(lists.centroids) == round(4 * 6000**0.5)
    assert lists.probes < len(lists.centroids) / 2
    assert lists.recall >= knn.PROBE_RECALL
    queries = clustered(200, 1)
    distances, found = in_lists.search(torch.tensor(queries), 16)
    expected, true = nearest(in_lists.keys, in_lists.values, queries, 16)
    recall = np.mean([len(set(a) & set(b)) / 16 for a, b in zip(found.tolist(), true.tolist(), strict=True)])
    assert recall == pytest.approx(lists.recall, abs=0.05)
    assert (distances.numpy() >= expected - 1e-4).all()  # never nearer than the nearest


def test_faiss_runs_on_as_many_threads_as_torch(monkeypatch, in_lists):
    faiss = pytest.importorskip("faiss")
    for threads in (3, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        in_lists.search(in_lists.keys[:2], 2)
        assert faiss.omp_get_max_threads() == threads
    monkeypatch.undo()
    faiss.omp_set_num_threads(torch.get_num_threads())


def test_recall_leaves_a_query_s_own_key_out():
    true = np.array([[0, 1, 2], [1, 0, 3]])
    found = np.array([[0, 2, 9], [1, 8, 7]])
    assert knn._recall(found, true, np.array([0, 1])) == 1 / 4


def test_lists_too_short_for_k_do_not_shorten_the_answer(in_lists):
    queries = clustered(5, 2)
    distances, tokens = in_lists.search(torch.tensor(queries), 3000)
    expected, true = nearest(in_lists.keys, in_lists.values, queries, 3000)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    np.testing.assert_array_equal(np.sort(tokens), np.sort(true))


# --- building


@pytest.mark.parametrize("family", ["marian", "t5", "mt5", "mbart-50", "nllb"])
def test_stored_states_are_what_the_output_layer_turns_into_logits(checkpoint, family):
    model, tokenizer = checkpoint(family)
    batches = make_batches(model, tokenizer, tiny_translation.PAIRS[48:])
    store = build_datastore(model, batches, "cpu")
    bias = getattr(model, "final_logits_bias", torch.zeros(1))
    done = 0
    with torch.no_grad():
        found = model.get_output_embeddings()(store.keys) + bias
        for batch in batches:
            logits = model(**batch.inputs).logits
            for row, labels in zip(logits, batch.labels, strict=True):
                length = int((labels != -100).sum())
                torch.testing.assert_close(found[done : done + length], row[:length], rtol=1e-5, atol=1e-5)
                assert store.values[done : done + length].tolist() == labels[:length].tolist()
                done += length
    assert len(store) == done
    assert store.keys.dtype == torch.float32
    assert store.values.dtype == torch.int32


def test_most_tokens_keeps_that_many_drawn_by_seed(marian):
    def rows(store):
        return {(*key.tolist(), value) for key, value in zip(store.keys, store.values.tolist(), strict=True)}

    whole = rows(marian.store)
    first, again, other = (build_datastore(marian.model, marian.train, "cpu", 50, seed) for seed in (1, 1, 2))
    assert len(first) == 50 < len(marian.store)
    assert rows(first) <= whole
    assert torch.equal(first.keys, again.keys)
    assert rows(first) != rows(other)
    assert len(build_datastore(marian.model, marian.train, "cpu", 10**6)) == len(marian.store)


def test_building_switches_dropout_off_and_leaves_training_on(marian):
    marian.model.train()
    sizes = []
    again = build_datastore(marian.model, marian.train, "cpu", on_batch=sizes.append)
    assert torch.equal(again.keys, marian.store.keys)
    assert marian.model.training
    assert marian.model.model.decoder.layers[0].training
    assert sizes == [5] * 8


# --- mixture


def test_the_mixture_is_that_of_the_paper():
    random = np.random.default_rng(3)
    logits = random.normal(size=(6, 9)).astype(np.float32) * 3
    distances = np.sort(random.uniform(0, 40, (6, 5)), axis=1).astype(np.float32)
    tokens = random.integers(0, 4, (6, 5))  # so that several neighbours say the same
    found = knn._mixed(torch.tensor(logits), torch.tensor(distances), torch.tensor(tokens), 0.3, 7.0).exp().numpy()
    np.testing.assert_allclose(found, mixture(logits, distances, tokens, 0.3, 7.0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_the_mixture_survives_distances_whose_weights_underflow():
    found = knn._mixed(torch.zeros(1, 4), torch.tensor([[1e6, 1e6 + 1]]), torch.tensor([[2, 3]]), 0.5, 1.0).exp()
    near = 1 / (1 + np.exp(-1))
    expected = [0.125, 0.125, 0.125 + 0.5 * near, 0.125 + 0.5 * (1 - near)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_logits_inside_the_context_are_the_mixture_at_every_position(marian):
    batch = marian.validation[0]
    expected = reference_probabilities(marian, {n: batch.inputs[n] for n in ("input_ids", "attention_mask")},
                                       batch.inputs["decoder_input_ids"])  # fmt: skip
    with torch.no_grad(), knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        logits = marian.model(**batch.inputs).logits
    np.testing.assert_allclose(logits.exp(), expected, rtol=1e-3, atol=1e-6)


def test_greedy_decoding_takes_the_likeliest_token_of_the_mixture(marian):
    inputs = sources(marian)
    start, end = marian.model.generation_config.decoder_start_token_id, marian.model.generation_config.eos_token_id
    before = torch.full((3, 1), start)
    for _ in range(10):
        probabilities = reference_probabilities(marian, inputs, before)[:, -1]
        probabilities[:, marian.tokenizer.pad_token_id] = 0  # Marian's bad word
        before = torch.cat([before, torch.tensor(probabilities.argmax(axis=1))[:, None]], dim=1)
    settings = {"num_beams": 1, "max_new_tokens": 10, "forced_eos_token_id": None, "do_sample": False}
    plain = marian.model.generate(**inputs, **settings)
    with knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        found = marian.model.generate(**inputs, **settings)
    for row, expected, other in zip(found.tolist(), before.tolist(), plain.tolist(), strict=True):
        length = expected.index(end) + 1 if end in expected else len(expected)
        assert row[:length] == expected[:length]
        assert row != other


def test_beam_search_scores_every_beam_by_its_own_neighbours(marian):
    inputs = sources(marian)
    end = marian.model.generation_config.eos_token_id
    with knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        found = marian.model.generate(
            **inputs, num_beams=4, num_return_sequences=4, max_new_tokens=9, forced_eos_token_id=None,
            length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    assert len({tuple(row) for row in found.sequences.tolist()}) == 12
    repeated = {name: tensor.repeat_interleave(4, dim=0) for name, tensor in inputs.items()}
    probabilities = reference_probabilities(marian, repeated, found.sequences[:, :-1])
    for row, tokens in enumerate(found.sequences.tolist()):
        tokens = tokens[1:]
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        expected = sum(np.log(probabilities[row, i, tokens[i]]) for i in range(length))
        assert found.sequences_scores[row].item() == pytest.approx(expected, abs=1e-3)


def test_beam_search_without_a_cache_finds_the_same(marian):
    inputs = sources(marian)
    with knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        found = [marian.model.generate(**inputs, num_beams=3, max_new_tokens=8, use_cache=c) for c in (True, False)]
    assert torch.equal(*found)


def test_forced_tokens_stay_forced_and_forbidden_ones_forbidden(checkpoint):
    model, tokenizer = checkpoint("nllb")
    german, end, banned = tokenizer.convert_tokens_to_ids("deu_Latn"), model.config.eos_token_id, 7
    # a datastore that says nothing but the forbidden token
    store = make_datastore(torch.randn(50, model.config.d_model), torch.full((50,), banned, dtype=torch.int32))
    inputs = tokenizer(["The soup is hot.", "The saw is cold."], return_tensors="pt", padding=True)
    settings = {"forced_bos_token_id": german, "forced_eos_token_id": end, "max_length": 7, "do_sample": False}
    for beams in (1, 4):
        with knn_logits(model, store, 8, 0.8, 10.0):
            urged = model.generate(**inputs, num_beams=beams, **settings)
            found = model.generate(**inputs, num_beams=beams, bad_words_ids=[[banned]], **settings)
        assert (urged == banned).any()
        for rows in (found, urged):
            assert rows[:, 1].tolist() == [german] * 2
            assert all(end in row for row in rows[:, 2:].tolist())
        assert not (found == banned).any()


@pytest.mark.parametrize("beams", [1, 4])
def test_interpolation_0_is_the_plain_model(marian, beams):
    settings = {"num_beams": beams, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    plain = marian.model.generate(**sources(marian), **settings)
    with knn_logits(marian.model, marian.store, K, 0.0, TEMPERATURE):
        found = marian.model.generate(**sources(marian), **settings)
    assert torch.equal(found.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, plain.scores, strict=True))


def test_the_model_is_itself_again_after_the_context(marian):
    batch = marian.validation[0]
    with torch.no_grad():
        plain = marian.model(**batch.inputs).logits
        with pytest.raises(KeyError), knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
            assert not torch.equal(marian.model(**batch.inputs).logits, plain)
            raise KeyError
        assert torch.equal(marian.model(**batch.inputs).logits, plain)
    assert not marian.model._forward_hooks
    assert not marian.model.get_output_embeddings()._forward_pre_hooks


def test_an_adapter_around_the_model_is_looked_through(marian):
    inputs = sources(marian)
    with knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        expected = marian.model.generate(**inputs, num_beams=2, max_new_tokens=8)
    # a fresh adapter changes nothing, so that tokens must be the same
    adapter = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q_proj"])
    wrapped = peft.get_peft_model(marian.model, adapter).eval()
    store = build_datastore(wrapped, marian.train, "cpu")
    torch.testing.assert_close(store.keys, marian.store.keys)
    with knn_logits(wrapped, store, K, LAMBDA, TEMPERATURE):
        assert torch.equal(wrapped.generate(**inputs, num_beams=2, max_new_tokens=8), expected)


# --- choice


def test_the_choice_is_that_of_trying_everything(marian):
    grid = KnnGrid((2, 5), (0.0, 0.4, 0.8), (3.0, 30.0), (0.5,))
    chosen = choose(marian.model, marian.store, marian.validation, "cpu", grid)
    states, targets, logits = [], [], []
    for batch in marian.validation:
        with torch.no_grad():
            output = marian.model(**batch.inputs, output_hidden_states=True)
        real = batch.labels != -100
        states.append(output.decoder_hidden_states[-1][real])
        logits.append(output.logits[real])
        targets += batch.labels[real].tolist()
    states, logits = torch.cat(states).numpy(), torch.cat(logits).numpy()
    distances, tokens = nearest(marian.store.keys, marian.store.values, states, 5)
    assert chosen.median_distance == pytest.approx(np.median(distances), rel=1e-4)
    expected = {}
    for k in (2, 5):
        for weight in (0.0, 0.4, 0.8):
            for temperature in (3.0, 30.0, chosen.median_distance / 2):
                mixed = mixture(logits, distances[:, :k], tokens[:, :k], weight, temperature)
                expected[k, weight, temperature] = -np.log(mixed[np.arange(len(targets)), targets]).mean()
    assert {row[:3]: pytest.approx(row[3], abs=1e-4) for row in chosen.table} == expected
    assert (chosen.neighbours, chosen.interpolation, chosen.temperature) == min(expected, key=lambda s: expected[s])
    assert chosen.nll == pytest.approx(min(expected.values()), abs=1e-4)
    assert chosen.plain_nll == pytest.approx(expected[2, 0.0, 3.0], abs=1e-4)
    assert chosen.tokens == len(targets)
    assert chosen.interpolation > 0


def test_the_context_gives_the_likelihood_that_chose(marian):
    evidence = teacher_forced(marian.model, marian.store, marian.validation, "cpu", 6)
    found = []
    with torch.no_grad(), knn_logits(marian.model, marian.store, K, LAMBDA, TEMPERATURE):
        for batch in marian.validation:
            logits, real = marian.model(**batch.inputs).logits, batch.labels != -100
            found.append(torch.log_softmax(logits[real], -1).gather(1, batch.labels[real][:, None])[:, 0])
    np.testing.assert_allclose(evidence.mixed(K, LAMBDA, TEMPERATURE), torch.cat(found), atol=2e-4)


def test_neighbours_that_mislead_are_given_no_weight(marian):
    misled = knn.Datastore(marian.store.keys, torch.full_like(marian.store.values, marian.tokenizer.pad_token_id))
    chosen = choose(marian.model, misled, marian.validation, "cpu", KnnGrid((8, 4)))
    assert (chosen.neighbours, chosen.interpolation) == (4, 0.0)
    assert chosen.nll == chosen.plain_nll


# --- on disk


def test_a_saved_datastore_gives_the_same_answers(marian, in_lists, tmp_path):
    choice = choose(marian.model, marian.store, marian.validation, "cpu", KnnGrid((2,), (0.0, 0.5)))
    for name, store, chosen in (("exact", marian.store, choice), ("lists", in_lists, None)):
        store.save(tmp_path / name, chosen)
        loaded, kept = knn.Datastore.load(tmp_path / name, "abc")
        assert kept == chosen
        queries = store.keys[:20] + 0.1
        assert all(torch.equal(a, b) for a, b in zip(loaded.search(queries, 5), store.search(queries, 5), strict=True))
        assert (loaded.lists is None) == (store.lists is None)
        assert loaded.weights_sha256 == "abc"
    assert loaded.lists.recall == in_lists.lists.recall
    record = json.loads((tmp_path / "exact" / "knn.json").read_text())
    assert record["choice"]["neighbours"] == 2
    assert record["choice"]["temperature"] == choice.temperature


def test_a_datastore_of_another_model_is_refused(marian, tmp_path):
    marian.store.save(tmp_path)
    with pytest.raises(InputError, match=r"holds states of a model with sha256 abc, but this model has def: build"):
        knn.Datastore.load(tmp_path, "def")
    with pytest.raises(InputError, match=r"holds states of width 16, but the model's have 12"):
        marian.store.search(torch.zeros(1, 12), 2)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-8])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["keys.npy", "values.npy", "knn.json"])
@pytest.mark.parametrize("damage", [shorten, change_a_byte, lambda path: path.unlink()])
def test_damage_is_found_before_anything_is_used(marian, tmp_path, name, damage):
    marian.store.save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is missing or damaged .*: build the datastore again"):
        knn.Datastore.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "not of schema hf-transfer/knn/1"),
        ({"tokens": 3}, r"float32 \[.*\] inside"),
        ({"width": "16"}, "width missing or of the wrong kind"),
        ({"files": {}}, "files missing"),
        ({"files": {"keys.npy": "", "../values.npy": ""}}, "files missing"),
        ({"choice": {"neighbours": 1}}, "knn.json is missing or damaged"),
        ({"lists": 3}, "lists missing or of the wrong kind"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(marian, tmp_path, change, message):
    marian.store.save(tmp_path)
    path = tmp_path / "knn.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        knn.Datastore.load(tmp_path)


def test_pickled_arrays_are_not_opened(marian, tmp_path):
    marian.store.save(tmp_path)
    np.save(tmp_path / "values.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = tmp_path / "knn.json"
    record = json.loads(path.read_text())
    record["files"]["values.npy"] = knn._sha256(tmp_path / "values.npy")
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"values\.npy is missing or damaged .*allow_pickle=False"):
        knn.Datastore.load(tmp_path)


# --- errors


def test_without_faiss_small_datastores_work_and_large_ones_name_the_remedy(monkeypatch, marian, in_lists, tmp_path):
    in_lists.save(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert len(make_datastore(torch.eye(4), torch.arange(4, dtype=torch.int32)).search(torch.eye(4), 2)[0]) == 4
    message = r'pip install "hf-transfer-learning\[knn\]"'
    with pytest.raises(InputError, match=message):
        make_datastore(torch.eye(4), torch.arange(4, dtype=torch.int32), exact_limit=3)
    with pytest.raises(InputError, match=message):
        knn.Datastore.load(tmp_path)
    monkeypatch.setattr(knn, "EXACT_LIMIT", 10)
    with pytest.raises(InputError, match=message):
        build_datastore(None, marian.train, "cpu")  # before the model is asked for anything


def test_settings_out_of_range_are_all_named(marian):
    with pytest.raises(InputError) as caught, knn_logits(marian.model, marian.store, 0, 1.0, 0.0):
        pass
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "kNN neighbours 0",
        "kNN interpolation 1.0",
        "kNN temperature 0.0",
    ]
    for grid in (KnnGrid((4, 0)), KnnGrid(interpolations=(-0.1,)), KnnGrid(relative_temperatures=(-1.0,))):
        with pytest.raises(InputError, match="kNN"):
            choose(marian.model, marian.store, marian.validation, "cpu", grid)
    with pytest.raises(InputError, match="leaves nothing to choose from"):
        choose(marian.model, marian.store, marian.validation, "cpu", KnnGrid(temperatures=(), relative_temperatures=()))


def test_text_without_target_tokens_is_refused(marian):
    with pytest.raises(InputError, match="has no target tokens"):
        build_datastore(marian.model, [], "cpu")
    with pytest.raises(InputError, match="has no target tokens"):
        choose(marian.model, marian.store, [], "cpu")


def test_a_model_without_an_output_layer_is_refused(marian, tmp_path):
    encoder = transformers.AutoModel.from_pretrained(tiny.make_checkpoint(tmp_path))
    with pytest.raises(InputError, match="BertModel has no output layer"):
        build_datastore(encoder, marian.train, "cpu")
