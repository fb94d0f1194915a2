"""Every strategy on every architecture: what it trains, that it learns, and that what is saved loads elsewhere."""

import copy
import functools
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from peft.tuners.lora.layer import LoraLayer
from tiny import ARCHITECTURES, make_checkpoint
from tiny_translation import CODES, make_translation_checkpoint
from toy import encoded_rows

from hf_transfer.adapt import Adapted, apply_strategy
from hf_transfer.artefact import save_artefact, write_model
from hf_transfer.before_training import drop_unused
from hf_transfer.config import AdaptConfig, ModelConfig, RunConfig
from hf_transfer.errors import RunError
from hf_transfer.languages import CONVENTIONS, prepare_generation
from hf_transfer.loading import METADATA_SCHEMA, LoadedModel, load
from hf_transfer.pretrained import find_checkpoint, load_pretrained
from hf_transfer.records import LabelSpace, Pretrained
from hf_transfer.tasks import TASKS
from hf_transfer.train import learn_window

TASK = TASKS["classification"]
TEXTS = ("the book was good", "a dry soup and a broken blade edge , not good", "app")
STRATEGIES = {
    "full": AdaptConfig(strategy="full"),
    "freeze": AdaptConfig(strategy="freeze", freeze="embeddings"),
    "lora": AdaptConfig(strategy="lora", lora_rank=4),
    "probe": AdaptConfig(strategy="probe"),
}
SPACES = {
    "2": LabelSpace("single_label", ("bad", "good")),
    "3": LabelSpace("single_label", ("bad", "good", "mixed")),
    "multi": LabelSpace("multi_label", ("taste", "plot", "speed")),
}
CASES: dict[bool, list[str]] = {False: [], True: []}
"""By whether they are slow: with every change each strategy of each architecture has one label space, in turn."""
for (a, architecture), (s, strategy), (n, space) in itertools.product(
    *map(enumerate, (ARCHITECTURES, STRATEGIES, SPACES))
):
    CASES[(a + s) % len(SPACES) != n].append(f"{architecture}-{strategy}-{space}")
EACH_CASE = pytest.mark.parametrize(
    ("is_slow", "key"),
    [
        pytest.param(is_slow, key, marks=[pytest.mark.slow] * is_slow, id=key)
        for is_slow, keys in CASES.items()
        for key in keys
    ],
)


@dataclass
class Case:
    """What happened to one combination before it was saved."""

    adapted: Adapted
    learning: tuple[str, ...]
    losses: tuple[float, float]
    moved: set[str]
    expected: np.ndarray


def open_case(checkpoint: Path, labels: LabelSpace, adapt: AdaptConfig) -> tuple[Pretrained, Adapted]:
    config = ModelConfig(checkpoint=str(checkpoint), dropout=0.0)
    found = find_checkpoint(config)
    pretrained = load_pretrained(config, found, TASK.auto_class, TASK.head(labels), False, seed=3)
    return pretrained, apply_strategy(
        pretrained, adapt, lambda: [dict(pretrained.tokenizer(list(TEXTS), padding=True, return_tensors="pt"))]
    )


def metadata_of(pretrained: Pretrained, labels: LabelSpace) -> dict:
    return {
        "schema": METADATA_SCHEMA,
        "task": "classification",
        "problem": labels.problem,
        "label_names": list(labels.names),
        "max_length": 32,
        "base_checkpoint": pretrained.checkpoint_id,
        "base_revision": "",
        "base_sha256": pretrained.sha256,
        "keeps_head": False,
    }


def learn_a_little(pretrained: Pretrained, adapted: Adapted, labels: LabelSpace, steps: int = 5) -> Case:
    functions = TASK.bind(labels, pretrained, RunConfig(), ())
    rows = encoded_rows(8, len(pretrained.tokenizer), len(labels.names))
    if labels.problem == "multi_label":
        rows = rows.map(lambda row: {"labels": [float(row["labels"] == i) for i in range(3)]})
    batch = functions.make_batch(rows[:])
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}

    class Nobody:
        def note(self, text):
            pass

    learning = drop_unused(adapted, batch, functions.loss_function, Nobody())
    optimizer = torch.optim.AdamW([p for p in adapted.model.parameters() if p.requires_grad], lr=5e-3)
    adapted.set_train_mode(adapted.model)
    accelerator = Accelerator()
    losses = [
        learn_window(adapted.model, [(batch, True)], functions.loss_function, optimizer, 1.0, accelerator).loss
        for _ in range(steps)
    ]
    moved = {name for name, p in adapted.model.named_parameters() if not torch.equal(p, before[name])}
    adapted.model.eval()
    expected = LoadedModel(adapted.model, pretrained.tokenizer, labels, 32).logits(TEXTS)
    return Case(adapted, learning, (losses[0], losses[-1]), moved, expected)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """``learn_all`` of the slow cases or of the others, at most once each."""
    return functools.cache(functools.partial(learn_all, tmp_path_factory))


def learn_all(tmp_path_factory, is_slow: bool) -> tuple[dict[str, Case], dict[str, dict]]:
    """Cases that are trained and saved here, and what one fresh process found when it opened them."""
    folder = tmp_path_factory.mktemp("artefacts")
    checkpoints = {architecture: make_checkpoint(folder / architecture, architecture) for architecture in ARCHITECTURES}
    cases, manifest = {}, {}
    for key in CASES[is_slow]:
        architecture, strategy, name = key.rsplit("-", 2)
        labels = SPACES[name]
        pretrained, adapted = open_case(checkpoints[architecture], labels, STRATEGIES[strategy])
        cases[key] = learn_a_little(pretrained, adapted, labels)
        path = folder / "saved" / key
        write_model(path, adapted.model, adapted, pretrained, metadata_of(pretrained, labels))
        manifest[key] = {"path": str(path), "texts": TEXTS, "is_full": strategy != "lora"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    script = Path(__file__).parent / "load_all.py"
    command = [sys.executable, str(script), str(folder / "manifest.json"), str(folder / "answers.json")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return cases, json.loads((folder / "answers.json").read_text())


@pytest.mark.recipe
@EACH_CASE
def test_a_fresh_process_reproduces_the_logits(learnt, is_slow, key):
    cases, answers = learnt(is_slow)
    np.testing.assert_allclose(answers[key]["ours"], cases[key].expected, rtol=1e-5, atol=1e-5)
    if "stock" in answers[key]:
        np.testing.assert_allclose(answers[key]["stock"], cases[key].expected, rtol=1e-5, atol=1e-5)
        assert answers[key]["names"] == list(SPACES[key.rsplit("-", 1)[1]].names)


@pytest.mark.recipe
@EACH_CASE
def test_a_strategy_trains_what_it_promises_and_learns(learnt, is_slow, key):
    case = learnt(is_slow)[0][key]
    strategy = key.split("-")[-2]
    names = set(case.adapted.summary.names)
    assert set(case.learning) == names, "every trainable tensor is reached by the loss"
    # LoRA's A gets no gradient while B is zero, and moves from the second step on; weight decay moves it anyway
    assert case.moved == names
    assert set(case.adapted.head_names) <= names
    if strategy == "probe":
        assert names == set(case.adapted.head_names)
    if strategy == "lora":
        assert all("lora_" in name or name in case.adapted.head_names for name in names)
    if strategy == "freeze":
        embeddings = {id(p) for p in case.adapted.parts.embeddings}
        assert embeddings and not any(id(p) in embeddings and p.requires_grad for p in case.adapted.model.parameters())
    assert case.losses[1] < case.losses[0]


def test_peft_alone_would_lose_the_new_pooler(tmp_path):
    """Guards the reason for saving by missing keys: PEFT's own list of heads leaves DeBERTa's pooler behind."""
    from peft import LoraConfig, PeftModel, get_peft_model

    labels = SPACES["2"]
    checkpoint = make_checkpoint(tmp_path / "base", "deberta-v2")
    pretrained, _ = open_case(checkpoint, labels, STRATEGIES["probe"])
    wrapped = get_peft_model(pretrained.model, LoraConfig(task_type="SEQ_CLS", target_modules=["query_proj"])).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    inputs = {"input_ids": torch.tensor([[2, 9, 10, 3]])}
    torch.manual_seed(99)
    found = find_checkpoint(ModelConfig(checkpoint=str(checkpoint)))
    fresh = load_pretrained(ModelConfig(), found, TASK.auto_class, TASK.head(labels), False, seed=99)
    again = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter").eval()
    assert not torch.allclose(wrapped(**inputs).logits, again(**inputs).logits, atol=1e-3)


@pytest.mark.recipe
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_use_dora": True},
        {"lora_use_rslora": True},
        {"lora_init": "pissa"},
        {"lora_init": "pissa_niter_4"},
        {"lora_init": "olora"},
        {"lora_init": "gaussian"},
        {"lora_init": "orthogonal"},
        pytest.param(
            {"lora_init": "mica"},
            marks=pytest.mark.skipif(not hasattr(LoraLayer, "mica_init"), reason="this PEFT does not know it"),
        ),
        {"lora_init": "eva"},
        {"lora_init": "corda"},
        {"lora_bias": "lora_only"},
        {"lora_targets": "attention"},
        {"lora_targets": "query,value", "head_first": True},
    ],
    ids=str,
)
def test_every_variant_of_lora_opens_on_the_untouched_base(tmp_path, settings):
    labels = SPACES["3"]
    checkpoint = make_checkpoint(tmp_path / "base", "bert")
    pretrained, adapted = open_case(checkpoint, labels, AdaptConfig(strategy="lora", lora_rank=4, **settings))
    case = learn_a_little(pretrained, adapted, labels)
    write_model(tmp_path / "model", adapted.model, adapted, pretrained, metadata_of(pretrained, labels))
    found = load(tmp_path / "model", device="cpu").logits(TEXTS)
    np.testing.assert_allclose(found, case.expected, rtol=1e-5, atol=1e-5)
    merged = copy.deepcopy(adapted.model).merge_and_unload()
    write_model(tmp_path / "merged", merged, None, pretrained, metadata_of(pretrained, labels))
    found = load(tmp_path / "merged", device="cpu").logits(TEXTS)
    np.testing.assert_allclose(found, case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.recipe
def test_an_artefact_that_does_not_give_the_same_logits_ends_the_run(tmp_path, monkeypatch):
    labels = SPACES["2"]
    pretrained, adapted = open_case(make_checkpoint(tmp_path / "base"), labels, STRATEGIES["full"])
    proof = Dataset.from_dict({"text": list(TEXTS)})

    def write_another(folder, model, *rest):
        spoilt = copy.deepcopy(model)
        spoilt.classifier.weight.data += 1
        write_model(folder, spoilt, *rest)

    monkeypatch.setattr("hf_transfer.artefact.write_model", write_another)
    with pytest.raises(RunError, match="a fresh process gives other logits"):
        save_artefact(tmp_path, adapted, pretrained, labels, "classification", 32, False, (), proof)

    def write_nothing(folder, model, *rest):
        write_model(folder, model, *rest)
        (folder / "model.safetensors").unlink()

    monkeypatch.setattr("hf_transfer.artefact.write_model", write_nothing)
    with pytest.raises(RunError, match=r"a fresh process cannot open it.*holds no \.safetensors file"):
        save_artefact(tmp_path, adapted, pretrained, labels, "classification", 32, False, (), proof)


def shown_by_stock_lines(folder: Path) -> list:
    """What the lines without this package, in the README beside an artefact, print."""
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    shown: list = []
    exec(code.replace('"PATH', f'"{folder}'), {"print": shown.append})
    return shown


@pytest.mark.parametrize("family", ["m2m100", "nllb", "mbart-50"])
def test_the_lines_of_an_adapter_that_translates_write_the_language_that_it_was_adapted_to(family, tmp_path):
    checkpoint = make_translation_checkpoint(family, tmp_path / "base")
    config = ModelConfig(checkpoint=str(checkpoint), dropout=0.0)
    task = TASKS["translation"]
    pretrained = load_pretrained(config, find_checkpoint(config), task.auto_class, {}, True, seed=3)
    source, target = CODES[family]
    prepare_generation(pretrained.model, pretrained.tokenizer, CONVENTIONS[family], target, beams=2, source_lang=source)
    adapted = apply_strategy(pretrained, AdaptConfig(strategy="lora", lora_rank=2), lambda: [])
    metadata = metadata_of(pretrained, LabelSpace("translation")) | {"task": "translation", "keeps_head": True}
    metadata |= {"source_head": "", "source_lang": source, "target_lang": target, "source_prefix": "", "tags": []}
    write_model(tmp_path / "model", adapted.model, adapted, pretrained, metadata)
    ((stock,),) = shown_by_stock_lines(tmp_path / "model")
    (ours,) = load(tmp_path / "model", device="cpu").translate(["some text"], beams=2)
    # a model of random weights never ends, and stock goes on for longer: the beginning tells
    assert len(ours) > 20 and stock.startswith(ours[:20])


@pytest.mark.parametrize(("heads", "keeps_head"), [(3, False), (2, False), (2, True)])
def test_the_lines_of_an_adapter_open_it_on_a_base_with_a_head_of_its_own(heads, keeps_head, tmp_path):
    labels = SPACES["2"]
    body = make_checkpoint(tmp_path / "body")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(body, num_labels=heads)
    base.save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(body).save_pretrained(tmp_path / "base")
    config = ModelConfig(checkpoint=str(tmp_path / "base"), dropout=0.0)
    pretrained = load_pretrained(config, find_checkpoint(config), TASK.auto_class, TASK.head(labels), keeps_head, 3)
    adapted = apply_strategy(pretrained, STRATEGIES["lora"], lambda: [])
    metadata = metadata_of(pretrained, labels) | {"keeps_head": keeps_head}
    write_model(tmp_path / "model", adapted.model, adapted, pretrained, metadata)
    (stock,) = shown_by_stock_lines(tmp_path / "model")
    expected = load(tmp_path / "model", device="cpu").logits(["some text"])
    np.testing.assert_allclose(stock.detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_failed_save_leaves_the_earlier_artefact_alone(tmp_path, monkeypatch):
    labels = SPACES["2"]
    pretrained, adapted = open_case(make_checkpoint(tmp_path / "base"), labels, STRATEGIES["full"])
    arguments = (adapted.model, adapted, pretrained, metadata_of(pretrained, labels))
    write_model(tmp_path / "model", *arguments)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(RunError, match=r"could not be saved.*No space left"):
        write_model(tmp_path / "model", *arguments)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_failed_save_leaves_no_half_of_an_artefact_behind(tmp_path, monkeypatch, strategy):
    labels = SPACES["2"]
    pretrained, adapted = open_case(make_checkpoint(tmp_path / "base"), labels, STRATEGIES[strategy])

    def full_disk(folder, *_, **__):
        assert any(Path(folder).glob("*.safetensors")), "something had been written"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(RunError, match=r"could not be saved.*No space left"):
        write_model(tmp_path / "model", adapted.model, adapted, pretrained, metadata_of(pretrained, labels))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_adapter_is_not_opened_on_another_base(tmp_path):
    from hf_transfer.errors import InputError

    labels = SPACES["2"]
    pretrained, adapted = open_case(make_checkpoint(tmp_path / "base"), labels, STRATEGIES["lora"])
    write_model(tmp_path / "model", adapted.model, adapted, pretrained, metadata_of(pretrained, labels))
    shutil.rmtree(tmp_path / "base")
    make_checkpoint(tmp_path / "base", seed=8)
    with pytest.raises(InputError, match="was trained on weights with sha256"):
        load(tmp_path / "model")
