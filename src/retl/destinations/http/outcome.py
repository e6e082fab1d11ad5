"""What an HTTP answer means for the rows that were sent: pure, and the same for every vendor.

`Rules` describe, as data, what an answer says of each row or of the whole request. Nothing is guessed: a
row that the answer does not account for is UNKNOWN, an unreadable success is Ambiguous. It does no I/O. No
text made here contains a value of a row.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import ABSENT, PRESENT, UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.destinations.conflict import BUSY
from retl.destinations.http.rules import Rules
from retl.errors import Ambiguous, Poisoned, Spent, Systemic, TargetError, Unavailable
from retl.net.lookup import every, look, text
from retl.net.messages import _NO_JSON, Reply
from retl.net.scrub import scrub
from retl.net.waits import wait_asked

MADE = RowResult(Kind.WRITTEN, "made")  # created with its key alone: its fields are still to be written
_RETRY = frozenset({425, 429, 503})  # refused before anything was done
_REFUSED = frozenset({400, 409, 413, 414, 422})  # part of the request is bad, nothing was applied


class Sent(Struct, frozen=True):
    """What was sent: how many rows, whether a second send is harmless, each row's name for an `Identity`,
    and the texts sent for a row (None: for all)."""

    rows: int
    idempotent: bool
    names: Callable[[str], Sequence[str]]
    texts: Callable[[int | None], Iterable[str]]


def interpret(reply: Reply, rules: Rules, sent: Sent) -> Outcome:
    """What became of each row. An answer that concerns all rows is raised as a TargetError, except that
    the refusal of a request with a single row rejects that row, and one that names its rows rejects those."""
    if not reply.is_page:
        for case in rules.cases:
            if reply.status in case.status and (case.when is None or case.when.fits(reply.json_or_text)):
                usual = rules.wait if case.wait is None else case.wait
                if case.ref is not None:
                    ref = case.ref.of(reply.json_or_text) if sent.rows == 1 else None
                    if case.means == "made":
                        return (
                            Outcome(replace(MADE, ref=ref)) if ref else _means("unknown", reply, rules, sent)
                        )
                    found = Outcome(PRESENT, {0: replace(PRESENT, ref=ref)})
                    return found if ref else _means("refused", reply, rules, sent)
                return _means(case.means, reply, rules, sent, usual)
        if reply.status in rules.ok or reply.status in rules.partial:
            return _accepted(reply, rules, sent)
    return _means(_table(reply, sent), reply, rules, sent, rules.wait if reply.status == 429 else None)


def _table(reply: Reply, sent: Sent) -> str:
    """The meaning of a status. If a gateway cannot reach the API, its answer may be a web page."""
    status = reply.status
    if status in _RETRY:
        return "unavailable"
    if status == 408 or (status >= 500 and status not in (501, 505)):
        return "unavailable" if sent.idempotent else "unknown"
    if reply.is_page:
        return "systemic"
    if 200 <= status < 300:
        return "unknown"
    return "refused" if status in _REFUSED else "systemic"


def _means(meaning: str, reply: Reply, rules: Rules, sent: Sent, usual: float | None = None) -> Outcome:
    """`usual`: the seconds to wait after `unavailable` if the answer names none."""
    if meaning == "some_absent":
        meaning = "absent" if sent.rows == 1 else "refused"
    results = {"written": WRITTEN, "kept": PRESENT, "absent": ABSENT, "changed": BUSY}
    if meaning in results:
        return Outcome(results[meaning])
    if meaning == "refused" and sent.rows > 1 and (named := _refused_rows(reply.content, rules, sent)):
        others = RowResult(Kind.RETRY)  # nothing was applied
        return Outcome(others, named, divides=len(named) < sent.rows)
    code, reason = _explanation(reply.content, rules, sent, None)
    if meaning == "refused" and sent.rows == 1:
        return Outcome(
            RowResult(Kind.REJECTED, code or f"HTTP_{reply.status}", reason or _phrase(reply.status))
        )
    parts = (f"the target answered {_phrase(reply.status)}", code, reason)
    message = ": ".join(part for part in parts if part)
    name = f"HTTP_{reply.status}"
    if meaning == "unavailable":
        wait = wait_asked(reply.headers, rules.retry_after, reply.content)
        hint = "its limit is used up: run again later" if reply.status == 429 else None
        raise Unavailable(name, message, retry_after=usual if wait is None else wait, hint=hint)
    if meaning == "spent":
        raise Spent(message, restart=wait_asked(reply.headers, rules.retry_after, reply.content))
    errors: dict[str, type[TargetError]] = {"refused": Poisoned, "unknown": Ambiguous}
    raise errors.get(meaning, Systemic)(name, message, hint=_hint(reply))


def _accepted(reply: Reply, rules: Rules, sent: Sent) -> Outcome:
    """The rows of an answer with a status in `ok` or `partial`."""
    content = reply.content
    if not reply.whole:
        encoding = reply.headers.get("content-encoding", "identity")
        packed = "" if encoding == "identity" else f", or its encoding {encoding[:20]!r} cannot be read"
        raise Ambiguous(
            "HTTP_CUT_OFF", f"the answer {_phrase(reply.status)} was cut off, or too long to read{packed}"
        )
    if reply.status != 204 and not all(one.fits(reply.json_or_text) for one in rules.ok_when):
        return _means("refused", reply, rules, sent)
    if rules.rows == "none":
        return Outcome(WRITTEN)
    if content is _NO_JSON and reply.status >= 400:
        return _unnamed(reply, rules, sent)
    if content is _NO_JSON:
        raise Ambiguous("HTTP_NO_JSON", f"the answer {_phrase(reply.status)} is not JSON")
    if rules.rows == "all_or_nothing":
        return _outcome(WRITTEN, _external_ids(content, rules, sent))
    found = _by_row(reply, rules, sent)
    if reply.status >= 400 and found.default.kind is Kind.UNKNOWN and not found.exceptions:
        found = _unnamed(reply, rules, sent)
    return _counted(found, rules, content, sent)


def _external_ids(content: Any, rules: Rules, sent: Sent) -> dict[int, RowResult]:
    """The external ids in a success for all rows: of the only row, or of each item that names one row."""
    if rules.ref is None:
        return {}
    items = _items(content, rules.at)
    if sent.rows == 1:
        only = items[0] if isinstance(items, list) and len(items) == 1 else content
        found = {0: [look(only, rules.ref)]}
    else:
        found = {}
        for rows, item in _named(items if isinstance(items, list) else [], rules, sent):
            for row in rows if len(rows) == 1 else ():
                found.setdefault(row, []).append(look(item, rules.ref))
    unique = {row: refs[0] for row, refs in found.items() if len(refs) == 1 and refs[0] is not None}
    return {row: RowResult(Kind.WRITTEN, ref=text(ref)) for row, ref in unique.items()}


def _by_row(reply: Reply, rules: Rules, sent: Sent) -> Outcome:
    """The result of each row, from the items of an answer."""
    items = _items(reply.content, rules.at)
    if rules.rows == "positional":
        if not isinstance(items, list) or len(items) != sent.rows:
            given = len(items) if isinstance(items, list) else "no"
            return unsure(f"the answer has {given} results for {sent.rows} rows", reply.content, rules, sent)
        return _outcome(WRITTEN, {n: _judged(item, n, rules, sent) for n, item in enumerate(items)})
    if rules.rows == "listed":
        return _listed(reply.content, rules, sent)
    numbered = isinstance(items, dict) and rules.rows == "errors_by_index" and rules.index.at == "$name"
    if rules.rows == "counts_only" or items is None or items == [] or (numbered and not items):
        return Outcome(WRITTEN) if reply.status in rules.ok else _unnamed(reply, rules, sent)
    if not (numbered or isinstance(items, list)):
        return unsure("the answer has no list of bad rows", reply.content, rules, sent)
    bad: dict[int, RowResult] = {}
    stray: list[Any] = []  # an error that names none of our rows may concern any of them
    for rows, item in _named(items, rules, sent):
        stray += [] if rows else [item]
        bad.update({n: _judged(item, n, rules, sent, bad=True) for n in rows})
    if not stray:
        return _outcome(WRITTEN, bad)
    if sent.rows == 1:
        return Outcome(_judged(stray[0], 0, rules, sent, bad=True), bad)
    found = unsure("the target refused a row that it did not name", stray[0], rules, sent, divides=True)
    return replace(found, exceptions=bad)


def _refused_rows(content: Any, rules: Rules, sent: Sent) -> dict[int, RowResult]:
    """The rows that a refusal of the whole request names."""
    if rules.rows not in ("errors_by_index", "errors_by_value", "listed"):
        return {}
    items = _items(content, rules.at if rules.rows != "listed" else (rules.errors_at or "",))
    if not isinstance(items, list | dict) or (isinstance(items, dict) and rules.index.at != "$name"):
        return {}
    return {
        n: _judged(item, n, rules, sent, bad=True) for rows, item in _named(items, rules, sent) for n in rows
    }


def _counted(outcome: Outcome, rules: Rules, content: Any, sent: Sent) -> Outcome:
    """The outcome, corrected by the target's count of bad rows. If it counts more than it names, the other
    rows are UNKNOWN; if it counts all rows, all are rejected."""
    if rules.failed is None:
        return outcome
    failed = rules.failed.of(content)
    if failed is None or failed > sent.rows:
        found = unsure("the answer has no possible count of refused rows", content, rules, sent)
        return replace(found, exceptions=outcome.exceptions)
    named = sum(outcome.result(n).kind is Kind.REJECTED for n in range(sent.rows))
    if failed <= named:
        return outcome
    if failed == sent.rows:
        code, reason = _explanation(content, rules, sent, None)
        refused = RowResult(Kind.REJECTED, code or "REFUSED", reason or "the target refused the row")
        return Outcome(refused, outcome.exceptions if named else {})
    told = f"the target refused {failed} of {sent.rows} rows and named {named or 'none'}"
    others = {n: one for n, one in outcome.exceptions.items() if one.kind is not Kind.WRITTEN}
    return replace(unsure(told, content, rules, sent, divides=True), exceptions=others)


def _unnamed(reply: Reply, rules: Rules, sent: Sent) -> Outcome:
    """An answer that is no whole success and names no bad row: a refusal, if there is only one row."""
    code, reason = _explanation(reply.content, rules, sent, None)
    if sent.rows == 1 and reply.status >= 400:
        return Outcome(
            RowResult(Kind.REJECTED, code or f"HTTP_{reply.status}", reason or _phrase(reply.status))
        )
    return unsure(f"the target answered {_phrase(reply.status)}", reply.content, rules, sent, divides=True)


def unsure(why: str, content: Any, rules: Rules, sent: Sent, *, divides: bool = False) -> Outcome:
    """All rows in doubt, with what was answered."""
    code, reason = _explanation(content, rules, sent, None)
    return Outcome(RowResult(Kind.UNKNOWN, code, f"{why}: {reason}" if reason else why), divides=divides)


def _listed(content: Any, rules: Rules, sent: Sent) -> Outcome:
    found: dict[int, RowResult] = {}
    for paths, bad in ((rules.at, False), ((rules.errors_at,), True)):
        items = _items(content, [path for path in paths if path is not None])
        for rows, item in _named(items if isinstance(items, list) else [], rules, sent):
            for n in rows:
                result = _judged(item, n, rules, sent, bad=bad)
                found[n] = result if found.get(n, result).kind == result.kind else UNKNOWN
    waiting = look(content, rules.retry_at) if rules.retry_at else None
    for rows, _ in _named(waiting if isinstance(waiting, list) else [], rules, sent):
        found |= {n: RowResult(Kind.RETRY) for n in rows if n not in found}
    return replace(unsure("the answer does not mention the row", content, rules, sent), exceptions=found)


def _items(content: Any, paths: Sequence[str]) -> Any:
    """The list at a path; for several paths, or one with a `*`, all lists found, joined."""
    if len(paths) == 1 and "*" not in paths[0]:
        return look(content, paths[0])
    found = [part for path in paths for part in every(content, path) if isinstance(part, list)]
    return [item for part in found for item in part] if found else None


def _named(items: Any, rules: Rules, sent: Sent) -> Iterator[tuple[Sequence[int], Any]]:
    """Each item with the rows that it names, or none. A name that several rows have names none of them."""
    if rules.rows == "errors_by_index":
        pairs = items.items() if isinstance(items, dict) else ((_index(one, rules), one) for one in items)
        for index, item in pairs:
            if isinstance(index, str):
                numbers = [part for part in re.split(r"[/.\[\]]", index) if part.isdecimal()]
                index = int(numbers[0]) if len(numbers) == 1 else None
            row = index - rules.first if type(index) is int else -1
            yield ([row] if 0 <= row < sent.rows else []), item
        return
    rows: list[dict[str, list[int]]] = [{} for _ in rules.match]
    for known, identity in zip(rows, rules.match, strict=True):
        for n, name in enumerate(sent.names(identity.to)):
            known.setdefault(name, []).append(n)
    for item in items:
        named: Sequence[int] = []
        for known, identity in zip(rows, rules.match, strict=True):
            value = next((v for path in identity.at if (v := look(item, path)) is not None), None)
            if value is not None:
                named = known.get(text(value), [])
                break
        yield (named if len(named) == 1 else []), item


def _index(item: Any, rules: Rules) -> Any:
    """The row's number in an item, or a pointer that has it."""
    return look(item, rules.index.at) if rules.index.pattern is None else rules.index.of(item)


def _judged(item: Any, row: int, rules: Rules, sent: Sent, *, bad: bool = False) -> RowResult:
    """The result of a row by its item. `bad`: the item is in a list of bad rows."""
    if rules.inside is not None:
        item = _opened(item, rules.inside)
    if rules.row_retry is not None and rules.row_retry.fits(item):
        code, reason = _explanation(item, rules, sent, row)
        return RowResult(Kind.RETRY, code, reason)
    ref = look(item, rules.ref) if rules.ref else None
    if rules.row_kept is not None and rules.row_kept.fits(item):
        return PRESENT if ref is None else replace(PRESENT, ref=text(ref))
    if rules.row_absent is not None and rules.row_absent.fits(item):
        return ABSENT
    if rules.row_changed is not None and rules.row_changed.fits(item):
        return BUSY
    if not bad and (rules.row_ok is None or rules.row_ok.fits(item)):
        return WRITTEN if ref is None else RowResult(Kind.WRITTEN, ref=text(ref))
    code, reason = _explanation(item, rules, sent, row)
    return RowResult(Kind.REJECTED, code or "REFUSED", reason or "the target refused the row")


def _opened(item: Any, at: str) -> Any:
    """The item with the base64 JSON at `at` decoded, if it is that."""
    found = look(item, at)
    try:
        return {**item, at: msgspec.json.decode(b64decode(found))} if isinstance(found, str) else item
    except (ValueError, msgspec.DecodeError):
        return item


def _outcome(default: RowResult, results: Mapping[int, RowResult]) -> Outcome:
    return Outcome(default, {n: result for n, result in results.items() if result is not default})


def _explanation(value: Any, rules: Rules, sent: Sent, row: int | None) -> tuple[str | None, str | None]:
    """The target's own code and reason in a value, without values of the row."""
    found = [
        next((text(one) for path in paths if type(one := look(value, path)) in (str, int, float)), None)
        for paths in (rules.code, rules.reason)
    ]
    if found == [None, None]:
        return None, None
    known = list(sent.texts(row))
    code, reason = (None if part is None else scrub(part, known) for part in found)
    return (code if code and "…" not in code and len(code) <= 64 else None), reason


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _hint(reply: Reply) -> str | None:
    if reply.is_page:
        return "a web page came back: is base_url the API's, and is there no proxy or login page before it?"
    if 300 <= reply.status < 400:
        return "redirects are not followed: set base_url to the new address"
    return {
        401: "the credential was not accepted: check the connection's `token` or `auth`",
        403: "the credential has no right to do this: check its scopes at the target",
        404: "there is nothing at this address: check base_url and path",
        405: "this address does not accept the method: check method and path",
    }.get(reply.status)
