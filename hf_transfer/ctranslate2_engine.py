"""Floor 3: a trained translation model as CTranslate2 runs it, several times as quick as torch on a processor.

An exported folder holds CTranslate2's own files (``model.bin``, ``config.json``, ``shared_vocabulary.json``), in
``transformers/`` config, generation settings and tokenizer, and ``hf_transfer.json`` where the model has one.
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_transfer.batching import sorted_batches
from hf_transfer.config import ModelConfig
from hf_transfer.decoding import TOKENS_PER_BATCH, most_new_tokens
from hf_transfer.errors import InputError, RunError
from hf_transfer.pretrained import SEQ2SEQ, find_checkpoint, load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = ("m2m_100", "marian", "mbart", "mt5", "t5")
"""Values of ``model_type`` that are converted; each is compared with torch in the tests."""
STOCK_FOLDER = "transformers"
"""What transformers reads of an export; beside CTranslate2's files the two ``config.json`` would collide."""
NOT_COPIED = ("README.md", "generation_config.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
# Generation settings that CTranslate2 has no equal of: the export would write other translations in silence.
WITHOUT_EQUAL = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "min_length",
    "min_new_tokens",
    "sequence_bias",
    "suppress_tokens",
)
PATIENCE = 1.5
"""CTranslate2 ends a beam search at 1.5 x beams finished hypotheses (Kasai 2022, arXiv:2204.05424), transformers where
no open one can win any more. Of 200 sentences of newstest2014 at 4 beams 188 came out equal (6.75 BLEU against 6.76);
with 1, and with 3, which searches longer, BLEU was more than 0.1 off."""
NO_EXPORT = "leave --publish.export out"


def is_export(folder: Path) -> bool:
    """Whether ``export_ctranslate2`` wrote ``folder``."""
    return (folder / "model.bin").is_file() and (folder / STOCK_FOLDER / "config.json").is_file()


def check_export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before anything is trained, what could not be exported afterwards.

    Raises:
        InputError: the package is missing, an architecture is not converted, generation settings have no equal, or
            the tokenizer's ids are not the model's rows.
    """
    _ctranslate2()
    config: Any = model.config
    problems = []
    if config.model_type not in ARCHITECTURES:
        problems.append(
            f"CTranslate2 export: {config.model_type} is none of the architectures that are converted "
            f"({', '.join(ARCHITECTURES)}): {NO_EXPORT}."
        )
    elif config.model_type == "marian" and not config.share_encoder_decoder_embeddings:
        problems.append(
            f"CTranslate2 export: this Marian checkpoint has a vocabulary for each side, which is not converted: "
            f"{NO_EXPORT}."
        )
    else:
        problems += _problems_of_vocabulary(_vocabulary(model, tokenizer), tokenizer)
    unlike = [name for name in WITHOUT_EQUAL if getattr(model.generation_config, name, None)]
    if unlike:
        problems.append(
            f"CTranslate2 export: it has no equal of {', '.join(unlike)} in generation_config.json: remove that, or "
            f"{NO_EXPORT}."
        )
    if problems:
        raise InputError(problems)


def export_ctranslate2(model_folder: Path, output_folder: Path) -> None:
    """Convert a full model's folder to ``output_folder``, in fp32, which needs nothing outside itself afterwards.

    It appears complete or not at all, in place of what was there. An adapter is merged first, by the caller.

    Raises:
        InputError: see ``check_export``; or an adapter's folder.
        RunError: the folder could not be written.
    """
    if (model_folder / "adapter_config.json").is_file():
        raise InputError(f"{model_folder} is an adapter: merge it first (--publish.export merged), and convert that.")
    _ctranslate2()
    wanted = ModelConfig(checkpoint=str(model_folder))
    opened = load_pretrained(wanted, find_checkpoint(wanted), SEQ2SEQ, {}, keep_head=True, seed=0)
    model, tokenizer = opened.model.eval(), opened.tokenizer
    check_export(model, tokenizer)
    partial = output_folder.with_name(output_folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / STOCK_FOLDER).mkdir(parents=True)
        model.generation_config.save_pretrained(partial / STOCK_FOLDER)  # old folders have these settings elsewhere
        spec = _convert(model, tokenizer)
        spec.validate()
        spec.optimize()
        spec.save(str(partial))
        for path in sorted(model_folder.iterdir()):
            if path.name == "hf_transfer.json":
                shutil.copyfile(path, partial / path.name)
            elif path.is_file() and path.name not in NOT_COPIED and not path.name.endswith(WEIGHT_SUFFIXES):
                shutil.copyfile(path, partial / STOCK_FOLDER / path.name)
        shutil.rmtree(output_folder, ignore_errors=True)
        partial.rename(output_folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"the CTranslate2 export to {output_folder} failed ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class CTranslate2Engine:
    """An exported model and its tokenizer, with the ``decode`` of decoding.py."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """Open ``folder``, on a GPU if CTranslate2 finds one and ``device`` names no other place (``cpu``, ``cuda:1``).

        Raises:
            InputError: the package is missing, or the folder is damaged or no export.
        """
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        ctranslate2 = _ctranslate2()
        if not is_export(folder):
            raise InputError(f"{folder} is no CTranslate2 export of this package: export the model again.")
        kind, _, index = (device or "auto").partition(":")
        try:
            # "auto" takes a GPU where CTranslate2 itself finds one, whatever torch was built for
            self._translator = ctranslate2.Translator(
                str(folder), device=kind, device_index=int(index or 0), intra_threads=torch.get_num_threads()
            )
            self._tokens = _read_vocabulary(folder)
            self.config = AutoConfig.from_pretrained(folder / STOCK_FOLDER)
            self.generation_config = GenerationConfig.from_pretrained(folder / STOCK_FOLDER)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")  # as pretrained.py
                self.tokenizer = AutoTokenizer.from_pretrained(folder / STOCK_FOLDER)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{folder} could not be opened by CTranslate2 on {device or 'any device'} ({error}): export the model "
                "again, or choose another --device."
            ) from None
        self._ids = {token: i for i, token in enumerate(self._tokens)}

    def decode(
        self,
        input_ids: Sequence[Sequence[int]],
        forced: Sequence[int | None],
        pad_token_id: int,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        beams: int = 1,
        length_penalty: float = 1.0,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """As ``decoding.decode``: the same tokens where the search is greedy, up to rounding.

        Beam search ends by another rule (see ``PATIENCE``), so that it finds another hypothesis for a few sources.
        """
        assert len(input_ids) == len(forced), f"{len(input_ids)} sources but {len(forced)} forced tokens"
        positions = getattr(self.config, "max_position_embeddings", None)
        firsts = [self.generation_config.forced_bos_token_id if first is None else first for first in forced]
        lengths = [len(source) for source in input_ids]
        limits = [most_new_tokens(length, positions) - 1 for length in lengths]  # without the end

        def write(rows: Sequence[int], limit: int) -> list[list[int]]:
            results = self._translator.translate_batch(
                [[self._tokens[token] for token in input_ids[i]] for i in rows],
                [None if firsts[i] is None else [self._tokens[firsts[i]]] for i in rows],
                beam_size=beams,
                length_penalty=length_penalty,
                max_input_length=0,
                max_decoding_length=limit,
                min_decoding_length=0,  # nothing is an answer too
                **self._settings(),
            )
            return [[self._ids[token] for token in result.hypotheses[0]] for result in results]

        answers: list[list[int]] = [[] for _ in lengths]
        for numbers in sorted_batches(lengths, max(1, tokens_per_batch // beams)):
            chosen = [int(i) for i in numbers]
            written = dict(zip(chosen, write(chosen, max(limits[i] for i in chosen)), strict=True))
            if beams > 1:  # of answers over their own limit beam search keeps others than the longer ones' beginnings
                for limit, group in groupby((i for i in chosen if len(written[i]) > limits[i]), limits.__getitem__):
                    rows = list(group)
                    written.update(zip(rows, write(rows, limit), strict=True))
            for i in chosen:
                kept = written[i][: limits[i]]
                answers[i] = [token for token in kept[firsts[i] is not None :] if token != pad_token_id]
            if on_batch is not None:
                on_batch(len(chosen))
        return answers

    def _settings(self) -> dict[str, Any]:
        """``generation_config`` in CTranslate2's words."""
        own = self.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.config.eos_token_id
        return {
            "end_token": [self._tokens[end] for end in (ends if isinstance(ends, list) else [ends])],
            "patience": 1.0 if own.early_stopping is True else PATIENCE,
            "repetition_penalty": own.repetition_penalty or 1.0,
            "no_repeat_ngram_size": own.no_repeat_ngram_size or 0,
            "suppress_sequences": [[self._tokens[i] for i in words] for words in own.bad_words_ids or ()] or None,
        }


@functools.cache
def _ctranslate2() -> Any:
    try:
        import ctranslate2
    except ImportError as error:
        raise InputError(
            f'the engine CTranslate2 is not installed ({error}): pip install "hf-transfer-learning[ctranslate2]".'
        ) from None
    return ctranslate2


def _read_vocabulary(folder: Path) -> list[str]:
    """Tokens by id."""
    path = folder / "shared_vocabulary.json"
    tokens: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return tokens


def _problems_of_vocabulary(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """CTranslate2 knows tokens by their text: it must lead to the same row as in the model."""
    known = tokenizer.get_vocab()
    wrong = [token for i, token in enumerate(tokens) if known.get(token, i) != i]
    if not wrong and len(set(tokens)) == len(tokens):
        return []
    return [
        "CTranslate2 export: the tokenizer has tokens that do not name one row of the model each "
        f"({', '.join(wrong[:3]) or 'some stand twice'}), so it cannot be converted: {NO_EXPORT}."
    ]


def _loader_of(model_type: str) -> Any:
    """CTranslate2's own loader of an architecture, with what follows put right."""
    from ctranslate2.converters import transformers as loaders
    from ctranslate2.specs.model_spec import OPTIONAL

    class Marian(loaders.MarianMTLoader):
        # The stock loader drops the padding token and starts from zeros, which is what its row holds in OPUS-MT's
        # files. Tied to the output layer, the row learns as soon as transformers trains, and decoding starts from it.
        set_decoder = loaders.BartLoader.set_decoder

        def _remove_pad_weights(self, spec: Any) -> None:
            pass

    class MBart(loaders.MBartLoader):
        # the config says neither
        def get_model_spec(self, model: Any) -> Any:
            model.config.normalize_before = model.config.normalize_embedding = True
            return super().get_model_spec(model)

    class T5(loaders.T5Loader):
        # transformers 5 says that weights are tied in every T5, so that this no longer tells whether outputs are scaled
        def get_model_spec(self, model: Any) -> Any:
            spec = super().get_model_spec(model)
            is_scaled = getattr(model.config, "scale_decoder_outputs", False)
            spec.decoder.scale_outputs = model.config.d_model**-0.5 if is_scaled else OPTIONAL
            return spec

    by_type = {"m2m_100": loaders.M2M100Loader, "marian": Marian, "mbart": MBart, "mt5": T5, "t5": T5}
    loader: Any = by_type[model_type]()
    loader.get_vocabulary = _vocabulary  # the stock ones differ by architecture and by what transformers 5 has left out
    return loader


def _vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens by id, with made-up ones for rows that the tokenizer does not use."""
    known = tokenizer.get_vocab()
    tokens = sorted(known, key=known.__getitem__)
    return tokens + [f"<row {i}>" for i in range(len(tokens), model.config.vocab_size)]


def _convert(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """CTranslate2's specification of ``model``."""
    spec = _loader_of(model.config.model_type)(model, tokenizer)
    spec.config.decoder_start_token = tokenizer.convert_ids_to_tokens(model.config.decoder_start_token_id)
    spec.config.bos_token = tokenizer.bos_token or tokenizer.eos_token  # stands nowhere, but must be a text
    return spec
