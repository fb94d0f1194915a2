"""Floor 4: the answer in a few sentences, composed from a comparison's numbers and never stronger than they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.report.results import (
    format_amount,
    format_difference,
    format_interval,
    format_value,
    metric_words,
)

NAMES = {
    "full": "full fine-tuning",
    "freeze": "partial fine-tuning",
    "lora": "LoRA",
    "probe": "the probe",
    "scratch": "training from scratch",
    "tfidf": "TF-IDF with logistic regression",
    "majority": "the majority class",
    "before": "the checkpoint before adapting",
    "mixed": "mixed fine-tuning",
    "interpolated": "weight interpolation",
    "knn": "kNN-MT",
}
NAMES_IN_TRANSLATION = NAMES | {"before": "the checkpoint as it comes"}
"""There the checkpoint knows the task, and is what counts as no transfer."""
REFERENCES = ("scratch", "before", "tfidf", "majority")
"""The control of the first sentence is the first of these that was run: no transfer, before cheap baselines."""


FEWEST_EXAMPLES = 30
"""Test examples of a domain below which no verdict is given: an interval of 29 is some 30 points wide."""
MEANS = {"in_domain": "in-domain", "shifted": "shifted domains"}
"""What comparisons call the domains of a role together."""
NO_TEST = ("too few examples", "undefined")
"""Verdicts that say that nothing was tested."""
ENOUGH_KEPT = 0.8
"""Share of the largest in-domain gain from which a strategy that forgets less is worth a word."""
MOST_LISTED = 3
"""Domains up to which a sentence names them; more are counted."""


def answer(results: Mapping[str, Any]) -> list[str]:
    """Three sentences or so, as plain text: the gain over no transfer, the other strategies, what is lost elsewhere.

    The strategy spoken of is the best on in-domain validation, never on what is reported. Where TF-IDF is not beaten,
    that comes first. With several directions the sentences count sources in place of naming one. What an interval is,
    the first one says.
    """
    best = best_strategy(results)
    if best is not None:
        one = _Translation if results["problem"] == "translation" else _OneDirection
        say = (one if len(results["directions"]) == 1 else _ManyDirections)(results, best)
        sentences = [*say.cheap_baseline(), *say.gain(), *say.others(), *say.shift()]
    elif results["strategies"]:
        sentences = ["transfer without target labels was not measured: no such run is there."]
    else:
        sentences = ["no strategy was trained: the tables show controls only."]
    sentences += _target_labels(results, best)
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def best_strategy(results: Mapping[str, Any]) -> str | None:
    """The strategy with the best mean score on in-domain validation, over the directions that all of them learnt.

    The first one where nothing was validated; None where no strategy ran without labels of the target.
    """
    sign = 1 if results["higher_is_better"] else -1
    trained = [name for name in results["strategies"] if any(row["strategy"] == name for row in results["summary"])]
    known = {
        name: {
            row["direction"]: sign * row["validation"]
            for row in results["summary"]
            if row["strategy"] == name and row["validation"] is not None
        }
        for name in trained
    }
    validated = [values for values in known.values() if values]
    common = set.intersection(*map(set, validated)) if validated else set()

    def mean(name: str) -> float:
        values = [value for direction, value in known[name].items() if direction in common or not common]
        return float(np.mean(values)) if values else -np.inf

    return max(trained, key=mean, default=None)


def family_of(item: Mapping[str, Any]) -> tuple[str, bool]:
    """What a comparison is corrected together with: its question, and whether it is about a role as a whole.

    That is a mean over the role's domains, or its domain where it has a single one.
    """
    return item["question"], item["domain"] in MEANS.values() or bool(item.get("alone_in_role"))


class _Sentences:
    """What both kinds of answer need."""

    def __init__(self, results: Mapping[str, Any], best: str) -> None:
        self.results, self.best = results, best
        self.metric, self.rises = results["metric"], results["higher_is_better"]
        is_translation = results["problem"] == "translation"
        self.names = NAMES_IN_TRANSLATION if is_translation else NAMES
        self.level = f"{100 * results['confidence']:g}% interval "  # "" once it was said

    def compared(
        self, direction: Mapping[str, Any], question: str, a: str, b: str, role: str
    ) -> Mapping[str, Any] | None:
        """``a`` against ``b`` on the domains of ``role`` together, whichever way it was put; None where it was not."""
        own = self.tested(direction, role)
        for place in (MEANS[role], own[0]) if len(own) == 1 else (MEANS[role],):
            for item in self.results["comparisons"]:
                if (item["question"], item["direction"], item["domain"]) == (question, direction["name"], place):
                    if (item["a"], item["b"]) == (a, b):
                        return item
                    if (item["a"], item["b"]) == (b, a):
                        return _turned(item)
        return None

    def tested(self, direction: Mapping[str, Any], role: str) -> list[str]:
        """Test domains of a role, in their order."""
        own = direction["train_domains"]
        return [name for name in self.results["data"]["test_domains"] if (name in own) == (role == "in_domain")]

    def interval(self, item: Mapping[str, Any]) -> str:
        """``2.0 to 6.2``, with its level in front the first time; "" where there is none.

        One without 0 may belong to a difference that is no finding, as there are many: that is said beside it.
        """
        interval = format_interval({**item, "metric": self.metric, "value": item["difference"]})
        if not interval:
            return ""
        level, self.level = self.level, ""
        if item["verdict"] == "no evidence" and (item["low"] > 0 or item["high"] < 0):
            others = [other for other in self.results["comparisons"] if family_of(other) == family_of(item)]
            count = sum(other["p_adjusted"] is not None for other in others)
            return f"{level}{interval}, not beyond luck among {count:,} comparisons"
        return level + interval

    def size(self, item: Mapping[str, Any]) -> str:
        """``4.1 points (2.0 to 6.2)``, or ``4.1 BLEU``."""
        size, interval = format_amount(self.metric, item["difference"]), self.interval(item)
        return f"{size} ({interval})" if interval else size

    def signed(self, item: Mapping[str, Any]) -> str:
        """``+4.1 points, 2.0 to 6.2``, for brackets."""
        size, interval = format_difference(self.metric, item["difference"]), self.interval(item)
        sign = "+" if (item["difference"] or 0) > 0 else ""
        return f"{sign}{size}, {interval}" if interval else f"{sign}{size}"

    def moves(self, item: Mapping[str, Any]) -> str:
        """``gains 4.1 points (2.0 to 6.2)``; of an error, which should fall, ``lowers mean absolute error by``."""
        is_better = item["verdict"] == "helps"
        size = self.size(item if is_better else _turned(item))
        if self.rises:
            return f"{'gains' if is_better else 'loses'} {size}"
        return f"{'lowers' if is_better else 'raises'} {metric_words(self.metric)} by {size}"

    def subject(self) -> str:
        return f"{self.names[self.best]} {'with' if self.best == 'knn' else 'of'} {_checkpoint(self.results)}"


class _OneDirection(_Sentences):
    """Sentences about a single set of train domains."""

    def __init__(self, results: Mapping[str, Any], best: str) -> None:
        super().__init__(results, best)
        self.direction = results["directions"][0]
        self.row = next(row for row in results["summary"] if row["strategy"] == best)
        self.role = "in_domain" if self.tested(self.direction, "in_domain") else "shifted"
        self.home = self._named(self.tested(self.direction, self.role), self.role)

    def _against(self, other: str, question: str) -> Mapping[str, Any] | None:
        """``best`` against ``other`` at home; elsewhere, where no train domain is tested."""
        return self.compared(self.direction, question, self.best, other, self.role)

    def cheap_baseline(self) -> Iterable[str]:
        found = self._against("tfidf", "control")
        if found is None or found["verdict"] == "helps":
            return
        best, bag = self.names[self.best], self.names["tfidf"]
        if found["verdict"] == "too few examples":
            yield f"there are too few test examples to say whether {best} beats {bag}."
        elif found["verdict"] == "undefined":
            yield f"the difference between {best} and {bag} on {self.home} is undefined."
        elif found["verdict"] == "hurts":
            size = self.size(_turned(found))
            yield f"{bag} is better than {best} on {self.home}, by {size}: a transformer does not pay here."
        else:
            yield f"there is no evidence that {best} beats {bag} on {self.home}: the difference is {self.size(found)}."

    def gain(self) -> Iterable[str]:
        value = self.row[f"{self.role}_mean"]
        words = metric_words(self.metric)
        if value is None:
            yield f"{self.subject()} has no defined {words} on {self.home}."
            return
        reached = f"{format_value(self.metric, value)} {words}"
        compared = ((other, self._against(other, "control")) for other in REFERENCES)
        there = [(other, found) for other, found in compared if found is not None]
        defined = [(other, found) for other, found in there if found["verdict"] != "undefined"]
        other, found = (*defined, *there, ("", None))[0]
        if found is None:
            yield f"{self.subject()} reaches {reached} on {self.home}; no control stands beside it."
        elif other == "tfidf" and found["verdict"] != "helps":  # which the first sentence has said
            yield f"{self.subject()} reaches {reached} there."
        elif found["verdict"] == "too few examples":
            yield f"{self.subject()} reaches {reached} on {self.home}: too few test examples for a conclusion."
        elif found["verdict"] == "undefined":
            reference = self.names[other]
            yield f"{self.subject()} reaches {reached} on {self.home}; the difference from {reference} is undefined."
        elif found["verdict"] != "no evidence":
            against = "over" if found["verdict"] == "helps" and self.rises else "against"
            end = f"reaching {reached if self.rises else format_value(self.metric, value)}"
            yield f"{self.subject()} {self.moves(found)} {against} {self.names[other]} on {self.home}, {end}."
        else:
            yield (
                f"{self.subject()} reaches {reached} on {self.home}, with no evidence of a difference from "
                f"{self.names[other]} ({self.signed(found)})."
            )

    def others(self) -> Iterable[str]:
        found_by_verdict: dict[str, list[str]] = {}
        for name in self.results["strategies"]:
            found = self._against(name, "strategies") if name != self.best else None
            if found is not None and found["verdict"] != "too few examples":
                turned = _turned(found)
                words = f"{self.names[name]} ({self.signed(turned)})"
                found_by_verdict.setdefault(turned["verdict"], []).append(words)
        parts = []
        if "helps" in found_by_verdict:
            parts.append(f"better on the test examples: {_listed(found_by_verdict['helps'])}")
        if "no evidence" in found_by_verdict:
            equal = found_by_verdict["no evidence"]
            parts.append(f"no evidence that {_listed(equal)} {'is' if len(equal) == 1 else 'are'} better or worse")
        if "hurts" in found_by_verdict:
            parts.append(f"worse: {_listed(found_by_verdict['hurts'])}")
        if parts:
            was_validated = self.row["validation"] is not None
            why = "was chosen on in-domain validation" if was_validated else "was named first, nothing being validated"
            yield f"it {why}; {'; '.join(parts)}."

    def shift(self) -> Iterable[str]:
        shifted = self.tested(self.direction, "shifted")
        found = next((c for c in self.results["comparisons"] if c["question"] == "shift" and c["a"] == self.best), None)
        outside = f"outside its train {'domain' if len(self.direction['train_domains']) == 1 else 'domains'}"
        if not shifted:
            yield f"no shifted domain was scored: nothing is known of a loss {outside}."
        elif found is None:
            return  # no train domain was scored to compare with
        elif found["verdict"] == "too few examples":
            yield f"there are too few test examples to say what is lost {outside}."
        elif found["verdict"] == "undefined":
            yield f"the loss {outside} is undefined."
        elif found["verdict"] == "no evidence":
            gap = self.size(_turned(found))
            yield f"there is no evidence of a loss {outside}: the gap is {gap}{self._worst(shifted)}."
        else:
            mean = " on average" if len(shifted) > 1 else ""
            if self.rises:
                moves = f"it {self.moves(found)}"
            else:
                size = self.size(found if found["verdict"] == "helps" else _turned(found))
                verb = "falls" if found["verdict"] == "helps" else "rises"
                moves = f"its {metric_words(self.metric)} {verb} by {size}"
            yield f"{outside} {moves}{mean}{self._worst(shifted)}."

    def _worst(self, shifted: Sequence[str]) -> str:
        """The shifted domain with the worst score, of those with enough examples for a verdict."""
        scores = {
            score["domain"]: score["value"]
            for score in self.results["scores"]
            if (score["strategy"], score["seed"], score["metric"]) == (self.best, None, self.metric)
            and score["domain"] in shifted
            and not score["target_examples"]
            and score["value"] is not None
            and score["count"] >= FEWEST_EXAMPLES
        }
        if not scores:
            return ""
        worst = (min if self.rises else max)(scores, key=lambda domain: scores[domain])
        value = format_value(self.metric, scores[worst])
        return f", worst on {worst} ({value})" if len(shifted) > 1 else f", with {value} on {worst}"

    @staticmethod
    def _named(domains: Sequence[str], role: str) -> str:
        if len(domains) <= MOST_LISTED:
            return _listed(domains)
        return f"its {len(domains)} train domains" if role == "in_domain" else f"{len(domains)} shifted domains"


class _Translation(_OneDirection):
    """Sentences about translation: gained at home, forgotten elsewhere, both against the checkpoint as it comes."""

    def gain(self) -> Iterable[str]:
        value, found = self.row[f"{self.role}_mean"], self._against("before", "control")
        if value is None or found is None or found["verdict"] in NO_TEST:
            yield from super().gain()
            return
        reached = f"{format_value(self.metric, value)} {metric_words(self.metric)}"
        if found["verdict"] == "no evidence":
            start = f"{self.subject()} reaches {reached} in {self.home}, with no evidence of a difference from "
            yield start + f"{self.names['before']} ({self.signed(found)}){self._scratch()}."
        else:
            against = "over" if found["verdict"] == "helps" and self.rises else "against"
            start = f"{self.subject()} {self.moves(found)} in {self.home} {against} {self.names['before']}"
            yield f"{start}, reaching {reached}{self._scratch()}."

    def _scratch(self) -> str:
        """What training from scratch says to it, as the end of the sentence."""
        found, name = self._against("scratch", "control"), self.names["scratch"]
        if found is None or found["verdict"] in NO_TEST:
            return ""
        if found["verdict"] == "no evidence":
            return f"; there is no evidence that it is better or worse than {name} ({self.signed(found)})"
        is_better = found["verdict"] == "helps"
        return (
            f"; {name} is {'worse' if is_better else 'better'} by {self.size(found if is_better else _turned(found))}"
        )

    def shift(self) -> Iterable[str]:
        shifted = self.tested(self.direction, "shifted")
        found = self.compared(self.direction, "control", self.best, "before", "shifted")
        where = (
            f"on average over {len(shifted)} other domains" if len(shifted) > 1 else f"in {self._named(shifted, '')}"
        )
        if not shifted:
            yield "no other domain was scored: nothing is known of what was forgotten."
        elif found is None:
            yield "without the control `before` nothing is known of what was forgotten in other domains."
        elif found["verdict"] == "too few examples":
            yield "there are too few test examples to say what was forgotten in other domains."
        elif found["verdict"] == "undefined":
            yield "what was forgotten in other domains is undefined."
        elif found["verdict"] == "no evidence":
            yield f"there is no evidence of a change {where}: {self.signed(found)}."
        else:
            rows = {row["strategy"]: row for row in self.results["ledger"]}
            most = _most_lost(self.metric, rows[self.best]) if found["verdict"] == "hurts" else ""
            yield f"elsewhere it {self.moves(found)} {where}{most}."
            if found["verdict"] == "hurts":
                yield from self._keeper(rows)

    def _keeper(self, rows: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
        """Of the strategies whose own gain is most of the largest, the one that loses least elsewhere, if less."""
        lost = rows[self.best]["shifted"]["difference"]
        others = {
            name: row["shifted"]
            for name, row in rows.items()
            if (row["kept"] or 0) >= ENOUGH_KEPT
            and row["in_domain"]["verdict"] == "helps"
            and (row["shifted"]["difference"] or lost) > lost
        }
        if not others:
            return
        name = max(others, key=lambda name: others[name]["difference"])
        found = self.compared(self.direction, "control", name, "before", "shifted")
        if found is None or found["verdict"] in NO_TEST:
            return
        is_clear = found["verdict"] != "no evidence"
        moves = self.moves(found) if is_clear else f"shows no evidence of a change ({self.signed(found)})"
        yield f"{self.names[name]} keeps {rows[name]['kept']:.0%} of the largest gain and {moves} elsewhere."

    @staticmethod
    def _named(domains: Sequence[str], role: str) -> str:
        return _listed(domains) if 0 < len(domains) <= MOST_LISTED else f"{len(domains)} domains"


def _most_lost(metric: str, row: Mapping[str, Any]) -> str:
    """``, most in koran (-8.1 points)``; "" where one domain is all there is."""
    for item in row["domains"]:
        if item["domain"] == row["worst_domain"] and row["shifted"]["domains"] > 1 and item["difference"] < 0:
            return f", most in {item['domain']} ({format_difference(metric, item['difference'])})"
    return ""


class _ManyDirections(_Sentences):
    """Sentences about several sources, counting them."""

    def __init__(self, results: Mapping[str, Any], best: str) -> None:
        super().__init__(results, best)
        self.directions = results["directions"]
        is_single = all(len(direction["train_domains"]) == 1 for direction in self.directions)
        self.source, self.inside = (
            ("domain", "its train domain") if is_single else ("set of domains", "its train domains")
        )

    def _counts(self, other: str, question: str, role: str) -> Counter[str]:
        """How often each verdict was given on ``best`` against ``other``, where their difference is defined."""
        found = (self.compared(direction, question, self.best, other, role) for direction in self.directions)
        return Counter(item["verdict"] for item in found if item is not None and item["verdict"] != "undefined")

    def cheap_baseline(self) -> Iterable[str]:
        counts = self._counts("tfidf", "control", "in_domain") or self._counts("tfidf", "control", "shifted")
        total = counts.total()
        best, bag = self.names[self.best], self.names["tfidf"]
        if total and counts["too few examples"] == total:
            yield f"there are too few test examples to say whether {best} beats {bag}."
        elif total and counts["helps"] <= total / 2:
            number = f"only {counts['helps']}" if counts["helps"] else "none"
            lost = f", and loses to it for {counts['hurts']}" if counts["hurts"] else ""
            yield f"in {self.inside} {best} beats {bag} for {number} of {total} sources{lost}."

    def gain(self) -> Iterable[str]:
        words = metric_words(self.metric)
        number = len({row["direction"] for row in self.results["summary"] if row["strategy"] == self.best})
        values = {role: self._mean(f"{role}_mean") for role in ("in_domain", "shifted")}
        places = {"in_domain": f"in {self.inside}", "shifted": "elsewhere"}
        reached = [
            f"{format_value(self.metric, values[role])} {places[role]}" for role in values if values[role] is not None
        ]
        source = f"each of {number} domains" if self.source == "domain" else f"each of {number} sets of domains"
        if number < len(self.directions):
            source += f" (of {len(self.directions)})"
        if reached:
            yield f"{self.subject()}, trained on {source}, reaches a mean {words} of {' and '.join(reached)}."
        else:
            yield f"{self.subject()}, trained on {source}, has no defined mean {words}."

    def others(self) -> Iterable[str]:
        parts = []
        for name in (*self.results["strategies"], *self.results["controls"]):
            question = "control" if name in self.results["controls"] else "strategies"
            counts = self._counts(name, question, "shifted")
            if name != self.best and counts:
                worse = f" (worse for {counts['hurts']})" if counts["hurts"] else ""
                parts.append(f"{self.names[name]} for {counts['helps']} of {counts.total()} sources{worse}")
        if parts:
            yield f"elsewhere it is better than {_listed(parts)}."

    def shift(self) -> Iterable[str]:
        found = [c for c in self.results["comparisons"] if c["question"] == "shift" and c["a"] == self.best]
        in_domain, shifted = self._mean("in_domain_mean"), self._mean("shifted_mean")
        verdicts = Counter(item["verdict"] for item in found)
        outside = f"outside {self.inside}"
        if verdicts["undefined"] and sum(verdicts[name] for name in NO_TEST) == len(found):
            yield f"the loss {outside} is undefined."
            return
        if not found or in_domain is None or shifted is None:
            return
        gap = format_difference(self.metric, (in_domain - shifted) if self.rises else (shifted - in_domain))
        if verdicts["hurts"]:
            gains = f", a gain for {verdicts['helps']}" if verdicts["helps"] else ""
            yield (
                f"{outside} there is a loss beyond noise for {verdicts['hurts']} of {len(found)} sources{gains}; "
                f"the mean gap is {gap}."
            )
        elif verdicts["too few examples"] == len(found):
            yield f"there are too few test examples to say what is lost {outside}."
        else:
            yield f"there is no evidence of a loss {outside} for any of {len(found)} sources: the mean gap is {gap}."

    def _mean(self, field: str) -> float | None:
        values = [row[field] for row in self.results["summary"] if row["strategy"] == self.best]
        return float(np.mean(values)) if values and None not in values else None


VERBS = {
    "helps": "helps with {}",
    "hurts": "hurts with {}",
    "no evidence": "makes no difference beyond noise with {}",
    "too few examples": "cannot be judged with {}, for want of test examples",
    "undefined": "makes a difference that is undefined with {}",
}
"""What adding the source does, by verdict."""


def _target_labels(results: Mapping[str, Any], best: str | None) -> Iterable[str]:
    """Where the source helped or hurt beside labelled target examples."""
    asked = [item for item in results["comparisons"] if item["question"] == "negative_transfer"]
    strategies = dict.fromkeys(item["a"].split(",")[0] for item in asked)
    if not strategies:
        return
    name = best if best is not None and best in strategies else next(iter(strategies))
    found = [item for item in asked if item["a"].split(",")[0] == name]
    by_domain: dict[str, list[Mapping[str, Any]]] = {}
    for item in found:
        by_domain.setdefault(item["domain"], []).append(item)
    what = "adding the source to labelled target examples" + ("" if name == best else f", with {NAMES[name]},")
    if len(by_domain) > MOST_LISTED:
        counts = Counter(item["verdict"] for item in found)
        yield (
            f"on {len(by_domain)} target domains, {what} helps in {counts['helps']} and hurts in {counts['hurts']} of "
            f"{len(found)} comparisons."
        )
        return
    for domain, items in by_domain.items():
        sizes: dict[str, list[str]] = {}
        for item in items:
            sizes.setdefault(item["verdict"], []).append(f"{item['target_examples']:,}")
        parts = [VERBS[verdict].format(_listed(counts)) for verdict, counts in sizes.items()]
        yield f"on {domain}, {what} {', '.join(parts)}."


def _turned(item: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison seen from the other side."""

    def negative(value: float | None) -> float | None:
        return None if value is None else -value

    other = {"helps": "hurts", "hurts": "helps"}
    return {
        **item,
        "a": item["b"],
        "b": item["a"],
        "difference": negative(item["difference"]),
        "low": negative(item["high"]),
        "high": negative(item["low"]),
        "verdict": other.get(item["verdict"], item["verdict"]),
    }


def _checkpoint(results: Mapping[str, Any]) -> str:
    """The checkpoint's id; of one inside a Python package only the package."""
    name = results["checkpoint"]["id"] or "the checkpoint"
    return name.removeprefix("package:").removesuffix("/model") if name.startswith("package:") else name


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
