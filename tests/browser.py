"""Opens pages in headless Chromium, without any driver: the page under test sits in frames of the widths and colour
schemes that are wanted, and a script of the page around them writes what it measured into the DOM that is dumped."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-sync", "--disable-component-update", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # a page that tries to fetch something fails loudly
    *("--virtual-time-budget=20000", "--dump-dom"),
)

# Runs in the page around the frames. All <details> are opened first, so that what they hide is measured too.
_SCRIPT = """
const luminance = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
const contrast = (a, b) => { const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05); };
const name = (element) => element.tagName.toLowerCase() + (element.id ? '#' + element.id : '') +
  (element.getAttribute('class') ? '.' + element.getAttribute('class') : '') + ' ' + element.textContent.slice(0, 30);
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  page.querySelectorAll('details').forEach((item) => { item.open = true; });
  const style = (element) => view.getComputedStyle(element);
  const boxes = (element) => { for (let e = element.parentElement; e && e !== page.body; e = e.parentElement)
    if (['auto', 'scroll'].includes(style(e).overflowX)) return true; return false; };
  const background = (element) => { for (let e = element; e; e = e.parentElement) {
    const colour = parse(style(e).backgroundColor); if (colour[3] > 0) return colour.slice(0, 3); }
    return [255, 255, 255]; };
  const all = [...page.body.querySelectorAll('*')].filter((e) => !e.ownerSVGElement);
  const sticksOut = all.filter((e) => { const box = e.getBoundingClientRect();
    return box.width > 0 && (box.right > root.clientWidth + 0.5 || box.left < -0.5) && !boxes(e); });
  const faint = all.filter((e) => {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) return false;
    const size = parseFloat(style(e).fontSize), bold = Number(style(e).fontWeight) >= 700;
    const wanted = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
    return contrast(parse(style(e).color).slice(0, 3), background(e)) < wanted; });
  const scrolls = all.filter((e) => ['auto', 'scroll'].includes(style(e).overflowX));
  const unreachable = scrolls.filter((e) => e.tabIndex !== 0 || e.getAttribute('role') !== 'region' ||
    !e.getAttribute('aria-label'));
  const ids = [...page.querySelectorAll('[id]')].map((e) => e.id);
  return { clientWidth: root.clientWidth, scrollWidth: Math.max(root.scrollWidth, page.body.scrollWidth),
    scrollHeight: root.scrollHeight, background: style(page.body).backgroundColor,
    sticksOut: sticksOut.slice(0, 5).map(name), faint: faint.slice(0, 5).map(name),
    unreachable: unreachable.slice(0, 5).map(name),
    scrolling: scrolls.filter((e) => e.scrollWidth > e.clientWidth).length,
    brokenLinks: [...page.querySelectorAll('a[href^="#"]')].map((e) => e.getAttribute('href').slice(1))
      .filter((id) => !ids.includes(id)),
    doubleIds: [...new Set(ids.filter((id, place) => ids.indexOf(id) !== place))].slice(0, 5) };
}
window.addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map((frame) => [frame.title, measure(frame)]);
  document.body.textContent = '';
  document.body.appendChild(document.createElement('pre')).textContent = JSON.stringify(Object.fromEntries(found));
});
"""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def measure_pages(browser: str, pages: Mapping[str, str], folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Measures of every page at every width and scheme by ``"name width scheme"``, and what the console said.

    ``sticksOut``: elements beyond the viewport that no scrolling box holds; ``faint``: text below WCAG AA;
    ``unreachable``: scrolling boxes that a keyboard or a screen reader cannot find.
    """
    frames = "".join(
        f'<iframe title="{html.escape(name)} {width} {scheme}" srcdoc="{html.escape(page)}" '
        f'style="border:0;width:{width}px;height:900px;color-scheme:{scheme}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
        for scheme in SCHEMES
    )
    around = folder / "around.html"
    around.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}<script>{_SCRIPT}</script>", encoding="utf-8")
    command = [browser, *_FLAGS, f"--user-data-dir={folder}/profile"]
    ran = subprocess.run([*command, around.as_uri()], capture_output=True, text=True, timeout=120, errors="replace")
    measured = re.search(r"<pre>(.*?)</pre>", ran.stdout, re.S)
    assert measured, f"the browser measured nothing: {ran.stderr[-2000:]}"
    said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(measured[1])), said
