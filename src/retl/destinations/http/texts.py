"""Placeholders inside texts: where they stand, and how a value is escaped there.

A text is an address (path and query) or any other text. In an address `$word`, `{$word}` and `{field}` are
placeholders, in other texts `{$word}`, and a `$word` that is the whole text. `$$` is a dollar sign. A
placeholder may name the language around it: `{$key:soql}`. It decides nothing about rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from urllib.parse import quote, unquote

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.http import escape
from retl.errors import DefinitionError, Poisoned

OF_ALL_ROWS = ("$keys", "$refs", "$body")
PREDICATES = ("$predicate", "$predicate_v2")  # the whole key, in parentheses of an OData address
WORDS = frozenset(
    {"key", "ref", "version", "row", "row_no", "field", "fields", "others", "keys", "refs", "body"}
    | {name[1:] for name in PREDICATES}
)
LANGUAGES = {"odata": escape.odata, "soql": escape.soql, "json": escape.json}
_QUOTES = {"odata": "'", "soql": "'", "json": '"'}

_FORM = rf"(?::({'|'.join(LANGUAGES)}))?"
_IN_ADDRESS = re.compile(rf"\$\$|(\$[A-Za-z_]\w*)|\{{([^{{}}/]+?){_FORM}\}}")
_IN_TEXT = re.compile(rf"\$\$|\{{(\$[^{{}}\s:$][^{{}}:$]*){_FORM}\}}")
_NEAR = re.compile(r"\$\$|\{\$[^{}]*\}|\$([A-Za-z_]\w*)|(?<!\{)\{([^{}$]+)\}(?!\})")
_DOCUMENT = re.compile(r"\s*(query|mutation|subscription|fragment|\{)")
_MARKS = re.compile(r"%2[2789]|['\"()]")  # also percent-encoded


class Word(Struct, frozen=True):
    """A placeholder: `$key`, `$ref`, …, or `$field.NAME`. `form` is the language that it names; in an address
    `place` is where it stands: segment, query, or a form between quotes, or `bare` where OData has none;
    `whole` is that of a predicate.
    `join` is what separates it from another value in its segment."""

    name: str
    form: str | None = None
    place: str | None = None
    join: str = ""

    def __str__(self) -> str:
        return self.name

    def escaped(self, value: str) -> str:
        """A value in an address, percent-encoded. Poisoned if it does not fit its place."""
        if (
            self.place in ("segment", "query")
            and self.join
            and (value + self.join).index(self.join) < len(value)
        ):
            raise Poisoned("KEY_CHARACTER", "a value has what separates it from the next one in the path")
        match self.place:
            case "whole":
                return value
            case "segment":
                return escape.segment(value)
            case "query":
                return escape.query(value)
            case "bare":
                return quote(escape.bare(value), safe="")
            case language:
                return escape.query(LANGUAGES[language or ""](value))


Piece = str | Word


def address(text: str) -> list[Piece]:
    """Constants, and words at odd positions. ValueError if a value cannot be safe where it stands."""
    return list(_placed(_pieces(text, _IN_ADDRESS)))


def inside(text: str) -> list[Piece]:
    """The same for a text that is no address; its constants have `$` for `$$`."""
    return _pieces(text, _IN_TEXT)


def split(path: str) -> list[str]:
    """The pieces of an address as texts, with the names of words."""
    pieces = _pieces(path, _IN_ADDRESS)
    return [piece if isinstance(piece, str) else piece.name for piece in pieces]


def _pieces(text: str, pattern: re.Pattern[str]) -> list[Piece]:
    pieces, constant, end = list[Piece](), "", 0
    for found in pattern.finditer(text):
        constant += text[end : found.start()]
        end = found.end()
        if found[0] == "$$":
            constant += "$"
            continue
        *names, form = found.groups()
        name = next(one for one in names if one)
        pieces += [constant, Word(name if name.startswith("$") else f"$field.{name}", form)]
        constant = ""
    return [*pieces, constant + text[end:]]


def _placed(pieces: list[Piece]) -> Iterator[Piece]:
    """The pieces of an address, each word with its place."""
    before = ""  # everything so far; a value is one letter of it
    for n, piece in enumerate(pieces):
        if isinstance(piece, str):
            before += piece
            yield piece
        else:
            after = str(pieces[n + 1])
            if piece.name in PREDICATES:
                if "?" in before or not (before.endswith("(") and after.startswith(")")):
                    raise ValueError(f"{piece.name} is the whole key: write /Orders({piece.name}) in a path")
                yield replace(piece, place="whole")
                before += "x"
                continue
            join = "" if set("/?&") & set(after) else unquote(after)
            yield replace(piece, place=_place(before, piece), join=join)
            before += "x"


def _place(before: str, word: Word) -> str:
    path, mark, asked = before.partition("?")
    parameter = asked.rpartition("&")[2]
    name, _, value = parameter.partition("=")
    quote_mark, depth = _around(value if mark else path)
    in_odata = not mark or unquote(name).startswith("$")
    if quote_mark is None:
        if word.form:
            raise ValueError(f"{{…:{word.form}}} belongs between {_QUOTES[word.form]} in an address")
        if in_odata and (depth or mark):
            return _of_one_row(word, "bare")
        return "query" if mark else "segment"
    form = word.form or ("odata" if in_odata and quote_mark == "'" else None)
    if form is None:
        raise ValueError(
            f"a value between {quote_mark} in an address needs the language of these quotes:"
            f" {{…:{'}, {…:'.join(one for one, mark in _QUOTES.items() if mark == quote_mark)}}}"
        )
    if quote_mark != _QUOTES[form]:
        raise ValueError(f"{{…:{form}}} belongs between {_QUOTES[form]}, not {quote_mark}")
    return _of_one_row(word, form)


def _of_one_row(word: Word, place: str) -> str:
    if word.name in OF_ALL_ROWS:
        raise ValueError(f"{word.name} cannot be in quotes or parentheses: write the value of one row")
    return place


def _around(text: str) -> tuple[str | None, int]:
    """The quote that is open at the end of a text, and how many parentheses."""
    open_quote, depth = None, 0
    for found in _MARKS.finditer(text):
        mark = unquote(found[0])
        if open_quote is not None:
            open_quote = None if mark == open_quote else open_quote
        elif mark in "'\"":
            open_quote = mark
        else:
            depth = depth + 1 if mark == "(" else max(0, depth - 1)
    return open_quote, depth


def of_header(text: str) -> list[Piece]:
    """The pieces of a header's value; `place` of a word is `quoted` between double quotes. ValueError if its
    constants are not printable ASCII on one line."""
    whole = text.startswith("$") and not text.startswith("$$")
    pieces: list[Piece] = ["", Word(text), ""] if whole else inside(text)
    if any(isinstance(one, str) and not (one.isascii() and (one or "x").isprintable()) for one in pieces):
        raise ValueError("a header's value is printable ASCII on one line")
    made, quotes = list[Piece](), 0
    for piece in pieces:
        if isinstance(piece, str):
            quotes += piece.count('"')
            made.append(piece)
        else:
            made.append(replace(piece, place="quoted" if quotes % 2 else None))
    return made


def is_document(member: str | None, text: str) -> bool:
    """Whether this is a GraphQL document, whose own words also begin with `$`."""
    return member == "query" and _DOCUMENT.match(text) is not None


def unfilled(text: str, fields: Collection[str]) -> Iterator[str]:
    """What looks like a placeholder in a text that is no address, and is none there."""
    for found in _NEAR.finditer(text):
        if found[1] and found[1] in WORDS | set(fields):
            yield found[1]
        elif found[2] and found[2] in fields:
            yield found[2]


def named(text: str, fields: Collection[str]) -> str | None:
    """The field or word that a whole text names, or that stands in braces in it."""
    found = re.findall(r"\{\$?([^{}$]+)\}", text) + re.findall(r"\A\$(\w+)\Z", text)
    return next((name for name in found if name in fields or name in WORDS), None)


def refused(name: str, why: str, hint: str | None = None) -> DefinitionError:
    """HTTP_PLACEHOLDER: a placeholder stands where none is filled in."""
    return DefinitionError("HTTP_PLACEHOLDER", f"the placeholder {name!r} {why}", hint=hint)
