"""report.html: one file that fetches nothing, with every table and figure, for a desk and a phone, light and dark."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import SCHEMES, WIDTHS, find_browser, measure_pages
from comparison_example import HOSTILE_DOMAINS, example_results

from hf_transfer.report.html import to_html
from hf_transfer.report.plots import Figure, make_figures
from hf_transfer.report.results import one_line
from hf_transfer.report.tables import make_sections

ATTACK = "\"><script>alert(1)</script><img src=http://e.vil onerror=alert(1)> & 'x'"
SMALL = {"domains": 4, "seeds": 2, "strategies": ("probe", "lora"), "controls": ("tfidf", "scratch"), "matrix": False}
DRAWING = '<svg viewBox="0 0 400 100" role="img"><text x="10" y="20">drawn</text></svg>'


def figure(name="scores", width=500):
    return Figure(name, f"Title of {name}", f"Caption of {name} <b>&", DRAWING, width)


@pytest.fixture(scope="module")
def drawn():
    """A page with every figure that the package draws: slow, so that it is made once."""
    results = example_results(domains=4, seeds=1, strategies=("lora",))
    return to_html(results, make_figures(results))


class Page(HTMLParser):
    """What a browser finds in a page: elements with their attributes, tables with the text of their cells, all text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.tables, self.text, self._inside = [], {}, [], []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", "".join(self.text))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.rows = self.tables[dict(attributes)["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._inside:
            self.text.append(data)
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


# ---- what stands in the page -----------------------------------------------------------------------------------


def test_every_table_of_the_sections_is_in_the_page_cell_by_cell():
    results = example_results(**SMALL)
    tables = [table for section in make_sections(results) for table in section.tables]
    page = Page(to_html(results))
    assert list(page.tables) and set(page.tables) == {f"table-{table.name}" for table in tables}
    for table in tables:
        assert page.tables[f"table-{table.name}"] == [list(table.header), *(list(row) for row in table.rows)]


def test_the_page_opens_with_the_answer_and_the_warnings():
    results = {**example_results(**SMALL), "warnings": ["Only 24 examples."]}
    page = Page(to_html(results))
    places = [page.text.index(text) for text in (*results["answer"], "Only 24 examples.", "Scores and cost")]
    assert places == sorted(places)
    assert 'id="warnings"' not in to_html({**results, "warnings": []})


def test_each_figure_stands_in_its_section_and_an_unknown_one_at_the_end():
    names = ("scores", "matrix_lora", "learning_curves", "robustness", "distance_drop", "reliability", "risk_coverage",
             "confusion", "training", "never_heard_of")  # fmt: skip
    results = example_results(domains=4, seeds=2)
    source = to_html(results, {name: figure(name) for name in names})
    headings = [(found.start(), found[1]) for found in re.finditer(r'<h2 id="([^"]+)"', source)]
    where = {name: max(h for h in headings if h[0] < source.index(f'id="figure-{name}"'))[1] for name in names}
    assert where == {
        "scores": "scores",
        "matrix_lora": "matrix",
        "learning_curves": "learning-curves",
        "robustness": "robustness",
        "distance_drop": "distances",
        "reliability": "calibration",
        "risk_coverage": "calibration",
        "confusion": "confusion",
        "training": "training",
        "never_heard_of": "figures",
    }
    assert source.count(DRAWING) == len(names)
    assert "Caption of scores &lt;b&gt;&amp;" in source


def test_every_figure_that_is_drawn_has_a_section_of_its_own(drawn):
    assert drawn.count("<svg") >= 9
    assert 'id="figures"' not in drawn


def test_a_section_without_data_does_not_appear():
    results = example_results(**SMALL)
    for key in ("learning_curves", "calibration", "distances", "confusion", "training", "examples_shown"):
        results[key] = []
    results["comparisons"], results["robustness"] = [], {}
    page = Page(to_html(results))
    assert [h["id"] for h in page.all("h2") if "id" in h] == ["scores", "data", "selection", "versions", "settings"]
    assert "Negative transfer" not in page.text


def test_text_of_examples_is_shown_only_where_the_results_hold_it():
    results = example_results(**SMALL)
    assert "It arrived <b>broken</b> & late" in Page(to_html(results)).text
    assert "arrived" not in to_html({**results, "examples_shown": []})


def test_links_of_the_contents_lead_to_headings_and_tables_have_captions_and_scopes():
    page = Page(to_html(example_results(**SMALL)))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(ids)
    assert {a["href"] for a in page.all("a")} >= {f"#{h['id']}" for h in page.all("h2") if "id" in h}
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}


# ---- one file, nothing fetched, nothing run --------------------------------------------------------------------


def test_the_page_refers_to_nothing_outside_itself_and_runs_nothing(drawn):
    page = Page(drawn)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "#").startswith("#")
    without_namespace = drawn.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?://|url\((?!#)|@import", without_namespace)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def poison(value, attack=ATTACK):
    """``value`` with every string in it replaced by an attack."""
    if isinstance(value, dict):
        return {key: poison(item, attack) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, attack) for item in value]
    return attack if isinstance(value, str) else value


def test_no_text_of_the_results_becomes_an_element():
    results = example_results(domains=3, seeds=1, strategies=("lora",), controls=("tfidf",))
    clean = {tag for tag, _ in Page(to_html(results)).elements}
    poisoned = poison(results)
    source = to_html(poisoned)
    assert {tag for tag, _ in Page(source).elements} <= clean
    assert "<script" not in source and "<img" not in source
    assert source.count(html.escape(ATTACK).replace("&#x27;", "&#39;")) + source.count(html.escape(ATTACK)) > 50


def test_hostile_domains_are_shown_as_they_are_written_less_what_steers_a_terminal():
    page = Page(to_html(example_results(hostile=True, domains=7, seeds=1)))
    shown = [row[0] for row in page.tables["table-scores-accuracy-0"][1:]]
    assert set(shown) >= {one_line(name) for name in HOSTILE_DOMAINS}
    assert "left\ufffdright\ufffd[31m" in shown


def test_making_the_report_imports_the_template_engine_only_when_it_is_needed():
    code = "import sys, hf_transfer.report.html; print({'jinja2', 'matplotlib', 'yaml', 'torch'} & set(sys.modules))"
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium or Chrome on the PATH: install one to check the layout of report.html")
    return found


PAGES = ("plain", "one_of_everything", "many_classes")


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Measures of every page in ``PAGES``, and what the browser's console said."""
    plain = example_results(hostile=True, domains=7, seeds=2, strategies=("probe", "lora"), undefined=True)
    one = example_results(domains=1, seeds=1, strategies=("lora",), controls=(), matrix=False)
    many = example_results(classes=77, domains=4, seeds=1, strategies=("lora",), controls=("tfidf",))
    pages = {
        "plain": to_html(plain, make_figures(plain)),
        "one_of_everything": to_html(one, {"scores": figure(), "matrix_lora": figure("matrix_lora", 3000)}),
        "many_classes": to_html(many),
    }
    return measure_pages(browser, pages, tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_the_page_fits_its_window_and_its_text_can_be_read(opened, page, width, scheme):
    found = opened[0][f"{page} {width} {scheme}"]
    assert found["scrollWidth"] <= found["clientWidth"] <= width
    assert found["sticksOut"] == []
    assert found["faint"] == []
    assert found["unreachable"] == []
    assert found["brokenLinks"] == []
    assert found["doubleIds"] == []
    if width == 390:
        assert found["scrolling"] > 0  # wide tables scroll in their own boxes


def test_the_console_of_the_browser_stays_clean(opened):
    assert opened[1] == []


RUNS = (
    "\"'></title></style><script>console.log(1)</script><img src=data:, onerror=console.log(2)>"
    "<svg onload=console.log(3)>"
)


def test_no_text_of_the_results_runs_in_a_browser_even_without_the_policy_of_the_page(browser, tmp_path):
    results = poison(example_results(domains=3, seeds=1, strategies=("lora",), controls=("tfidf",)), RUNS)
    page = re.sub(r"<meta http-equiv=[^>]*>", "", to_html(results))
    assert "Content-Security-Policy" not in page and html.escape(RUNS)[:20] in page
    assert measure_pages(browser, {"poisoned": page}, tmp_path)[1] == []
    caught = measure_pages(browser, {"open": page.replace("<footer>", f"{RUNS}<footer>")}, tmp_path)[1]
    assert [number for number in "123" if any(f'"{number}"' in line for line in caught)] == ["1", "2", "3"]


def test_the_page_turns_dark_with_the_system(opened):
    colours = {scheme: opened[0][f"plain 1280 {scheme}"]["background"] for scheme in SCHEMES}
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}


def test_the_browser_test_sees_what_is_broken(browser, tmp_path):
    """Each check above fails on a page that is broken in the way it looks for."""
    broken = (
        '<div style="width: 2000px">wide</div><p style="color: #999; background: #fff">faint</p><i id="answer"></i>'
        '<a href="#nowhere">nowhere</a><div style="overflow-x: auto">no name</div>'
        '<img src="http://127.0.0.1:9/x.png"><script>alert(1)</script>'
    )
    page = to_html(example_results(domains=1, seeds=1, strategies=("lora",), controls=(), matrix=False))
    measured, said = measure_pages(browser, {"broken": page.replace("<footer>", f"{broken}<footer>")}, tmp_path)
    assert len(measured) == len(WIDTHS) * len(SCHEMES)
    for found in measured.values():
        assert found["scrollWidth"] >= 2000 > found["clientWidth"]
        assert found["sticksOut"] == ["div wide"]
        assert found["faint"] == ["p faint"]
        assert found["unreachable"] == ["div no name"]
        assert found["brokenLinks"] == ["nowhere"]
        assert found["doubleIds"] == ["answer"]
    assert any("x.png" in line and "Content Security Policy" in line for line in said)
    assert any("inline script" in line for line in said)
