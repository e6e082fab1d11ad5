"""The SQL that moves one sync's batches into its table, as text: pure, without parameters.

A batch is staged by COPY into a temporary table of the target's own column types, then one statement
applies it to the table. If values must be judged, COPY fills another temporary table, in which those columns
are text, and the stage is made from it. `retl_row` is a row's number in the batch. Rows are compared by their
images, not by their values: that works for every type (json has no `=`) and for every digit. All of it works
with PostgreSQL 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from retl.destinations.batch import Field, Mode, Shape, SoftDelete
from retl.destinations.postgres import digests
from retl.destinations.postgres.judged import Fit, Judged
from retl.destinations.postgres.markers import Markers
from retl.destinations.postgres.relation import Relation, Widened
from retl.destinations.postgres.types import ddl
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    from retl.destinations.postgres.rules import Rules

ROW = "retl_row"
SEEN = "retl_seen"  # what the table held after our last write
KEPT = "retl_kept"  # per compared field whether the table's value stays
NEWER = "retl_newer_"  # with a number: the mart's value that newest_wins compares
STAGE = "pg_temp.retl_stage"
SENT = "pg_temp.retl_sent"  # as COPY brings it, where values must be judged
APART = -1_000_000_000  # minus its number is the number of a staged row that is done
# All staged rows (s) that are not done. The planner has no statistics of a stage and takes a range for half a
# percent of it: so it looks up each row by the index of the key, as an upsert does. To join 10,000 rows it
# would read the whole table for each batch.
TO_DO = f"s.{ROW} BETWEEN 0 AND {-APART}"
# Whether this transaction wrote the row version of t, perhaps in a savepoint. Its own versions are not older
# than it, nor are those of others that began later and have committed.
_FULL = "(pg_catalog.pg_current_xact_id()::text::bigint - age(t.xmin))::text::xid8"
_OURS = f"(CASE WHEN age(t.xmin) <= 0 THEN pg_catalog.pg_xact_status({_FULL}) = 'in progress' ELSE false END)"
Image = Literal["old", "joined"]  # how an UPDATE returns a row as it was
_INSERT, _DELETE, _UPDATE = 4, 8, 16  # pg_trigger.tgtype
_EVENTS: dict[Mode, int] = {
    "restore": _INSERT | _UPDATE | _DELETE,
    "upsert": _INSERT | _UPDATE,
    "insert_only": _INSERT,
    "update_only": _UPDATE,
    "append": _INSERT,
    "delete": _DELETE,
}


class Traits(Struct, frozen=True):
    """What the catalog says of a table that changes how it is written. The defaults are those of an ordinary
    table."""

    ordinary: bool = True  # False: partitioned, or not a table at all
    equals: Mapping[str, str] = field(default_factory=dict)  # the operator that compares each key column
    unique: bool = True  # whether no two rows of the table have the same key
    triggers: int = 0  # the events that call a trigger of the table, as bits of pg_trigger.tgtype


class Statements:
    """The statements of one sync. `first` and `last` are row numbers inside the staged batch.

    The rows of an ordinary table are only its own: those of tables that inherit from it belong to others.
    """

    def __init__(
        self,
        relation: Relation,
        shape: Shape,
        traits: Traits | None = None,
        fit: Fit | None = None,
        others: Sequence[str] = (),
    ) -> None:
        self.relation = relation
        self.shape = shape
        self.traits = traits or Traits()
        self.fit = fit or Fit()
        self.others = others  # the columns of the table that are not the sync's
        self.missing = frozenset[str]()  # those of the sync that it does not have yet
        self.rules: Rules | None = None  # of the table, once a batch needed them
        self.markers = Markers(relation, shape.state_id, shape.sync)
        self.names = frozenset(field.name for field in (*shape.key, *shape.fields))
        self.keys = [quoted(field.name) for field in shape.key]
        self.columns = [*self.keys, *(quoted(field.name) for field in shape.fields)]
        self._arbiter = ", ".join(self._key("", field) for field in shape.key)
        self._same_key = self.same_key("t", "s")
        self._absent = f"t.{self.keys[0]} IS NULL"  # after a LEFT JOIN

    def with_columns(self, fields: Sequence[Field]) -> Statements:
        """The same of a table that has these columns too, empty, as it will once they are made. Only to look:
        what it names is no table."""
        empty = ", ".join(f"NULL::{ddl(field.type)} AS {quoted(field.name)}" for field in fields)
        rows = f"(SELECT *, {empty} FROM {self.rows})"
        traits = replace(self.traits, ordinary=False)
        table = Widened(schema=self.relation.schema, name=self.relation.name, rows=rows)
        made = Statements(table, self.shape, traits, self.fit, self.others)
        made.missing = frozenset(field.name for field in fields)
        return made

    def same_key(self, one: str, other: str) -> str:
        """Whether two rows have the same key in the table."""
        return " AND ".join(
            f"{self._key(f'{one}.', field)} {self._equals(field)} {self._key(f'{other}.', field)}"
            for field in self.shape.key
        )

    def _key(self, alias: str, field: Field) -> str:
        """A key column as the table compares it."""
        column = f"{alias}{quoted(field.name)}"
        return f"lower({column})" if field.name in self.fit.lowered else column

    def _equals(self, field: Field) -> str:
        if field.name in self.fit.lowered:  # a text, whatever the column's type is
            return "OPERATOR(pg_catalog.=)"
        return self.traits.equals.get(field.name, "=")

    @property
    def rows(self) -> str:
        """The table's own rows, as t."""
        return f"{'ONLY ' if self.traits.ordinary else ''}{self.relation.sql} AS t"

    def triggers(self, operation: Mode) -> bool:
        """Whether a trigger of the table may act on the rows of a batch."""
        soft = isinstance(self.shape.deletes, SoftDelete)
        events = _UPDATE if operation == "delete" and soft else _EVENTS[operation]
        return bool(self.traits.triggers & events)

    @property
    def straight(self) -> bool:
        """Whether a COPY into the table itself needs no second look: no trigger acts on what it inserts, no
        value must be judged, and no digest is asked for."""
        return not (self.traits.triggers & _INSERT or self.fit.judged or self.digests)

    @property
    def digests(self) -> bool:
        """Whether the sync asks for digests."""
        return self.shape.digests != "none"

    # --- staging

    def stage(self) -> str:
        """Once per connection: an empty stage. The target's column types make COPY the only parser."""
        listed = ", ".join(f"t.{column}" for column in self.columns)
        kept = f", ARRAY[]::boolean[] AS {KEPT}" if self.shape.conditional else ""
        return (
            f"CREATE TEMP TABLE {STAGE.partition('.')[2]} ON COMMIT DELETE ROWS AS"
            f" SELECT 0 AS {ROW}, {listed}{self._beside}{kept} FROM {self.relation.sql} AS t WHERE false"
        )

    @property
    def _beside(self) -> str:
        """The columns of a stage for what a cautious shape sends beside key and fields."""
        newer = [f"t.{quoted(one.target)} AS {NEWER}{n}" for n, one in enumerate(self.shape.newest)]
        seen = [f"''::bytea AS {SEEN}"] if self.shape.conditional else []
        return "".join(f", {column}" for column in [*newer, *seen])

    def beside(self, operation: Mode) -> list[str]:
        """Their names, as far as the operation sends them."""
        newer = [f"{NEWER}{n}" for n in range(len(self.shape.newest))] if operation != "delete" else []
        return [*newer, SEEN] if self.shape.cautious else []

    def stage_sent(self) -> str:
        """Once per connection, if values must be judged."""
        listed = ", ".join(
            f"''::text AS {quoted(name)}" if name in self.fit.judged else f"t.{quoted(name)}"
            for name in self.sent("upsert")
        )
        return (
            f"CREATE TEMP TABLE {SENT.partition('.')[2]} ON COMMIT DELETE ROWS AS"
            f" SELECT 0 AS {ROW}, {listed}{self._beside} FROM {self.relation.sql} AS t WHERE false"
        )

    def empty(self) -> str:
        """Empty the stages before the transaction ends."""
        return "; ".join(f"DELETE FROM {one}" for one in ([STAGE, SENT] if self.fit.judged else [STAGE]))

    def copy(self, operation: Mode) -> str:
        columns = [*(quoted(name) for name in self.sent(operation)), *self.beside(operation)]
        return _copy(SENT if self.judged(operation) else STAGE, [ROW, *columns])

    def copy_in(self) -> str:
        """Into the table itself, without a stage and row numbers."""
        return _copy(self.relation.sql, self.columns)

    def judged(self, operation: Mode) -> dict[str, Judged]:
        """The judged columns that the operation sends, by name."""
        return {name: self.fit.judged[name] for name in self.sent(operation) if name in self.fit.judged}

    def sent(self, operation: Mode) -> list[str]:
        """The names of the columns that the operation sends."""
        fields = self.shape.key if operation == "delete" else (*self.shape.key, *self.shape.fields)
        return [field.name for field in fields]

    def take_collisions(self) -> str:
        """Remove from the stage all rows with keys that are equal in the target; returns their numbers."""
        return (
            f"DELETE FROM {STAGE} AS s USING (SELECT {ROW}, count(*) OVER (PARTITION BY {self._arbiter}) AS n"
            f" FROM {STAGE}) AS t WHERE t.{ROW} = s.{ROW} AND t.n > 1 RETURNING s.{ROW}"
        )

    def collides(self) -> str:
        """Whether `take_collisions` would find any."""
        return f"SELECT EXISTS (SELECT FROM {STAGE} GROUP BY {self._arbiter} HAVING count(*) > 1)"

    def take_out(self, rows: Iterable[int], *, but: bool = False) -> str:
        """Remove these rows from the stage; with `but` all others."""
        return f"DELETE FROM {STAGE} WHERE {ROW} {'NOT ' * but}IN ({', '.join(map(str, rows))})"

    # --- applying the stage

    def set_aside(self, rows: Iterable[int]) -> str:
        """Staged rows get negative numbers, -1 for 0, which no statement takes by mistake."""
        listed = ", ".join(map(str, rows)) or "NULL"
        return f"UPDATE {STAGE} SET {ROW} = -1 - {ROW} WHERE {ROW} IN ({listed})"

    def apply(self, operation: Mode, first: int, last: int, order: Sequence[int] = ()) -> str:
        """Writes staged rows and tells how many: by its row count or, if it returns a row, by its first value
        (the last counts also rows that got another key). `left` returns the others. The key may be less
        unique in the table than in the mart, so rows of the table are never counted. The rows of `order` are
        inserted last, in that order."""
        rows = f"s.{ROW} BETWEEN {first} AND {last}"
        matched = f"{rows} AND {self._same_key}"
        if operation == "delete" and isinstance(self.shape.deletes, SoftDelete):
            sets = ", ".join(f"{quoted(name)} = {constant(v)}" for name, v in self.shape.deletes.set.items())
            return _by_row(f"UPDATE {self.rows} SET {sets} FROM {STAGE} AS s WHERE {matched}")
        if operation == "delete":
            return _by_row(f"DELETE FROM {self.rows} USING {STAGE} AS s WHERE {matched}")
        if operation == "update_only":
            condition = f"{matched} AND {self._differs('s')}"
            return _by_row(f"UPDATE {self.rows} SET {self._sets('s')} FROM {STAGE} AS s WHERE {condition}")
        listed, staged = ", ".join(self.columns), ", ".join(f"s.{column}" for column in self.columns)
        into = f"INSERT INTO {self.relation.sql} AS t ({listed})"
        insert = f"{into} SELECT {staged} FROM {_queued(order)} WHERE {rows}"
        insert += " ORDER BY q.n NULLS FIRST" if order else ""
        if operation == "append":
            return insert
        conflict = f"{insert} ON CONFLICT ({self._arbiter})"
        if operation == "insert_only":
            # inserted rows are removed from the stage or set apart; rows with existing keys stay in it
            returned = f"{conflict} DO NOTHING RETURNING {', '.join(f't.{key}' for key in self.keys)}"
            used = f"DELETE FROM {STAGE} AS s USING t WHERE {matched} RETURNING 1"
            if self.digests:
                used = f"UPDATE {STAGE} AS s SET {ROW} = {APART} - s.{ROW} FROM t WHERE {matched} RETURNING 1"
            counts = "(SELECT count(*) FROM used), (SELECT count(*) FROM t)"
            return f"WITH t AS ({returned}), used AS ({used}) SELECT {counts}"
        if not self._compared:
            return f"{conflict} DO NOTHING"
        return f"{conflict} DO UPDATE SET {self._sets('excluded')} WHERE {self._differs('excluded')}"

    def left(self, operation: Mode, first: int, last: int) -> str:
        """The rows that `apply` did not write: number, and whether the key is absent. Run it in the same
        transaction.

        A difference alone is no proof, because a trigger may change what is written. A row version that
        differs and is not of this transaction was not written by it.
        """
        rows, absent = f"s.{ROW} BETWEEN {first} AND {last}", self._absent
        target = f"{self.rows} ON {self._same_key}"
        query = f"SELECT s.{ROW}, {absent} FROM {STAGE} AS s"
        if operation == "append":
            return f"{query} LEFT JOIN {target} AND {_OURS} WHERE {rows} AND {absent}"
        if operation == "insert_only":
            return f"{query} LEFT JOIN {target} WHERE {rows}"
        if operation == "delete":
            old = f" AND NOT {_OURS}" if isinstance(self.shape.deletes, SoftDelete) else ""
            return f"{query} JOIN {target} WHERE {rows}{old}"
        stale = f" OR (NOT {_OURS} AND {self._differs('s')})" if self._compared else ""
        return f"{query} LEFT JOIN {target} WHERE {rows} AND ({absent}{stale})"

    def in_place(self, first: int, last: int) -> str:
        """How many of these staged rows this transaction has written under the key that they have."""
        return (
            f"SELECT count(DISTINCT s.{ROW}) FROM {STAGE} AS s JOIN {self.rows} ON {self._same_key}"
            f" AND {_OURS} WHERE s.{ROW} BETWEEN {first} AND {last}"
        )

    def _new(self, field: Field, source: str, *, kept: bool = True) -> str:
        """What a field becomes; unless it is `kept`, as rows are that were judged."""
        new = self._sent(field, source)
        if kept and source == "s" and field.compared and self.shape.conditional:
            number = self.shape.compared.index(field) + 1
            return f"CASE WHEN s.{KEPT}[{number}] THEN t.{quoted(field.name)} ELSE {new} END"
        return new

    def _sent(self, field: Field, source: str) -> str:
        """What a field becomes if nobody else has changed it."""
        column = quoted(field.name)
        if field.only_if_empty:
            return f"COALESCE(t.{column}, {source}.{column})"
        if field.nulls == "keep":
            return f"COALESCE({source}.{column}, t.{column})"
        return f"{source}.{column}"

    def _sets(self, source: str, *, kept: bool = True) -> str:
        return ", ".join(
            f"{quoted(field.name)} = {self._new(field, source, kept=kept)}" for field in self.shape.fields
        )

    @property
    def _compared(self) -> list[Field]:
        return [field for field in self.shape.fields if field.compared]

    def _differs(self, source: str, *fields: Field, kept: bool = True) -> str:
        """Of these fields, or of all compared ones. The casts force one comparison of two records: rows
        without casts are compared by column."""
        compared = fields or self._compared
        old = ", ".join(f"t.{quoted(field.name)}" for field in compared)
        new = ", ".join(self._new(field, source, kept=kept) for field in compared)
        return f"ROW({old})::record OPERATOR(pg_catalog.*<>) ROW({new})::record"

    # --- a whole mart

    def shift(self, operation: Mode, rows: int, by: int) -> str:
        """Give the rows that were copied last, with numbers from 0, those from `by` on."""
        table = SENT if self.judged(operation) else STAGE
        return f"UPDATE {table} SET {ROW} = {ROW} + {by} WHERE {ROW} < {rows}"

    def put_back(self) -> str:
        """Undo `set_aside`."""
        return f"UPDATE {STAGE} SET {ROW} = -1 - {ROW} WHERE {ROW} < 0"

    def remove_absent(self) -> str:
        """Delete every row of the table whose key is not staged."""
        return f"DELETE FROM {self.rows} WHERE {self._unstaged}"

    def absent(self) -> str:
        """Whether the table has a row whose key is not staged."""
        return f"SELECT EXISTS (SELECT FROM {self.rows} WHERE {self._unstaged})"

    @property
    def _unstaged(self) -> str:
        return f"NOT EXISTS (SELECT FROM {STAGE} AS s WHERE {self._same_key})"

    # --- digests

    def lock(self, operation: Mode) -> str:
        """Lock the rows of the table that the staged rows stand for, in the order of their keys. Rows that
        refer to them by foreign keys may still be written, except if they are to be deleted."""
        order = ", ".join(f"t.{key}" for key in self.keys)
        strength = "UPDATE" if operation == "delete" else "NO KEY UPDATE"
        return (
            f"SELECT FROM {STAGE} AS s JOIN {self.rows} ON {self._same_key} WHERE {TO_DO}"
            f" ORDER BY {order} FOR {strength} OF t"
        )

    def apart(self, rows: Sequence[int]) -> str:
        """Set staged rows apart that need no statement any more, or were set aside and are done."""
        numbers = ", ".join(str(n) for row in rows for n in (row, -1 - row))
        number = f"CASE WHEN {ROW} < 0 THEN -1 - {ROW} ELSE {ROW} END"
        return f"UPDATE {STAGE} SET {ROW} = {APART} - ({number}) WHERE {ROW} IN ({numbers})"

    def returned(self) -> str:
        """COPY the digests of all staged rows that the table has."""
        staged = f"(SELECT *, CASE WHEN {ROW} < {APART // 2} THEN {APART} - {ROW} ELSE {ROW} END AS {ROW}_n"
        staged += f" FROM {STAGE}) AS s"
        row = f"CASE WHEN s.{ROW}_n < 0 THEN -1 - s.{ROW}_n ELSE s.{ROW}_n END"
        held = self.held("t", kept=True)
        found = f"SELECT {row}, {held} FROM {staged} JOIN {self.rows} ON {self._same_key}"
        return f"COPY ({found} WHERE s.{ROW}_n BETWEEN {APART} AND {-APART}) TO STDOUT (FORMAT csv)"

    def held(self, alias: str, *, kept: bool = False) -> str:
        """Of a row of the table. A field that is `kept` keeps its digest too: it is not as we left it."""
        found = digests.of_fields(alias, self.shape.compared)
        if kept and self.shape.conditional:
            found = (
                " || ".join(
                    f"CASE WHEN s.{KEPT}[{n}] THEN {digests.former(f's.{SEEN}', n)}"
                    f" ELSE {digests.digest(f'{alias}.{quoted(field.name)}')} END"
                    for n, field in enumerate(self.shape.compared, 1)
                )
                or "''::bytea"
            )
        return f"{found} || {digests.of_others(alias, self.others)}" if self.shape.digests == "row" else found

    def image(self, table: str, first: int, names: Sequence[str]) -> str:
        """Lock the rows of the table that the staged ones stand for, in the order of their keys, and COPY
        them: position, and these columns as a JSON object of texts. To delete a row needs the stronger lock;
        the other lets rows that refer to it be written."""
        strength = "NO KEY UPDATE" if set(names).isdisjoint(self.others) else "UPDATE"
        texts = ", ".join(f"t.{quoted(name)}::text" for name in names)
        listed = ", ".join(map(literal, names))
        image = f"json_object(ARRAY[{listed}]::text[], ARRAY[{texts}]::text[])"
        order = ", ".join(f"t.{key}" for key in self.keys)
        found = f"SELECT s.{ROW} + {first}, {image} FROM {table} AS s JOIN {self.rows} ON {self._same_key}"
        return f"COPY ({found} WHERE {TO_DO} ORDER BY {order} FOR {strength} OF t) TO STDOUT (FORMAT csv)"

    @property
    def every_column(self) -> list[str]:
        return [*(field.name for field in (*self.shape.key, *self.shape.fields)), *self.others]

    # --- conditional writes: one transaction compares and writes, so nobody can write in between

    def update_untouched(self, image: Image | None = None) -> str:
        """UPDATE the staged rows of which the table holds what it held (any, if nobody's edits count), and
        COPY their numbers and digests; with an `image` also the texts of the fields before. A row that
        another transaction changes meanwhile is compared again, and is then not the one that was joined."""
        seen = f"pg_catalog.substr(s.{SEEN}, 1, {digests.SIZE * len(self.shape.compared)})"
        same = f"{digests.of_fields('t', self.shape.compared)} = {seen}" if self.shape.cautious else "true"
        source, found = f"{STAGE} AS s", f"{TO_DO} AND {self._same_key}"
        if image == "joined":
            other = f"{self.rows.removesuffix(' AS t')} AS o"
            source += f" JOIN {other} ON {self.same_key('o', 's')}"
            found = f"{TO_DO} AND t.ctid = o.ctid AND t.tableoid = o.tableoid"
        alias = {"joined": "o", "old": "old"}.get(image or "", "")
        before = "".join(f", {self._text(alias, one)}" for one in self.shape.fields if image)
        update = (
            f"UPDATE {self.rows} SET {self._sets('s', kept=False)} FROM {source}"
            f" WHERE {found} AND {same} AND {self._differs('s', kept=False)}"
            f" RETURNING s.{ROW}, {self.held('t')}{before}"
        )
        return f"COPY ({update}) TO STDOUT (FORMAT csv)"

    def not_updated(self) -> str:
        """The numbers of the staged rows that the table does not have as this transaction wrote them."""
        written = f"SELECT FROM {self.rows} WHERE {self._same_key} AND {_OURS}"
        return f"SELECT s.{ROW} FROM {STAGE} AS s WHERE {TO_DO} AND NOT EXISTS ({written})"

    def staged(self) -> str:
        """The numbers of the staged rows that are not done, and the bytes of what is known of each."""
        return f"SELECT {ROW}, coalesce(octet_length({SEEN}), 0) FROM {STAGE} WHERE {ROW} >= 0"

    def judge(self, *, note: bool) -> str:
        """Per staged row that the table has: number, which compared fields stay, which are written, which are
        in conflict, and a digest of both sides. With `note` the stage keeps which fields stay."""
        found = [self._verdict(n, field) for n, field in enumerate(self.shape.compared, 1)]
        arrays = [f"ARRAY[{', '.join(column)}]::boolean[]" for column in zip(*found, strict=True)]
        arrays = arrays or ["ARRAY[]::boolean[]"] * 3
        both = f"{self.held('t')} || {digests.of_fields('s', self.shape.compared)}"
        selected = ", ".join([f"s.{ROW}", *arrays, digests.shown(both)])
        where = f"{TO_DO} AND {self._same_key}"
        if not note:
            return f"SELECT {selected} FROM {STAGE} AS s, {self.rows} WHERE {where}"
        return (
            f"UPDATE {STAGE} AS s SET {KEPT} = {arrays[0]} FROM {self.rows}"
            f" WHERE {where} RETURNING {selected}"
        )

    def _verdict(self, number: int, field: Field) -> tuple[str, str, str]:
        """SQL for one field: whether the table's value stays, is written over, or is in conflict."""
        held, column = digests.part(f"s.{SEEN}", number), quoted(field.name)
        differs = f"ROW(t.{column})::record OPERATOR(pg_catalog.*<>) ROW({self._sent(field, 's')})::record"
        touched = f"{digests.digest(f't.{column}')} IS DISTINCT FROM {held}"
        changed = f"{digests.digest(f's.{column}')} IS DISTINCT FROM {held}"
        clash, kept, conflict = f"({differs} AND {touched})", "false", "false"
        if field.only_if_empty or field.name in self.missing:  # nobody's value is ever overwritten
            return kept, differs, conflict
        if field.conflicts == "target_wins":
            kept = clash
        elif field.conflicts == "newest_wins":
            theirs = quoted(self.shape.newest[field.newest].target)
            newer = f"coalesce(s.{NEWER}{field.newest} > t.{theirs}, false)"
            kept = f"({clash} AND NOT ({changed} AND {newer}))"
        elif field.conflicts == "manual":
            kept, conflict = f"({clash} AND NOT {changed})", f"({clash} AND {changed})"
        return kept, f"({differs} AND NOT {kept})", conflict

    def touched(self) -> str:
        """The staged rows of which the table holds something else than it held, in any column: number, and a
        digest of it."""
        held = self.held("t")
        return (
            f"SELECT s.{ROW}, {digests.shown(held)} FROM {STAGE} AS s JOIN {self.rows} ON {self._same_key}"
            f" WHERE {TO_DO} AND {held} IS DISTINCT FROM s.{SEEN}"
        )

    # --- reading

    def unequal(self) -> str:
        """The staged rows that the table does not hold as `apply` would leave them: number, whether it lacks
        the key, and the names of the columns that differ. If the key is not unique in the table, a row may
        come several times."""
        differs = f" OR {self._differs('s')}" if self._compared else ""
        named = ", ".join(
            f"CASE WHEN {self._differs('s', one)} THEN {literal(one.name)} END" for one in self._compared
        )
        return (
            f"SELECT s.{ROW}, {self._absent}, array_remove(ARRAY[{named}]::text[], NULL) FROM {STAGE} AS s"
            f" LEFT JOIN {self.rows} ON {self._same_key} WHERE {TO_DO} AND ({self._absent}{differs})"
        )

    def present(self) -> str:
        """The numbers of the staged rows whose keys are in the table."""
        target = f"SELECT FROM {self.rows} WHERE {self._same_key}"
        return f"SELECT s.{ROW} FROM {STAGE} AS s WHERE {TO_DO} AND EXISTS ({target})"

    def scan(self, fields: Sequence[Field] | None = None) -> str:
        """The keys of all rows as text, as COPY writes them; with `fields` a CSV of them and the texts of
        these fields."""
        columns = [
            f"({self._held(field.name)})::text" if field.name in self.fit.judged else self._text("t", field)
            for field in self.shape.key
        ]
        columns += [self._text("t", field) for field in fields or ()]
        layout = "" if fields is None else " (FORMAT csv, ENCODING 'UTF8')"
        return f"COPY (SELECT {', '.join(columns)} FROM {self.rows}) TO STDOUT{layout}"

    def _text(self, alias: str, field: Field) -> str:
        """The text of a value in a COPY. A cast of a number or a time takes as long as the COPY itself."""
        return f"{alias}.{quoted(field.name)}{'' if field.name in self.fit.written else '::text'}"

    def read(self, keys: Sequence[tuple[Any, ...]], casts: Mapping[str, str], fields: Sequence[str]) -> str:
        """Per key, in order: whether it is there, and these fields. `casts` are the columns' types, without a
        length, because a cast would cut to it."""
        arrays = ", ".join(
            f"ARRAY[{', '.join(_key_text(key[i]) for key in keys)}]::text[]" for i in range(len(self.keys))
        )
        typed = ", ".join(f"r.{quoted(f.name)}::{casts[f.name]} AS {quoted(f.name)}" for f in self.shape.key)
        listed = ", ".join(self.keys)
        held = "".join(f", {self._held(name)} AS {quoted(name)}" for name in fields)
        selected = "".join(f", f.{quoted(name)}" for name in fields)
        return (
            f"SELECT coalesce(f.{ROW}, false){selected}"
            f" FROM unnest({arrays}) WITH ORDINALITY AS r({listed}, {ROW}_n) CROSS JOIN LATERAL"
            f" (SELECT {typed}) AS s LEFT JOIN LATERAL"
            f" (SELECT true AS {ROW}{held} FROM {self.rows} WHERE {self._same_key} LIMIT 1) AS f"
            f" ON true ORDER BY r.{ROW}_n"
        )

    def _held(self, name: str) -> str:
        """A judged column in the type that its values were sent in, which our driver can read."""
        judged = self.fit.judged.get(name)
        return judged.shown(f"t.{quoted(name)}") if judged else f"t.{quoted(name)}"

    # --- creating what is missing

    def create_schema(self) -> str:
        return f"CREATE SCHEMA {quoted(self.relation.schema)}"

    def create_table(self) -> str:
        keys = [f"{quoted(field.name)} {ddl(field.type)} NOT NULL" for field in self.shape.key]
        made = (*self.shape.fields, *self.shape.flagged)
        fields = [f"{quoted(field.name)} {ddl(field.type)}" for field in made]
        listed = ", ".join([*keys, *fields, f"PRIMARY KEY ({', '.join(self.keys)})"])
        return f"CREATE TABLE {self.relation.sql} ({listed})"

    def add_column(self, field: Field) -> str:
        return f"ALTER TABLE {self.relation.sql} ADD COLUMN {quoted(field.name)} {ddl(field.type)}"

    def change_column(self, name: str, to: str | None) -> str:
        """Rename a column, or drop it."""
        change = (
            f"DROP COLUMN {quoted(name)}" if to is None else f"RENAME COLUMN {quoted(name)} TO {quoted(to)}"
        )
        return f"ALTER TABLE {self.relation.sql} {change}"

    def add_key(self) -> str:
        return f"ALTER TABLE {self.relation.sql} ADD UNIQUE ({', '.join(self.keys)})"


def index_rows(table: str) -> str:
    """For many statements over few rows each."""
    return f"CREATE INDEX retl_rows ON {table} ({ROW})"


def unindex_rows() -> str:
    return "DROP INDEX pg_temp.retl_rows"


def _by_row(change: str) -> str:
    """Counts the staged rows (s) that a statement used, instead of the rows of the table that it changed."""
    return f"WITH used AS ({change} RETURNING s.{ROW}) SELECT count(DISTINCT {ROW}) FROM used"


def _copy(into: str, columns: Sequence[str]) -> str:
    return f"COPY {into} ({', '.join(columns)}) FROM STDIN (FORMAT csv, NULL '', ENCODING 'UTF8')"


def _queued(order: Sequence[int]) -> str:
    """The stage, with the place of each row in this order."""
    if not order:
        return f"{STAGE} AS s"
    listed = ", ".join(map(str, order))
    return f"{STAGE} AS s LEFT JOIN unnest(ARRAY[{listed}]) WITH ORDINALITY AS q(at, n) ON q.at = s.{ROW}"


def constant(value: Any) -> str:
    """A literal of unknown type, which PostgreSQL reads as the column's type."""
    if value is None:
        return "NULL"
    return literal(json.dumps(value) if isinstance(value, bool | dict | list) else str(value))


def _key_text(value: Any) -> str:
    """NULL for a text that PostgreSQL cannot store, so it has no such key."""
    return "NULL" if "\0" in str(value) else literal(str(value))
