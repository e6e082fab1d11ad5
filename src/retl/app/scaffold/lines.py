"""A draft of a preset from curl lines: one for each operation, and a search where the vendor gives ids.

It guesses no answer: where a search has its objects is left to a person, and the file says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlsplit

from retl.app.scaffold.curl import Call
from retl.app.scaffold.preset import Draft, Shaped, shaped
from retl.errors import DefinitionError


def draft(vendor: str, calls: Sequence[Call], key: str | None, source: str | None) -> Draft:
    """What these lines say. DefinitionError USAGE if they write nothing, or lack a search."""
    searches = [call for call in calls if call.method == "GET"]
    shapes = [shaped(call, key) for call in calls if call not in searches]
    if not shapes:
        raise DefinitionError("USAGE", "these lines write no rows", hint="give a request that writes one row")
    made = Draft(vendor, shapes, "docs", source or f"{shapes[0].call.base_url}, by a curl line")
    insert = next((one for one in shapes if one.name == "insert"), None)
    own = [one for one in shapes if insert is not None and _has_other_id(one, insert)]
    if insert is not None and own:
        made.more["find"] = {"path": _search(searches, insert, own[0]), "at": "data", "ref": "id"}
        made.more["outcome"] = {"ref": "id"}
        by_id(insert, own)
        made.operations.sort(key=lambda one: one.name != "insert")
    elif searches:
        raise DefinitionError(
            "USAGE",
            "a GET line is a search, for objects that the vendor gives an id of its own",
            hint="leave it out, or give the lines that create (POST) and change (PUT, PATCH) such an object",
        )
    return made


def by_id(insert: Shaped, others: Sequence[Shaped]) -> None:
    """Let these operations name objects by the vendor's ids, and `insert` leave empty fields out."""
    for one in others:
        one.endpoint["path"] = one.endpoint["path"].replace("$key", "$ref")
        one.endpoint |= {"row": "$fields"} if "row" in one.endpoint else {}
        one.name = "update" if one.name == "upsert" else one.name
    insert.endpoint["cast"] = {"nulls": "omit"}


def _has_other_id(one: Shaped, insert: Shaped) -> bool:
    """Whether the address of an operation ends with a value that `insert` does not send as its key."""
    return one is not insert and "$key" in one.endpoint["path"] and one.row[one.key] != insert.row[insert.key]


def _search(searches: Sequence[Call], insert: Shaped, other: Shaped) -> str:
    value = str(insert.row[insert.key])
    for call in searches:
        where = urlsplit(call.path)
        pairs = parse_qsl(where.query, keep_blank_values=True)
        if any(given == value for _, given in pairs):
            query = "&".join(f"{quote(n)}={'$key' if v == value else quote(v, safe='')}" for n, v in pairs)
            return f"{where.path}?{query}"
    lacks = "and no GET line looks for" if searches else "so a search is needed for"
    method = other.call.method
    raise DefinitionError(
        "USAGE",
        f"the address of {method} ends with an id of the vendor's own, {lacks} the key that POST sends",
        hint=f"add a line that finds the same object by `{insert.key}`: --curl \"curl 'https://…?{insert.key}=…'\"",
    )
