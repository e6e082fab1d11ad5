"""The rows that the target has confirmed: snapshot ⊕ deltas, computed on reading.

Every run writes a delta (its candidates) and acknowledgements (their outcomes). The baseline is the snapshot
plus the delta of every run, as acknowledged; the newest entry wins. So commit and recovery read the same, and
a baseline is never edited; `compact` only writes the same relation as a new snapshot. Both files are
specified in docs/formats.md.

A key in the baseline is confirmed (with a hash) or unknown (hash NULL: intended but never acknowledged,
without an answer, or distrusted). Any other key is not in it. Deleted keys are remembered for a while: a
target that was restored has them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from retl.destinations.batch import UNKNOWN, Kind, Mode, Outcome, RowResult
from retl.engine.answers import ANSWERS
from retl.engine.workspace import RUN_FILE, Workspace
from retl.errors import damaged_state, former_format
from retl.values.sql import literal

BASELINE = "baseline"  # key, hash (NULL: unknown), owned, ref, seen, confirmed_at, dropped
COMPACT_PAST = 0.2  # rows in deltas, as a share of the snapshot's rows
COMPACT_DELTAS = 16  # or this many deltas of any size
AT_ONCE = 50_000  # rows of small deltas that one query reads: each query costs as much as thousands of rows
DELTA, SNAPSHOT = "delta 3", "snapshot 3"  # formats, as files record them; raise both with the ledger's
REMEMBERED = "90 days"  # that the snapshot has deleted keys
NOTHING = "FFFFFFFFFFFFFFFF"  # in hexadecimal the digest of a field that has no value
MOVED = "moved"  # the op of a key that leaves the baseline with the answer of the row at its position

UNANSWERED = Outcome(UNKNOWN)
GONE = "GONE"  # the code of a kept row that the target lacks: its digests have one byte more
UNDONE = ("restore", "remove", "remake", "flag")  # ops of a rollback
_SEEN = (
    "CASE WHEN op = 'flag' THEN seen WHEN op = 'remove' THEN unhex('')"
    f" WHEN kind = 'kept' AND code = '{GONE}' AND octet_length(seen) % 8 = 0 THEN seen || unhex('00')"
    " WHEN kind IN ('written', 'merged') THEN held WHEN kind = 'kept' THEN coalesce(held, seen)"
    " WHEN kind = 'skipped' THEN seen END"
)
_REPORTED = {  # of an answer: its columns
    "kind": "VARCHAR",
    "settled": "BOOLEAN",
    "ours": "BOOLEAN",
    "code": "VARCHAR",
    "reason": "VARCHAR",
}
_COLUMNS = "key, gone, hash, owned, ref, confirmed_at, seen, dropped, epoch"
DROPPED = "MAP(VARCHAR, BLOB)"  # digests of what was left in fields that are not sent any more
# Of ops in UNDONE, a kept row leaves its entry as it was.
# The baseline and the deleted keys. Also `epoch`, of the run that wrote the entry, and `born`, of the last
# one that inserted or deleted the row; the snapshot does not have it.
ENTRIES = "entries"
NONE = 1 << 62  # an epoch after which no entry is


class Acknowledged(Protocol):
    """A batch in the ledger; `outcome` is None while there is no answer."""

    @property
    def operation(self) -> Mode: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...


class Distrust(Struct, frozen=True):
    """Entries that no longer hold, by the epoch of the run that wrote them. Those after `rows` are unknown;
    those after `forgotten` are not in the baseline; the deleted keys in `back` are at the target again,
    unknown and ours. `disown`: no row that the target has now is ours to delete. `own`: the rows of the run
    that found it are meant too. `emptied`: fields that the target no longer holds in any row: every row is
    due, and the digests of these fields are those of nothing. `shapes`: what the digests of an entry are of,
    by the end of its hash.

    It is durable before the run that found it writes anything. So rows that this run does not send are sent
    by a later one.
    """

    rows: int
    forgotten: int | None = None
    back: Sequence[str] = ()
    disown: bool = False
    own: bool = False
    emptied: Sequence[str] = ()
    shapes: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Delta(Struct, frozen=True):
    """One run's delta and its batches; `at` is when the run began. `distrust` applies to all older runs.
    Without a `path` the run wrote nothing. `answers`: the files of what the target returned."""

    path: Path | None
    at: datetime
    batches: Sequence[Acknowledged]
    epoch: int = 1
    distrust: Distrust | None = None
    answers: Sequence[Path] = ()


def build(workspace: Workspace, snapshot: Path | None, deltas: Sequence[Delta]) -> int:
    """Make the workspace view BASELINE and return its number of rows. LedgerError STATE_FORMAT for a file of
    another format.

    Rows of a batch without an answer are unknown. Rows without a batch were never attempted and change
    nothing. A rejected row keeps its former entry. If all answers of the first delta are equal, its file is
    read in place, like a snapshot.
    """
    workspace.run(
        "CREATE OR REPLACE TABLE overlay (key VARCHAR, gone BOOLEAN, hash BLOB, owned BOOLEAN,"
        f" ref VARCHAR, confirmed_at TIMESTAMPTZ, seen BLOB, dropped {DROPPED}, epoch BIGINT, born BIGINT)"
    )
    bottom = None
    if snapshot is not None:
        bottom = f"(SELECT *, NULL::BIGINT AS born FROM {opened(workspace, snapshot, SNAPSHOT)})"
    files = [path for delta in deltas if (path := delta.path) is not None]
    if files:
        _checked(workspace, files, DELTA)
    waiting: list[Delta] = []
    for delta in deltas:
        own = delta.distrust is None or delta.distrust.own
        if delta.path is not None and own:
            waiting.append(delta)
        if delta.distrust is not None:
            bottom, waiting = _overlaid(workspace, bottom, waiting), []
            bottom = bottom and f"({_distrusted(bottom, delta.distrust)})"
            workspace.run(f"CREATE OR REPLACE TABLE overlay AS {_distrusted('overlay', delta.distrust)}")
        if delta.path is not None and not own:
            waiting.append(delta)
    bottom = _overlaid(workspace, bottom, waiting)
    present = "SELECT * FROM overlay"
    if bottom is not None:
        present += (
            f" UNION ALL SELECT * FROM (SELECT {_COLUMNS}, born FROM {bottom})"
            " WHERE key NOT IN (SELECT key FROM overlay)"
        )
    return show(workspace, present)


def _overlaid(workspace: Workspace, bottom: str | None, deltas: Iterable[Delta]) -> str | None:
    """Put deltas over the older entries; returns the entries below the overlay. The first delta is read in
    place if all its answers are equal and nothing is older."""
    for group in _groups(deltas):
        lowest = bottom is None and alike(group[0].batches)
        if lowest and not workspace.run("SELECT key FROM overlay LIMIT 1"):
            bottom = f"({_entries(workspace, group.pop(0))})"
            if not group:
                continue
        effects = _entries(workspace, group[0]) if len(group) == 1 else _newest(group)
        if not workspace.run("SELECT key FROM overlay LIMIT 1"):
            workspace.run(f"CREATE OR REPLACE TABLE overlay AS {effects}")
            continue
        workspace.run(
            "CREATE OR REPLACE TABLE delta AS SELECT d.* REPLACE (greatest(d.born, o.born) AS born)"
            f" FROM ({effects}) d LEFT JOIN overlay o USING (key)"
        )
        workspace.run("DELETE FROM overlay WHERE key IN (SELECT key FROM delta)")
        workspace.run("INSERT INTO overlay SELECT * FROM delta")
    return bottom


def _groups(deltas: Iterable[Delta]) -> Iterator[list[Delta]]:
    """Neighbours that one query reads: small ones with one answer for all rows. Each other one is alone."""
    group: list[Delta] = []
    room = AT_ONCE
    for delta in deltas:
        simple = alike(delta.batches) and not delta.answers
        rows = sum(one.last - one.first + 1 for one in delta.batches) if simple else AT_ONCE + 1
        if group and rows > room:
            yield group
            group, room = [], AT_ONCE
        group.append(delta)
        room -= rows
    if group:
        yield group


def _entries(workspace: Workspace, delta: Delta) -> str:
    """SQL of what a delta, a file of the right format, makes of its keys."""
    rows = f"read_parquet({literal(str(delta.path))})"
    answers = _with_seen(workspace, answered(workspace, rows, delta.batches), delta.answers)
    return _effects(answers, _moment(delta), f"{delta.epoch}::BIGINT")


def _newest(group: Sequence[Delta]) -> str:
    """The same for several deltas, each with one answer for all rows: the newest entry of each key."""
    files = ", ".join(literal(str(one.path)) for one in group)
    names = "number, file, began, run_epoch, first, last, kind, settled, ours, code, reason"
    known = ", ".join(
        f"({number}, {literal(str(one.path))}, {_moment(one)}, {one.epoch}::BIGINT, {_values(span)})"
        for number, one in enumerate(group)
        for span in _spans(one.batches)
    )
    answers = (
        "(SELECT p.*, s.*, CAST(NULL AS VARCHAR) AS new_ref, CAST(NULL AS BLOB) AS held"
        f" FROM read_parquet([{files}], filename = true) p JOIN (VALUES {known}) s({names})"
        " ON p.filename = s.file AND p.row BETWEEN s.first AND s.last)"
    )
    return (
        "SELECT * EXCLUDE (number) REPLACE (max(born) OVER (PARTITION BY key) AS born)"
        f" FROM ({_effects(answers, 'began', 'run_epoch', 'number')})"
        " QUALIFY rank() OVER (PARTITION BY key ORDER BY number DESC) = 1"
    )


def _moment(delta: Delta) -> str:
    return f"{literal(delta.at.isoformat())}::TIMESTAMPTZ"


def _values(span: Sequence[object]) -> str:
    """A span as SQL, with the types that answers have."""
    first, last, *reported = span
    typed = zip(reported, _REPORTED.values(), strict=True)
    return ", ".join([f"{first}::BIGINT, {last}::BIGINT", *(_cast(value, kind) for value, kind in typed)])


def _cast(value: object, kind: str) -> str:
    return f"CAST({'NULL' if value is None else literal(str(value))} AS {kind})"


def _with_seen(workspace: Workspace, answers: str, files: Sequence[Path]) -> str:
    """SQL of answered rows with `held`: the digests that the target returned of the row, NULL if none."""
    if not files:
        return f"(SELECT *, CAST(NULL AS BLOB) AS held FROM ({answers}))"
    read = all_opened(workspace, files, ANSWERS)
    rows, different = workspace.one(f"SELECT count(row), count(DISTINCT row) FROM {read}")
    told = f"SELECT row AS at, seen AS held FROM {read}"
    if different < rows:  # the files have their numbers in their names
        number = r"CAST(regexp_extract(filename, '-([0-9]+)\.parquet$', 1) AS BIGINT)"
        told = f"SELECT row AS at, arg_max(seen, {number}) AS held FROM {read} GROUP BY row"
    return f"(SELECT a.*, h.held FROM ({answers}) a LEFT JOIN ({told}) h ON h.at = a.row)"


def distrust(workspace: Workspace, found: Distrust) -> int:
    """Apply it to the baseline that was built; returns the new number of rows."""
    workspace.run(f"CREATE OR REPLACE TABLE distrusted AS {_distrusted(ENTRIES, found)}")
    return show(workspace, "SELECT * FROM distrusted")


def doubt(workspace: Workspace, keys: str) -> None:
    """Make the keys of this table unknown in the baseline that was built."""
    if workspace.run(f"SELECT key FROM {keys} LIMIT 1"):
        held = f"CASE WHEN key IN (SELECT key FROM {keys}) THEN NULL ELSE hash END AS hash"
        workspace.run(f"CREATE OR REPLACE TABLE doubted AS SELECT * REPLACE ({held}) FROM {ENTRIES}")
        show(workspace, "SELECT * FROM doubted")


def deleted(since: int) -> str:
    """SQL of the keys that were deleted after the epoch `since`, as far as they are remembered."""
    return f"SELECT key FROM {ENTRIES} WHERE gone AND epoch > {since}"


def remade(since: int, compacted: int) -> str:
    """SQL of the keys that were inserted or deleted after the epoch `since`. Entries up to the epoch
    `compacted` do not say whether they were only updated."""
    return f"SELECT key FROM {ENTRIES} WHERE epoch > {since} AND (born > {since} OR epoch <= {compacted})"


def show(workspace: Workspace, entries: str) -> int:
    """Make entries (SQL) the baseline; returns its number of rows."""
    workspace.run(f"CREATE OR REPLACE VIEW {ENTRIES} AS {entries}")
    shown = "key, hash, owned, ref, confirmed_at, seen, dropped"
    workspace.run(f"CREATE OR REPLACE VIEW {BASELINE} AS SELECT {shown} FROM {ENTRIES} WHERE NOT gone")
    count: int = workspace.one(f"SELECT count(*) FROM {BASELINE}")[0]
    return count


def _distrusted(entries: str, found: Distrust) -> str:
    """SQL of the entries without what no longer holds."""
    back = f"gone AND key IN ({', '.join(map(literal, found.back))})" if found.back else "FALSE"
    forgotten = "FALSE" if found.forgotten is None else f"NOT gone AND epoch > {found.forgotten}"
    unknown = f"({back} OR epoch > {found.rows})"
    hash, seen, dropped = "hash", "seen", "dropped"
    if found.emptied:
        names = ", ".join(map(literal, found.emptied))
        hash, seen = _due("hash"), _emptied(found)
        stay = f"list_filter(map_entries(dropped), lambda one: one.key NOT IN ({names}))"
        dropped = f"map_from_entries({stay})"
    owned = f"CASE WHEN {back} THEN TRUE WHEN {found.disown} THEN FALSE ELSE owned END"
    rest = f"CASE WHEN {unknown} THEN NULL ELSE {dropped} END AS dropped, epoch, born"
    return (
        f"SELECT key, (gone AND NOT ({back})) AS gone, CASE WHEN {unknown} THEN NULL ELSE {hash} END AS hash,"
        f" {owned} AS owned, ref, confirmed_at, CASE WHEN {unknown} THEN NULL ELSE {seen} END AS seen,"
        f" {rest} FROM {entries} WHERE NOT ({forgotten})"
    )


def _due(hash: str) -> str:
    """SQL of a hash that no row has, of the same payload: its last four bytes say of which."""
    return f"unhex(concat(repeat('0', 2 * octet_length({hash}) - 8), right(hex({hash}), 8)))"


def _emptied(found: Distrust) -> str:
    """SQL of digests, of which those of the emptied fields are of nothing, wherever these are in an entry's
    shape."""
    cases = ""
    for salt, names in found.shapes.items():
        parts = [
            literal(NOTHING) if name in found.emptied else f"substr(hex(seen), {16 * at + 1}, 16)"
            for at, name in enumerate(names)
        ]
        if not set(found.emptied).isdisjoint(names):
            known = f"right(hex(hash), 8) = {literal(salt)} AND octet_length(seen) >= {8 * len(names)}"
            rest = f"substr(hex(seen), {16 * len(names) + 1})"
            cases += f" WHEN {known} THEN unhex(concat({', '.join(parts)}, {rest}))"
    return f"CASE{cases} ELSE seen END" if cases else "seen"


def opened(workspace: Workspace, path: Path, format: str) -> str:
    """SQL of the rows of a run file. LedgerError STATE_FORMAT if it has another format, STATE_UNREADABLE if
    it is damaged."""
    return f"read_parquet({_checked(workspace, [path], format)})"


def all_opened(workspace: Workspace, paths: Sequence[Path], format: str) -> str:
    """The same for several files, with the path of each row in `filename`."""
    return f"read_parquet({_checked(workspace, paths, format)}, filename = true)"


def _checked(workspace: Workspace, paths: Sequence[Path], format: str) -> str:
    import duckdb

    try:
        formats = _formats(workspace, paths)
    except duckdb.Error as problem:
        if len(paths) > 1:  # which of them?
            for path in paths:
                _checked(workspace, [path], format)
        raise damaged_state(paths[0].name, str(problem).partition("\n")[0]) from problem
    for path in paths:
        if formats.get(str(path)) != format:
            raise former_format(path.name)
    return _listed(paths)


def _formats(workspace: Workspace, paths: Sequence[Path]) -> dict[str, str]:
    """What each file says of its format."""
    kept = f"FROM parquet_kv_metadata({_listed(paths)}) WHERE decode(key) = 'retl'"
    return dict(workspace.run(f"SELECT file_name, decode(value) {kept}"))


def _listed(paths: Sequence[Path]) -> str:
    return f"[{', '.join(literal(str(path)) for path in paths)}]"


def _effects(answers: str, at: str, epoch: str, *more: str) -> str:
    """SQL of each key after a run's answers: gone, or present with a hash (NULL = unknown). `at`, `epoch`:
    SQL of when the run began, and its epoch; `more` columns of the answers are kept."""
    return (
        f"SELECT key, (op = 'delete' AND kind = 'written') OR (op = '{MOVED}' AND kind <> 'unknown') AS gone,"
        " CASE kind WHEN 'unknown' THEN NULL ELSE hash END AS hash,"
        f" CASE WHEN owned IS NULL OR (op = 'delete' AND kind = 'kept') THEN FALSE"
        f" ELSE owned OR (ours AND op NOT IN ('delete', '{MOVED}')) END AS owned,"
        f" coalesce(new_ref, ref) AS ref, {at} AS confirmed_at,"
        f" {_SEEN} AS seen, CASE WHEN op NOT IN ('insert', 'remove') THEN dropped END AS dropped,"
        f" {epoch} AS epoch,"
        " CASE WHEN op IN ('insert', 'delete', 'remove', 'remake') AND kind <> 'kept'"
        f" THEN {epoch} END AS born{''.join(f', {name}' for name in more)}"
        f" FROM {answers}"
        f" WHERE (kind IN ('written', 'merged', 'unknown') OR (kind = 'kept' AND op NOT IN {UNDONE})"
        " OR (kind = 'skipped' AND settled)) AND key IS NOT NULL"  # NULL: the row was erased
    )


def answered(workspace: Workspace, rows: str, batches: Sequence[Acknowledged]) -> str:
    """SQL of the rows in batches, each with its answer: kind, settled, ours, code, reason, new_ref. `rows` is
    a relation with the position in `row`. Valid until the next call, or always if answers are `alike`."""
    result = _REPORTED
    if alike(batches):
        ((first, last, *reported),) = _spans(batches)
        same = ", ".join(
            f"{_cast(value, kind)} AS {name}"
            for value, (name, kind) in zip(reported, result.items(), strict=True)
        )
        return (
            f"SELECT p.*, {same}, CAST(NULL AS VARCHAR) AS new_ref FROM {rows} p"
            f" WHERE p.row BETWEEN {first} AND {last}"
        )
    workspace.load("spans", {"first": "BIGINT", "last": "BIGINT", **result}, _spans(batches))
    workspace.load("singles", {"at_row": "BIGINT", **result, "new_ref": "VARCHAR"}, _singles(batches))
    chosen = ", ".join(
        f"CASE WHEN x.at_row IS NULL THEN s.{name} ELSE x.{name} END AS {name}" for name in result
    )
    return (
        f"SELECT p.*, {chosen}, x.new_ref FROM {rows} p JOIN spans s ON p.row BETWEEN s.first AND s.last"
        " LEFT JOIN singles x ON x.at_row = p.row"
    )


def alike(batches: Sequence[Acknowledged]) -> bool:
    """Whether all rows of these batches have the same answer, without a gap between the batches."""
    return not any(_singles(batches)) and len(list(_spans(batches))) == 1


def compact(workspace: Workspace, path: Path) -> int:
    """Write the baseline and the deleted keys as a new snapshot file, private to this user; returns the
    number of rows in the baseline."""
    path.touch(mode=0o600)
    latest, count = workspace.one(
        f"SELECT CAST(max(confirmed_at) AS VARCHAR), count(*) FILTER (NOT gone) FROM {ENTRIES}"
    )
    late = f"confirmed_at > CAST({literal(latest or '-infinity')} AS TIMESTAMPTZ) - INTERVAL '{REMEMBERED}'"
    rows = f"SELECT {_COLUMNS} FROM {ENTRIES} WHERE NOT gone OR {late}"
    workspace.run(f"COPY ({rows}) TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{SNAPSHOT}'}})")
    return int(count)


def due(snapshot_rows: int, delta_rows: Sequence[int]) -> bool:
    """Whether to compact now. `snapshot_rows` are those of the snapshot, or of the first delta if there is
    no snapshot yet."""
    return sum(delta_rows) > COMPACT_PAST * snapshot_rows or len(delta_rows) > COMPACT_DELTAS


def _reported(result: RowResult, operation: Mode) -> tuple[object, ...]:
    """An answer as a row. A row is ours if we wrote it, or if the answer is unknown; but not an unknown
    insert_only row, because its key may have been there before."""
    unkept = result.kind is Kind.UNKNOWN and operation != "insert_only"
    ours = (result.kind in (Kind.WRITTEN, Kind.MERGED) and result.ours) or unkept
    return (result.kind.value, result.settled, ours, result.code, result.reason)


def _spans(batches: Iterable[Acknowledged]) -> Iterable[tuple[object, ...]]:
    """Adjacent batches with the same answer as one span; usually there is one span in total."""
    span: tuple[object, ...] | None = None
    for batch in sorted((b for b in batches if b.status != "split"), key=lambda b: b.first):
        reported = _reported((batch.outcome or UNANSWERED).default, batch.operation)
        if span is not None and span[1] == batch.first - 1 and span[2:] == reported:
            span = (span[0], batch.last, *reported)
        else:
            if span is not None:
                yield span
            span = (batch.first, batch.last, *reported)
    if span is not None:
        yield span


def _singles(batches: Iterable[Acknowledged]) -> Iterable[tuple[object, ...]]:
    for batch in batches:
        if batch.status != "split" and batch.outcome is not None:
            for row, result in batch.outcome.exceptions.items():
                yield (batch.first + row, *_reported(result, batch.operation), result.ref)
