"""Decoding: every answer is that of stock ``generate`` for its source alone, whatever else is in the batch."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_translation import FAMILIES, PAIRS, make_translation_checkpoint
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_transfer.decoding import ForcedTokens, decode, end_tokens, most_new_tokens

SOURCES = [PAIRS[which][0] for which in (0, 57, 8, 50, 31, 53)]


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """A tiny model and tokenizer per family, opened when first asked for."""

    class Opened(dict[str, tuple[Any, Any]]):
        def __missing__(self, family: str) -> tuple[Any, Any]:
            folder = make_translation_checkpoint(family, Path(tmp_path_factory.mktemp(family)))
            self[family] = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            return self[family]

    return Opened()


def stock(model: Any, source: list[int], first: int | None, beams: int, **settings: Any) -> list[int]:
    """Tokens between start and end of plain ``generate`` for one source."""
    own = model.generation_config
    written = model.generate(
        input_ids=torch.tensor([source]),
        max_length=1 + most_new_tokens(len(source), getattr(model.config, "max_position_embeddings", None)),
        forced_bos_token_id=own.forced_bos_token_id if first is None else first,
        forced_eos_token_id=own.eos_token_id,
        num_beams=beams,
        do_sample=False,
        early_stopping=own.early_stopping if beams > 1 else None,
        **settings,
    )[0].tolist()
    written = written[1:] if first is None and own.forced_bos_token_id is None else written[2:]
    written = written[: written.index(own.eos_token_id)]
    return [token for token in written if token != own.pad_token_id]


GREEDY = [
    pytest.param(family, 1, marks=() if family in ("marian", "mbart-50") else pytest.mark.slow) for family in FAMILIES
]


@pytest.mark.parametrize(("family", "beams"), [*GREEDY, *((family, 3) for family in FAMILIES)])
def test_batches_give_what_stock_generate_gives_for_each_source_alone(
    opened: dict[str, tuple[Any, Any]], family: str, beams: int
) -> None:
    model, tokenizer = opened[family]
    model.eval()
    sources = tokenizer(SOURCES)["input_ids"]
    some = len(tokenizer) - 7
    forced = [None, some, some - 1, some] * 2 if family in ("m2m100", "nllb", "mbart-50") else [None] * 8
    forced = forced[: len(sources)]
    expected = [stock(model, source, first, beams) for source, first in zip(sources, forced, strict=True)]
    assert len({tuple(answer) for answer in expected}) > 3, "answers that do not depend on the source prove nothing"
    found = decode(model, sources, forced, tokenizer.pad_token_id, tokens_per_batch=80 * beams, beams=beams)
    assert found == expected


@pytest.mark.parametrize("beams", [1, 2])
def test_neither_budget_nor_neighbours_change_an_answer(opened: dict[str, tuple[Any, Any]], beams: int) -> None:
    model, tokenizer = opened["marian"]
    sources = tokenizer(SOURCES)["input_ids"]
    together = decode(model, sources, [None] * len(sources), tokenizer.pad_token_id, 10**6, beams)
    alone = decode(model, sources, [None] * len(sources), tokenizer.pad_token_id, 1, beams)
    assert together == alone
    limits = [2 * len(source) + 20 for source in sources]
    assert any(len(answer) == limit - 1 for answer, limit in zip(alone, limits, strict=True)), "no limit was reached"
    assert all(len(answer) < limit for answer, limit in zip(alone, limits, strict=True))


def test_sources_that_have_no_room_together_are_written_in_pieces(opened: dict[str, tuple[Any, Any]]) -> None:
    model, tokenizer = opened["marian"]
    sources = tokenizer(SOURCES)["input_ids"]
    wanted = decode(model, sources, [None] * len(sources), tokenizer.pad_token_id, 10**6, 2)
    seen, counted = [], []

    def no_more_room(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with model.get_encoder().register_forward_pre_hook(no_more_room, with_kwargs=True):
        found = decode(model, sources, [None] * len(sources), tokenizer.pad_token_id, 10**6, 2, on_batch=counted.append)
    assert found == wanted
    assert sum(counted) == len(sources) == seen[0] and max(counted) <= 2


def test_the_model_and_its_settings_are_left_as_they_were_and_nothing_is_said(
    opened: dict[str, tuple[Any, Any]], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = opened["marian"]
    model = copy.deepcopy(model).train()
    model.model.encoder.eval()
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9, early_stopping=True, length_penalty=0.5)
    before = model.generation_config.to_dict()
    sources = tokenizer(SOURCES[:3])["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = decode(model, sources, [None] * 3, tokenizer.pad_token_id)
        decode(model, sources, [None] * 3, tokenizer.pad_token_id, beams=2, length_penalty=0.6)
    assert first == decode(model, sources, [None] * 3, tokenizer.pad_token_id), "sampling and dropout are off"
    assert model.generation_config.to_dict() == before
    assert model.training and model.model.decoder.layers[0].training and not model.model.encoder.training
    assert not caplog.records and capsys.readouterr().err == ""


def test_the_length_penalty_is_that_of_the_call(opened: dict[str, tuple[Any, Any]]) -> None:
    model, tokenizer = opened["marian"]
    model = copy.deepcopy(model).eval()
    model.final_logits_bias[0, 0] = 2.0  # so that answers end before their limits
    sources = tokenizer(SOURCES)["input_ids"]
    answers = {}
    for penalty in (-2.0, 2.0):
        answers[penalty] = decode(
            model, sources, [None] * len(sources), tokenizer.pad_token_id, 400, beams=3, length_penalty=penalty
        )
        assert answers[penalty] == [stock(model, source, None, 3, length_penalty=penalty) for source in sources]
    assert sum(map(len, answers[-2.0])) < sum(map(len, answers[2.0]))


def test_a_forced_token_of_the_models_own_settings_holds_where_none_is_given(
    opened: dict[str, tuple[Any, Any]],
) -> None:
    model, tokenizer = opened["m2m100"]
    model = copy.deepcopy(model)
    german = tokenizer.get_lang_id("de")
    french = tokenizer.get_lang_id("fr")
    sources = tokenizer(SOURCES)["input_ids"]
    given = decode(model, sources, [german] * len(sources), tokenizer.pad_token_id)
    model.generation_config.forced_bos_token_id = german
    assert decode(model, sources, [None] * len(sources), tokenizer.pad_token_id) == given
    assert decode(model, sources, [french] * len(sources), tokenizer.pad_token_id) != given


def test_processors_see_the_models_scores_and_may_change_the_answer(opened: dict[str, tuple[Any, Any]]) -> None:
    model, tokenizer = opened["m2m100"]
    seen: list[tuple[int, bool]] = []

    def only_seven(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append((input_ids.shape[1], bool(scores.isfinite().all())))
        return torch.full_like(scores, -10.0).index_fill(1, torch.tensor([7]), 0.0)

    source = tokenizer(SOURCES[:1])["input_ids"]
    german = tokenizer.get_lang_id("de")
    answer = decode(model, source, [german], tokenizer.pad_token_id, logits_processor=[only_seven])
    limit = 2 * len(source[0]) + 20
    assert answer == [[7] * (limit - 2)], "all but the forced first and last"
    assert seen == [(position, True) for position in range(1, limit + 1)]


def test_progress_counts_every_source_and_nothing_gives_nothing(opened: dict[str, tuple[Any, Any]]) -> None:
    model, tokenizer = opened["marian"]
    counts: list[int] = []
    sources = tokenizer(SOURCES)["input_ids"]
    decode(model, sources, [None] * len(sources), tokenizer.pad_token_id, 60, on_batch=counts.append)
    assert sum(counts) == len(sources) and len(counts) > 2
    assert decode(model, [], [], tokenizer.pad_token_id) == []


def test_an_answer_stays_within_the_decoders_positions() -> None:
    assert most_new_tokens(10, None) == 40
    assert most_new_tokens(10, 512) == 40
    assert most_new_tokens(300, 512) == 511  # and the start token


def test_forcing_is_row_by_row_with_all_beams_of_a_row() -> None:
    processor = ForcedTokens([5, None], [3, 1], end=0, beams=2, device=torch.device("cpu"))
    scores = torch.arange(24.0).reshape(4, 6)
    first = processor(torch.zeros(4, 1, dtype=torch.long), scores)
    nothing = -torch.inf
    assert first[:2].tolist() == [[nothing] * 5 + [0.0]] * 2
    assert first[2:].tolist() == [[0.0] + [nothing] * 5] * 2
    second = processor(torch.zeros(4, 2, dtype=torch.long), scores)
    assert torch.equal(second[:2], scores[:2])
    assert second[2:].tolist() == [[0.0] + [nothing] * 5] * 2
    assert torch.equal(scores, torch.arange(24.0).reshape(4, 6)), "what it was given is left as it was"
    later = ForcedTokens([5, None], [9, 4], end=0, beams=2, device=torch.device("cpu"))
    assert all(later(torch.zeros(4, length, dtype=torch.long), scores) is scores for length in (2, 3))
    assert later(torch.zeros(4, 4, dtype=torch.long), scores)[2:].tolist() == [[0.0] + [nothing] * 5] * 2


def test_the_end_token_may_be_one_of_several(opened: dict[str, tuple[Any, Any]]) -> None:
    model, tokenizer = opened["marian"]
    model = copy.deepcopy(model)
    sources = tokenizer(SOURCES)["input_ids"]
    plain = decode(model, sources, [None] * len(sources), tokenizer.pad_token_id)
    other = next(answer for answer in plain if len(answer) > 3)[1]
    model.generation_config.eos_token_id = [0, other]
    assert end_tokens(model) == [0, other]
    for cut, whole in zip(decode(model, sources, [None] * len(sources), tokenizer.pad_token_id), plain, strict=True):
        assert cut == (whole[: whole.index(other)] if other in whole else whole)
