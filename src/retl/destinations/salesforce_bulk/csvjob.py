"""Asynchronous jobs with a CSV file: the file, its results, and the steps of a job.

A job is created empty. After its id is stored, its file is sent, once. After a crash the job is asked: if it
was not released it is aborted, so nothing of it was applied; else it is polled until it ends, and its
results are read. No job gets a file twice. The adapter provides the names of states and result files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote

import msgspec
from msgspec import Struct

from retl.destinations.batch import UNKNOWN, Kind, Outcome, Pending, RowResult
from retl.destinations.http import csvbody
from retl.errors import Ambiguous, Poisoned
from retl.net.lookup import look, text
from retl.net.messages import Reply, Request

_SPECIAL = re.compile(r'[",\r\n]')

Cells = Sequence[str | None]  # of one row; None = this column is not changed
Send = Callable[[Request], Reply]  # raises an error if the answer is not a success
NOT_APPLIED = RowResult(Kind.RETRY)


def write(columns: Sequence[str], rows: Iterable[Cells]) -> bytes:
    """The file: LF after every line, quotes only where needed, None as nothing. UnicodeEncodeError if
    UTF-8 cannot encode a text."""
    lines = (",".join("" if cell is None else _quoted(cell) for cell in cells) for cells in (columns, *rows))
    return ("\n".join(lines) + "\n").encode()


def _quoted(cell: str) -> str:
    plain = cell and cell == cell.strip() and not _SPECIAL.search(cell)
    return cell if plain else '"' + cell.replace('"', '""') + '"'


def read(reply: Reply) -> list[dict[str, str]]:
    """The rows of a result file, by their columns; no rows if there is no file. Ambiguous if it is cut off
    or not a table: it can be fetched again."""
    return csvbody.table(reply) if reply.status == 200 else []


def match(
    names: Sequence[str], found: Iterable[tuple[str, RowResult]], default: RowResult = UNKNOWN
) -> Outcome:
    """Each row's result by its name. If rows or results share a name, it counts only if there are as many
    results as rows and all are of the same kind."""
    by_name: dict[str, list[RowResult]] = defaultdict(list)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    for name, result in found:
        by_name[name].append(result)
    results: dict[int, RowResult] = {}
    for name, ends in by_name.items():
        same = len(ends) == len(rows[name]) and len({one.kind for one in ends}) == 1
        results |= dict.fromkeys(rows[name], ends[0] if same else UNKNOWN)
    return Outcome(default, {row: one for row, one in sorted(results.items()) if one != default})


class Words(Struct, frozen=True):
    """The names that a target uses: paths of jobs, and states of a job."""

    jobs: str  # the path of all jobs; each job is below it
    upload: str  # below the job's path
    open: str
    release: str
    abort: str
    ended: frozenset[str]
    id: str = "id"
    state: str = "state"
    content: str = "text/csv; charset=UTF-8"


class Job(Struct):
    """The jobs of one lane. `_ready` is the file of the job that waits for it."""

    words: Words
    send: Send
    every: float  # seconds between two polls
    _ready: tuple[str, bytes] | None = None

    def make(self, body: Mapping[str, str], content: bytes) -> Pending:
        """Create a job without data, which does nothing; the first `ask` sends its file. Ambiguous if the
        answer has no id; that job does nothing either."""
        reply = self.send(_json("POST", self.words.jobs, body))
        name = look(reply.content, self.words.id)
        if type(name) not in (str, int) or not text(name):
            raise Ambiguous("HTTP_NO_JOB", "the target created a job and did not name it")
        self._ready = text(name), content
        return Pending(text(name), 0.0)

    def ask(self, handle: str) -> Pending | RowResult | Mapping[str, object]:
        """Send the file if it waits, else poll the job. Pending; or one result for all rows, if there are no
        result files; or the target's description of the ended job."""
        ready, self._ready = self._ready, None
        if ready is not None and ready[0] == handle:
            return self._upload(handle, ready[1])
        reply = self.send(Request("GET", self.path(handle), (), b""))
        if reply.status in (404, 410):
            return UNKNOWN
        state = look(reply.content, self.words.state)
        if state == self.words.open:
            self.send(_json("PATCH", self.path(handle), {self.words.state: self.words.abort}))
            return NOT_APPLIED
        if state in self.words.ended and isinstance(reply.content, dict):
            return reply.content
        return Pending(handle, self.every)

    def path(self, handle: str, part: str = "") -> str:
        return f"{self.words.jobs}/{quote(handle, safe='')}{part}"

    def _upload(self, handle: str, content: bytes) -> Pending:
        """Send the file, then release the job; if the file is refused, abort the job."""
        headers = (("Content-Type", self.words.content),)
        try:
            self.send(Request("PUT", self.path(handle, self.words.upload), headers, content))
        except Poisoned:
            self.send(_json("PATCH", self.path(handle), {self.words.state: self.words.abort}))
            raise
        self.send(_json("PATCH", self.path(handle), {self.words.state: self.words.release}))
        return Pending(handle, self.every)


def _json(method: str, path: str, body: Mapping[str, str]) -> Request:
    return Request(method, path, (("Content-Type", "application/json"),), msgspec.json.encode(body))
