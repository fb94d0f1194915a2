"""plots: figures of a comparison are well-formed, say what is on their axes, and let no text from data do harm."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from comparison_example import HOSTILE_DOMAINS, example_results

from hf_transfer.report import plots
from hf_transfer.report.plots import FONT_SIZE, INK, Figure, make_figures

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "scores",
    "matrix_tfidf",
    "matrix_probe",
    "learning_curves",
    "robustness",
    "distance_drop",
    "reliability",
    "risk_coverage",
    "confusion",
    "training",
]
SMALL = {"strategies": ("probe", "lora"), "controls": ("tfidf", "majority"), "seeds": 2, "domains": 4}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return example_results(**SMALL)


@pytest.fixture(scope="module")
def figures(results: dict[str, Any]) -> dict[str, Figure]:
    return make_figures(results)


@pytest.fixture(scope="module")
def hostile() -> dict[str, Figure]:
    return make_figures(example_results(hostile=True, undefined=True, strategies=("probe", "lora"), domains=8))


def texts(figure: Figure) -> list[str]:
    """What is written in a figure, piece by piece."""
    return [element.text or "" for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]


def only(results: dict[str, Any], *sections: str) -> dict[str, Any]:
    """``results`` with no other section to draw."""
    drawn = ("scores", "matrix", "learning_curves", "robustness", "distances", "calibration", "confusion", "training")
    return {key: value for key, value in results.items() if key in sections or key not in drawn}


# ---- every figure ----------------------------------------------------------------------------------------------


def test_a_complete_comparison_gives_every_figure_in_the_order_of_a_report(figures):
    assert list(figures) == NAMES
    assert all(figure.name == name and figure.title and figure.caption for name, figure in figures.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_one_svg_element_that_scales_and_has_words_for_screen_readers(name, figures):
    figure = figures[name]
    assert figure.svg.startswith("<svg ")
    root = ElementTree.fromstring(figure.svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert not {"width", "height", "style"} & set(root.attrib)
    width = float(root.attrib["viewBox"].split()[2])
    assert figure.min_width_px == pytest.approx(width, abs=1)
    title, description = list(root)[:2]
    assert (title.tag, title.text) == (f"{SVG}title", figure.title)
    assert (description.tag, description.text) == (f"{SVG}desc", figure.caption)
    assert root.attrib["aria-labelledby"].split() == [title.get("id"), description.get("id")]


@pytest.mark.parametrize(
    "name, labels",
    {
        "scores": ["accuracy", "in-domain", "shifted (not trained on)", "books", "electronics", "70%", "tfidf"],
        "matrix_tfidf": ["trained on", "tested on", "books", "kitchen"],
        "learning_curves": ["accuracy", "labelled target examples", "64", "kitchen: target only", "80%"],
        "robustness": ["in-domain accuracy (mean over domains, logit scale)", "no gap", "70%"],
        "distance_drop": [
            "proxy A-distance (0 to 2)",
            "Jensen-Shannon divergence of words (bits)",
            "drop of accuracy (points)",
        ],
        "reliability": ["confidence (mean of a bin)", "accuracy (of a bin)", "shifted, after temperature", "80%"],
        "risk_coverage": ["coverage: share of examples answered", "risk: errors among the answered", "shifted", "20%"],
        "confusion": ["reference", "predicted", "negative", "lora, in-domain"],
        "training": ["optimiser step", "training loss", "validation accuracy", "probe"],
    }.items(),
)
def test_axes_and_panels_are_named_in_text_that_can_be_searched(name, labels, figures):
    assert set(labels) <= set(texts(figures[name]))


def test_no_placeholder_colour_black_or_background_is_left(figures):
    for figure in figures.values():
        assert INK not in figure.svg
        assert "currentColor" in figure.svg
        found = set(re.findall(r'(?:fill|stroke)="([^"]+)"', figure.svg))
        assert not found & {"#000000", "black"}, "black cannot be seen on a dark page"
        whole = [p for p in ElementTree.fromstring(figure.svg).iter(f"{SVG}path") if p.get("fill") == "#ffffff"]
        assert not whole, "white is for text on dark cells alone"


def test_ids_are_unique_over_all_figures_and_every_reference_finds_its_own(figures):
    ids = [id for figure in figures.values() for id in re.findall(r'\bid="([^"]+)"', figure.svg)]
    assert len(ids) == len(set(ids))
    for name, figure in figures.items():
        own = set(re.findall(r'\bid="([^"]+)"', figure.svg))
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', figure.svg))
        assert {a or b for a, b in used} <= own
        assert all(id.startswith(f"{name}-") for id in own)


def test_nothing_in_a_figure_reaches_the_page_around_it(figures):
    for figure in figures.values():
        root = ElementTree.fromstring(figure.svg)
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {"svg", "title", "desc", "g", "defs", "path", "use", "text", "clipPath", "rect"}
        assert not [element for element in root.iter() if "style" in element.attrib]


def test_all_text_is_of_the_size_that_the_least_width_is_made_for(figures):
    for figure in figures.values():
        sizes = {element.get("font-size") for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")}
        assert sizes == {f"{FONT_SIZE}px"}


def test_equal_results_give_equal_bytes_and_are_not_changed(results, figures):
    before = copy.deepcopy(results)
    assert make_figures(results) == figures
    assert results == before


def test_drawing_needs_no_pyplot_and_ignores_and_keeps_the_settings_of_the_user(results, figures, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(only(results, "training")))
    program = """
import json, sys
from hf_transfer.report import plots
assert "matplotlib" not in sys.modules, "importing the module must stay cheap"
import matplotlib
matplotlib.rcParams.update({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"})
figures = plots.make_figures(json.load(open(sys.argv[1])))
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams["font.size"] == 30
sys.stdout.buffer.write(figures["training"].svg.encode())
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "results.json"], capture_output=True, check=True)
    assert done.stdout.decode() == figures["training"].svg


# ---- text from data --------------------------------------------------------------------------------------------


def test_hostile_names_are_shown_as_the_text_they_are(hostile):
    shown = texts(hostile["scores"])
    assert '<b>"kitchen" & co</b>' in shown
    assert "&lt;b&gt;" in hostile["scores"].svg
    assert "costs $x$ and…{1}{2}$" in shown, "no mathematics"
    assert "left\ufffdright\ufffd[31m" in shown
    assert "a domain whose…a page" in shown
    assert '<i>"none"…</i>\ufffd' in texts(hostile["confusion"])


def test_hostile_names_leave_no_markup_and_no_control_characters(hostile):
    for figure in hostile.values():
        assert not re.search(r"<(b|i|script)\b", figure.svg)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", figure.svg)
        ElementTree.fromstring(figure.svg)


def test_captions_and_titles_are_plain_text_without_control_characters(results):
    renamed = json.loads(json.dumps(only(results, "training", "calibration")).replace('"lora"', '"_<u>\\u202e$"'))
    figures = make_figures(renamed)
    assert "_<u>\ufffd$" in figures["reliability"].caption
    assert " _<u>\ufffd$" in texts(figures["training"]), "a leading underscore does not hide it from the legend"
    assert "<u>" not in figures["reliability"].svg


def test_long_names_that_become_equal_stay_apart():
    assert plots._short_names(["x" * 30, "x" * 31, "short"], 9) == ["xxxxx…xxx", "xxxxx…xxx (2)", "short"]


def test_two_matrices_of_one_name_are_two_figures(results):
    twice = {**only(results), "matrix": [{**results["matrix"][0], "strategy": name} for name in ("a b", "a/b", "a b")]}
    assert list(make_figures(twice)) == ["matrix_a-b", "matrix_a-b-2", "matrix_a-b-3"]


# ---- what is not there -----------------------------------------------------------------------------------------


def test_no_data_gives_no_figures():
    assert make_figures({}) == {}
    assert make_figures({"scores": [], "robustness": None, "matrix": None, "calibration": []}) == {}


@pytest.mark.parametrize(
    "section, missing",
    {
        "scores": {"scores"},
        "matrix": {"matrix_tfidf", "matrix_probe"},
        "learning_curves": {"learning_curves"},
        "robustness": {"robustness"},
        "distances": {"distance_drop"},
        "calibration": {"reliability", "risk_coverage"},
        "confusion": {"confusion"},
        "training": {"training"},
    }.items(),
)
def test_a_section_alone_gives_its_figures_and_no_other(section, missing, results, figures):
    assert set(make_figures(only(results, section))) == missing


def all_null(value: Any) -> Any:
    """The same structure with null for every fraction."""
    if isinstance(value, dict):
        return {key: all_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [all_null(item) for item in value]
    return None if isinstance(value, float) else value


@pytest.mark.parametrize("section", ["scores", "matrix", "learning_curves", "robustness", "distances", "training"])
def test_a_section_without_any_number_gives_no_figure(section, results):
    assert make_figures({**only(results), section: all_null(results[section])}) == {}


def test_undefined_values_leave_gaps_and_not_nan_in_the_picture(hostile):
    assert [name for name in NAMES if name in hostile] == NAMES
    for figure in hostile.values():
        assert not re.search(r"\bnan\b|\binf\b|None", figure.svg + figure.caption)
    assert texts(hostile["matrix_tfidf"]).count("–") == 8 + 1  # one row, one cell


def test_one_strategy_on_one_domain_has_what_can_be_drawn():
    figures = make_figures(example_results(strategies=("lora",), controls=(), domains=1, seeds=1))
    assert list(figures) == ["scores", "reliability", "risk_coverage", "confusion", "training"]
    assert "hollow" not in figures["scores"].caption
    assert "One seed" in figures["scores"].caption


# ---- single figures --------------------------------------------------------------------------------------------


def test_a_matrix_writes_its_numbers_in_black_or_white_and_frames_the_diagonal(results):
    matrix = {
        "strategy": "tfidf",
        "sources": ["a", "b"],
        "targets": ["a", "b"],
        "values": [[0.9, 0.5], [0.625, 0.876]],
        "low": [[0.85, 0.4], [0.6, 0.8]],
        "high": [[0.95, 0.6], [0.65, 0.9]],
    }
    figure = make_figures({**only(results), "matrix": [matrix]})["matrix_tfidf"]
    cells = [text for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text") if text.text[0].isdigit()]
    assert [cell.text for cell in cells] == ["90.0", "50.0", "62.5", "87.6"]
    assert cells[0].get("fill") == "#000001"  # on the bright end
    assert cells[1].get("fill") == "#ffffff"  # on the dark end
    assert [cell.get("font-weight") == "700" for cell in cells] == [True, False, False, True]
    assert "10.0 points to either side" in figure.caption  # half of 0.6 - 0.4


def test_the_caption_of_a_matrix_tells_the_longer_side_of_an_interval(results):
    matrix = {
        "strategy": "tfidf",
        "sources": ["a"],
        "targets": ["a"],
        "values": [[0.98]],
        "low": [[0.9]],
        "high": [[1.0]],
    }
    figure = make_figures({**only(results), "matrix": [matrix]})["matrix_tfidf"]
    assert "reach up to 8.0 points to either side" in figure.caption


def test_text_in_a_cell_has_the_contrast_of_large_text_at_least():
    """WCAG 2.1 asks for 4.5 to 1; computed here by its definition, all along the map."""
    import matplotlib

    for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, 256)):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
        text = 1.0 if plots._ink_on(colour) == "#ffffff" else 0.0
        bright, dark = max(text, luminance), min(text, luminance)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_many_directions_are_a_row_each(figures):
    figure = make_figures(only(example_results(directions=3, **SMALL), "scores"))["scores"]
    assert {"trained on", "in-domain mean", "shifted mean", "books", "kitchen"} <= set(texts(figure))
    assert "electronics" not in texts(figure), "nothing was trained on it"


def test_seventy_seven_classes_become_the_pairs_most_confused(results):
    names = [f"c{n}" for n in range(77)]
    counts = (10 * np.eye(77)).astype(int)
    counts[5, 7], counts[5, 5] = 4, 6
    counts[9, 2], counts[9, 9] = 1, 9
    item = {"strategy": "lora", "direction": "books", "role": "shifted", "names": names, "counts": counts.tolist()}
    figure = make_figures({**only(results), "confusion": [item]})["confusion"]
    assert [text for text in texts(figure) if "→" in text] == ["c5 → c7", "c9 → c2"]
    assert "40%" in texts(figure)  # 4 of the 10 of c5 are the longest bar
    assert "77 classes" in figure.caption


def test_confusion_adds_directions_up_and_divides_by_the_row(results):
    common = {"strategy": "lora", "role": "in_domain", "names": ["no", "yes", "never"]}
    items = [
        {**common, "direction": "a", "counts": [[3, 1, 0], [0, 2, 0], [0, 0, 0]]},
        {**common, "direction": "b", "counts": [[3, 1, 0], [2, 0, 0], [0, 0, 0]]},
    ]
    shown = texts(make_figures({**only(results), "confusion": items})["confusion"])
    cells = [text for text in shown if re.fullmatch(r"\d+|–", text)]
    assert cells == ["75", "25", "0", "50", "50", "0", "–", "–", "–"]


def test_the_caption_gives_the_correlation_of_distance_and_drop(results):
    rows = [
        {"source": "a", "target": name, "proxy_a": x, "jensen_shannon": None, "drop": {"lora": y, "probe": 0.1}}
        for name, x, y in (("b", 1.0, 0.01), ("c", 1.5, 0.02), ("d", 1.8, 0.06), ("e", 1.2, None))
    ]
    figure = make_figures({**only(results), "distances": rows})["distance_drop"]
    expected = np.corrcoef([1.0, 1.5, 1.8], [0.01, 0.02, 0.06])[0, 1]
    assert f"lora {expected:+.2f}." in figure.caption
    assert "probe" not in figure.caption, "a drop that never changes correlates with nothing"
    assert "Jensen" not in figure.svg
    assert {"b", "c", "d", "e"} <= set(texts(figure))


def test_names_above_crowded_columns_keep_their_order_and_their_distance(results):
    rows = [
        {"source": "a", "target": f"t{n:02d}", "proxy_a": 1.9 + n / 10_000, "drop": {"lora": 0.1}} for n in range(12)
    ]
    figure = make_figures({**only(results), "distances": rows})["distance_drop"]
    labels = [e for e in ElementTree.fromstring(figure.svg).iter(f"{SVG}text") if re.fullmatch(r"t\d\d", e.text or "")]
    x = {label.text: float(label.attrib["x"]) for label in labels}
    places = [x[f"t{n:02d}"] for n in range(12)]
    assert (np.diff(places) > FONT_SIZE).all()


def test_bins_of_several_seeds_are_pooled_by_their_counts():
    run = [{"confidence": 0.6, "accuracy": 0.5, "count": 10}, {"confidence": 0.9, "accuracy": 0.8, "count": 10}]
    other = [{"confidence": 0.7, "accuracy": 0.6, "count": 10}, {"confidence": 1.0, "accuracy": 0.9, "count": 10}]
    assert [values.tolist() for values in plots._pooled_bins([run])] == [[0.6, 0.9], [0.5, 0.8]]
    x, y = plots._pooled_bins([run, other])
    np.testing.assert_allclose((x, y), [[0.65, 0.95], [0.55, 0.85]])


def test_risk_curves_of_several_seeds_are_averaged_where_all_have_begun():
    x, y = plots._mean_curve([[[0.5, 0.0], [1.0, 0.2]], [[0.25, 0.1], [0.5, 0.1], [1.0, 0.4]]])
    np.testing.assert_allclose((x, y), [[0.5, 1.0], [0.05, 0.3]])


@pytest.mark.parametrize("share", [0.003, 0.02, 0.25, 0.55, 0.65, 0.75, 0.883, 0.92, 0.962, 0.9969])
def test_the_axes_of_a_single_point_have_numbers(share):
    place = plots._logit(share)
    low, high = place - 0.15, place + 0.15
    ticks = plots._spaced_ticks(low, high)
    assert 2 <= len(ticks) <= 11
    assert all(low <= plots._logit(tick) <= high for tick in ticks)


def test_the_robustness_axes_are_log_odds(results):
    """Log odds are odd around one half: 20% and 80% lie equally far from 50%, and 50% to 80% is ln 4."""
    assert plots._logit(0.5) == 0
    assert plots._logit(0.8) == pytest.approx(np.log(4)) == -plots._logit(0.2)
    assert plots._logit(1.0) == plots._logit(0.999)
    points = [{"strategy": "lora", "seed": 0, "direction": "a", "in_domain": 1.0, "shifted": 0.0}]
    assert "nan" not in make_figures({**only(results), "robustness": {"points": points}})["robustness"].svg


def test_metrics_that_are_no_fractions_have_no_percent_signs(results):
    scores = [{**row, "metric": "log_loss"} for row in results["scores"] if row["metric"] == "accuracy"]
    changed = {**results, "metric": "log_loss", "higher_is_better": False, "scores": scores}
    figures = make_figures(only(changed, "scores", "robustness", "distances", "learning_curves"))
    assert len(figures) == 4
    for figure in figures.values():
        assert not [text for text in texts(figure) if "%" in text]
        assert "points)" not in "".join(texts(figure))
    assert "log loss" in texts(figures["scores"])
    assert "Further right is worse" in figures["scores"].caption
    assert "rise of log loss" in texts(figures["distance_drop"])


def test_a_strategy_nobody_knows_is_drawn_in_a_look_of_its_own(results):
    renamed = json.loads(
        json.dumps(only(results, "training")).replace('"lora"', '"adapter"').replace('"probe"', '"prompt"')
    )
    assert {"adapter", "prompt"} <= set(texts(make_figures(renamed)["training"]))
    assert plots._look("adapter", renamed) != plots._look("prompt", renamed)


def test_looks_differ_in_more_than_colour():
    """Strategies among themselves and controls among themselves, which are told apart by filled and hollow."""
    for names in (("probe", "freeze", "lora", "full"), ("before", "scratch", "tfidf", "majority")):
        assert len({plots._LOOKS[name][1] for name in names}) == len({plots._LOOKS[name][2] for name in names}) == 4


def test_the_example_is_plain_json_and_the_same_every_time():
    assert example_results(3, 2, hostile=True) == example_results(3, 2, hostile=True)
    assert set(HOSTILE_DOMAINS) <= set(example_results(hostile=True)["data"]["test_domains"])


def test_targets_of_several_directions_have_panels_of_their_own(results):
    curve = results["learning_curves"][0]
    curves = [{**curve, "direction": direction} for direction in ("books", "dvd")]
    shown = texts(make_figures({**only(results), "learning_curves": curves})["learning_curves"])
    assert {"books → kitchen: source and target", "dvd → kitchen: source and target"} <= set(shown)


def test_captions_count_the_seeds_that_are_drawn(results):
    first = [row for row in results["calibration"] if row["seed"] == 0]
    alone = make_figures({**only(results), "calibration": first})
    assert "Mean over 2 seeds" in make_figures(only(results, "calibration"))["risk_coverage"].caption
    assert "One seed" in alone["risk_coverage"].caption
    assert "seeds" not in alone["reliability"].caption


def test_a_line_through_few_controls_is_called_a_rough_guide(results):
    section = {**results["robustness"], "line": {"slope": 1.0, "intercept": 0.0, "points": 3}}
    caption = make_figures({**only(results), "robustness": section})["robustness"].caption
    assert "through 3 points of controls: a rough guide" in caption
    section["line"]["points"] = 8
    assert "rough" not in make_figures({**only(results), "robustness": section})["robustness"].caption
