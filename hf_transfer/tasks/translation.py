"""Translation: a source text and its translation, learnt piece by piece and scored on what the model writes by itself.

What is particular to checkpoints and their languages is in languages.py, how text is written in decoding.py, and the
loss, which never holds all logits at once, in cross_entropy.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_transfer.config import DataConfig, RunConfig, TrainConfig
from hf_transfer.content_cache import content_key, kept_rows, rows_digest, tokenizer_digest
from hf_transfer.errors import InputError
from hf_transfer.records import Batch, DomainSplits, EncodedSplits, LabelSpace, LossSum, Predictions, Pretrained
from hf_transfer.tasks.base import TaskFunctions, twice

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset

    from hf_transfer.languages import Convention

PLACES_SHOWN = 3
GENERAL_TAG = "general"
"""The tag of text of no train domain."""
MOST_UNKNOWN = 0.02
"""Share of the training characters that a tokenizer may map to unknown; beyond it the text is not its language."""
TEXTS_LOOKED_AT = 20_000
"""Texts of each side by which that share is measured."""


class Translation:
    """The task of ``recipes/translation.py``; stateless."""

    name = "translation"
    auto_class = "AutoModelForSeq2SeqLM"

    def read_labels(self, splits: DomainSplits, data: DataConfig, train: TrainConfig) -> LabelSpace:
        """The languages as the user or the files name them; ``settle`` puts them in the checkpoint's form.

        Where a column names them, the one that all train rows have counts before the setting, which stands in only
        for rows that name none.
        """
        tags = (*splits.train_domains, GENERAL_TAG) if data.domain_tags else ()
        source, target = (_language(splits.train, data, side) for side in ("source_lang", "target_lang"))
        return LabelSpace("translation", source_lang=source, target_lang=target, tags=tuple(dict.fromkeys(tags)))

    def head(self, labels: LabelSpace) -> dict[str, Any]:
        """Nothing: the output layer is the checkpoint's own."""
        return {}

    def settle(self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig) -> LabelSpace:
        """Languages in the checkpoint's own form; its generation settings made right and proved to be savable.

        Raises:
            InputError: no encoder-decoder, a language that the checkpoint does not know, or settings that cannot be
            saved.
        """
        from hf_transfer import languages
        from hf_transfer.translation_scores import tokenizer_of, tokenizer_problem

        tokenize = config.evaluate.tokenize or tokenizer_of(languages.two_letter_code(labels.target_lang))
        if missing := tokenizer_problem(tokenize):
            raise InputError(missing)
        model, tokenizer = pretrained.model, pretrained.tokenizer
        convention = languages.find_convention(model.config, tokenizer)
        prefix = config.data.source_prefix or ""
        source, target = _settled_languages(labels, convention, tokenizer, config.data)
        languages.prepare_generation(
            model,
            tokenizer,
            convention,
            target,
            beams=config.evaluate.beams,
            length_penalty=config.evaluate.length_penalty,
            source_lang=source,
        )
        return replace(labels, source_lang=source, target_lang=target, source_prefix=prefix, tokenize=tokenize)

    def encode(
        self, splits: DomainSplits, labels: LabelSpace, pretrained: Pretrained, max_length: int
    ) -> EncodedSplits:
        """Token ids of both sides for every split.

        A train pair of which one side is longer than ``max_length`` tokens is left out and counted: cut, it would teach
        to stop early. What is to be translated is split at sentence ends where it is longer, never cut.

        Raises:
            InputError: more than ``MOST_UNKNOWN`` of the train characters are unknown to the tokenizer, or no pair
            fits.
        """
        # 1. Is it the tokenizer's language at all?
        # 2. Pairs to learn from: input_ids, decoder_input_ids, labels.
        # 3. Texts to translate: pieces (token ids of each part of a long text), forced, source, reference.
        from hf_transfer import languages

        convention = languages.find_convention(pretrained.model.config, pretrained.tokenizer)
        _check_unknown(splits.train, pretrained)
        rules = tokenizer_digest(pretrained.tokenizer)

        def encode(rows: Dataset, for_training: bool = True) -> tuple[Dataset, list[str]]:
            start = languages.decoder_start(pretrained.model)
            how = repr((labels, convention, start, max_length, for_training))
            key = content_key("translation", how, rules, rows_digest(rows, _READ))
            return kept_rows(key, lambda: _encode_rows(rows, labels, pretrained, convention, max_length, for_training))

        train, left_out = encode(splits.train)
        if not len(train):
            raise InputError(
                f"--data.max_length {max_length}: every train pair is longer on one side: raise it, or split the text."
            )
        general, general_left_out = encode(splits.general) if splits.general is not None else (None, [])
        validation, long = encode(splits.validation, for_training=False)
        test = {}
        for domain, rows in splits.test.items():
            test[domain], long_here = encode(rows, for_training=False)
            long += long_here
        general_validation = None
        if splits.general_validation is not None:
            general_validation, _ = encode(splits.general_validation, for_training=False)
        left_out += general_left_out
        said = languages.other_pair(convention, pretrained.tokenizer, labels.source_lang, labels.target_lang)
        notes = [said] if said else []
        if left_out:
            notes.append(
                f"left out {len(left_out):,} train pairs of more than {max_length} tokens on one side "
                f"({_shown(left_out)}): --data.max_length sets the limit."
            )
        if long:
            notes.append(
                f"{len(long):,} texts to translate have more than {max_length} tokens and are split at sentence ends "
                f"({_shown(long)})."
            )
        return EncodedSplits(
            train, validation, test, len(left_out) + len(long), general, general_validation, tuple(notes)
        )

    def bind(
        self, labels: LabelSpace, pretrained: Pretrained, config: RunConfig, metrics: Sequence[str]
    ) -> TaskFunctions:
        """The functions of a run; from here on the model hands over decoder states in place of logits while it
        learns."""
        from hf_transfer.output_layer import output_layer, skip_output_layer

        from_scratch = not pretrained.sha256
        train = config.train.settled(self.name, config.adapt.strategy, from_scratch)
        skip_output_layer(pretrained.model)
        make_batch = partial(self.make_batch, pad_token_id=pretrained.tokenizer.pad_token_id)
        return TaskFunctions(
            make_batch=make_batch,
            loss_function=partial(
                self.loss_sum,
                read_output_layer=partial(output_layer, pretrained.model),
                label_smoothing=train.label_smoothing or 0.0,
                r_drop=train.r_drop,
            ),
            read_outputs=lambda outputs: outputs.logits,
            to_predictions=partial(self.to_predictions, metrics=tuple(metrics), tokenize=labels.tokenize),
            translate=partial(
                self.translate,
                pretrained=pretrained,
                tokens_per_batch=config.evaluate.tokens_per_batch,
                beams=config.evaluate.beams,
                length_penalty=config.evaluate.length_penalty,
            ),
            make_train_batch=(lambda rows: twice(make_batch(rows))) if train.r_drop else None,
        )

    def make_batch(self, rows: Mapping[str, Sequence[Any]], pad_token_id: int) -> Batch:
        """Right-pad both sides to the longest row of the batch. ``rows``: columns of ``encode`` as lists."""
        import torch

        def padded(name: str, value: int) -> torch.Tensor:
            longest = max(len(ids) for ids in rows[name])
            return torch.tensor([[*ids, *[value] * (longest - len(ids))] for ids in rows[name]])

        source_lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        inputs = {
            "input_ids": padded("input_ids", pad_token_id),
            "decoder_input_ids": padded("decoder_input_ids", pad_token_id),
        }
        longest = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = (torch.arange(longest)[None, :] < source_lengths[:, None]).long()
        labels = padded("labels", -100)
        target_count = sum(len(ids) for ids in rows["labels"])
        tokens = int(source_lengths.sum()) + target_count
        return Batch(
            inputs=inputs,
            labels=labels,
            example_ids=tuple(rows["example_id"]),
            tokens=tokens,
            padding_tokens=inputs["input_ids"].numel() + labels.numel() - tokens,
            target_count=target_count,
            target_places=(labels != -100).flatten().nonzero()[:, 0],
        )

    def loss_sum(
        self,
        outputs: Any,
        batch: Batch,
        read_output_layer: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
        label_smoothing: float,
        r_drop: float = 0.0,
    ) -> LossSum:
        """Label-smoothed cross-entropy, summed over the target pieces; padding never meets the vocabulary.

        ``outputs.logits`` holds decoder states [batch, target length, d] (output_layer.py). With ``r_drop`` the batch
        holds every example twice: half of Liang 2021, equation 4, with alpha = 2 ``r_drop``.
        """
        from hf_transfer.cross_entropy import r_drop_sum, smoothed_cross_entropy_sum

        weight, bias = read_output_layer()
        # by places and not by a mask: how many places a mask has, a GPU would have to be waited for
        places = batch.target_places
        assert places is not None, "make_batch says where the targets are"
        states, labels = outputs.logits.flatten(0, 1)[places], batch.labels.flatten()[places]
        if r_drop and len(batch.labels) == 2 * len(batch.example_ids):  # not where gradients are only looked for
            pair = states.view(2, -1, states.shape[-1])
            total = r_drop_sum(pair, weight, bias, labels.chunk(2)[0], label_smoothing, r_drop)
        else:
            total = smoothed_cross_entropy_sum(states, weight, bias, labels, label_smoothing)
        return LossSum(total, batch.target_count)

    def translate(
        self,
        model: Any,
        rows: Dataset,
        pretrained: Pretrained,
        tokens_per_batch: int,
        beams: int,
        length_penalty: float,
        logits_processor: Sequence[Any] = (),
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """[rows] translations as objects, in the order of ``rows``; the parts of a long text are joined by a space."""
        import numpy as np

        from hf_transfer.decoding import decode

        pieces, forced = rows["pieces"][:], rows["forced"][:]
        flat = [ids for parts in pieces for ids in parts]
        flat_forced = [None if first < 0 else first for parts, first in zip(pieces, forced, strict=True) for _ in parts]
        written = decode(
            model,
            flat,
            flat_forced,
            pad_token_id=pretrained.tokenizer.pad_token_id,
            tokens_per_batch=tokens_per_batch,
            beams=beams,
            length_penalty=length_penalty,
            on_batch=on_batch,
            logits_processor=logits_processor,
        )
        texts = iter(pretrained.tokenizer.batch_decode(written, skip_special_tokens=True))
        translations = np.empty(len(pieces), dtype=object)
        for row, parts in enumerate(pieces):
            translations[row] = " ".join(text.strip() for text in (next(texts) for _ in parts)).strip()
        return translations

    def to_predictions(
        self, rows: Dataset, translations: np.ndarray, metrics: Sequence[str], tokenize: str
    ) -> Predictions:
        """Translations, references and the statistics that scores are made of."""
        import numpy as np

        from hf_transfer.translation_scores import sentence_statistics

        references = np.array(rows["reference"][:], dtype=object)
        statistics = sentence_statistics(list(translations), list(references), metrics, rows["source"][:], tokenize)
        return Predictions(
            example_ids=np.asarray(rows["example_id"][:]),
            domain_ids=np.asarray(rows["domain"][:]),
            predicted=translations,
            reference=references,
            probabilities=statistics,
        )


def tagged(texts: Sequence[str], domains: Sequence[str], labels: LabelSpace) -> list[str]:
    """``texts`` behind the tag of their domain, where the run has tags.

    A tag is plain text (``emea: ...``), so that the vocabulary and the saved model stay what they are; Chu, Dabre and
    Kurohashi (2017) put a token of its own there.
    """
    if not labels.tags:
        return list(texts)
    return [f"{tag_of(domain, labels)}: {text}" for text, domain in zip(texts, domains, strict=True)]


def tag_of(domain: str, labels: LabelSpace) -> str:
    """The tag of a domain; "" where the run has none."""
    return (domain if domain in labels.tags else GENERAL_TAG) if labels.tags else ""


def _encode_rows(
    rows: Dataset,
    labels: LabelSpace,
    pretrained: Pretrained,
    convention: Convention,
    max_length: int,
    for_training: bool = True,
) -> tuple[Dataset, list[str]]:
    """Encoded rows, and the places of those that are over the limit: left out of training, split up elsewhere."""
    from datasets import Dataset

    from hf_transfer import languages

    tokenizer = pretrained.tokenizer
    start = languages.decoder_start(pretrained.model)
    columns: dict[str, list[Any]] = {name: [] for name in (_TRAINED if for_training else (*_TRAINED, *_TRANSLATED))}
    over: list[str] = []
    for batch in _batches(rows):
        prefix = labels.source_prefix
        source_langs, target_langs = (
            [language or of_all for language in _resolved(batch, side, convention, tokenizer, prefix)]
            for side, of_all in (("source", labels.source_lang), ("target", labels.target_lang))
        )
        texts = tagged(batch["source"], batch["domain"], labels)
        sources = languages.encode_source(convention, tokenizer, texts, source_langs, target_langs, prefix)
        targets = languages.encode_target(convention, tokenizer, batch["target"], target_langs)
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            is_over = len(source) > max_length or (for_training and len(target) > max_length)
            if is_over:
                over.append(batch["place"][i])
                if for_training:
                    continue
            columns["example_id"].append(batch["example_id"][i])
            columns["domain"].append(batch["domain"][i])
            columns["input_ids"].append(source)
            columns["decoder_input_ids"].append([start, *target[:-1]])
            columns["labels"].append(target)
            columns["length"].append(len(source) + (len(target) if for_training else 0))
            if for_training:
                continue
            columns["source"].append(batch["source"][i])
            columns["reference"].append(batch["target"][i])
            forced = languages.forced_bos(convention, tokenizer, target_langs[i])
            columns["forced"].append(-1 if forced is None else forced)
            columns["pieces"].append(
                [source]
                if not is_over
                else _split_up(
                    batch["source"][i],
                    batch["domain"][i],
                    labels,
                    convention,
                    tokenizer,
                    source_langs[i],
                    target_langs[i],
                    max_length,
                )
            )
    return Dataset.from_dict(columns), over


_READ = ["example_id", "place", "domain", "source", "target", "source_lang", "target_lang"]
_TRAINED = ("example_id", "domain", "input_ids", "decoder_input_ids", "labels", "length")
_TRANSLATED = ("source", "reference", "forced", "pieces")
ROWS_AT_ONCE = 10_000


def _split_up(
    text: str,
    domain: str,
    labels: LabelSpace,
    convention: Convention,
    tokenizer: Any,
    source_lang: str,
    target_lang: str,
    max_length: int,
) -> list[list[int]]:
    """Token ids of each part of a text that is too long as a whole; every part has the prefix and the tag."""
    from hf_transfer.languages import encode_source
    from hf_transfer.long_texts import split_long

    def ids(part: str) -> list[int]:
        texts = tagged([part], [domain], labels)
        (encoded,) = encode_source(convention, tokenizer, texts, source_lang, target_lang, labels.source_prefix)
        return encoded

    return [ids(part) for part in split_long(text, lambda part: len(ids(part)), max_length)]


def _batches(rows: Dataset) -> Iterator[dict[str, list[Any]]]:
    for batch in rows.select_columns(_READ).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield {name: batch[name].to_pylist() for name in _READ}


def _resolved(
    batch: Mapping[str, Sequence[str]], side: str, convention: Convention, tokenizer: Any, prefix: str
) -> list[str]:
    """Languages of each row on one ``side`` in the checkpoint's form, "" where the row names none."""
    from hf_transfer.languages import resolve_language

    column = batch[f"{side}_lang"]
    forms = {"": ""}
    for language in set(column) - {""}:
        forms[language] = resolve_language(convention, tokenizer, side, language, prefix)
    return [forms[language] for language in column]


def _settled_languages(labels: LabelSpace, convention: Convention, tokenizer: Any, data: DataConfig) -> tuple[str, str]:
    """Source and target language in the checkpoint's form; "" on a side where examples have several.

    Raises:
        InputError: a language that the checkpoint does not know, or needs and is not told; of both sides at once.
    """
    from hf_transfer.languages import resolve_language

    found: list[str] = []
    problems: list[str] = []
    for side in ("source", "target"):
        language = getattr(labels, f"{side}_lang")
        if getattr(data, f"{side}_lang_column") and not language:  # examples have their own, so none need hold for all
            found.append("")
            continue
        try:
            found.append(resolve_language(convention, tokenizer, side, language, data.source_prefix))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found[0], found[1]


def _check_unknown(rows: Dataset, pretrained: Pretrained) -> None:
    from hf_transfer.languages import unknown_share

    some = rows.select(range(min(TEXTS_LOOKED_AT, len(rows))))
    problems = []
    for side in ("source", "target"):
        share, examples = unknown_share(pretrained.tokenizer, list(some[side]), side)
        if share > MOST_UNKNOWN:
            problems.append(
                f"--model.checkpoint {pretrained.checkpoint_id}: its tokenizer knows nothing of {share:.1%} of the "
                f"{side} characters of train ({examples}): choose a checkpoint for this language, or learn a "
                "vocabulary with scratch:marian-small."
            )
    if problems:
        raise InputError(problems)


def _language(rows: Dataset, data: DataConfig, side: str) -> str:
    """The language that holds for all ``rows`` on one side (``source_lang``); "" where there is none."""
    given, named = getattr(data, side) or "", _only_value(rows, side)
    return named or given if getattr(data, f"{side}_column") else given or named


def _only_value(rows: Dataset, column: str) -> str:
    """The one language that all rows name; "" where they name none or several."""
    values = set(rows.unique(column)) if len(rows) else set()
    return str(values.pop()) if len(values) == 1 else ""


def _shown(places: Sequence[str]) -> str:
    more = f" and {len(places) - PLACES_SHOWN:,} more" if len(places) > PLACES_SHOWN else ""
    return ", ".join(places[:PLACES_SHOWN]) + more
