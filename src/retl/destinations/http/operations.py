"""What the operations of a sync are over HTTP: the endpoint of each, the rules for its answers, and whether
it can be sent only while nobody else has changed the object. It makes no request.
"""

from __future__ import annotations

from typing import Any

from retl.destinations.batch import Compares, Mode, Shape, SoftDelete
from retl.destinations.http.body import Endpoint
from retl.destinations.http.options import INSERTS, OPERATION_NAMES, HttpOptions
from retl.destinations.http.reading import unconditional
from retl.destinations.http.rules import Case, Identity, Rules
from retl.destinations.http.texts import PREDICATES
from retl.errors import DefinitionError


def shaping(endpoint: Endpoint | None) -> dict[str, Any]:
    """What of an endpoint shapes the bytes that are sent."""
    left_out = {"outcome", "job", "then", "max_rows", "max_bytes", "max_row_bytes"}
    if endpoint is None:
        return {}
    opening = (
        {"open": endpoint.job.open.model_dump(mode="json")} if endpoint.job and endpoint.job.open else {}
    )
    return endpoint.model_dump(mode="json", exclude=left_out) | opening


def rules_of(endpoint: Endpoint, shared: Rules, operation: Mode, keys: list[str]) -> Rules:
    """The endpoint's own rules, or the shared ones; an endpoint for single rows gets no rules about lists.
    404 or 410 at one object's own address is success for a delete, and ABSENT for an update."""
    rules = endpoint.outcome or shared
    if endpoint.outcome is None and endpoint.wrap is None and endpoint.rows_at_most == 1:
        how = "none" if rules.rows == "none" else "all_or_nothing"
        ok = (*rules.ok, *Rules().ok) if rules.ok else ()  # without `ok` only `cases` decide
        rules = rules.model_copy(update={"rows": how, "partial": (), "ok": ok})
    rules = rules.model_copy(update={"match": tuple(of_key(one, keys) for one in rules.match)})
    for to in (identity.to for identity in rules.match if rules.rows in ("listed", "errors_by_value")):
        if not (to == "$row_no" or to.removeprefix("$") in keys or (to == "$key" and len(keys) == 1)):
            raise DefinitionError("HTTP_MATCH", f"`match.to: {to}` is no field of the key and not $row_no")
    if (
        rules.rows == "all_or_nothing"
        and endpoint.rows_at_most != 1
        and (len(keys) != 1 or rules.match == (Identity(),))
    ):
        rules = rules.model_copy(update={"ref": None})  # no item can name its row
    if endpoint.asks_version or _is_for_new(endpoint):
        means = "changed" if endpoint.asks_version else "kept"
        rules = rules.model_copy(update={"cases": (*rules.cases, Case(status=(412,), means=means))})
    if operation not in ("delete", "update_only"):  # they create what is not there
        cases = tuple(case for case in rules.cases if case.means not in ("absent", "some_absent"))
        return rules.model_copy(update={"row_absent": None, "cases": cases})
    if not _addressed(endpoint, keys):
        return rules
    none = Case(status=(404, 410), means="written" if operation == "delete" else "absent")
    return rules.model_copy(update={"cases": (*rules.cases, none)})


def of_key(identity: Identity, keys: list[str]) -> Identity:
    """`$key` in `at`, replaced by the name of the key's field."""
    if len(keys) != 1:
        return identity
    at = (".".join(keys[0] if step == "$key" else step for step in path.split(".")) for path in identity.at)
    return identity.model_copy(update={"at": tuple(at)})


def _addressed(endpoint: Endpoint, keys: list[str]) -> bool:
    names = {word[1:].removeprefix("field.") for word in endpoint.words}
    return set(keys) <= names or bool({"$key", "$ref", *PREDICATES} & set(endpoint.words))


def endpoints(options: HttpOptions, shape: Shape) -> dict[Mode, Endpoint]:
    """The endpoint of each operation that the destination supports. Without strategies for conflicts none of
    them has a condition."""
    given = {name: getattr(options, name) for name in ("upsert", "insert", "update", "delete")}
    inserted = options.insert is not None and options.insert.job is None
    replaces = inserted and options.delete is not None and options.delete.job is None and not options.find
    if (options.find or shape.cautious) and options.creates:
        given["upsert"] = options.update
    if isinstance(shape.deletes, SoftDelete):
        given["delete"] = options.update or options.upsert
        replaces = False
    if not shape.cautious:
        any_version = options.version.any if options.version else None
        given = {name: one and unconditional(one, any_version) for name, one in given.items()}
    made = {op: given[name] for op, name in OPERATION_NAMES.items() if given[name] is not None}
    if not replaces:
        made.pop("replace", None)
    return made


def compares(options: HttpOptions, shape: Shape) -> Compares:
    """Whether rows can be written only while nobody has changed them."""
    creates, changes = shape.write == "upsert", [options.update]
    if shape.deletes != "keep":
        changes.append(options.update if isinstance(shape.deletes, SoftDelete) else options.delete)
    if options.read is None or options.update is None or (creates and options.insert is None):
        return "no"
    if shape.write in (*INSERTS, "replace") or (shape.deletes != "keep" and options.version is None):
        return "no"
    refuses = options.insert is not None and _refuses_a_second(options.insert, options.outcome)
    if any(one is not None and one.job for one in (options.insert, *changes)):
        return "no"  # what a job did is known too late for another round
    conditions = all(one is not None and one.asks_version for one in changes)
    return "atomic" if conditions and (refuses or not creates) else "window"


def _refuses_a_second(insert: Endpoint, shared: Rules) -> bool:
    """Whether it creates nothing if the key is there: by If-None-Match, or as a case says."""
    rules = insert.outcome or shared
    told = rules.row_kept is not None or any(case.means in ("kept", "exists") for case in rules.cases)
    return told or _is_for_new(insert)


def _is_for_new(endpoint: Endpoint) -> bool:
    return any(name.lower() == "if-none-match" for name in endpoint.headers)
