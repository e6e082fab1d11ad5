"""What the ledger knows of erasures: suppressed keys as digests, the proof of each erasure, and how the rows
and files of ended runs forget a person while the chain of runs still verifies.

It never stores a key. What it changes of ended runs is recorded by the erasing run (`amends`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from retl.destinations.batch import Outcome
from retl.ledger import chain
from retl.ledger.files import chunks_of, request_of, returned_of
from retl.ledger.rows import ErasureRow, cell, columns, outcome, packed
from retl.ledger.state import State
from retl.observe.mask import MASK
from retl.values.keys import spellings
from retl.values.suppressed import Suppressed

_SECRET = "suppression_secret"  # noqa: S105 - its name in retl_meta
_SUPPRESS = """
INSERT INTO retl_suppressed (sync, digest, since, erasure_id) VALUES (?, ?, ?, ?)
ON CONFLICT (sync, digest) DO UPDATE SET erasure_id = excluded.erasure_id
"""
_ERASURE = f"""
INSERT INTO retl_erasures ({", ".join(columns(ErasureRow))})
VALUES ({", ".join("?" for _ in columns(ErasureRow))})
ON CONFLICT (erasure_id, sync, object) DO UPDATE SET run_id = excluded.run_id, status = excluded.status,
  proof = excluded.proof, finished_at = excluded.finished_at
"""
# A sync that the project no longer has may have been renamed: what was erased at its object stays erased.
_DIGESTS = """
SELECT digest, sync FROM retl_suppressed WHERE sync = ?
UNION SELECT s.digest, s.sync FROM retl_suppressed s JOIN retl_erasures e USING (erasure_id, sync)
WHERE e.object = ? AND s.sync <> ?
"""
_CONTINUE = """
UPDATE retl_erasures SET status = 'continued', proof = ?, finished_at = ? WHERE sync = ? AND status = 'open'
AND erasure_id <> ? AND NOT EXISTS (SELECT 1 FROM retl_suppressed AS s
  WHERE s.sync = retl_erasures.sync AND s.erasure_id = retl_erasures.erasure_id)
"""
_RUNS = """
SELECT run_id, counts, options, vars, statistics, distrusts FROM retl_runs WHERE sync = ? ORDER BY run_id
"""
_BATCHES = """
SELECT batch_id, first_row, last_row, outcome FROM retl_batches WHERE run_id = ? AND outcome LIKE ?
"""
_OPENED = """
SELECT batch_id, run_id, first_row, last_row FROM retl_batches JOIN retl_runs USING (run_id)
WHERE sync = ? AND retl_batches.status = 'open'
"""
_PARTS = ("counts", "options", "vars", "statistics", "distrusts")

Positions = Mapping[str, Collection[int]]  # of the person's rows in the change sets, by run


class Erasures(State):
    """The ledger as erasures see it."""

    def suppressed(self, sync: str, object: str, syncs: Collection[str]) -> Suppressed:
        """The suppressed keys of a sync, and those of former syncs of the object: `syncs` are those that the
        project still has."""
        found = self._database.query(_DIGESTS, sync, object, sync)
        mine = frozenset(digest for digest, owner in found if owner == sync or owner not in syncs)
        return Suppressed(self._secret() if mine else "", mine)

    def suppressed_in(self, syncs: Collection[str]) -> Suppressed:
        """The keys that are suppressed in any of these syncs."""
        every = self._database.query("SELECT digest, sync FROM retl_suppressed")
        found = frozenset(digest for digest, owner in every if owner in syncs)
        return Suppressed(self._secret() if found else "", found)

    def suppression_secret(self) -> str:
        """The secret of the digests; it is made when it is first needed."""
        with self._database.transaction():
            made = "INSERT INTO retl_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
            self._database.change(made, _SECRET, secrets.token_hex(32))
        return self._secret()

    def _secret(self) -> str:
        found = self._database.query("SELECT value FROM retl_meta WHERE name = ?", _SECRET)
        return str(found[0][0]) if found else ""

    def suppress(self, erasure: ErasureRow, epoch: int, digests: Collection[str]) -> ErasureRow:
        """Suppress these keys from now on, durable with the erasure they belong to. Unfinished ones that have
        no other keys end here: this one continues them."""
        sync = erasure.sync
        with self._fenced(epoch, sync=sync) as database:
            if unfinished := pending(self.erasures(sync)):
                erasure = replace(erasure, proof={"pending": unfinished})
            database.change(_ERASURE, *packed(erasure))
            now = cell(self.now())
            database.change_many(_SUPPRESS, [(sync, one, now, erasure.erasure_id) for one in digests])
            then = cell({"continued_by": erasure.erasure_id})
            database.change(_CONTINUE, then, now, sync, erasure.erasure_id)
        return erasure

    def lift(self, erasure: ErasureRow, digests: Collection[str]) -> int:
        """Let these keys be delivered again; returns how many were suppressed."""
        with self._database.transaction():
            sql = "DELETE FROM retl_suppressed WHERE sync = ? AND digest = ?"
            gone = self._database.change_many(sql, [(erasure.sync, one) for one in digests])
            if gone:
                self._database.change(_ERASURE, *packed(erasure))
        return gone

    def put_erasure(self, erasure: ErasureRow, epoch: int) -> None:
        """Record how far an erasure has come."""
        with self._fenced(epoch, sync=erasure.sync) as database:
            database.change(_ERASURE, *packed(erasure))

    def erasures(self, sync: str | None = None) -> list[ErasureRow]:
        """The erasures, oldest first."""
        where = "WHERE sync = COALESCE(?, sync) ORDER BY requested_at, erasure_id, sync, object"
        return self._database.rows(ErasureRow, "retl_erasures", where, sync)

    def unfinished(self, sync: str) -> list[str]:
        """The ids of the erasures that have not come to their end, oldest first."""
        return [one.erasure_id for one in self.erasures(sync) if one.status == "open"]

    def erasure(self, erasure_id: str, sync: str) -> ErasureRow | None:
        where = "WHERE erasure_id = ? AND sync = ? ORDER BY requested_at LIMIT 1"
        found = self._database.rows(ErasureRow, "retl_erasures", where, erasure_id, sync)
        return found[0] if found else None

    def suppressing(self) -> dict[str, int]:
        """How many digests each sync suppresses."""
        return dict(self._database.query("SELECT sync, count(*) FROM retl_suppressed GROUP BY 1 ORDER BY 1"))

    def files_of(self, sync: str) -> list[str]:
        """The run files of a sync, also those of killed runs."""
        owners = {run_id for (run_id,) in self._database.query(_OWNERS, sync)}
        return [name for name in self._files.names() if name.split(".")[0] in owners]

    def keys_in_rows(self, sync: str) -> set[str]:
        """Every key in rows of the ledger about a sync: of rejects, examples, options and distrust."""
        found = {key for (key,) in self._database.query("SELECT key FROM retl_rejects WHERE sync = ?", sync)}
        for _, counts, options, _, _, distrusts in self._database.query(_RUNS, sync):
            found |= set(_keys(json.loads(counts))) | set(spellings(json.loads(options).get("keys", ())))
            found |= set(json.loads(distrusts).get("back", ())) if distrusts else set()
        return found - {"", MASK}

    def recorded(self, sync: str) -> dict[str, str]:
        """The digests of the run files of a sync, as the chain has them."""
        return dict(self._database.query(_RECORDED, sync))

    def replaced(self, sync: str) -> dict[str, tuple[str, int]]:
        """The run files of a sync that an unfinished erasure has replaced, with their digests and bytes."""
        recorded, there = self.recorded(sync), set(self._files.names())
        return {
            name: (digest, self._files.size(name))
            for name, digest in pending(self.erasures(sync)).items()
            if name in there and recorded.get(name) != digest == self._files.digest(name)
        }

    def scrap(self, sync: str) -> None:
        """Remove what killed runs of a sync left half written. The caller holds the lock of the sync."""
        self._files.scrap({run_id for (run_id,) in self._database.query(_OWNERS, sync)})

    def replace_file(self, name: str, path: Path) -> None:
        """Replace a run file; its new digest is in the open erasure already."""
        self._database.assert_writable()
        self._files.put(name, chunks_of(path))

    def forget_stored(self, sync: str, positions: Positions) -> int:
        """Remove the stored requests of open batches that have a row at these positions: no run sends them
        again. Returns how many. Of what the target returned with such a batch only these rows go."""
        there, requests = set(self._files.names()), set[str]()
        for batch_id, run_id, first, last in self._database.query(_OPENED, sync):
            rows = {row - first for row in positions.get(run_id, ()) if first <= row <= last}
            if rows and returned_of(batch_id) in there:
                self._forget_returned(returned_of(batch_id), rows)
            if rows:
                requests.add(request_of(batch_id))
        self._files.drop(there & requests)
        return len(there & requests)

    def _forget_returned(self, name: str, rows: Collection[int]) -> None:
        lines = (self._files.read(name) or b"").splitlines(keepends=True)
        self._files.put(name, [b"".join(one for one in lines if int(one.partition(b",")[0]) not in rows)])

    def forget_person(
        self,
        sync: str,
        epoch: int,
        keys: Collection[str],
        needles: Collection[str],
        positions: Positions,
        files: Mapping[str, tuple[str, int]],
    ) -> dict[str, int]:
        """In one transaction: the rows of a sync's runs, batches and rejects forget these keys, and the
        digests (with bytes) of the replaced `files` are recorded. Returns the number of changed rows by
        table. `needles`: the keys and the subject, as SQL or variables of a run may have them."""
        with self._fenced(epoch, sync=sync) as database:
            changed = {"retl_runs": 0, "retl_batches": 0, "retl_rejects": 0}
            for run_id, *parts in database.query(_RUNS, sync):
                before = dict(zip(_PARTS, parts, strict=True))
                after = {name: forgotten(name, text, keys, needles) for name, text in before.items()}
                if after != before:
                    chain.amend(database, run_id, epoch)
                    listed = ", ".join(f"{name} = ?" for name in after)
                    database.change(
                        f"UPDATE retl_runs SET {listed} WHERE run_id = ?", *after.values(), run_id
                    )
                    changed["retl_runs"] += 1
            for run_id, rows in positions.items():
                changed["retl_batches"] += self._forget_refs(run_id, epoch, rows)
            for name, (digest, size) in files.items():
                chain.amend(database, name.split(".")[0], epoch)
                sql = "UPDATE retl_digests SET digest = ?, bytes = ? WHERE name = ?"
                database.change(sql, digest, size, name)
            changed["retl_rejects"] = self._forget_rejects(sync, keys, needles)
        return changed

    def _forget_refs(self, run_id: str, epoch: int, rows: Collection[int]) -> int:
        """Remove the target's own ids of these rows from the outcomes of a run's batches."""
        changed = []
        for batch_id, first, last, text in self._database.query(_BATCHES, run_id, '%"ref"%'):
            mine = [row - first for row in rows if first <= row <= last]
            found = outcome(text)
            named = [row for row in mine if row in found.exceptions and found.exceptions[row].ref is not None]
            if named:
                less = {row: replace(found.exceptions[row], ref=None) for row in named}
                kept = {**found.exceptions, **less}
                kept = {row: one for row, one in kept.items() if one != found.default}
                changed.append((cell(Outcome(found.default, kept)), run_id, batch_id))
        if changed:
            chain.amend(self._database, run_id, epoch)
            sql = "UPDATE retl_batches SET outcome = ? WHERE run_id = ? AND batch_id = ?"
            self._database.change_many(sql, changed)
        return len(changed)

    def _forget_rejects(self, sync: str, keys: Collection[str], needles: Collection[str]) -> int:
        """Delete the rejects of these keys, and the kept rows that have the subject in a column."""
        database = self._database
        sql = "DELETE FROM retl_rejects WHERE sync = ? AND key = ?"
        gone = database.change_many(sql, [(sync, key) for key in keys])
        kept = "SELECT key, row_id, payload FROM retl_rejects WHERE sync = ? AND payload IS NOT NULL"
        for key, row_id, payload in database.query(kept, sync):
            if {str(one) for one in json.loads(payload).values()} & set(needles):
                clear = "UPDATE retl_rejects SET payload = NULL WHERE sync = ? AND key = ? AND row_id = ?"
                gone += database.change(clear, sync, key, row_id)
        return gone


_OWNERS = "SELECT run_id FROM retl_runs WHERE sync = ?"
_RECORDED = "SELECT name, d.digest FROM retl_digests d JOIN retl_runs USING (run_id) WHERE sync = ?"


def pending(erasures: Sequence[ErasureRow]) -> dict[str, str]:
    """The new digests of the files that open erasures replace."""
    found: dict[str, str] = {}
    for one in erasures:
        if one.status == "open":
            found |= one.proof.get("pending", {})
    return found


def forgotten(part: str, text: str | None, keys: Collection[str], needles: Collection[str]) -> str | None:
    """A JSON column of a run without these keys; the same text if it has none of them."""
    if text is None:
        return None
    value = json.loads(text)
    less = _STATED[part](value, keys, needles)
    return text if less == value else str(cell(less))


def _keyless(value: Any, keys: Collection[str]) -> Any:
    """The examples of a run with masked keys, wherever they are."""
    if isinstance(value, list):
        return [_keyless(one, keys) for one in value]
    if isinstance(value, dict):
        return {
            name: MASK if name == "key" and one in keys else _keyless(one, keys)
            for name, one in value.items()
        }
    return value


def _keys(value: Any) -> Iterator[str]:
    """The keys of a run's examples."""
    if isinstance(value, list):
        for one in value:
            yield from _keys(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name == "key" and isinstance(one, str):
                yield one
            yield from _keys(one)


def _options(value: dict[str, Any], keys: Collection[str], needles: Collection[str]) -> dict[str, Any]:
    less = dict(value)
    if less.get("keys"):
        less["keys"] = without(less["keys"], keys)
    if less.get("where"):
        less["where"] = masked(less["where"], needles)
    return less


def _distrusts(value: dict[str, Any], keys: Collection[str], needles: Collection[str]) -> dict[str, Any]:
    return {**value, "back": [one for one in value.get("back", ()) if one not in keys]}


def _statistics(value: dict[str, Any], keys: Collection[str], needles: Collection[str]) -> dict[str, Any]:
    """Without digests of values that no more rows had than are erased: they may be this person's alone."""
    return {
        column: one
        if one.get("bounds") is not None
        else {**one, "shares": {bin: n for bin, n in one["shares"].items() if n > len(keys)}}
        for column, one in value.items()
    }


def without(given: Iterable[str], keys: Collection[str]) -> list[str]:
    """Keys as a person wrote them, with `***` instead of these."""
    return [MASK if any(key in keys for key in spellings([one])) else one for one in given]


def masked(text: Any, needles: Collection[str]) -> Any:
    """`***` instead of a text that has one of these as a word of its own."""
    found = any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", str(text)) for one in needles if one)
    return MASK if found else text


_STATED = {
    "counts": lambda value, keys, needles: _keyless(value, keys),
    "options": _options,
    "vars": lambda value, keys, needles: {name: masked(one, needles) for name, one in value.items()},
    "statistics": _statistics,
    "distrusts": _distrusts,
}
