"""Pages for users: their code runs and prints what they say, their sentences are short, their lists are complete."""

import dataclasses
import re
from pathlib import Path

import pytest

import nsflow
from nsflow.results.diagnostics import ADVICE
from tests.test_layers import LAYERS
from tools import architecture, ratios
from tools.sentences import average, pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
EXECUTED = ("getting-started", "guides/priors", "guides/settings", "guides/evidence")
MOST_WORDS = 20  # a sentence, on average


@pytest.mark.parametrize("name", EXECUTED)
def test_code_runs_and_prints_what_the_page_says(name, tmp_path, monkeypatch, capsys):
    """Each `print(...)  # words` prints these words; a page that prints without them is told apart."""
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"^```python\n(.*?)^```", (DOCS / f"{name}.md").read_text(), re.DOTALL | re.MULTILINE))
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    exec(compile(code.replace("\nprint(result)\n", "\n"), name, "exec"), {})
    assert capsys.readouterr().out.splitlines() == said
    assert said


def test_sentences_are_short():
    assert {str(path.relative_to(ROOT)): words for path in pages() if (words := average(path)) > MOST_WORDS} == {}


def test_every_alarm_has_a_heading():
    headings = re.findall(r"^## (.*)$", (DOCS / "guides" / "alarms.md").read_text(), re.MULTILINE)
    assert headings[-1] == "What no alarm can see"
    assert sorted(headings[:-1]) == sorted(sign for sign, _ in ADVICE)


def test_every_setting_is_in_the_table():
    text = (DOCS / "reference" / "settings.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(
        field.name for field in dataclasses.fields(nsflow.Settings)
    )


def test_every_package_is_in_the_table_and_the_picture():
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (DOCS / "project" / "design.md").read_text(), re.MULTILINE)
    named = re.findall(r"\w+", " ".join(table))
    assert sorted(named) == sorted(name for row in LAYERS for name in row if not name.startswith("__"))
    assert architecture.PICTURE.read_text() == architecture.picture(), "draw it again: python -m tools.architecture"


@pytest.mark.parametrize("page", ["README.md", "docs/project/benchmarks.md"])
def test_measured_ratios_are_those_of_the_results(page):
    assert ratios.table() in (ROOT / page).read_text(), "print them again: python tools/ratios.py"


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        if "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_decisions_cited_in_the_code_exist():
    numbers = {path.name[:4] for path in (DOCS / "decisions").glob("*.md")}
    assert len(numbers) == len(list((DOCS / "decisions").glob("*.md")))
    for path in (ROOT / "nsflow").rglob("*.py"):
        cited = set(re.findall(r"docs/decisions/(\d{4})", path.read_text()))
        assert cited <= numbers, f"{path}: {cited - numbers}"
