"""LoRA through PEFT: low-rank updates on the body's linear layers, the new head trained and saved whole."""

from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hf_transfer.adapt.base import (
    Adapted,
    Parts,
    SampleInputs,
    Stage,
    find_parts,
    is_generative,
    make_adapted,
    new_modules,
    no_sample,
    with_head_first,
)
from hf_transfer.config import EVA_OF_WRITERS, AdaptConfig
from hf_transfer.errors import InputError
from hf_transfer.records import Pretrained

# The last name of an attention projection, over all encoder families; "attention" targets are these.
ATTENTION = re.compile(
    r"(query|key|value|q|k|v|o|[qkvo]_proj|[qkvo]_lin|out_lin|out_proj|query_proj|key_proj|value_proj|in_proj"
    r"|c_attn|Wqkv|Wo|qkv_proj|q_attn|query_key_value|[qkv]_head|post_proj)"
)
# Names that also occur outside attention (`dense`, `c_proj`, `Wo`, `o`) count only below a module so named.
INSIDE_ATTENTION = re.compile(r"(^|\.)(\w*attn\w*|\w*attention\w*|\w*Attention\w*)(\.|$)")


def apply_lora(pretrained: Pretrained, adapt: AdaptConfig, sample_inputs: SampleInputs = no_sample) -> Adapted:
    """Wrap the model for LoRA (Hu 2022) with targets found in its module tree.

    Args:
        sample_inputs: what the initialisations eva (Paischer 2024) and corda (Yang 2024) look at.

    Raises:
        InputError: targets that no linear layer of the body matches, or an initialisation that PEFT refuses or that
            reads the layers of a model that writes wrongly.
    """
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.config import CordaConfig

    if adapt.lora_init == "eva" and is_generative(pretrained.model):
        raise InputError(EVA_OF_WRITERS)
    parts = find_parts(pretrained)
    targets = find_targets(pretrained.model, parts, adapt.lora_targets)
    saved = _saved_whole(head_modules(pretrained.model), new_modules(pretrained))
    config = LoraConfig(
        task_type=_peft_task(pretrained.model),
        r=adapt.lora_rank,
        lora_alpha=adapt.lora_alpha,
        lora_dropout=adapt.lora_dropout,
        bias=adapt.lora_bias,
        use_dora=adapt.lora_use_dora,
        use_rslora=adapt.lora_use_rslora,
        init_lora_weights=True if adapt.lora_init == "default" else adapt.lora_init,
        # ranks are not moved from layer to layer: the flag promises one rank
        eva_config=EvaConfig(rho=1.0) if adapt.lora_init == "eva" else None,
        corda_config=CordaConfig() if adapt.lora_init == "corda" else None,
        target_modules=targets,
        modules_to_save=list(saved),
        fan_in_fan_out=_uses_conv1d(pretrained.model, targets),
        revision=pretrained.revision or None,
    )
    with warnings.catch_warnings():  # PiSSA and OLoRA change the base: save_adapter undoes that
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")  # PEFT asks
        try:
            wrapped = _wrap(pretrained.model, config, sample_inputs)
        except (ValueError, IndexError, RuntimeError) as error:  # unknown to this PEFT, too high a rank, odd layers
            raise InputError(f"--adapt.lora_init {adapt.lora_init}: PEFT refuses it: {error}") from None
    head = _copies_of(wrapped, saved)
    trained = tuple(p for p in wrapped.parameters() if p.requires_grad)
    parts = Parts(
        parts.embeddings,
        tuple(tuple(p for p in module.parameters()) for module in parts.layer_modules),
        parts.layer_modules,
        parts.encoder_depth,
        parts.rest,
        head,
    )
    stages: tuple[Stage, ...] = (Stage("lora", trained),)
    if adapt.head_first:
        stages = with_head_first(stages, parts, adapt.head_first_epochs)
    adapted = make_adapted(wrapped, "lora", parts, stages, freezes_modules=False)
    return replace(adapted, initial_update=_initial_update(wrapped, adapt.lora_init))


def find_targets(model: nn.Module, parts: Parts, spec: str) -> list[str]:
    """Full names of the linear layers of the body that get an update.

    ``all-linear`` takes every one, ``attention`` the attention projections, anything else is a list of name endings.
    Modules of the head, or new in the body, are never targets: they are trained whole.
    """
    trained_whole = {id(p) for p in parts.head}
    in_layers = {id(module) for layer in parts.layer_modules for module in layer.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if id(module) in in_layers and _is_linear(module) and id(module.weight) not in trained_whole
    ]
    if spec == "all-linear":
        chosen = linear
    elif spec == "attention":
        chosen = [name for name in linear if _is_attention(name)]
    else:
        endings = [ending.strip() for ending in spec.split(",") if ending.strip()]
        missing = [e for e in endings if not any(name == e or name.endswith("." + e) for name in linear)]
        if missing:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise InputError(
                f"--adapt.lora_targets {spec}: no linear layer of the body is called {', '.join(missing)}. "
                f"Names here: {known}; or use all-linear or attention."
            )
        chosen = [name for name in linear if any(name == e or name.endswith("." + e) for e in endings)]
    if not chosen:
        raise InputError(f"--adapt.lora_targets {spec} finds no linear layer in this checkpoint: name them.")
    return chosen


def _saved_whole(head: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """The head, kept or new, and new modules outside it; no module twice."""
    return (*head, *(name for name in new if not any(name == top or name.startswith(top + ".") for top in head)))


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules with parameters beside the body: what a head consists of; none where the model writes."""
    if is_generative(model):
        return ()
    prefix = getattr(model, "base_model_prefix", "")
    return tuple(
        name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())
    )


def _wrap(model: Any, config: Any, sample_inputs: SampleInputs) -> Any:
    """``model`` with LoRA beside its targets, after a look at data where the initialisation wants one."""
    from peft import get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora.corda import preprocess_corda

    looks = config.init_lora_weights in ("eva", "corda")
    device = next(model.parameters()).device
    batches = [{name: t.to(device) for name, t in batch.items()} for batch in sample_inputs()] if looks else []
    if looks and not batches:
        raise ValueError("it looks at train examples, and none were given")
    was_training = model.training
    if config.init_lora_weights == "corda":

        def run_model() -> None:
            with torch.no_grad():
                for batch in batches:
                    for i in range(len(batch["attention_mask"])):
                        # PEFT's hook takes one text at a time; padding would count as data
                        model(**_one_text(batch, i, model.config.pad_token_id))

        model.eval()
        preprocess_corda(model, config, run_model)
    wrapped = get_peft_model(model, config)
    if config.init_lora_weights == "eva":
        wrapped.eval()
        initialize_lora_eva_weights(wrapped, batches, gather_distributed_inputs=False, show_progress_bar=False)
    return wrapped.train(was_training)


def _one_text(batch: dict[str, torch.Tensor], row: int, pad: int) -> dict[str, torch.Tensor]:
    """Inputs of one row without its padding; the decoder's have a length of their own and no mask.

    Their first token is never padding, although several families start from the token that pads.
    """
    length = int(batch["attention_mask"][row].sum())
    alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
    if "decoder_input_ids" in batch:
        ids = batch["decoder_input_ids"][row : row + 1]
        real = (ids[0] != pad).nonzero()[:, 0].tolist()
        alone["decoder_input_ids"] = ids[:, : max([0, *real]) + 1]
    return alone


def _initial_update(wrapped: Any, init: str) -> dict[str, torch.Tensor]:
    """The untrained A and B of initialisations that take their product out of the base's weights; else {}.

    Saved as it stands, such an adapter would fit only a base changed in the same way (see ``save_adapter``).
    """
    if not init.startswith(("pissa", "olora", "corda")):
        return {}
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: tensor.clone() for name, tensor in state.items() if ".lora_" in name}


def save_adapter(
    folder: Path, wrapped: Any, initial_update: dict[str, torch.Tensor], base: str, revision: str | None
) -> None:
    """Write PEFT's files for an adapter of the base checkpoint as it was published.

    With ``initial_update`` (A0, B0) the base in memory is W - s B0 A0, so the update of W is s (B A - B0 A0): a plain
    LoRA of twice the rank, [B, -B0] [A; A0], at the same scale s.
    """
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(wrapped.peft_config["default"])
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    # no look at the Hub for the base's vocabulary: embeddings are never resized here
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if config.bias == "lora_only":  # PEFT before 0.21 trains these and leaves them out (its issue 3306)
        state |= {name: bias for name, bias in wrapped.state_dict().items() if name.endswith(".base_layer.bias")}
    for name, first in initial_update.items():
        if ".lora_A." in name:
            state[name] = torch.cat([state[name], first.to(state[name])], dim=0)
        elif ".lora_B." in name:
            state[name] = torch.cat([state[name], -first.to(state[name])], dim=1)
    if initial_update:
        config.r *= 2
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True  # whoever opens it needs weights, and no look at data
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def _peft_task(model: nn.Module) -> str | None:
    """PEFT's name of the task, which its Auto classes ask for when they open the adapter."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else None


def _is_attention(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    if last in ("dense", "c_proj"):
        return bool(INSIDE_ATTENTION.search(name.rsplit(".", 1)[0])) and "intermediate" not in name
    return bool(ATTENTION.fullmatch(last)) and ("mlp" not in name.split("."))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _uses_conv1d(model: nn.Module, targets: list[str]) -> bool:
    """GPT-2 stores its linear layers transposed; PEFT must be told."""
    return type(model.get_submodule(targets[0])).__name__ == "Conv1D"


def _copies_of(wrapped: Any, saved: tuple[str, ...]) -> tuple[nn.Parameter, ...]:
    """Parameters of the trainable copies that PEFT made of the modules it saves whole."""
    marks = [f"{name}.modules_to_save." for name in saved]
    return tuple(p for name, p in wrapped.named_parameters() if any(mark in name for mark in marks))
