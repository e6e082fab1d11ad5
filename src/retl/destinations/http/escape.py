"""How a value enters another language: one function for each, used wherever a row's value is put there.

Each returns text that the language's own parser reads back as the value, or raises Poisoned. GraphQL has no
function: values go into its `variables`, which are JSON. Nothing here knows rows or requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec

from retl.errors import Poisoned

_GUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_LITERAL = re.compile(rf"-?\d[0-9A-Za-z_.:+-]*|{_GUID}|true|false", re.ASCII)
_SOQL = str.maketrans(
    {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
)


def segment(value: str) -> str:
    """A value as one segment of a path, or a part of one. Not empty, `.` or `..`, which servers resolve even
    if they are percent-encoded."""
    if value in ("", ".", ".."):
        raise Poisoned("NO_PATH", "a value of the path is empty, null or a dot segment")
    return quote(value, safe="")


def query(value: str) -> str:
    """A value in a query. Not empty: many APIs take an empty condition for none."""
    if not value:
        raise Poisoned("NO_PATH", "a value of the query is empty or null")
    return quote(value, safe="")


def odata(value: str) -> str:
    """The inside of a text literal of OData, which has single quotes."""
    return value.replace("'", "''")


def bare(value: str) -> str:
    """A literal of OData without quotes: a number, a date or time, a UUID, true or false. Nothing else: a
    word is a field's name there, and a comma begins the next field."""
    if not _LITERAL.fullmatch(value):
        raise Poisoned(
            "NO_LITERAL", "a value without quotes in an OData address is no number, date, UUID or boolean"
        )
    return value


def predicate(names: Sequence[str], values: Sequence[Any], *, v2: bool = False) -> str:
    """The key of an object between the parentheses of an OData address, percent-encoded: 'x' of one field,
    A='x',B=7 of several. The type of a value decides its form. Poisoned if a value has none."""
    forms = [
        f"'{quote(odata(value), safe='')}'" if isinstance(value, str) and value else _literal(value, v2=v2)
        for value in values
    ]
    return forms[0] if len(names) == 1 else ",".join(map("{}={}".format, names, forms))


def _literal(value: Any, *, v2: bool) -> str:
    """A value that is no text, in the form of OData 4, or 2, which names types beside quotes."""
    if isinstance(value, datetime) and (v2 or value.tzinfo is not None):
        moment = (value if value.tzinfo is None else value.astimezone(UTC)).replace(tzinfo=None).isoformat()
        zone = "" if value.tzinfo is None else "Z"
        whole = quote(f"{moment}{zone}", safe="")
        return f"datetime{'offset' if zone else ''}'{whole}'" if v2 else whole
    if isinstance(value, date) and not isinstance(value, datetime):
        return f"datetime'{value.isoformat()}T00%3A00%3A00'" if v2 else value.isoformat()
    if isinstance(value, UUID):
        return f"guid'{value}'" if v2 else str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}{'M' if v2 else ''}"
    if isinstance(value, int):  # also true and false
        return str(value).lower()
    raise Poisoned("NO_LITERAL", "a value of the key is empty, or of a type that OData has no literal for")


def soql(value: str) -> str:
    """The inside of a text literal of Salesforce's query language, which has single quotes."""
    return value.translate(_SOQL)


def json(value: str) -> str:
    """The inside of a JSON text, which has double quotes."""
    return msgspec.json.encode(value).decode()[1:-1]


def header(value: str) -> str:
    """The value of a header, which has no escapes: printable ASCII without blanks at its ends."""
    if not value or value != value.strip() or not value.isascii() or not value.isprintable():
        raise Poisoned("NO_HEADER", "a value of a header is empty, null, or not printable ASCII on one line")
    return value


def quoted(value: str) -> str:
    """The inside of a quoted part of a header, such as an ETag."""
    if '"' in value or "\\" in value:
        raise Poisoned("NO_HEADER", "a value between the quotes of a header has a quote or backslash")
    return header(value)


def line(text: str) -> str:
    """A JSON text as one line: between its parts a json column may hold line breaks, inside a text none."""
    return text.replace("\n", " ").replace("\r", " ") if "\n" in text or "\r" in text else text


def cell(value: str) -> str:
    """A text as a cell of CSV (RFC 4180)."""
    return '"' + value.replace('"', '""') + '"'


def disposition(name: str) -> str:
    """A name between the quotes of a part's header in multipart/form-data."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def member(name: str) -> str:
    """A name inside the name of a form's field: a[name]. Brackets have no escape there."""
    if "[" in name or "]" in name:
        raise Poisoned("FORM_NAME", "a name inside a json value has a bracket, which no form can hold")
    return name
