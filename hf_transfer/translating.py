"""Floor 3: open a saved model that translates, and translate with it: ``ht.load(path).translate(["..."])``.

``pipeline("translation")`` is gone from transformers 5, so this is how a result is used. What is opened: a full model's
folder (ours or any Marian, T5, mBART-50, M2M100 or NLLB one), an adapter's, a merged one, a CTranslate2 export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import InputError
from hf_transfer.records import LabelSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_transfer.ctranslate2_engine import CTranslate2Engine
    from hf_transfer.knn import Datastore, KnnChoice
    from hf_transfer.languages import Convention

MAX_LENGTH = 512
"""Tokens of a source where neither the model nor its metadata says less."""
TOKENS_PER_BATCH = 8192
NUMBERS_SHOWN = 5
BEAMS, LENGTH_PENALTY = 4, 1.0
"""Of a model of which nothing is known."""


@dataclass(frozen=True)
class Translator:
    """A saved model, ready to translate."""

    model: PreTrainedModel | CTranslate2Engine
    tokenizer: PreTrainedTokenizerBase
    labels: LabelSpace
    """Languages, prefix and domain tags that it was adapted with."""
    convention: Convention
    max_length: int
    """Tokens of a source; longer ones are split at sentence ends."""
    neighbours: tuple[Datastore, KnnChoice] | None = None
    """kNN-MT's datastore and settings, where the model has one."""
    beams: int = BEAMS
    """With which the run that saved it scored it, and translates where nothing else is asked for."""
    length_penalty: float = LENGTH_PENALTY
    """Likewise."""

    def translate(
        self,
        texts: Sequence[str],
        source_lang: str | None = None,
        target_lang: str | None = None,
        *,
        beams: int | None = None,
        length_penalty: float | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        domain: str | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        first_number: int = 1,
    ) -> list[str]:
        """Translations of ``texts`` in their order; a text of white space alone stays "".

        Args:
            texts: several, not one string.
            source_lang: as in a run's config; by default the languages that the model was adapted with.
            target_lang: likewise.
            beams: 1 is greedy; by default what the model was scored with, 4 where that is not known.
            length_penalty: exponent of the length that scores of beams are divided by; likewise, 1.
            domain: tag in front of every text, for a model that was adapted with ``data.domain_tags``.
            on_batch: called with the number of pieces that were just translated.
            on_notice: called with a sentence about texts that were too long; by default it goes to standard error.
            first_number: what the first of ``texts`` is called there, the line of a file say.

        Raises:
            InputError: a language that the checkpoint does not know, or a tag that the model was not adapted with.
        """
        from hf_transfer.languages import encode_source, forced_bos, resolve_languages
        from hf_transfer.long_texts import split_long

        if isinstance(texts, str):
            raise InputError("translate takes a list of texts, not one string: write translate([text])[0].")
        source, target = resolve_languages(
            self.convention,
            self.tokenizer,
            source_lang or self.labels.source_lang,
            target_lang or self.labels.target_lang,
            self.labels.source_prefix,
        )
        tag = self._tag(domain)

        def ids_of(parts: Sequence[str]) -> list[list[int]]:
            tagged = [tag + part for part in parts]
            return encode_source(self.convention, self.tokenizer, tagged, source, target, self.labels.source_prefix)

        written_for = [row for row, text in enumerate(texts) if text.strip()]
        pieces: list[list[list[int]]] = [[ids] for ids in ids_of([texts[row] for row in written_for])]
        too_long = [i for i, (ids,) in enumerate(pieces) if len(ids) > self.max_length]
        for i in too_long:
            text = texts[written_for[i]]
            pieces[i] = ids_of(split_long(text, lambda part: len(ids_of([part])[0]), self.max_length))
        if too_long:
            (on_notice or _to_standard_error)(self._too_long([first_number + written_for[i] for i in too_long]))
        flat = [ids for parts in pieces for ids in parts]
        with self._with_neighbours():
            answers = self._decode(
                flat,
                [forced_bos(self.convention, self.tokenizer, target)] * len(flat),
                pad_token_id=int(self.tokenizer.pad_token_id),
                tokens_per_batch=tokens_per_batch,
                beams=self.beams if beams is None else beams,
                length_penalty=self.length_penalty if length_penalty is None else length_penalty,
                on_batch=on_batch,
            )
        said = iter(self.tokenizer.batch_decode(answers, skip_special_tokens=True))
        translations = [""] * len(texts)
        for row, parts in zip(written_for, pieces, strict=True):
            translations[row] = " ".join(next(said).strip() for _ in parts).strip()
        return translations

    @property
    def _decode(self) -> Callable[..., list[list[int]]]:
        from hf_transfer.ctranslate2_engine import CTranslate2Engine
        from hf_transfer.decoding import decode

        return self.model.decode if isinstance(self.model, CTranslate2Engine) else partial(decode, self.model)

    def _too_long(self, numbers: Sequence[int]) -> str:
        is_one = len(numbers) == 1
        more = f" and {len(numbers) - NUMBERS_SHOWN:,} more" if len(numbers) > NUMBERS_SHOWN else ""
        which = ", ".join(map(str, numbers[:NUMBERS_SHOWN])) + more
        return (
            f"{len(numbers):,} text{'' if is_one else 's'} ({which}) {'has' if is_one else 'have'} more than "
            f"{self.max_length} tokens and {'is' if is_one else 'are'} split at sentence ends."
        )

    def _tag(self, domain: str | None) -> str:
        if domain is None:
            return ""
        if domain not in self.labels.tags:
            known = ", ".join(self.labels.tags) or "none, as it was adapted without --data.domain_tags"
            raise InputError(f"domain {domain!r} is no tag of this model; it has {known}.")
        return f"{domain}: "

    def _with_neighbours(self) -> Any:
        if self.neighbours is None:
            return nullcontext()
        from hf_transfer.knn import knn_logits

        store, choice = self.neighbours
        model: Any = self.model
        return knn_logits(model, store, choice.neighbours, choice.interpolation, choice.temperature)


def make_translator(
    model: Any, tokenizer: Any, labels: LabelSpace, max_length: int | None, folder: Path, sha256: str
) -> Translator:
    """A ``Translator`` around an opened model, with the datastore that lies beside it in ``folder``, if any."""
    from hf_transfer.languages import find_convention
    from hf_transfer.pretrained import longest_input

    convention = find_convention(model.config, tokenizer)
    limit = longest_input(model, tokenizer, max_length or MAX_LENGTH)
    neighbours = None
    if (folder / "knn").is_dir():
        from hf_transfer.knn import Datastore

        store, choice = Datastore.load(folder / "knn")
        assert choice is not None, f"{folder / 'knn'} holds a datastore without settings"
        neighbours = (store, choice)
    return Translator(model.eval(), tokenizer, labels, convention, limit, neighbours)


def open_export(folder: Path, labels: LabelSpace, max_length: int | None, device: str | None = None) -> Translator:
    """A ``Translator`` around what ``export_ctranslate2`` wrote into ``folder``.

    Raises:
        InputError: CTranslate2 is missing, the folder is damaged, or the device is none that it can use.
    """
    from hf_transfer.ctranslate2_engine import CTranslate2Engine
    from hf_transfer.languages import find_convention

    engine = CTranslate2Engine(folder, device)
    tokenizer, wanted = engine.tokenizer, max_length or MAX_LENGTH
    positions = getattr(engine.config, "max_position_embeddings", None) or wanted
    limit = min(wanted, positions, tokenizer.model_max_length)
    return Translator(engine, tokenizer, labels, find_convention(engine.config, tokenizer), limit)


def decoding_settings(model: Any) -> dict[str, Any]:
    """Beams and length penalty that ``model`` was made ready with, as ``hf_transfer.json`` keeps them."""
    own = model.generation_config
    penalty = LENGTH_PENALTY if own.length_penalty is None else own.length_penalty
    return {"beams": own.num_beams or 1, "length_penalty": penalty}


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
