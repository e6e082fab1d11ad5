"""README's table of measurements, taken from docs/benchmarks.md, so that README claims only measured numbers."""

from __future__ import annotations

import re

_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->"
_BY_HAND = {  # the case in docs/benchmarks.md → what it is compared with
    "full load": "`psql`: `\\copy` and one upsert",
    "nothing changed": "the same again",
    "1 % updated, 0.1 % deleted": "the same again",
    "Redis keys, JSON with TTL": "prepared commands through one socket",
    "HTTP, batches of 100 rows": "prepared requests with httpx2",
    "own Pydantic model on every row": "a bare loop through the model",
}


def filled(readme: str, benchmarks: str) -> str:
    """README with the table from the current benchmarks."""
    before, _, rest = readme.partition(_BEGIN)
    return f"{before}{_BEGIN}{_table(benchmarks)}{_END}{rest.partition(_END)[2]}"


def _table(benchmarks: str) -> str:
    main = benchmarks.partition("<!-- main: begin -->")[2].partition("<!-- main: end -->")[0]
    title = re.search(r"^## (.+?),? \d+ rounds", main, re.MULTILINE)
    rows = {cells[0]: cells for cells in _rows(main)}
    lines = [f"| {title[1] if title else ''} | by hand | retl, s | by hand, s |", "|---|---|---|---|"]
    for case, other in _BY_HAND.items():
        cells = rows[case]
        lines.append(f"| {case} | {other} | {cells[6]} | {cells[7]} |")
    peers = benchmarks.partition("<!-- peers: begin -->")[2].partition("<!-- peers: end -->")[0]
    if measured := _rows(peers):
        (_, _, own, *_), *others = measured
        size = re.search(r": ([\d,]+ rows)", peers)
        lines += [
            f"| full load of {size[1] if size else ''} | {name} {version} | {own} | {seconds} |"
            for name, version, seconds, *_ in others
        ]
    return "\n".join(lines) + "\n"


def _rows(text: str) -> list[list[str]]:
    """The cells of every table row except headers."""
    found = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in found]
    heads = ("case", "tool", "phase of the full load", "---")
    return [row for row in rows if row[0] not in heads]
