"""Files in a folder of this machine, in S3, in Google Cloud Storage or in Azure: changes, or whole snapshots.

`root` is a folder of the project, an absolute path, `s3://bucket/folder`, `gs://bucket/folder`,
`az://container/folder` or `abfss://container@account.dfs.core.windows.net/folder`; the last four need the
extra `files`. `path` is the folder below it that belongs to this sync alone. Formats are `parquet`, `csv`,
`ndjson` (JSON lines) and, for snapshots, `json` (one array). The same rows give the same bytes.

**`mode: changes`** writes one object per batch, `data/BATCH.parquet`, and then an entry in the log,
`_retl/log/000000000012.json`, which names the objects, their rows and digests. The entry is the commit. The
numbers have no gaps, and each entry is created only if its number is free. **Read the log, not the folder:**
an object without an `applied` entry is no part of the data. With `write: append` every key arrives exactly
once: if an entry got no answer, the next attempt or run reads the log, or writes a `void` entry, and then the
batch can never be applied. With `write: upsert` a column `_op` says `upsert` or `delete`, and the last one of
a key counts; after a crash a change may come again, with the same values. An older run, or another ledger,
that wakes up late is fenced off by the entry with which each run begins. `retl reconcile` and
`retl state rebuild` read every file again. `retl erase` cannot remove a row from older files: a person must,
and tell the readers.

**`mode: snapshot`** writes every row of the mart as one set, if anything changed, and replaces `latest.json`
last: it names the files of the set, the columns with types and descriptions (of the contract, and of dbt),
the number of rows, the time (`as_of`), after how many seconds that is stale (`freshness` of the sync), the
older sets that are `kept`, and a `version`, which is the same for the same rows. With `compress: true` CSV
and JSON are `.gz`, also with the same bytes for the same rows; Parquet is compressed (zstd) anyway. A reader
that follows `latest.json` sees one state of the mart. `keep` older sets stay, so that readers can finish; a
set that a killed run never published is none of them. A set has all rows or is not
published: one row that the contract rejects refuses the run, and an empty mart is never published.
`deletes: delete` is required, because a row that left the mart is not in the next set. The set after a
`retl erase` is without the person; older sets go as `keep` says.

An object is sent in one request and has at most 32 MB; a larger batch has several. So a kill leaves no
unfinished multipart upload behind. A single row of more than 32 MB is a reject, and in no file.

The store must support conditional writes (If-None-Match, and If-Match for snapshots): S3, Google Cloud
Storage and Azure do. A store that ignores them is refused. The account needs to read, write and list below
`path`, and to delete there for snapshots. Without keys under `storage`, those of the environment are used, or
of the machine's role. In a folder of this machine every file is on disk before it counts.

    connections:
      exports: {type: files, root: "s3://company-exports/crm"}

    destination: {connection: exports, path: segments, format: ndjson}
    write: append
    first_run: send

Evidence: a real S3 server (SeaweedFS) and folders of this machine, with runs that were killed at their events
and writers that raced. Google Cloud Storage and Azure go through the same client and were not run.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from retl.destinations.api import Destination, needs
from retl.destinations.batch import (
    OPERATION,
    UNKNOWN,
    Batch,
    Capabilities,
    FileFormat,
    Layout,
    Mode,
    Outcome,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.batch import (
    Field as ColumnField,
)
from retl.destinations.files.log import Entry, Log, document, encoded
from retl.destinations.files.place import Disk, Held, Place, Remote
from retl.destinations.files.reading import Holding, applied
from retl.destinations.held import Latest
from retl.destinations.marks import NOT_APPLIED, rejecting
from retl.errors import DefinitionError, Systemic, Unavailable
from retl.model import Definition, Duration
from retl.net.bucket import Address, Root
from retl.net.gate import Gate

LARGEST = 32 << 20  # bytes of one object, which is held in memory and sent in one request
PART_ROWS = 250_000  # of a snapshot, in one file
LATEST = "latest.json"
SETS = "sets"
GZIP = ".gz"
_REASONS = {
    "TOO_LARGE": f"the row alone has more than {LARGEST >> 20} MB",
    "NOT_UNICODE": "a text is not valid Unicode",
}


class FilesConnection(Root):
    """Where the files are written."""

    type: Literal["files"] = "files"
    timeout: Duration = Field(60.0, description="Of one request to a bucket.")
    connect_timeout: Duration = Field(10.0, description="Of a connection to a bucket.")


class FilesOptions(Definition):
    """The folder of the sync, and what is written into it."""

    connection: FilesConnection
    path: str = Field(description="The sync's own folder below `root`.")
    mode: Literal["changes", "snapshot"] = Field(
        "changes", description="`changes` (objects and a log) or `snapshot` (whole sets)."
    )
    format: tuple[FileFormat, ...] = Field(
        ("parquet",), description="`parquet`, `csv`, `ndjson`; a snapshot may have several, and `json`."
    )
    keep: int = Field(2, ge=0, le=1000, description="snapshot: how many older sets stay.")
    compress: bool = Field(False, description="snapshot: CSV and JSON as `.gz`.")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") or part.startswith("_") or "\\" in part for part in parts):
            raise ValueError(
                "`path` is a folder such as exports/segments: no part is empty, `..` or begins with _"
            )
        return path

    @field_validator("format", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits(self) -> FilesOptions:
        if len(set(self.format)) != len(self.format) or not self.format:
            raise ValueError("`format` names each format once")
        if self.mode == "changes" and (len(self.format) > 1 or "json" in self.format):
            raise ValueError("`format` is one of parquet, csv, ndjson, except for `mode: snapshot`")
        if self.mode == "changes" and "keep" in self.model_fields_set:
            raise ValueError("`keep` is for `mode: snapshot`: change files are never removed")
        if self.compress and (self.mode == "changes" or self.format == ("parquet",)):
            raise ValueError("`compress` is for CSV and JSON of `mode: snapshot`: Parquet is compressed")
        return self


class _Part(NamedTuple):
    """A file of some rows, not yet sent."""

    rows: int
    data: bytes


class Files(Destination[FilesOptions]):
    """One folder, with its log."""

    Connection = FilesConnection
    Options = FilesOptions
    keeps_marks = True

    def __init__(self, options: FilesOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        _check(options, shape)
        self._snapshot = self.publishes(options)
        self._opened: tuple[Place, Log] | None = None
        self._attempts: dict[str, int] = {}  # of batches written here and not yet answered
        self._interrupted = False
        self._held = Latest[Holding]()
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=_modes(self._snapshot, shape.write),
            idempotent=shape.write != "append",
            form="file",
            shaping={
                "format": list(options.format),
                "mode": options.mode,
                **({"compress": True} if options.compress else {}),
            },
            repeats=shape.write == "append",
            resolves=True,
            whole=self._snapshot,
            lanes=1 if self._snapshot else 2,
        )

    @classmethod
    def publishes(cls, options: FilesOptions) -> bool:
        return options.mode == "snapshot"

    @classmethod
    def forgets(cls, options: FilesOptions) -> bool:
        return False  # older objects and sets still have the row

    @classmethod
    def place(cls, options: FilesOptions, write: WriteMode) -> str:
        return f"files:{options.connection.identity}/{options.path}"

    def _open(self) -> tuple[Place, Log]:
        if self._opened is None:
            connection = self.options.connection
            address = Address.of(connection.root)
            if address is None:
                place: Place = Disk(Path(connection.root) / self.options.path)
            else:
                limits = connection.timeout, connection.connect_timeout
                with needs("files"):
                    place = Remote(address, connection.storage, self.options.path, *limits)
            self._opened = place, Log(place, self.shape)
        return self._opened

    # --- check and prepare

    def check(self, visit: Visit) -> Trace:
        """Reads the log, and asks for a write under a condition that cannot hold.
        Systemic BUCKET_REFUSED, NOPERM, FOLDER_UNWRITABLE, CONDITIONS_IGNORED."""
        place, log = self._open()
        log.read()
        place.probe()
        return log.trace(self._newest(place) if self._snapshot else None)

    def _newest(self, place: Place) -> int:
        """The entry of the set in latest.json; 0 if there is none, if it is damaged, or if it lacks files."""
        latest = _read(place.get(LATEST))
        if latest is None:
            return 0
        sizes = place.sizes(f"{SETS}/{latest['set']}")
        complete = all(sizes.get(one["path"]) == one["bytes"] for one in latest["files"])
        return int(latest["entry"]) if complete else 0

    def prepare(self, visit: Visit) -> None:
        """Fences off runs of an older epoch and other ledgers."""
        place, log = self._open()
        place.sweep()
        log.begin(visit)

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """The objects, then the entry that commits them, then for a snapshot latest.json. If the log has the
        batch, it is not written again."""
        place, log = self._open()
        attempt = self._attempts.setdefault(batch.id, 0)
        log.read()
        found = log.fate(batch.id, attempt)
        if found is None:
            said = self._said(place, batch)
            found = log.commit(batch, attempt, "applied", **said)
        if found["state"] == "void":
            if found["author"] != log.author:
                raise Systemic("VOIDED", "another run has aborted this batch: this one may no longer write")
            self._attempts[batch.id] = attempt + 1  # aborted by our own `resolve`, its answer was lost
            raise Unavailable("VOIDED", "nothing of the batch was applied: it was aborted without an answer")
        if self._snapshot and batch.operation != "delete":
            self._publish(place, found)
        del self._attempts[batch.id]
        return rejecting(found["rejected"], _REASONS)

    def _said(self, place: Place, batch: Batch) -> dict[str, Any]:
        """Write what an entry of this batch will name."""
        if not self._snapshot:
            return self._objects(place, batch)
        if batch.operation != "delete":
            return {"set": "new", **self._set(place, batch)}
        latest = _read(place.get(LATEST)) or {}
        if latest.get("set") != batch.run_id:
            raise Systemic(
                "SNAPSHOT_EMPTY",
                "an empty mart is never published as a snapshot",
                hint=f"if it is right, remove {LATEST} yourself, then `retl state reset {self.shape.sync}`",
            )
        return {"set": latest["entry"], "rows": len(batch), "files": [], "rejected": {}}

    def _objects(self, place: Place, batch: Batch) -> dict[str, Any]:
        (form,) = self.options.format
        layout = Layout(form, None if self.shape.write == "append" else batch.operation)
        files, rejected = [], dict[int, str]()
        for number, part in enumerate(self._parts(batch, layout, len(batch), rejected)):
            path = f"data/{batch.id}{f'-{number}' if number else ''}.{form}"
            place.create(path, part.data)  # an earlier attempt wrote the same bytes
            files.append(self._sent_file(path, form, part))
        return {"rows": len(batch) - len(rejected), "files": files, "rejected": rejected}

    def _set(self, place: Place, batch: Batch) -> dict[str, Any]:
        rejected, before = dict[int, str](), -1
        while before < len(rejected):  # a row that one format cannot have is left out of all
            files, before = list[dict[str, Any]](), len(rejected)
            for form in self.options.format:
                for number, part in enumerate(self._parts(batch, Layout(form), PART_ROWS, rejected)):
                    part, suffix = self._packed(part, form)
                    path = f"{SETS}/{batch.run_id}/part-{number:05d}.{form}{suffix}"
                    place.put(path, part.data)
                    files.append(self._sent_file(path, form, part))
        rows = len(batch) - len(rejected)
        return {"rows": rows, "files": files, "rejected": rejected, "as_of": batch.started_at}

    def _packed(self, part: _Part, form: FileFormat) -> tuple[_Part, str]:
        """The part as it is written, and what is added to its name."""
        if not self.options.compress or form == "parquet":
            return part, ""
        return part._replace(data=gzip.compress(part.data, mtime=0)), GZIP

    def _sent_file(self, path: str, form: FileFormat, part: _Part) -> dict[str, Any]:
        self._bytes += len(part.data)
        digest = sha256(part.data).hexdigest()
        found = {"path": path, "format": form, "rows": part.rows, "bytes": len(part.data), "sha256": digest}
        return found | ({"encoding": "gzip"} if path.endswith(GZIP) else {})

    def _parts(self, batch: Batch, layout: Layout, most: int, rejected: dict[int, str]) -> Iterator[_Part]:
        """Files of the rows in their order, without `rejected` ones. A row that no file can have is added to
        them, with the code of the reason."""
        spans = [(at, min(at + most, len(batch)) - 1) for at in range(0, len(batch), most)][::-1]
        while spans:
            if self._interrupted:
                raise Unavailable("UNAVAILABLE", "the run was asked to stop")
            first, last = spans.pop()
            known = any(first <= row <= last for row in rejected)
            data = None if known else _written(batch.slice(batch.first + first, batch.first + last), layout)
            if isinstance(data, bytes):
                yield _Part(last - first + 1, data)
            elif first < last:
                middle = (first + last) // 2
                spans += [(middle + 1, last), (first, middle)]
            elif data is not None:
                rejected[first] = data

    # --- snapshots

    def _publish(self, place: Place, entry: Entry) -> None:
        """Let latest.json name this set, unless it names a newer one. Then remove sets that are no longer
        kept."""
        while True:
            held = place.get(LATEST)
            former = _read(held) or {"entry": -1}
            if former["entry"] > entry["entry"]:
                raise Systemic("VOIDED", "a newer run has published a set: this one may no longer write")
            keys = list(place.sizes(SETS))
            older = sorted({one for key in keys if (one := _set_of(key)) < entry["run"]}, reverse=True)
            published = former["entry"] == entry["entry"]
            kept = former.get("kept", older) if published else self._kept(former, older)
            if published or place.swap(LATEST, self._description(entry, kept), held):
                gone = {*older, *former.get("kept", ())} - {*kept, entry["run"]}
                return place.remove([key for key in keys if _set_of(key) in gone])

    def _kept(self, former: Mapping[str, Any], older: list[str]) -> list[str]:
        """The sets that readers may still read, newest first: those that were published. A run that died
        leaves one behind that never was, and the clock by which sets are named may be set back."""
        known = [former["set"], *former["kept"]] if "kept" in former else older
        return known[: self.options.keep]

    def _description(self, entry: Entry, kept: list[str]) -> bytes:
        shape = self.shape
        columns = [
            {"name": one.name, "type": str(one.type), "key": number < len(shape.key), **_described(one)}
            for number, one in enumerate((*shape.key, *shape.fields))
        ]
        said = [columns, [one["sha256"] for one in entry["files"]]]
        return encoded(
            {
                "set": entry["run"],
                "entry": entry["entry"],
                "sync": shape.sync,
                "description": shape.description,
                "as_of": entry["as_of"],
                "fresh_for": shape.freshness,
                "version": sha256(encoded(said)).hexdigest()[:16],
                "rows": entry["rows"],
                "columns": columns,
                "files": entry["files"],
                "kept": kept,
            }
        )

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """What the log says of the batch. If it says nothing: write a void entry, so it is never applied.
        Without `act` the log is only read."""
        _, log = self._open()
        ours = batch.id in self._attempts
        attempt = self._attempts.get(batch.id, 0)
        log.read()
        while True:
            found = log.fate(batch.id, attempt)
            if found is None and not act:
                return Outcome(NOT_APPLIED)
            found = found or log.commit(batch, attempt, "void")
            if found["state"] == "applied":
                if self._snapshot:
                    return Outcome(UNKNOWN)  # it counts only once latest.json names it
                self._attempts.pop(batch.id, None)
                return rejecting(found["rejected"], _REASONS)
            if act and found["author"] == log.author:
                self._attempts[batch.id] = attempt + 1
                return Outcome(NOT_APPLIED)
            if ours and act:
                raise Systemic("VOIDED", "another run has aborted this batch: this one may no longer write")
            attempt += 1

    # --- compare

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Reads every file again: for `retl reconcile` and `retl state rebuild`, not for each run."""
        return self._holding().compare(batch)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """Only whether the key is held: of a row that is, the answer has no fields."""
        return (None if found is None else {} for found in self._holding().compare(batch))

    def scan(self) -> Iterator[tuple[str, ...]]:
        return self._holding().keys()

    def _holding(self) -> Holding:
        """What is there now; it is read again if the log grew."""
        place, log = self._open()
        log.read()

        def read() -> Holding:
            operation = None if self._snapshot or self.shape.write == "append" else "upsert"
            held = Holding(self.shape, Layout(self.options.format[0], operation))
            held.load(place, self._newest_set(place) if self._snapshot else applied(place))
            return held

        return self._held.of(log.length, read)

    def _newest_set(self, place: Place) -> list[Mapping[str, Any]]:
        """The files that latest.json names, in the first of our formats."""
        latest = _read(place.get(LATEST))
        files = latest["files"] if latest is not None else []
        return [one for one in files if one["format"] == self.options.format[0]]

    def close(self) -> None:
        self._held.close()

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """The name of the object and its content, Parquet as JSON lines."""
        form = self.options.format[0]
        shown = "ndjson" if form == "parquet" else form
        operation = None if self._snapshot or self.shape.write == "append" else batch.operation
        folder = f"{SETS}/{batch.run_id}/part-00000" if self._snapshot else f"data/{batch.id}"
        path = batch.file(Layout(shown, operation))
        try:
            return f"{folder}.{form}\n".encode() + path.read_bytes()
        finally:
            path.unlink()

    def interrupt(self) -> None:
        """End before the next file: nothing of the batch is applied."""
        self._interrupted = True


def _read(held: Held | None) -> dict[str, Any] | None:
    """What latest.json says; None if there is none, or if it is damaged: then no set counts as published."""
    found = document(held.data) if held is not None else None
    return found if found is not None and found.keys() >= {"set", "entry", "files"} else None


def _set_of(key: str) -> str:
    return key.split("/")[1]


def _written(batch: Batch, layout: Layout) -> bytes | str:
    """The rows as a file, or the code of why they cannot be one."""
    try:
        path = batch.file(layout)
    except UnicodeEncodeError:
        return "NOT_UNICODE"
    try:
        return path.read_bytes() if path.stat().st_size <= LARGEST else "TOO_LARGE"
    finally:
        path.unlink()


def _modes(snapshot: bool, write: WriteMode) -> frozenset[Mode]:
    if write == "append":
        return frozenset({"upsert"} if snapshot else {"append", "upsert"})
    return frozenset({"upsert", "delete"} if snapshot else {"append", "upsert", "delete"})


def _described(field: ColumnField) -> dict[str, str]:
    return {} if field.description is None else {"description": field.description}


def _check(options: FilesOptions, shape: Shape) -> None:
    """DefinitionError for what these files cannot express."""
    names = [one.name for one in (*shape.key, *shape.fields)]
    if OPERATION in names and options.mode == "changes":
        raise DefinitionError(
            "IDENTIFIER",
            f"no field can be called {OPERATION}: change files have a column of this name",
            where=f"sync {shape.sync}",
        )
    if len({name.lower() for name in names}) < len(names):
        raise DefinitionError(
            "IDENTIFIER",
            f"names of columns must differ in more than their case: {', '.join(sorted(names))}",
            where=f"sync {shape.sync}",
        )
