"""Draw the packages of nsflow, in the rows of `tests/test_layers.py`: `python -m tools.architecture`."""

from pathlib import Path

from tools.measure import ROOT, declared_rows

PICTURE = ROOT / "docs" / "images" / "packages.svg"
WIDTH, HEIGHT, GAP = 150, 34, 14  # of a box, and between rows, in pixels


def picture(root: Path = ROOT) -> str:
    """The picture as SVG; what imports from others stands above them."""
    rows: dict[int, list[str]] = {}
    for name, row in declared_rows(root / "tests" / "test_layers.py").items():
        if not name.startswith("__"):
            rows.setdefault(row, []).append(name)
    widest, num_rows = max(len(names) for names in rows.values()), len(rows)
    width, height = widest * (WIDTH + GAP) + GAP, num_rows * (HEIGHT + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">'
    ]
    for place, row in enumerate(sorted(rows, reverse=True)):
        left = (width - len(rows[row]) * (WIDTH + GAP) + GAP) / 2
        top = GAP + place * (HEIGHT + GAP)
        for i, name in enumerate(rows[row]):
            x = left + i * (WIDTH + GAP)
            lines.append(
                f'<rect x="{x:g}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8eef4" stroke="#1f4e79"/>'
            )
            lines.append(f'<text x="{x + WIDTH / 2:g}" y="{top + 22}" fill="#12304b">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
