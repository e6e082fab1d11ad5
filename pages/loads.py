"""docs/benchmarks.md: what a first load takes beside the target's own bulk tool, from benchmarks/targets.json."""

from __future__ import annotations

import json
from pathlib import Path

_FIGURES = Path(__file__).parents[1] / "benchmarks" / "targets.json"
_BEGIN, _END = "<!-- targets: begin -->\n", "<!-- targets: end -->"
_NAMES = {
    "mysql": "MariaDB",
    "clickhouse": "ClickHouse",
    "sqlite": "SQLite",
    "duckdb": "DuckDB",
    "kafka": "Kafka",
    "files": "files",
}
_WORDS = """\
## First loads beside the target's own tool

%(rows)s rows into an empty target (%(machine)s: `make bench-targets`).
The tool reads a file that is already there; ours is a whole run, with the mart read, hashed and compared. A
ratio is taken per round: median, least and greatest. Processor: seconds of all threads, with those of the
server. Load: how many processes wanted a core at the end. More than three are other work, and the seconds of
a processor then tell more than the others, though they grow too.

"""


def filled(page: str) -> str:
    """The page with the figures of the last measurement."""
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}{_section()}{_END}{rest.partition(_END)[2]}"


def _section() -> str:
    figures = json.loads(_FIGURES.read_text(encoding="utf-8"))
    titles = ("target", "the tool", "median", "min", "max", "retl, s", "tool, s")
    titles += ("processor: retl, s", "tool, s", "ratio", "peak, MB", "rounds", "load", "measured on")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, title in _NAMES.items():
        one = figures["targets"][name]
        cells = [title, one["tool"], *(f"{one[part]:.2f} ×" for part in ("ratio", "least", "most"))]
        cells += [f"{one[f'{side}_seconds']:.2f}" for side in ("ours", "tool")]
        cells += [f"{one[f'{side}_processor']:.2f}" for side in ("ours", "tool")]
        cells += [f"{one['ours_processor'] / one['tool_processor']:.2f} ×"]
        cells += [str(one[part]) for part in ("ours_megabytes", "rounds", "load", "measured_on")]
        lines.append("| " + " | ".join(cells) + " |")
    return _WORDS % (figures | {"rows": f"{figures['rows']:,}"}) + "\n".join(lines) + "\n"
