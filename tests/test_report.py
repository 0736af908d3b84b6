"""The page: what it says, that it needs nothing else, and that it shows what others typed instead of obeying it."""

import base64
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from nsflow import plots
from nsflow.results import html
from nsflow.results.html import MAX_STEPS, render
from tests.test_plots import TRACE, gaussian

VOID = {"meta", "source", "img"}


class Page(HTMLParser):
    """Tags that are opened and closed in order, attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] != "style" else ""


@pytest.fixture(scope="module")
def plain():
    return render(gaussian(seed=1), title="a run")


def test_the_page_says_what_was_computed(plain):
    page = Page(plain)
    text = " ".join(page.text.split())
    result = gaussian(seed=1)
    for part in (
        "a run",
        "No alarms",
        f"{result.logZ:.4f} ± {result.logZ_err:.4f}",
        "k-hat",
        "How to cite",
        "posterior",
    ):
        assert part in text
    assert text.count("✓ healthy") == 5
    assert page.tags.count("img") == page.tags.count("source") == 4


def test_the_page_needs_no_script_no_network_and_no_other_file(plain):
    page = Page(plain)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    uris = [value for name, value in page.attributes if name in ("src", "srcset", "href")]
    assert len(uris) == 8
    for uri in uris:
        head, data = uri.split(",", 1)
        assert head in ("data:image/png;base64", "data:image/svg+xml;base64")
        assert base64.b64decode(data, validate=True).startswith((b"\x89PNG", b"<?xml"))
    style = re.search(r"<style>(.*?)</style>", plain, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    for wanted in ("prefers-color-scheme: dark", "@media print", "max-width: 36rem"):
        assert wanted in style[1]
    assert ("name", "viewport") in page.attributes


@pytest.fixture
def sketched(monkeypatch):
    """Pictures that cost nothing: what they show is the business of tests/test_plots.py."""
    monkeypatch.setattr(html, "KINDS", dict.fromkeys(plots.KINDS, lambda result, dark: Figure(figsize=(1, 1))))


@pytest.mark.usefixtures("sketched")
def test_what_users_typed_is_shown_and_not_obeyed():
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    page = render(
        gaussian(
            names=(evil, "b\"'>"), labels=(), alarms=(evil,), finished=False, stop_reason=evil, settings={evil: evil},
            versions={evil: evil}, trace=[step | {"phase": evil} for step in TRACE],
        ),
        title=evil,
    )  # fmt: skip
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 4
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count(evil) >= 6


@pytest.mark.usefixtures("sketched")
def test_alarms_stand_above_the_numbers_with_what_to_do():
    page = render(
        gaussian(alarms=("one draw carries 12% of the evidence",), finished=False, stop_reason="max_calls"), "x"
    )
    text = " ".join(Page(page).text.split())
    assert "No alarms" not in text
    assert text.index("one draw carries 12% of the evidence. The evidence rests on a lucky draw.") < text.index("nats")
    assert "The run is unfinished: max_calls." in text
    assert "<code>ess</code>" in page


def test_a_picture_that_cannot_be_drawn_is_no_reason_to_write_no_page():
    empty = gaussian(log_weights=np.full(4000, -np.inf), logZ=-np.inf, logZ_err=np.inf, ess=0.0, trace=[])
    page = Page(render(empty, "empty"))
    text = " ".join(page.text.split())
    assert "img" not in page.tags
    assert text.count("No picture of") == 4
    assert "No draw has a weight, so there is no posterior." in text


@pytest.mark.usefixtures("sketched")
def test_unreadable_tex_in_a_label_loses_no_picture(monkeypatch):
    monkeypatch.setitem(html.KINDS, "triangle", plots.triangle)
    page = Page(render(gaussian(labels=(r"$\nosuchcommand{$", "b")), "tex"))
    assert page.tags.count("img") == 4


@pytest.mark.usefixtures("sketched")
def test_a_picture_that_cannot_be_drawn_is_the_only_one_lost(monkeypatch):
    def overflowing(*_, **__):
        raise OverflowError("too large")

    monkeypatch.setitem(html.KINDS, "trace", overflowing)
    assert Page(render(gaussian(), "x")).tags.count("img") == 3


def test_numbers_that_no_axis_can_show_are_left_out():
    page = Page(render(gaussian(trace=[*TRACE, TRACE[-1] | {"ess": 1e308, "seconds": 1e300}]), "x"))
    assert page.tags.count("img") == 4


@pytest.mark.usefixtures("sketched")
def test_control_characters_do_not_reach_the_page():
    evil = "a\x1b]0;owned\x07\x00\u202e"
    page = render(
        gaussian(
            names=(evil, "b"), labels=(), alarms=(evil,), finished=False, stop_reason=evil, settings={evil: evil},
            versions={evil: evil}, trace=[step | {"phase": evil} for step in TRACE],
        ),
        title=evil,
    )  # fmt: skip
    assert not set("\x1b\x07\x00\u202e") & set(page)
    assert page.count(r"a\x1b]0;owned\x07\x00\u202e") >= 6


@pytest.mark.usefixtures("sketched")
def test_long_runs_leave_out_the_middle_of_their_trace():
    long = [TRACE[i % 6] | {"num_calls": i} for i in range(500)]
    page = render(gaussian(trace=long), "long")
    rows = re.findall(r"<tr><td>(\d+)</td>", page)
    assert rows == [str(i) for i in [*range(1, 31), *range(471, 501)]]
    assert len(rows) == MAX_STEPS
    assert page.count("&hellip;") == 1


def test_without_jinja_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2: pip install 'nsflow\[terminal\]'"):
        render(gaussian(), "x")
