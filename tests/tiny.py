"""Tiny checkpoints with random weights, made in a second, one for each architecture that the suite covers."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = tuple(
    [
        "the",
        "a",
        "book",
        "film",
        "knife",
        "app",
        "soup",
        "plot",
        "light",
        "heavy",
        "dark",
        "sharp",
        "slow",
        "quick",
        "dry",
        "cold",
        "hot",
        "good",
        "bad",
        "not",
        "very",
        "never",
        "and",
        "but",
        "was",
        "is",
        "it",
        "page",
        "blade",
        "menu",
        "phone",
        "edge",
        "story",
        "taste",
        "crash",
        "boring",
        "gripping",
        "fresh",
        "stale",
        "sturdy",
        "flimsy",
        "fast",
        "broken",
    ]
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}
ENCODER_DECODER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
# architecture -> (config class, model class without a head, its own settings)
ARCHITECTURES = {
    "bert": ("BertConfig", "BertModel", SMALL),
    "distilbert": ("DistilBertConfig", "DistilBertModel", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
    "roberta": ("RobertaConfig", "RobertaModel", SMALL),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", SMALL),
    "electra": ("ElectraConfig", "ElectraModel", {**SMALL, "embedding_size": 8}),
    "albert": ("AlbertConfig", "AlbertModel", {**SMALL, "embedding_size": 8}),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2Model",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16},
    ),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        {**SMALL, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "mpnet": ("MPNetConfig", "MPNetModel", SMALL),
    "bart": ("BartConfig", "BartModel", {**ENCODER_DECODER, **ENDS, "decoder_start_token_id": 3}),
    "t5": (
        "T5Config",
        "T5Model",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, **ENDS},
    ),
    "gpt2": ("GPT2Config", "GPT2Model", {"n_embd": 16, "n_layer": 2, "n_head": 2, **ENDS}),
    "llama": ("LlamaConfig", "LlamaModel", {**SMALL, **ENDS}),
}


def make_tokenizer(pairs_have_types: bool = True, padding: bool = True) -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer over ``WORDS`` that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if pairs_have_types else ["input_ids", "attention_mask"]
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    if padding:
        special["pad_token"] = "[PAD]"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, model_input_names=names, **special
    )


def make_checkpoint(
    folder: Path, architecture: str = "bert", seed: int = 0, scale: float = 0.3, **settings: object
) -> Path:
    """Save a tiny body of ``architecture`` with random weights and its tokenizer; returns ``folder``."""
    config_class, model_class, own = ARCHITECTURES[architecture]
    has_types = architecture in ("bert", "electra", "albert", "deberta-v2")
    tokenizer = make_tokenizer(has_types, padding=architecture != "gpt2")
    own = {"vocab_size": len(tokenizer), "pad_token_id": 0, "max_position_embeddings": 80, **own, **settings}
    if architecture in ("roberta", "xlm-roberta", "mpnet"):
        own |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
        tokenizer.pad_token = "[UNK]"  # their positions count from the padding id, which is 1
    if architecture == "gpt2":
        del own["pad_token_id"]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**own))
    with torch.no_grad():  # larger than their usual 0.02, so that texts differ visibly in the output
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
