"""A flattened batch gives the logits, the loss and the gradients of the padded one, and the layers see no padding."""

import copy
import functools

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES
from tiny_translation import FAMILIES, make_translation_checkpoint
from torch.nn import functional

from hf_transfer import flattened as flat
from hf_transfer.flattened import find_stacks, flattened, real_tokens
from hf_transfer.records import Batch

PADDED = ("deberta-v2", "mpnet")
SERVED = tuple(name for name in ARCHITECTURES if name not in PADDED)
LENGTHS = {
    "mixed, with one of length 1": (1, 33, 7, 7, 3, 12),
    "forty times as long": (2, 1, 40),
    "all equal in a wide batch": (5, 5, 5),
    "one example": (6,),
}
FIRST_WORD = 5


@functools.cache
def opened(architecture):
    """A classifier with random weights in double precision; local attention is narrower than its texts."""
    config_class, _, own = ARCHITECTURES[architecture]
    settings = {"vocab_size": 48, "pad_token_id": 0, "max_position_embeddings": 80, "num_labels": 3, **own}
    if architecture == "modernbert":
        settings |= {"num_hidden_layers": 4, "local_attention": 8}
    if architecture == "llama":
        settings |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if architecture in ("roberta", "xlm-roberta", "mpnet"):
        settings |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def fresh(architecture):
    return copy.deepcopy(opened(architecture))


def texts(model, lengths, extra=3, left=False):
    """Random pieces padded to the longest and ``extra`` more, each text ended by its </s>."""
    config = model.config
    width = max(lengths) + extra
    torch.manual_seed(sum(lengths))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(FIRST_WORD, 48, mask.shape)
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = config.eos_token_id or FIRST_WORD
    ids = ids * mask + config.pad_token_id * (1 - mask)
    if left:
        ids, mask = ids.flip(1), mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model, inputs, loss_of, masks=None):
    """Output, loss and gradients; flattened by ``masks``, if there are any."""
    model.zero_grad(set_to_none=True)
    if masks is None:
        outputs = model(**inputs)
    else:
        with flattened(model, *masks) as is_flat:
            assert is_flat
            outputs = model(**inputs)
    loss = loss_of(outputs)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs.logits.detach(), loss.detach(), gradients


def assert_same(found, expected, places=...):
    largest = max(gradient.abs().max() for gradient in expected[2].values())
    assert largest > 1e-3, "a test of no gradient shows nothing"
    torch.testing.assert_close(found[0][places], expected[0][places], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).abs().max() <= 1e-10 * largest, name


def class_loss(outputs):
    labels = torch.arange(len(outputs.logits)) % 3
    return functional.cross_entropy(outputs.logits, labels, reduction="sum")


def same_as_padded(model, inputs):
    mask = inputs["attention_mask"]
    assert_same(outcome(model, inputs, class_loss, (mask,)), outcome(model, inputs, class_loss))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("architecture", SERVED)
def test_logits_loss_and_gradients_are_those_of_the_padded_batch(architecture, lengths):
    model = opened(architecture)
    same_as_padded(model, texts(model, lengths))


@pytest.mark.parametrize("architecture", ("bert", "llama", "bart", "t5"))
def test_where_the_padded_batch_would_wait_for_the_device_one_without_padding_is_flattened_too(
    architecture, monkeypatch
):
    model = opened(architecture)
    inputs = texts(model, (9, 9, 9), extra=0)
    with flattened(model, inputs["attention_mask"]) as rows:
        assert rows is None
    monkeypatch.setattr(flat, "WAITS_FOR_MASKS", ("cpu",))
    same_as_padded(model, inputs)


@pytest.mark.parametrize("architecture", ("gpt2", "llama"))
def test_padding_may_be_on_the_left(architecture):
    model = opened(architecture)
    same_as_padded(model, texts(model, (1, 33, 7, 7, 3, 12), left=True))


@pytest.mark.parametrize("architecture", ("bert", "modernbert", "bart", "t5", "llama"))
def test_one_call_over_a_padded_block_gives_the_same(architecture, monkeypatch):
    """As on CUDA, where many small calls cost more than padding inside the attention does."""
    runs = flat.Layout.runs
    monkeypatch.setattr(flat.Layout, "runs", lambda self, one_call: runs(self, True))
    model = opened(architecture)
    same_as_padded(model, texts(model, (1, 33, 7, 7, 3, 12)))


def varlen_by_hand(query, key, value, query_ends, key_ends, max_query, max_key, *, scale, window_size, enable_gqa):
    """What torch documents of varlen_attn, in plain arithmetic."""
    found = torch.zeros_like(query)
    copies = query.shape[1] // key.shape[1]
    assert enable_gqa == (copies > 1)
    assert (max_query, max_key) == (int(query_ends.diff().max()), int(key_ends.diff().max()))
    assert query_ends.dtype == key_ends.dtype == torch.int32
    for i in range(len(query_ends) - 1):
        of_query, of_key = slice(*query_ends[i : i + 2].tolist()), slice(*key_ends[i : i + 2].tolist())
        scores = scale * torch.einsum("qhd,khd->hqk", query[of_query], key[of_key].repeat_interleave(copies, 1))
        if window_size != (-1, -1):
            assert window_size == (-1, 0)
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        values = value[of_key].repeat_interleave(copies, 1)
        found[of_query] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return found


@pytest.mark.parametrize("architecture", ("bert", "llama", "bart", "modernbert"))
def test_what_is_handed_to_varlen_attention_means_the_same(architecture, monkeypatch):
    calls = []

    def varlen(*arguments, **settings):
        calls.append(settings["window_size"])
        return varlen_by_hand(*arguments, **settings)

    monkeypatch.setattr(flat, "_varlen_serves", lambda query, layout, dropout: layout.allowed is None)
    monkeypatch.setattr(flat, "_varlen_function", lambda: varlen)
    model = opened(architecture)
    same_as_padded(model, texts(model, (1, 33, 7, 7, 3, 12)))
    expected = {"bert": {(-1, -1)}, "llama": {(-1, 0)}, "bart": {(-1, -1), (-1, 0)}, "modernbert": {(-1, -1)}}
    assert set(calls) == expected[architecture]


@pytest.mark.parametrize(
    ("capability", "is_built", "serves"),
    [((8, 0), True, True), ((9, 0), True, True), ((7, 5), True, False), ((8, 0), False, False)],
)
def test_flash_attention_is_asked_of_gpus_that_have_it_alone(capability, is_built, serves, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: is_built)
    assert flat._varlen_runs_on.__wrapped__(torch.device("cuda")) == serves


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    @functools.cache
    def open_once(family):
        folder = make_translation_checkpoint(family, tmp_path_factory.mktemp(family) / "model")
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64).eval()

    return open_once


def pairs(model, source_lengths=(9, 2, 30, 9, 1), target_lengths=(4, 21, 17, 4, 1)):
    """A batch of pairs as the translation task makes it."""
    torch.manual_seed(0)
    pad = model.config.pad_token_id

    def side(lengths):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return torch.randint(10, 60, real.shape), real

    source, source_real = side(source_lengths)
    target, target_real = side(target_lengths)
    labels = target.where(target_real, -100)
    start = torch.full((len(target), 1), model.config.decoder_start_token_id)
    inputs = {
        "input_ids": source.where(source_real, pad),
        "decoder_input_ids": torch.cat([start, target[:, :-1]], 1).where(target_real, pad),
        "attention_mask": source_real.long(),
    }
    return Batch(inputs, labels, tuple("abcde"), 0, 0, int(target_real.sum()))


def translation_loss(labels):
    return lambda outputs: functional.cross_entropy(
        outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=0.1
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_translation_is_that_of_the_padded_batch(family, translators):
    model = translators(family)
    batch = pairs(model)
    loss_of = translation_loss(batch.labels)
    found = outcome(model, batch.inputs, loss_of, real_tokens(batch))
    assert_same(found, outcome(model, batch.inputs, loss_of), places=batch.labels != -100)


def test_padding_on_one_side_of_a_pair_is_enough(translators):
    model = translators("marian")
    for lengths in (((7, 7, 7), (2, 9, 4)), ((3, 1, 8), (5, 5, 5))):
        batch = pairs(model, *lengths)
        loss_of = translation_loss(batch.labels)
        found = outcome(model, batch.inputs, loss_of, real_tokens(batch))
        assert_same(found, outcome(model, batch.inputs, loss_of), places=batch.labels != -100)


def with_lora(model):
    config = LoraConfig(target_modules="all-linear", r=2)
    wrapped = get_peft_model(model, config).double().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return wrapped


@pytest.mark.parametrize("architecture", ("bert", "distilbert", "modernbert", "llama"))
def test_a_model_wrapped_by_lora_is_flattened_too(architecture):
    model = with_lora(fresh(architecture))
    inputs = texts(model, (1, 33, 7, 7, 3, 12))
    expected = outcome(model, inputs, class_loss)
    assert all("lora" in name for name in expected[2])
    assert_same(outcome(model, inputs, class_loss, (inputs["attention_mask"],)), expected)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_wrapped_for_several_processes_is_flattened_too(one_process):
    bare = fresh("bert")
    inputs = texts(bare, (1, 20, 7))
    expected = outcome(bare, inputs, class_loss)
    wrapped = torch.nn.parallel.DistributedDataParallel(bare)
    logits, loss, gradients = outcome(wrapped, inputs, class_loss, (inputs["attention_mask"],))
    assert_same((logits, loss, {name.removeprefix("module."): g for name, g in gradients.items()}), expected)


@pytest.mark.parametrize("architecture", ("bert", "bart", "llama", "t5"))
def test_layers_run_again_by_gradient_checkpointing_are_flat_as_well(architecture):
    model = fresh(architecture)
    inputs = texts(model, (1, 33, 7, 7, 3, 12))
    expected = outcome(model, inputs, class_loss)
    for module in model.modules():  # checkpointing is for training, and dropout is not what is compared
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else None
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.train()
    model.gradient_checkpointing_enable()
    model.zero_grad(set_to_none=True)
    with flattened(model, inputs["attention_mask"]):
        outputs = model(**inputs)
        loss = class_loss(outputs)
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same((outputs.logits.detach(), loss.detach(), gradients), expected)


def test_autocast_changes_no_more_than_it_does_to_the_padded_batch():
    model = fresh("bert").float()
    inputs = texts(model, (1, 33, 7, 7, 3, 12))
    exact = model(**inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        padded = model(**inputs).logits.float()
        with flattened(model, inputs["attention_mask"]):
            found = model(**inputs).logits.float()
    assert (padded - exact).abs().max() > 1e-4, "autocast did nothing"
    assert (found - exact).abs().max() < 2 * (padded - exact).abs().max()


@pytest.mark.parametrize("architecture", ("bert", "llama", "modernbert"))
def test_under_autocast_attention_gets_query_key_and_value_in_half_precision(architecture, monkeypatch):
    seen = []

    def attention(*tensors, **settings):
        seen.extend(tensor.dtype for tensor in tensors[:3])
        return functional.scaled_dot_product_attention(*tensors, **settings)

    monkeypatch.setattr(flat, "scaled_dot_product_attention", attention)
    model = fresh(architecture).float()
    inputs = texts(model, (1, 33, 7, 7, 3, 12))
    with torch.autocast("cpu", torch.bfloat16), flattened(model, inputs["attention_mask"]):
        model(**inputs)
    assert set(seen) == {torch.bfloat16}


def test_with_dropout_equal_texts_get_draws_of_their_own():
    model = fresh("bert")
    inputs = {name: tensor.expand(4, -1) for name, tensor in texts(model, (9,), extra=2).items()}
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
        assert getattr(model.config, name) > 0
    for module in model.modules():  # attention's alone
        if isinstance(module, torch.nn.Dropout) and not hasattr(module, "kept"):
            module.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    model.train()
    with flattened(model, inputs["attention_mask"]):
        first, second = model(**inputs).logits, model(**inputs).logits
    assert len(torch.cat([first, second]).unique(dim=0)) == 8


def linears_inside(model):
    """Linear layers of the stacks by what they read: the long row of the encoder's side or of the decoder's."""
    stacks = find_stacks(model)
    for stack in filter(None, (stacks.encoder, stacks.decoder)):
        for layer in stack.layers:
            for name, module in layer.named_modules():
                if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D):
                    crosses = any(part in name for part in ("encoder_attn.k", "encoder_attn.v", "DecAttention.k"))
                    crosses = crosses or "DecAttention.v" in name
                    yield module, stack is stacks.encoder or crosses


def tokens_seen(model, run):
    """Rows that each linear layer read, as pairs of (encoder's side, rows)."""
    seen = []
    hooks = [
        module.register_forward_hook(
            lambda _, args, __, of_source=of_source: seen.append((of_source, args[0][..., 0].numel()))
        )
        for module, of_source in linears_inside(model)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("architecture", SERVED)
def test_linear_layers_of_the_stack_see_no_padding(architecture):
    model = opened(architecture)
    lengths = (1, 33, 7, 7, 3, 12)
    inputs = texts(model, lengths)
    with flattened(model, inputs["attention_mask"]):
        seen = tokens_seen(model, lambda: model(**inputs))
    assert len(seen) >= 6
    assert {rows for _, rows in seen} == {sum(lengths)}
    assert sum(lengths) not in {rows for _, rows in tokens_seen(model, lambda: model(**inputs))}


@pytest.mark.parametrize("family", ("marian", "mbart-50", "m2m100", "t5"))
def test_encoder_and_decoder_each_see_their_own_tokens(family, translators):
    model = translators(family)
    batch = pairs(model)
    with flattened(model, *real_tokens(batch)):
        seen = tokens_seen(model, lambda: model(**batch.inputs))
    assert set(seen) == {(True, 51), (False, 47)}


def test_examples_of_equal_length_share_a_call_of_attention(monkeypatch):
    model = opened("bert")
    inputs = texts(model, (7, 33, 12, 7, 3, 7))
    calls = []
    attention = flat.scaled_dot_product_attention

    def counted(*arguments, **settings):
        calls.append(arguments[0].shape[0])
        return attention(*arguments, **settings)

    monkeypatch.setattr(flat, "scaled_dot_product_attention", counted)
    with flattened(model, inputs["attention_mask"]):
        model(**inputs)
    assert calls == [1, 3, 1, 1] * 2  # in each of two layers: one of 3, three of 7, one of 12 and one of 33


def test_padding_comes_out_as_zeros():
    model = opened("bert").bert
    inputs = texts(model, (1, 12, 7))
    with flattened(model, inputs["attention_mask"]):
        states = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert not states[~real].any() and states[real].all()


@pytest.mark.parametrize("architecture", PADDED)
def test_what_falls_back_says_why_and_runs_padded(architecture):
    model = opened(architecture)
    inputs = texts(model, (1, 12, 7))
    reason = find_stacks(model).reason
    assert architecture in reason and "relative positions" in reason
    expected = model(**inputs).logits
    with flattened(model, inputs["attention_mask"]) as is_flat:
        assert not is_flat
        assert torch.equal(model(**inputs).logits, expected)


def test_an_architecture_without_a_test_runs_padded():
    config = transformers.FNetConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1, intermediate_size=24)
    reason = find_stacks(transformers.FNetForSequenceClassification(config)).reason
    assert reason == "fnet runs padded: no test covers it."


def test_settings_that_cannot_be_flattened_run_padded():
    model = fresh("bert")
    assert find_stacks(model).reason == ""
    model.config.chunk_size_feed_forward = 4
    assert "chunk_size_feed_forward" in find_stacks(model).reason
    model.config.chunk_size_feed_forward = 0
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in find_stacks(model).reason


def test_a_batch_without_padding_is_left_as_it_is():
    model = opened("bert")
    inputs = texts(model, (9, 9, 9, 9), extra=0)
    with flattened(model, inputs["attention_mask"]) as is_flat:
        assert not is_flat
        assert model.config._attn_implementation == "sdpa"


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("architecture", ("bert", "t5", "gpt2", "modernbert"))
def test_on_leaving_the_model_is_as_it_was(architecture, tmp_path):
    model = fresh(architecture)
    inputs = texts(model, (1, 12, 7))
    implementation, hooks = model.config._attn_implementation, hooks_of(model)
    model.save_pretrained(tmp_path / "before")
    with pytest.raises(KeyError, match="midway"), flattened(model, inputs["attention_mask"]):
        model(**inputs)
        model.save_pretrained(tmp_path / "inside")
        raise KeyError("midway")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {implementation}
    assert hooks_of(model) == hooks
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        before = (tmp_path / "before" / name).read_bytes()
        assert (tmp_path / "inside" / name).read_bytes() == (tmp_path / "after" / name).read_bytes() == before


@pytest.mark.parametrize("architecture", ("bert", "modernbert", "bart", "t5", "llama"))
def test_inside_of_a_batch_a_part_of_it_can_be_flattened_too(architecture):
    model = opened(architecture)
    whole = texts(model, (1, 12, 7, 5))
    part = {name: tensor[[1, 2]] for name, tensor in whole.items()}
    expected = model(**whole).logits
    with flattened(model, whole["attention_mask"]):
        for inner in (part, whole):
            with flattened(model, inner["attention_mask"]) as rows:
                assert rows is not None and rows.batch == len(inner["input_ids"])
                seen = tokens_seen(model, lambda inner=inner: model(**inner))
                assert {count for _, count in seen} == {int(inner["attention_mask"].sum())}
                torch.testing.assert_close(model(**part).logits, expected[1:3])
        torch.testing.assert_close(model(**whole).logits, expected)
    torch.testing.assert_close(model(**whole).logits, expected)


def test_two_models_can_be_flattened_at_once():
    model, other = fresh("bert"), fresh("roberta")
    mine, theirs = texts(model, (1, 12, 7)), texts(other, (8, 2))
    expected = model(**mine).logits, other(**theirs).logits
    with flattened(model, mine["attention_mask"]), flattened(other, theirs["attention_mask"]):
        torch.testing.assert_close(model(**mine).logits, expected[0])
        torch.testing.assert_close(other(**theirs).logits, expected[1])


@pytest.mark.parametrize("architecture", ("bert", "modernbert", "bart", "t5", "llama"))
def test_another_batch_than_the_one_announced_runs_padded(architecture):
    model = opened(architecture)
    announced, other = texts(model, (1, 12, 7)), texts(model, (5, 30))
    expected = model(**other).logits
    with flattened(model, announced["attention_mask"]):
        torch.testing.assert_close(model(**other).logits, expected)


def test_layers_that_layerdrop_leaves_out_may_be_any():
    model = fresh("bart")
    inputs = texts(model, (1, 12, 7))
    layers = list(model.model.encoder.layers)
    for kept in ([], layers[:1], layers[1:]):
        model.model.encoder.layers = torch.nn.ModuleList(kept)
        opened_stack = flat.Stack(model.model.encoder, tuple(layers), model.model.encoder)
        assert len(opened_stack.layers) == 2
        same_as_padded(model, inputs)


def test_real_tokens_of_a_batch_are_its_mask_and_its_labels(translators):
    batch = pairs(translators("marian"))
    source, target = real_tokens(batch)
    assert source.sum(1).tolist() == [9, 2, 30, 9, 1] and target.sum(1).tolist() == [4, 21, 17, 4, 1]
    classified = Batch(texts(opened("bert"), (2, 4)), torch.tensor([0, 1]), ("a", "b"), 6, 2, 2)
    assert real_tokens(classified)[1] is None
