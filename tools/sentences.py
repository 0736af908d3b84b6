"""Print the words a sentence of each page: `python tools/sentences.py [--long N] [PAGE ...]`.

Code, formulas, tables, headings and addresses of links do not count. A list item or a paragraph ends a sentence.
"""

import argparse
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("_build", "decisions/")


def pages(root: Path = ROOT) -> list[Path]:
    """Pages for users: the README, the changelog and `docs/`, without the decisions."""
    docs = [path for path in sorted((root / "docs").rglob("*.md")) if not any(part in str(path) for part in LEFT_OUT)]
    return [root / "README.md", root / "CHANGELOG.md", root / "CONTRIBUTING.md", *docs]


def sentences(text: str) -> list[str]:
    r"""Split the prose of a Markdown text into sentences.

    Example:
        >>> sentences("# Title\n\nOne `code`. Two\nlines: [a link](https://x.org).\n\n- An item\n- Another, e.g. this")
        ['One code.', 'Two lines: a link.', 'An item', 'Another, e.g. this']
    """
    text = re.sub(r"^(```+|~~~+).*?^\1\s*$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\$[^$\n]+\$", "x", text)
    text = re.sub(r"`([^`]*)`", lambda code: code[1].replace(" ", "").replace(".", "_").rstrip("?!"), text)
    text = re.sub(r"^(#|\|| {4,}(?![-*\w])).*$", "\n", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s+)", "\n" + text)
    found = []
    for block in blocks:
        joined = re.sub(r"^([-*]|\d+\.)\s+", "", " ".join(block.split())).replace("*", "")
        found += [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(0-9x])", joined) if re.search(r"\w", part)]
    return found


def words(sentence: str) -> int:
    """Number of words."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def average(path: Path) -> float:
    """Words a sentence of a page; zero if it has none."""
    lengths = [words(sentence) for sentence in sentences(path.read_text(encoding="utf-8"))]
    return float(np.mean(lengths)) if lengths else 0.0


def main() -> None:
    """Print the averages, and the sentences that are longer than asked for."""
    parser = argparse.ArgumentParser(description="Words a sentence of each page.")
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: all pages for users)")
    parser.add_argument("--long", type=int, metavar="N", help="also print the sentences of more than N words")
    options = parser.parse_args()
    for path in options.pages or pages():
        print(f"{average(path):5.1f}  {path}")
        if options.long:
            found = sentences(path.read_text(encoding="utf-8"))
            print(*(f"       {words(s)}: {s}" for s in found if words(s) > options.long), sep="\n")


if __name__ == "__main__":
    main()
