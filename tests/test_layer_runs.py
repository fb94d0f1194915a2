"""Runs that probe chosen layers or drop some: what is reported, saved and opened again, and what is refused."""

import contextlib
import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import make_checkpoint
from toy import write_reviews

import hf_transfer as ht
from hf_transfer import layer_runs
from hf_transfer.config import check_config

TEXTS = ("the book was good", "a dry soup and a broken blade edge , not good", "app")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data"), count=90)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {"bert": {"num_hidden_layers": 3}, "gpt2": {"n_layer": 3}, "bart": {}}
    return {name: make_checkpoint(folder / name, name, **settings) for name, settings in made.items()}


def config_of(source: Path, checkpoint: Path, output: Path, **sections) -> ht.RunConfig:
    settings = {
        "data": ht.DataConfig(source=str(source), train_domains=("books",)),
        "model": ht.ModelConfig(checkpoint=str(checkpoint)),
        "adapt": ht.AdaptConfig(strategy="probe", probe_layers="auto"),
        "evaluate": ht.EvaluateConfig(resamples=100),
        "output_dir": str(output),
    }
    return ht.RunConfig(**settings | sections)


def hidden_states(checkpoint: Path, texts) -> np.ndarray:
    """[texts, states, width] by stock transformers: each text by itself, the mean over its tokens."""
    body = transformers.AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    means = []
    for text in texts:
        with torch.no_grad():
            hidden = body(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        means.append([state[0].numpy().mean(0) for state in hidden])
    return np.array(means, dtype=np.float64)


@pytest.fixture
def unproved(monkeypatch):
    """Leaves out the fresh process, which the tests of the artefact cover and which takes seconds."""
    monkeypatch.setattr("hf_transfer.artefact._prove", lambda *_: 0.0)


@pytest.fixture(scope="module")
def probed(data, checkpoints, tmp_path_factory) -> ht.RunResult:
    return ht.run(config_of(data, checkpoints["bert"], tmp_path_factory.mktemp("run") / "probe"))


@pytest.mark.parametrize("processes", [1, 2])
def test_states_of_several_processes_are_added_up_one_state_at_a_time(processes):
    reduced = []

    def reduce(state, reduction):
        reduced.append((tuple(state.shape), reduction))
        return state * 2

    stand_in = SimpleNamespace(num_processes=processes, device=torch.device("cpu"), reduce=reduce)
    states = torch.arange(24.0).reshape(3, 4, 2)
    found = layer_runs._summed(states.clone(), stand_in)
    assert torch.equal(found, states * processes)
    assert reduced == [((4, 2), "sum")] * 3 * (processes - 1)


def test_a_run_tells_what_was_chosen_and_what_every_candidate_reached(probed):
    told = probed.results["layers"]["probe"]
    assert [item["layers"] for item in told["candidates"]] == ["0", "1", "2", "3", "mean", "all"]
    best = min(told["candidates"], key=lambda item: item["validation_loss"])
    assert (told["layers"], told["strength"]) == (best["layers"], best["strength"])
    assert told["rule"] == "in-domain validation" and told["metric"] == "accuracy"
    assert probed.results["selection"] == {
        "rule": "in_domain_validation",
        "metric": "accuracy",
        "step": 0,
        "value": best["score"],
    }
    reads = {"mean": "the mean of all states", "all": "all states side by side"}
    start = f"probe on {reads.get(best['layers'], 'the states of layer ' + best['layers'])} of 3 layers, chosen by"
    (note,) = [note for note in probed.results["notes"] if note.startswith("probe on")]
    assert note.startswith(start) and f"all {told['candidates'][-1]['validation_loss']:.3f}" in note
    head = 2 * (16 * (4 if best["layers"] == "all" else 1) + 1)
    assert probed.results["strategy"]["trainable_parameters"] == head
    assert probed.results["timing"]["steps"] == 0 and probed.results["timing"]["train_seconds"] > 0
    assert "probe on" in (probed.output_dir / "report.md").read_text()


def test_the_artefact_was_proved_and_gives_the_probabilities_of_the_run(probed, data):
    assert probed.results["artefact"]["kind"] == "layer probe" and probed.results["artefact"]["proved"]
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    test = [row["text"] for row in rows if row["split"] == "test"]
    found = ht.load(probed.output_dir, device="cpu").predict(test)
    assert len(found.labels) == len(probed.predictions.example_ids)
    np.testing.assert_allclose(
        np.sort(found.probabilities[:, 1]), np.sort(probed.predictions.probabilities[:, 1]), atol=1e-5
    )


def test_the_command_line_predicts_with_it(probed, tmp_path):
    from hf_transfer.cli import main

    (tmp_path / "in.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in TEXTS) + "\n")
    main(["predict", "--model", str(probed.output_dir), "--input", str(tmp_path / "in.csv"),
          "--output", str(tmp_path / "out.csv"), "--device", "cpu"])  # fmt: skip
    with (tmp_path / "out.csv").open() as file:
        written = [row["predicted"] for row in csv.DictReader(file)]
    assert written == ht.load(probed.output_dir, device="cpu").predict(TEXTS).labels


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        pytest.param("bert", "0", marks=pytest.mark.slow),
        ("bert", "1"),
        pytest.param("bert", "mean", marks=pytest.mark.slow),
        ("bert", "all"),
        ("gpt2", "mean"),
    ],
)
def test_stock_transformers_and_scikit_learn_give_the_same_logits(
    data, checkpoints, tmp_path, layers, architecture, unproved
):
    """The whole way, against a pipeline of AutoModel, numpy, StandardScaler and LogisticRegression; and the lines of
    the artefact's README, in a fresh process."""
    adapt = ht.AdaptConfig(strategy="probe", probe_layers=layers)
    run = ht.run(config_of(data, checkpoints[architecture], tmp_path / "run", adapt=adapt))
    told = run.results["layers"]["probe"]
    assert told["layers"] == layers and run.results["selection"]["rule"] == "cross-validation on train"
    folder = run.output_dir / "model"
    found = ht.load(folder, device="cpu").logits(TEXTS)

    readme = (folder / "README.md").read_text().split("Without that package:")[1]
    code = readme.split("```python\n")[1].split("```")[0].replace("PATH", str(folder))
    code = code.replace('["some text"]', repr(list(TEXTS)))
    code = re.sub(r"print\((.*)\)\n", r"print((\1).tolist())\n", code)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    np.testing.assert_allclose(json.loads(ran.stdout), found, rtol=1e-4, atol=1e-4)

    if architecture == "gpt2":
        return  # its hidden states lack the final norm that each of ours goes through (test_layers.py)
    settings = ht.DataConfig(source=str(data), train_domains=("books",))
    train = ht.split_by_domain(ht.load_source(settings), settings, 0).train
    states = hidden_states(checkpoints["bert"], [*train["text"], *TEXTS])
    pooled = {"mean": states.mean(1), "all": states.reshape(len(states), -1)}
    features = pooled[layers] if layers in pooled else states[:, int(layers)]
    values = np.array(train["label"]) == "good"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=told["strength"], tol=1e-10, max_iter=10_000))
    expected = model.fit(features[: len(train)], values).decision_function(features[len(train) :])
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.recipe
def test_numbers_are_learnt_by_ridge_regression(checkpoints, tmp_path, unproved):
    rng = np.random.default_rng(0)
    words = ["good", "bad", "soup", "knife", "page", "menu"]
    rows = []
    for i in range(80):
        chosen = rng.choice(words, 4)
        rows.append({"text": f"{' '.join(chosen)} {i}", "label": float((chosen == "good").sum()) + 0.5, "domain": "d"})
    (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ht.DataConfig(source=str(tmp_path / "numbers.jsonl"))
    adapt = ht.AdaptConfig(strategy="probe", probe_layers=2)
    run = ht.run(config_of(tmp_path, checkpoints["bert"], tmp_path / "run", data=data, adapt=adapt))
    told = run.results["layers"]["probe"]
    split = ht.split_by_domain(ht.load_source(data), data, 0)
    model = make_pipeline(StandardScaler(), Ridge(alpha=1 / told["strength"]))
    train = hidden_states(checkpoints["bert"], split.train["text"])[:, 2]
    model.fit(train, [float(label) for label in split.train["label"]])
    found = ht.load(run.output_dir, device="cpu").logits(TEXTS)[:, 0]
    np.testing.assert_allclose(
        found, model.predict(hidden_states(checkpoints["bert"], TEXTS)[:, 2]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.recipe
def test_several_labels_at_once_are_learnt_apart(data, checkpoints, tmp_path, unproved):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["label"] = [row["label"], *(["long"] if len(row["text"].split()) > 8 else [])]
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = ht.DataConfig(source=str(tmp_path / "several.jsonl"), train_domains=("books",))
    run = ht.run(config_of(data, checkpoints["bert"], tmp_path / "run", data=several))
    assert run.results["artefact"]["proved"] and run.results["labels"]["problem"] == "multi_label"
    f1 = [item["value"] for item in run.results["scores"] if item["metric"] == "f1_micro"]
    assert min(f1) > 0.6


@pytest.mark.recipe
def test_one_pass_serves_every_seed_and_run_of_a_comparison(data, checkpoints, tmp_path, monkeypatch, unproved):
    passes = []
    original = layer_runs.pooled_states

    def counted(reader, rows, *rest):
        passes.append(len(rows))
        return original(reader, rows, *rest)

    monkeypatch.setattr(layer_runs, "pooled_states", counted)
    model = ht.ModelConfig(str(checkpoints["bert"]), layers="auto")
    config = config_of(data, checkpoints["bert"], tmp_path, model=model)
    result = ht.compare(config, strategies=["probe"], controls=["scratch"], seeds=[0, 1])
    assert all(item["status"] == "finished" for item in result.results["runs"])
    assert len(passes) == 2, "train and validation, once each"
    read = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/results.json"))]
    kept = {item["layers"]["model"]["kept"] for item in read}
    assert len(read) == 4 and len(kept) == 1, "the control from random weights has as many layers"


@pytest.mark.recipe
def test_the_last_step_rule_leaves_the_choice_to_train(data, checkpoints, tmp_path, unproved):
    evaluate = ht.EvaluateConfig(selection="last", resamples=100)
    run = ht.run(config_of(data, checkpoints["bert"], tmp_path / "run", evaluate=evaluate))
    told = run.results["layers"]["probe"]
    assert told["rule"] == run.results["selection"]["rule"] == "cross-validation on train"
    best = min(told["candidates"], key=lambda item: item["cross_validation_loss"])
    assert told["layers"] == best["layers"]


# ---- model.layers ----------------------------------------------------------------------------------------------


@pytest.mark.recipe
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_layers_are_chosen_dropped_told_and_gone_from_what_is_saved(data, checkpoints, tmp_path, strategy, monkeypatch):
    chosen = []
    original = layer_runs.choose_probe

    def lowest(*arguments, **named):
        choice = original(*arguments, **named)
        chosen.append([candidate.layers for candidate in choice.candidates])
        return dataclasses.replace(choice, layers="1")

    monkeypatch.setattr(layer_runs, "choose_probe", lowest)
    run = ht.run(
        config_of(
            data,
            checkpoints["bert"],
            tmp_path / "run",
            model=ht.ModelConfig(str(checkpoints["bert"]), layers="auto"),
            adapt=ht.AdaptConfig(strategy=strategy),
            train=ht.TrainConfig(max_steps=3),
        )
    )
    assert chosen == [["1", "2", "3"]]
    told = run.results["layers"]["model"]
    assert (told["kept"], told["of"], len(told["candidates"])) == (1, 3, 3)
    assert any(note.startswith("the 1 lowest of 3 layers are kept: in-domain") for note in run.results["notes"])
    assert run.results["artefact"]["proved"]
    loaded = ht.load(run.output_dir, device="cpu")
    assert loaded.model.config.num_hidden_layers == 1
    assert "encoder.layer.1." not in " ".join(name for name, _ in loaded.model.named_parameters())
    if strategy == "lora":
        assert "num_hidden_layers=1," in (run.output_dir / "model" / "README.md").read_text()


@pytest.mark.recipe
def test_a_number_of_layers_is_told_as_given(data, checkpoints, tmp_path, unproved):
    model = ht.ModelConfig(str(checkpoints["gpt2"]), layers=2)
    run = ht.run(config_of(data, checkpoints["gpt2"], tmp_path / "run", model=model))
    assert run.results["layers"]["model"] == {"kept": 2, "of": 3, "rule": "as given"}
    assert [item["layers"] for item in run.results["layers"]["probe"]["candidates"]] == ["0", "1", "2", "mean", "all"]


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"adapt": ht.AdaptConfig(probe_layers="auto")}, "goes with --adapt.strategy probe, found full"),
        ({"adapt": ht.AdaptConfig("probe", probe_layers="top")}, "from 0, mean, all or auto, found top"),
        ({"adapt": ht.AdaptConfig("probe", probe_layers=-1)}, "from 0, mean, all or auto, found -1"),
        ({"model": ht.ModelConfig(layers=0)}, "--model.layers must be a number from 1 or auto, found 0"),
        ({"model": ht.ModelConfig(layers="half")}, "--model.layers must be a number from 1 or auto, found half"),
        ({"model": ht.ModelConfig("scratch:x/y", layers="auto")}, "those of scratch:x/y are random: give a number"),
        (
            {"task": "translation", "adapt": ht.AdaptConfig(probe_layers="mean")},
            "--adapt.probe_layers does nothing in translation: leave it out",
        ),
        ({"task": "translation", "model": ht.ModelConfig(layers=2)}, "--model.layers does nothing in translation"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_problem_before_anything_is_read(sections, says):
    with pytest.raises(ht.InputError) as caught:
        check_config(ht.RunConfig(**sections))
    assert len(caught.value.problems) == 1 and says in caught.value.problems[0]


def test_a_comparison_without_a_probe_has_no_use_for_probe_layers():
    config = ht.CompareConfig(adapt=ht.AdaptConfig(probe_layers="auto"), strategies=("full",))
    assert [problem for problem in config.problems() if "probe_layers" in problem] == [
        "--adapt.probe_layers does nothing without probe among --strategies: leave it out."
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        assert check_config(dataclasses.replace(config, strategies=("probe", "full")))


@pytest.mark.parametrize(
    ("architecture", "adapt", "layers", "says"),
    [
        ("bert", "7", None, "--adapt.probe_layers 7: .* has 3 layers: give a number up to 3, or auto"),
        ("bert", "3", 2, "--adapt.probe_layers 3 reads a layer that --model.layers 2 drops: give a number up to 2"),
        ("bart", "auto", None, r"--adapt.probe_layers auto: .*\(bart\) is an encoder-decoder"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_weights_are_read(
    data, checkpoints, tmp_path, architecture, adapt, layers, says, monkeypatch
):
    monkeypatch.setattr("hf_transfer.preparing.load_pretrained", lambda *_: pytest.fail("weights were read"))
    config = config_of(
        data,
        checkpoints[architecture],
        tmp_path / "run",
        model=ht.ModelConfig(str(checkpoints[architecture]), layers=layers),
        adapt=ht.AdaptConfig(strategy="probe", probe_layers=adapt),
    )
    with pytest.raises(ht.InputError, match=says) as caught:
        ht.run(config)
    assert len(caught.value.problems) == 1 and not (tmp_path / "run").exists()


def test_settings_are_read_from_the_command_line():
    config = ht.load_config(
        ["--adapt.strategy", "probe", "--adapt.probe_layers", "4", "--model.layers", "auto"], "hf-transfer run"
    )
    assert (config.adapt.probe_layers, config.model.layers) == (4, "auto")
    config = ht.load_config(["--adapt.probe_layers", "null", "--model.layers", "3"], "hf-transfer run")
    assert (config.adapt.probe_layers, config.model.layers) == (None, 3)
