"""A push to a Hub on localhost: what travels, that it arrives whole or not at all, and what it never tells."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, running_hub
from huggingface_hub import ModelCard, parse_eval_result_entries
from test_report import ACCURACY, cells_of, make_controlled_results, make_results

from hf_transfer.cli import main
from hf_transfer.config import AdaptConfig, ModelConfig, PublishConfig, RunConfig, check_config
from hf_transfer.errors import InputError, RunError
from hf_transfer.parcel import is_ours, pack
from hf_transfer.publishing import ATTEMPTS, MESSAGE, check_publishing, push
from hf_transfer.records import Artefact
from hf_transfer.report import write_json

METADATA = {
    "schema": "hf-transfer/artefact/1",
    "task": "classification",
    "problem": "single_label",
    "label_names": ["negative", "positive"],
    "max_length": 64,
    "base_checkpoint": "org/small-bert",
    "base_revision": "abc123",
    "base_sha256": "e" * 64,
    "keeps_head": False,
}
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 40,
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "README.md": b"# notes beside the model",
}
SENT = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "hf_transfer.json"),
    *("README.md", "results.json", "config.yaml", "shift.csv", "scores.svg"),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub for this process, with a token, online, with nobody waiting between attempts."""
    from huggingface_hub import constants

    with running_hub() as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield running


def make_run(folder, results=None, metadata=METADATA, model=MODEL, kind="full", also=()):
    """The folder of a finished run with a made-up model."""
    write_model(folder / "model", metadata, model)
    if "merged" in also:
        write_model(folder / "merged", metadata, MODEL)
    (folder / "figures").mkdir()
    (folder / "figures" / "scores.svg").write_text("<svg/>")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"moments")
    (folder / "log.jsonl").write_text("{}\n")
    artefact = dataclasses.asdict(Artefact(kind, "model", True, 0.0, 10_000, also, metadata))
    results = results or make_controlled_results()
    write_json(
        folder / "results.json", results | {"artefact": artefact, "examples": {"test": {"books": {"ids": ["7"]}}}}
    )
    return folder


def write_model(folder, metadata, model):
    folder.mkdir(parents=True)
    for name, content in model.items():
        (folder / name).write_bytes(content)
    (folder / "hf_transfer.json").write_text(json.dumps(metadata))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def remote(hub, repo_id="me/model", revision="main"):
    """Content by path, what the Hub itself puts there left out."""
    files = hub.repositories[repo_id].files(revision)
    return {path: file.content for path, file in files.items() if path != ".gitattributes"}


def commits(hub, repo_id="me/model"):
    return [commit for _, commit in hub.repositories[repo_id].states]


# ---- what arrives ----------------------------------------------------------------------------------------------


def test_a_push_brings_model_card_and_numbers_in_one_commit(hub, run, capsys):
    published = push(run, "me/model")
    found = remote(hub)
    assert set(found) == SENT == set(published.changed)
    assert found["model.safetensors"] == MODEL["model.safetensors"]
    assert found["README.md"].startswith(b"---\n") and b"notes beside" not in found["README.md"]
    assert len(commits(hub)) == 2, "the start, and the push"
    assert published.commit == hub.repositories["me/model"].heads["main"]
    assert published.url == f"{hub.url}/me/model"
    assert f"Published: {published.url}" in capsys.readouterr().out


def test_all_files_are_listed_before_the_first_request(hub, run, capsys):
    told = []
    hub.fault = lambda *_: told.append(capsys.readouterr().out)
    push(run, "me/model", private=True)
    listed = {line.split()[0] for line in told[0].splitlines() if line.startswith("  ")}
    assert listed == SENT
    assert told[0].startswith("To me/model (branch main, private) go 10 files")


def test_a_second_push_of_the_same_makes_no_commit_and_says_so(hub, run, capsys):
    first = push(run, "me/model")
    before = len(hub.seen)
    second = push(run, "me/model")
    assert (second.commit, second.changed) == (first.commit, ())
    assert len(commits(hub)) == 2
    assert {method for method, _ in hub.seen[before:]} == {"GET"}
    assert "Already there" in capsys.readouterr().out


def test_the_table_of_scores_is_read_back_as_it_is_whatever_domains_are_called(tmp_path):
    results = make_controlled_results()
    for i, score in enumerate(results["scores"]):
        score["domain"] += ("\r", '"', ",", "\n", " ;")[i % 5] + "x"
    run = make_run(tmp_path / "run", results)
    (table,) = (file.content for file in pack(run, "me/model").files if file.path == "shift.csv")
    rows = list(csv.DictReader(io.StringIO(table.decode(), newline="")))
    assert [row["domain"] for row in rows] == [score["domain"] for score in results["scores"]]
    assert [float(row["value"]) for row in rows] == [score["value"] for score in results["scores"]]


def test_scores_on_a_data_set_of_the_hub_travel_in_the_form_of_leaderboards(hub, tmp_path):
    """Packed, arrived, and with the numbers of the card: those of its YAML, and those that its table rounds."""
    results = make_controlled_results()
    results["data"]["hub_id"] = "org/reviews"
    run, path = make_run(tmp_path / "run", results), ".eval_results/reviews.yaml"
    packed = {file.path: file.content for file in pack(run, "me/model").files}
    push(run, "me/model")
    found = remote(hub)
    assert set(found) == SENT | {path} == set(packed)
    assert found[path] == packed[path]
    entries = {entry.task_id: entry.value for entry in parse_eval_result_entries(yaml.safe_load(found[path]))}
    assert entries == {domain: ends[0] for domain, (_, ends) in ACCURACY.items()}
    card = found["README.md"].decode()
    in_head = [item for item in ModelCard(card).data.eval_results if item.metric_type == "accuracy"]
    assert entries == {item.dataset_config: item.metric_value for item in in_head}
    scores = cells_of(card.split("## Scores")[1].split("## ")[0])
    assert {row[0]: row[3].split(" ")[0] for row in scores[1:]} == {
        domain: f"{100 * value:.1f}%" for domain, value in entries.items()
    }


def test_a_changed_file_goes_alone(hub, run):
    push(run, "me/model")
    (run / "model" / "tokenizer_config.json").write_bytes(b'{"x": 1}')
    assert push(run, "me/model").changed == ("tokenizer_config.json",)
    assert len(hub.uploads) == 1, "the weights were there"


def test_what_an_earlier_push_left_is_removed_and_what_others_put_there_stays(hub, run, tmp_path):
    adapter = {**MODEL, "adapter_config.json": b"{}", "adapter_model.safetensors": b"1234"}
    push(make_run(tmp_path / "adapter", model=adapter, kind="adapter"), "me/model")
    repository = hub.repositories["me/model"]
    kept = repository.files() | {"notes.txt": repository.files()["README.md"]}
    repository.move("main", kept)
    changed = push(run, "me/model").changed
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(changed)
    assert set(remote(hub)) == SENT | {"notes.txt"}


@pytest.mark.parametrize("by_us", [False, True])
def test_an_onnx_form_that_others_added_stays_and_that_of_an_earlier_push_goes(hub, run, by_us):
    push(run, "me/model")
    repository = hub.repositories["me/model"]
    files = repository.files()
    names = ["onnx/model.onnx", "onnx/config.json", *(["onnx/hf_transfer.json"] if by_us else [])]
    repository.move("main", files | dict.fromkeys([*names, "onnx/more/model.onnx"], files["config.json"]))
    assert set(push(run, "me/model").changed) == (set(names) if by_us else set())
    assert set(remote(hub)) == SENT | {"onnx/more/model.onnx"} | (set() if by_us else set(names))


def test_nothing_is_removed_from_a_repository_of_other_origin(hub, run):
    hub.add("me/model", {"adapter_config.json": b"{}"})
    push(run, "me/model")
    assert set(remote(hub)) == SENT | {"adapter_config.json"}


def test_a_branch_is_made_and_main_stays(hub, run):
    push(run, "me/model", revision="v2")
    repository = hub.repositories["me/model"]
    assert set(repository.files("main")) == {".gitattributes"}
    assert set(remote(hub, revision="v2")) == SENT
    assert b'revision="v2"' in remote(hub, revision="v2")["README.md"]


def test_a_pull_request_leaves_main_and_is_opened_once(hub, run):
    first = push(run, "me/model", create_pr=True)
    second = push(run, "me/model", create_pr=True)
    repository = hub.repositories["me/model"]
    assert repository.requests == [MESSAGE]
    assert set(repository.files("main")) == {".gitattributes"}
    assert set(remote(hub, revision="refs/pr/1")) == SENT
    assert first.url == f"{hub.url}/me/model/discussions/1"
    assert (second.commit, second.changed) == (first.commit, ())


def test_a_changed_push_opens_another_pull_request(hub, run):
    push(run, "me/model", create_pr=True)
    (run / "model" / "tokenizer_config.json").write_bytes(b'{"x": 1}')
    push(run, "me/model", create_pr=True)
    assert len(hub.repositories["me/model"].requests) == 2


def test_a_name_without_owner_is_that_of_the_token(hub, run):
    assert push(run, "model").repo_id == "me/model"
    assert b'"me/model"' in remote(hub)["README.md"]


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_as_private_as_asked(hub, run, private):
    push(run, "me/model", private=private)
    assert hub.repositories["me/model"].private is private


def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(hub, run):
    hub.add("me/model", {})
    with pytest.raises(InputError, match="exists and is public"):
        push(run, "me/model", private=True)
    assert len(commits(hub)) == 1 and not hub.uploads


def test_the_command_pushes(hub, run):
    main(["push", str(run), "--repo_id", "me/model", "--private", "--revision", "v2"])
    assert set(remote(hub, revision="v2")) == SENT
    assert hub.repositories["me/model"].private


def test_the_result_of_a_run_pushes_itself(hub, run):
    from hf_transfer.page import RunResult

    RunResult({}, None, None, run).push_to_hub("me/model", private=True, revision="v2")
    assert set(remote(hub, revision="v2")) == SENT and hub.repositories["me/model"].private


def test_hashes_are_those_of_hashlib_and_git(run):
    files = {file.path: file for file in pack(run, "me/model").files}
    weights = MODEL["model.safetensors"]
    assert files["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    # printf '{}' | git hash-object --stdin
    assert files["tokenizer_config.json"].git_sha1 == "9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_what_the_hub_holds_afterwards_is_compared(hub, run):
    """A Hub that changes what it was given is found out, however often it is tried."""
    from hub_server import Repository, Stored

    def spoilt(self, branch, files):
        return moved(self, branch, files | {"config.json": Stored(b'{"model_type": "tree"}', False)})

    moved, Repository.move = Repository.move, spoilt
    try:
        with pytest.raises(RunError, match=r"holds something else than was sent at config\.json"):
            push(run, "me/model")
    finally:
        Repository.move = moved


# ---- faults ----------------------------------------------------------------------------------------------------

KINDS = ("lost", 500, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("drop", "cut", 409, 429, 503)))


def number_of_requests(run, **options):
    with running_hub() as counted:
        from huggingface_hub import constants

        before, constants.ENDPOINT = constants.ENDPOINT, counted.url
        push(run, "me/model", **options)
        constants.ENDPOINT = before
    return len(counted.seen)


def assert_never_in_parts(hub, sent=SENT):
    """Every state that a branch was in has none of the files or all of them, and no commit was made twice."""
    repository = hub.repositories["me/model"]
    states = [set(repository.commits[commit]) - {".gitattributes"} for commit in commits(hub)]
    assert all(state in (set(), sent) for state in states)
    assert sum(state == sent for state in states) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_request_is_overcome(hub, run, kind):
    count = number_of_requests(run)
    assert count >= 8
    for spoilt in range(count):
        hub.repositories.clear(), hub.large.clear(), hub.seen.clear()
        hub.fault = lambda number, *_, spoilt=spoilt: kind if number == spoilt else None
        push(run, "me/model")
        assert set(remote(hub)) == SENT, f"request {spoilt}"
        assert_never_in_parts(hub)


@pytest.mark.parametrize("kind", ["lost", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("drop", 500))])
def test_a_pull_request_is_opened_once_whatever_fails(hub, run, kind):
    for spoilt in range(number_of_requests(run, create_pr=True)):
        hub.repositories.clear(), hub.large.clear(), hub.seen.clear()
        hub.fault = lambda number, *_, spoilt=spoilt: kind if number == spoilt else None
        push(run, "me/model", create_pr=True)
        assert hub.repositories["me/model"].requests == [MESSAGE], f"request {spoilt}"


def test_from_any_request_on_an_outage_leaves_the_model_and_says_how_to_go_on(hub, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for first in range(number_of_requests(run)):
        hub.repositories.clear(), hub.large.clear(), hub.seen.clear()
        hub.fault = lambda number, *_, first=first: 503 if number >= first else None
        with pytest.raises(RunError) as caught:
            push(run, "me/model", private=True)
        assert f"hf-transfer push {run} --repo_id me/model --private" in str(caught.value)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        hub.fault = lambda *_: None
        main(str(caught.value).split("Try again with: hf-transfer ")[1].split())
        assert_never_in_parts(hub)


def test_weights_that_arrived_are_not_sent_again(hub, run):
    hub.fault = lambda _, method, path: 503 if "/commit/" in path else None
    with pytest.raises(RunError):
        push(run, "me/model")
    assert len(hub.uploads) == 1
    hub.fault = lambda *_: None
    push(run, "me/model")
    assert len(hub.uploads) == 1
    assert_never_in_parts(hub)


@pytest.mark.parametrize("arrived", [1, 2])
def test_of_several_large_files_only_those_are_sent_again_that_had_not_arrived(hub, tmp_path, monkeypatch, arrived):
    """The connection breaks between the shards of a model, for good; the command is repeated when it is back."""
    shards = {f"model-0000{number}-of-00003.safetensors": bytes([number]) * 9_000 for number in (1, 2, 3)}
    small = {name: content for name, content in MODEL.items() if name != "model.safetensors"}
    run = make_run(tmp_path / "run", model=small | shards | {"model.safetensors.index.json": b"{}"})
    sums = [hashlib.sha256(content).hexdigest() for content in shards.values()]
    lost = tuple(f"/large/{each}" for each in sums[arrived:])
    monkeypatch.setattr("hf_transfer.publishing.ATTEMPTS", 2)  # six take a second longer
    hub.fault = lambda _, method, path: "drop" if path.endswith(lost) else None
    with pytest.raises(RunError) as caught:
        push(run, "me/model")
    assert sorted(hub.uploads) == sorted(sums[:arrived])
    assert remote(hub) == {}, "no commit names a part of the shards"
    hub.fault = lambda *_: None
    before = len(hub.seen)
    main(str(caught.value).split("Try again with: hf-transfer ")[1].split())
    assert sorted(path for method, path in hub.seen[before:] if method == "PUT") == sorted(lost)
    assert sorted(hub.uploads) == sorted(sums), "each arrived once"
    sent = {*(SENT - {"model.safetensors"}), *shards, "model.safetensors.index.json"}
    assert_never_in_parts(hub, sent)
    assert {name: remote(hub)[name] for name in shards} == shards


def test_a_commit_of_somebody_else_in_between_is_kept(hub, run):
    from hub_server import Stored

    hub.add("me/model", {})
    repository = hub.repositories["me/model"]

    def interfere(_, method, path):
        if "/commit/" in path and len(repository.states) == 1:
            repository.move("main", repository.files() | {"theirs.txt": Stored(b"x", False)})

    hub.fault = interfere
    push(run, "me/model")
    assert set(remote(hub)) == SENT | {"theirs.txt"}
    assert len(commits(hub)) == 3


def test_a_commit_is_refused_that_would_mix_with_somebody_elses(hub, run):
    """They change a file after it was found equal: no state of the branch has theirs beside what is new of ours."""
    from hub_server import Stored

    push(run, "me/model")
    (run / "model" / "tokenizer_config.json").write_bytes(b'{"x": 1}')
    repository = hub.repositories["me/model"]

    def interfere(_, method, path):
        if "/commit/" in path and len(repository.states) == 2:
            repository.move("main", repository.files() | {"config.json": Stored(b"theirs", False)})

    hub.fault = interfere
    assert set(push(run, "me/model").changed) == {"tokenizer_config.json", "config.json"}
    states = [repository.commits[commit] for commit in commits(hub)]
    mixed = [files for files in states[1:] if files["config.json"].content == b"theirs"]
    assert [files["tokenizer_config.json"].content for files in mixed] == [b"{}"]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_not_repeated(hub, run, status):
    hub.add("me/model", {})
    hub.fault = lambda _, method, path: status if "/commit/" in path else None
    with pytest.raises(RunError, match=str(status)):
        push(run, "me/model")
    assert sum("/commit/" in path for _, path in hub.seen) == 1
    assert len(commits(hub)) == 1


def test_the_hub_is_given_the_time_that_it_asks_for_up_to_a_limit(hub, run, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    hub.retry_after = "40"
    hub.fault = lambda number, *_: 429 if number == 0 else None
    push(run, "me/model")
    assert waited == [40.0]
    hub.retry_after = "4000"
    hub.fault = lambda *_: 429
    with pytest.raises(RunError, match="429"):
        push(run, "me/model")
    assert waited == [40.0]


def test_attempts_end(hub, run):
    hub.fault = lambda *_: 500
    with pytest.raises(RunError):
        push(run, "me/model")
    assert len(hub.seen) == ATTEMPTS


# ---- what never travels ----------------------------------------------------------------------------------------


def test_ids_of_examples_stay_here(hub, run):
    push(run, "me/model")
    assert "examples" not in json.loads(remote(hub)["results.json"])
    assert "examples" in json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("name", ["train.csv", "optimizer.pt", "trainer_state.json", "nested/data.jsonl", ".env"])
def test_files_that_no_model_has_stop_the_push(hub, run, name):
    path = run / "model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("private")
    with pytest.raises(InputError, match=rf"holds {name}, which is no part of a saved model"):
        push(run, "me/model")
    assert not hub.seen


@pytest.mark.parametrize("place", ["model/vocab.txt", "model", "model/sub"])
def test_symbolic_links_stop_the_push(hub, run, tmp_path, place):
    (tmp_path / "secret").write_text("secret")
    link = run / place
    if place == "model":
        link.rename(tmp_path / "elsewhere")
        link.symlink_to(tmp_path / "elsewhere")
    else:
        link.symlink_to(tmp_path / "secret" if "vocab" in place else tmp_path)
    with pytest.raises(InputError, match="symbolic links are not sent"):
        push(run, "me/model")
    assert not hub.seen


@pytest.mark.parametrize("linked", ["figures", "figures/scores.svg"])
def test_a_picture_behind_a_link_is_left_out(run, tmp_path, linked):
    (run / linked).rename(tmp_path / "moved")
    (run / linked).symlink_to(tmp_path / "moved")
    assert {file.path for file in pack(run, "me/model").files} == SENT - {"scores.svg"}


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", "a\\b", ".git/config", "a//b", "a\nb", ""])
def test_names_that_leave_the_repository_are_refused(name):
    from hf_transfer.parcel import _checked

    with pytest.raises(InputError, match="is no name for a file"):
        _checked(name)


@pytest.mark.parametrize("name", ["checkpoints/step-1/model.safetensors", "log.jsonl", "optimizer.pt", "data.csv"])
def test_only_names_of_the_list_count_as_ours(name):
    assert not is_ours(name)
    assert is_ours("model-00001-of-00002.safetensors") and is_ours("merged/config.json") and is_ours("shift.csv")


def test_places_that_results_name_are_not_looked_for(run, tmp_path):
    """results.json may be anybody's: what is sent comes from the run's own folders."""
    write_model(tmp_path / "elsewhere", METADATA, MODEL | {"model.safetensors": b"theirs"})
    results = json.loads((run / "results.json").read_text())
    results["artefact"] |= {"path": "../elsewhere", "also": ["../elsewhere", str(tmp_path / "elsewhere")]}
    write_json(run / "results.json", results)
    parcel = pack(run, "me/model")
    assert {file.path for file in parcel.files} == SENT
    assert {file.content.parent for file in parcel.files if isinstance(file.content, Path)} == {
        run / "model",
        run / "figures",
    }


def test_a_datastore_of_translations_is_refused(run):
    (run / "model" / "knn").mkdir()
    with pytest.raises(InputError, match="datastore of kNN-MT"):
        pack(run, "me/model")


def test_an_adapter_of_a_local_folder_is_refused_and_goes_merged(tmp_path, capsys):
    local = METADATA | {"base_checkpoint": "/home/somebody/secret-place/bert", "base_revision": ""}
    results = make_results(config=RunConfig(model=ModelConfig(checkpoint="/home/somebody/secret-place/bert")))
    results["checkpoint"]["revision"] = ""
    adapter = {"adapter_config.json": b'{"base_model_name_or_path": "/home/somebody/secret-place/bert"}'}
    with pytest.raises(InputError, match="adapter of bert, a folder of this machine"):
        pack(make_run(tmp_path / "a", results, local, adapter, "adapter"), "me/model")
    parcel = pack(make_run(tmp_path / "b", results, local, adapter, "adapter", ("merged",)), "me/model")
    assert {file.path for file in parcel.files} == SENT
    contents = [file.content if isinstance(file.content, bytes) else file.content.read_bytes() for file in parcel.files]
    assert not [content for content in contents if b"secret-place" in content]
    assert "the merged model is sent" in parcel.notes[0]
    graph = make_run(tmp_path / "c", results, local, adapter, "adapter", ("merged", "onnx"))
    write_model(graph / "onnx", local, {"model.onnx": b"graph", "config.json": b"{}"})
    sent = {file.path: file.content for file in pack(graph, "me/model").files}
    assert set(sent) == {*SENT, "onnx/model.onnx", "onnx/config.json", "onnx/hf_transfer.json"}
    assert "| What is published | a full model and its ONNX form |" in sent["README.md"].decode()


def test_what_is_not_sent_of_a_run_is_said(tmp_path):
    run = make_run(tmp_path / "run", also=("ctranslate2",))
    (run / "ctranslate2").mkdir()
    (run / "ctranslate2" / "model.bin").write_bytes(b"weights")
    parcel = pack(run, "me/model")
    assert {file.path for file in parcel.files} == SENT
    assert [note for note in parcel.notes if "CTranslate2 form is not sent" in note]


def test_an_adapter_of_a_hub_model_brings_its_merged_form(tmp_path):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1234"}
    parcel = pack(make_run(tmp_path / "a", None, METADATA, adapter, "adapter", ("merged",)), "me/model")
    paths = {file.path for file in parcel.files}
    assert {"adapter_config.json", "merged/model.safetensors", "merged/config.json"} <= paths
    assert "config.json" not in paths, "beside an adapter it would make the repository a full model"


def test_no_place_of_this_machine_travels_with_a_full_model(tmp_path):
    local = METADATA | {"base_checkpoint": "/home/somebody/secret-place/bert", "base_revision": ""}
    results = make_results(config=RunConfig(model=ModelConfig(checkpoint="/home/somebody/secret-place/bert")))
    results["checkpoint"]["revision"] = ""
    for file in pack(make_run(tmp_path / "a", results, local), "me/model").files:
        content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        assert b"secret-place" not in content and str(tmp_path).encode() not in content, file.path


@pytest.mark.parametrize("said", [f"bad token {TOKEN}", f"Bearer {TOKEN}"])
@pytest.mark.parametrize("status", [401, 500, 429])
def test_the_token_appears_nowhere_even_if_the_server_repeats_it(hub, run, capfd, caplog, said, status):
    import logging
    import traceback

    caplog.set_level(logging.DEBUG)
    hub.said = said
    hub.fault = lambda number, *_: status if number > 2 else None
    with pytest.raises(RunError) as caught:
        push(run, "me/model")
    hub.fault = lambda *_: None
    push(run, "me/model")
    out, err = capfd.readouterr()
    told = "".join(traceback.format_exception(caught.value))
    for text in (out, err, told, caplog.text, str(caught.value)):
        assert TOKEN not in text
    assert not [path for path in run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not [path for path, content in remote(hub).items() if TOKEN.encode() in content]


# ---- refused before anything is done ---------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/model.git", "me/mo del", "../x", "me/--x", ""])
def test_an_impossible_repository_is_refused_with_the_config(repo_id):
    with pytest.raises(InputError, match="cannot be a repository"):
        check_config(RunConfig(publish=PublishConfig(repo_id=repo_id)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"private": True}, "--publish.private does nothing without --publish.repo_id"),
        ({"repo_id": "me/m", "create_pr": True, "revision": "v2"}, "leave one of the two out"),
        ({"repo_id": "me/m", "revision": "../x"}, "no name of a branch"),
        ({"repo_id": "me/m", "revision": "refs/pr/1"}, "no name of a branch"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        check_config(RunConfig(publish=PublishConfig(**settings)))


def test_a_run_is_refused_before_training_without_network_or_token(monkeypatch, tmp_path):
    from huggingface_hub import constants

    import hf_transfer as ht

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    config = RunConfig(publish=PublishConfig(repo_id="me/model"), output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError) as caught:
        ht.run(config)
    assert len(caught.value.problems) == 2
    assert "HF_HUB_OFFLINE is set" in caught.value.problems[0] and "hf auth login" in caught.value.problems[1]
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push(tmp_path, "me/model")


def test_an_adapter_of_a_folder_is_refused_before_training(hub, tmp_path):
    config = RunConfig(
        model=ModelConfig(checkpoint=str(tmp_path)),
        adapt=AdaptConfig(strategy="lora"),
        publish=PublishConfig(repo_id="me/model"),
    )
    with pytest.raises(InputError, match=r"add --publish\.export merged"):
        check_publishing(config)
    with pytest.raises(InputError, match=r"add --publish\.export merged"):
        check_publishing(dataclasses.replace(config, publish=PublishConfig(("onnx",), "me/model")))
    check_publishing(dataclasses.replace(config, publish=PublishConfig(("onnx", "merged"), "me/model")))
    assert not hub.seen


def test_without_a_repository_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    check_publishing(RunConfig())


@pytest.mark.parametrize("what", ["missing", "empty", "comparison", "unproved"])
def test_folders_that_are_no_finished_run_are_refused(hub, run, tmp_path, what):
    folder = {"missing": tmp_path / "x", "empty": tmp_path / "y"}.get(what, run)
    (tmp_path / "y").mkdir()
    words = {"missing": "not a folder", "empty": "cannot be read", "unproved": "no model that was proved"}
    if what == "unproved":
        results = json.loads((run / "results.json").read_text())
        results["artefact"]["proved"] = False
        (run / "results.json").write_text(json.dumps(results))
    if what == "comparison":
        words[what] = "is a comparison"
        example = Path(__file__).parents[1] / "benchmarks/results/compare_books_dvd/results.json"
        (run / "results.json").write_bytes(example.read_bytes())
    with pytest.raises(InputError, match=words[what]):
        push(folder, "me/model")
    assert not hub.seen


def test_a_card_that_the_hub_would_refuse_is_refused_before_the_first_request(hub, run):
    """huggingface_hub asks the Hub about the card only after the repository is made."""
    results = json.loads((run / "results.json").read_text())
    results["checkpoint"]["id"] = "/home/me/bert"  # edited: of a folder there is no revision
    results["data"]["hub_id"] = "a/b/c"
    write_json(run / "results.json", results)
    with pytest.raises(InputError) as caught:
        push(run, "me/model")
    assert [problem.split(": ", 1)[1].split(" where")[0] for problem in caught.value.problems] == [
        "base_model has '/home/me/bert'",
        "datasets has 'a/b/c'",
        "model-index: dataset_type has 'a/b/c'",
    ]
    assert str(caught.value).startswith(f"The Hub would refuse the card of {run}: ")
    assert not hub.seen


def test_importing_the_package_and_reading_a_command_line_leave_the_hub_alone():
    code = (
        "import sys, hf_transfer\n"
        "from hf_transfer.command_line import load_config\n"
        "load_config(['--adapt.strategy', 'lora'], 'x')\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    )
