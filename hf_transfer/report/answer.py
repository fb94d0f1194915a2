"""Floor 4: the answer in a few sentences, composed from a comparison's numbers and never stronger than they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.report.results import format_difference, format_interval, format_value, metric_words

NAMES = {
    "full": "full fine-tuning",
    "freeze": "partial fine-tuning",
    "lora": "LoRA",
    "probe": "the probe",
    "scratch": "training from scratch",
    "tfidf": "TF-IDF with logistic regression",
    "majority": "the majority class",
    "before": "the checkpoint before adapting",
}
REFERENCES = ("scratch", "before", "tfidf", "majority")
"""The control of the first sentence is the first of these that was run: no transfer, before cheap baselines."""


def answer(results: Mapping[str, Any]) -> list[str]:
    """Three sentences or so, as plain text: the gain over no transfer, the other strategies, what is lost elsewhere.

    The strategy spoken of is the best on in-domain validation, never on what is reported. Where TF-IDF is not beaten,
    that comes first. With several directions the sentences count sources in place of naming one.
    """
    best = best_strategy(results)
    if best is None:
        return ["No strategy was trained: the tables show controls only."]
    say = _OneDirection(results, best) if len(results["directions"]) == 1 else _ManyDirections(results, best)
    sentences = [*say.cheap_baseline(), *say.gain(), *say.others(), *say.shift(), *_target_labels(results, best)]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences if sentence]


def best_strategy(results: Mapping[str, Any]) -> str | None:
    """The strategy with the best mean score on in-domain validation; the first one where nothing was validated."""
    sign = 1 if results["higher_is_better"] else -1
    means: dict[str, float] = {}
    for name in results["strategies"]:
        values = [row["validation"] for row in results["summary"] if row["strategy"] == name]
        known = [value for value in values if value is not None]
        means[name] = sign * float(np.mean(known)) if known else -np.inf
    return max(means, key=lambda name: means[name], default=None)


class _OneDirection:
    """Sentences about a single set of train domains."""

    def __init__(self, results: Mapping[str, Any], best: str) -> None:
        self.results, self.best = results, best
        self.row = next(row for row in results["summary"] if row["strategy"] == best)
        self.domains = results["directions"][0]["train_domains"]
        self.tested_at_home = self.row["in_domain_mean"] is not None

    def _against(self, other: str, question: str) -> Mapping[str, Any] | None:
        """``best`` against ``other`` at home (elsewhere, where no train domain is tested), whichever way it was put."""
        places = ["in-domain", *self.domains] if self.tested_at_home else ["shifted domains", *_tested(self.results)]
        for place in places:
            for item in self.results["comparisons"]:
                if item["question"] == question and item["domain"] == place and not item.get("target_examples"):
                    if (item["a"], item["b"]) == (self.best, other):
                        return item
                    if (item["a"], item["b"]) == (other, self.best):
                        return _turned(item)
        return None

    def cheap_baseline(self) -> Iterable[str]:
        found = self._against("tfidf", "control")
        if found is None or found["verdict"] == "helps":
            return
        if found["verdict"] == "too few examples":
            yield f"there are too few test examples to say whether {NAMES[self.best]} beats {NAMES['tfidf']}."
        elif found["verdict"] == "hurts":
            yield (
                f"{NAMES['tfidf']} is better than {NAMES[self.best]} on {self._home()}, by "
                f"{_size(self.results, _turned(found))}: a transformer does not pay here."
            )
        else:
            yield (
                f"there is no evidence that {NAMES[self.best]} beats {NAMES['tfidf']} on {self._home()}: it differs by "
                f"{_size(self.results, found)}."
            )

    def gain(self) -> Iterable[str]:
        subject = f"{NAMES[self.best]} of {_checkpoint(self.results)}"
        found, other = None, ""
        for other in REFERENCES:
            found = self._against(other, "control")
            if found is not None:
                break
        value = self.row["in_domain_mean"] if self.tested_at_home else self.row["shifted_mean"]
        reached = f"{format_value(self.results['metric'], value)} {metric_words(self.results['metric'])}"
        if found is None:
            yield f"{subject} reaches {reached} on {self._home()}; no control was run to compare it with."
        elif found["verdict"] == "too few examples":
            yield f"{subject} reaches {reached} on {self._home()}: too few test examples for a conclusion."
        elif found["verdict"] == "no evidence":
            yield (
                f"{subject} reaches {reached} on {self._home()}, with no evidence of a difference from {NAMES[other]} "
                f"({_size(self.results, found)})."
            )
        else:
            verb = "gains" if found["verdict"] == "helps" else "loses"
            against = "over" if verb == "gains" else "against"
            size = _size(self.results, found if verb == "gains" else _turned(found))
            yield f"{subject} {verb} {size} {against} {NAMES[other]} on {self._home()}, reaching {reached}."

    def others(self) -> Iterable[str]:
        better: list[str] = []
        worse: list[str] = []
        equal: list[str] = []
        for name in self.results["strategies"]:
            found = self._against(name, "strategies") if name != self.best else None
            if found is None or found["verdict"] == "too few examples":
                continue
            words = f"{NAMES[name]} ({_size(self.results, _turned(found))})"
            {"helps": worse, "hurts": better, "no evidence": equal}[found["verdict"]].append(words)
        parts = []
        if better:
            parts.append(f"better on the test examples: {_listed(better)}")
        if equal:
            parts.append(f"no evidence that {_listed(equal)} {'is' if len(equal) == 1 else 'are'} better or worse")
        if worse:
            parts.append(f"worse: {_listed(worse)}")
        if parts:
            yield f"it was chosen on in-domain validation; {'; '.join(parts)}."

    def shift(self) -> Iterable[str]:
        found = next((c for c in self.results["comparisons"] if c["question"] == "shift" and c["a"] == self.best), None)
        if found is None:
            if not self.results["comparisons"] or self.row["shifted_mean"] is None:
                yield "no shifted domain was scored, so nothing is known about the loss outside the train domains."
            return
        worst = self.row["worst_domain"]
        score = next(
            (
                s
                for s in self.results["scores"]
                if s["strategy"] == self.best
                and s["seed"] is None
                and s["domain"] == worst
                and s["metric"] == self.results["metric"]
                and not s["target_examples"]
            ),
            None,
        )
        tail = f", worst on {worst} ({format_value(self.results['metric'], score['value'])})" if score else ""
        size = _size(self.results, _turned(found))
        if found["verdict"] == "hurts":
            yield f"outside its train domains it loses {size} on average{tail}."
        elif found["verdict"] == "helps":
            yield f"outside its train domains it scores higher, by {_size(self.results, found)}{tail}."
        elif found["verdict"] == "too few examples":
            yield "there are too few test examples to say what is lost outside the train domains."
        else:
            yield f"no evidence of a loss outside its train domains: the gap is {size}{tail}."

    def _home(self) -> str:
        return _listed(self.domains) if self.tested_at_home else "the shifted domains"


class _ManyDirections:
    """Sentences about several sources, counting them."""

    def __init__(self, results: Mapping[str, Any], best: str) -> None:
        self.results, self.best = results, best

    def _counts(self, other: str, question: str, place: str) -> dict[str, int]:
        verdicts = []
        for item in self.results["comparisons"]:
            if item["question"] == question and item["domain"] == place:
                if (item["a"], item["b"]) == (self.best, other):
                    verdicts.append(item["verdict"])
                elif (item["a"], item["b"]) == (other, self.best):
                    verdicts.append(_turned(item)["verdict"])
        return {word: verdicts.count(word) for word in ("helps", "hurts", "no evidence", "too few examples")}

    def cheap_baseline(self) -> Iterable[str]:
        counts = self._counts("tfidf", "control", "in-domain")
        total = sum(counts.values())
        if total and counts["helps"] <= total / 2:
            yield (
                f"{NAMES[self.best]} beats {NAMES['tfidf']} in the domain itself for only {counts['helps']} of "
                f"{total} sources, and loses to it for {counts['hurts']}."
            )

    def gain(self) -> Iterable[str]:
        means = {role: self._mean(role) for role in ("in_domain_mean", "shifted_mean")}
        words = [
            f"{format_value(self.results['metric'], value)} {place}"
            for value, place in (
                (means["in_domain_mean"], "in the domain itself"),
                (means["shifted_mean"], "elsewhere"),
            )
            if value is not None
        ]
        metric = metric_words(self.results["metric"])
        yield (
            f"{NAMES[self.best]} of {_checkpoint(self.results)}, trained on {len(self.results['directions'])} sources "
            f"in turn, reaches {' and '.join(words)} ({metric}, mean over sources)."
        )

    def others(self) -> Iterable[str]:
        parts = []
        for name in (*self.results["strategies"], *self.results["controls"]):
            question = "control" if name in self.results["controls"] else "strategies"
            counts = self._counts(name, question, "shifted domains")
            total = sum(counts.values())
            if name != self.best and total:
                parts.append(f"{NAMES[name]} for {counts['helps']} of {total} (worse for {counts['hurts']})")
        if parts:
            yield f"on other domains it is better than {_listed(parts)}."

    def shift(self) -> Iterable[str]:
        found = [c for c in self.results["comparisons"] if c["question"] == "shift" and c["a"] == self.best]
        losses = sum(item["verdict"] == "hurts" for item in found)
        in_domain, shifted = self._mean("in_domain_mean"), self._mean("shifted_mean")
        if found and in_domain is not None and shifted is not None:
            sign = 1 if self.results["higher_is_better"] else -1
            loss = format_difference(self.results["metric"], sign * (in_domain - shifted))
            yield (
                f"outside its train domain it loses {loss} on average, beyond noise for {losses} of "
                f"{len(found)} sources."
            )

    def _mean(self, field: str) -> float | None:
        values = [row[field] for row in self.results["summary"] if row["strategy"] == self.best]
        return float(np.mean(values)) if values and None not in values else None


def _target_labels(results: Mapping[str, Any], best: str) -> Iterable[str]:
    """Where the source helped or hurt beside labelled target examples."""
    found = [
        c for c in results["comparisons"] if c["question"] == "negative_transfer" and c["a"].startswith(best + ",")
    ]
    for domain in dict.fromkeys(item["domain"] for item in found):
        sizes: dict[str, list[str]] = {}
        for item in found:
            if item["domain"] == domain:
                sizes.setdefault(item["verdict"], []).append(str(item["target_examples"]))
        parts = [f"{verdict} with {_listed(counts)}" for verdict, counts in sizes.items()]
        yield f"on {domain}, adding the source to its own labelled examples: {'; '.join(parts)}."


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


def _size(results: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """``4.1 points (2.0 to 6.2)``."""
    interval = format_interval({**item, "value": item["difference"]})
    size = format_difference(results["metric"], item["difference"])
    return f"{size} ({interval})" if interval else size


def _checkpoint(results: Mapping[str, Any]) -> str:
    return results["checkpoint"]["id"] or "the checkpoint"


def _tested(results: Mapping[str, Any]) -> list[str]:
    return list(results["data"]["test_domains"])


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
