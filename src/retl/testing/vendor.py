"""A vendor made from a preset: it takes what the preset sends, and answers in the way that the preset reads.

It is told which rows a sync may send, and knows a request by making every request that these rows could
become. So it proves what retl makes of answers, faults and repeated requests. It proves nothing about the
real vendor: only the vendor's own schema, a request of its own client and its recorded answers do that.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from csv import DictWriter
from functools import partial
from io import StringIO
from itertools import permutations
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from retl.destinations.batch import Mode
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.body import Template
from retl.destinations.http.options import OPERATION_NAMES
from retl.destinations.http.reading import unconditional
from retl.destinations.http.rules import Rules
from retl.destinations.http.texts import split
from retl.net.lookup import Match, text
from retl.net.messages import Request
from retl.testing import odata
from retl.testing.server import TOKEN, FakeApi

Key = tuple[Any, ...]
Known = tuple[Key, str]  # the key's values, and the fields as a JSON object
MODES: tuple[Mode, ...] = ("upsert", "append", "update_only", "delete")
_REFUSED = {"code": "invalid", "reason": "this row is refused"}


class Vendor(FakeApi):
    """`objects` are fields by key; `sent` the rows that may come, `refuse` keys that are refused. `arrived`
    counts the rows that were processed, by operation, key and fields."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.sent: dict[str, Known] = {}
        self.bad: set[str] = set()
        self.gone: dict[str, Key] = {}  # keys that may be deleted
        self.arrived: Counter[tuple[str, str, str]] = Counter()
        self.doubled = 0
        self.bodies: list[tuple[str, str, Any]] = []  # of writes that were understood: operation, path, body
        self._refs: dict[str, str] = {}
        self._job: dict[str, Any] = {}
        self._answers: dict[str, tuple[int, Any]] = {}  # by idempotency key

    def speak(self, destination: HttpDestination) -> None:
        """Take the requests of this destination."""
        self.destination, self.options = destination, destination.options
        self._keys = [field.name for field in destination.shape.key]
        self._fields = [field.name for field in destination.shape.fields]
        self._prefix = urlsplit(self.options.connection.base_url).path.rstrip("/")
        known = self.options.version.any if self.options.version else None
        given = {mode: getattr(self.options, OPERATION_NAMES[mode]) for mode in MODES}
        self._endpoints = {mode: unconditional(one, known) for mode, one in given.items() if one is not None}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        csrf = self.options.connection.csrf
        if csrf is not None and method != "GET" and headers.get(csrf.header.lower()) != TOKEN:
            return 403, (b"", {csrf.header: "Required"})
        if csrf is not None and csrf.header.lower() in headers and method == "GET":
            return 200, (b"{}", {csrf.header: TOKEN})
        if self.options.batch is not None and path == self._prefix + self.options.batch.path:
            return odata.batch(self._served, headers, body)
        return self._served(method, path, headers, body)

    def _served(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        asked = self._plain(method, path, body)
        if (answer := self._job_s(method, path)) is not None:
            return answer
        if (answer := self._found(asked)) is not None:
            return answer
        for mode in MODES:
            for rows in self._candidates(mode):
                if (request := self._request(mode, rows)) and asked == self._own(request):
                    return self._once(headers, partial(self._write, mode, rows, body))
        if self.options.check is not None and path == self._prefix + self.options.check.path:
            return 200, {}
        return 404, {"message": f"{method} {path} is no request of these rows"}

    def _once(self, headers: Mapping[str, str], write: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
        """The answer to a write: the first one again, if its idempotency key is known."""
        known = self.options.idempotency
        key = headers.get(known.header.lower()) if known is not None and known.header else None
        if key is None or key not in self._answers:
            answer = write()
            self._answers |= {} if key is None else {key: answer}
            return answer
        return self._answers[key]

    # which request it is

    def _plain(self, method: str, path: str, body: bytes) -> Any:
        """A request in a form that can be compared, without the credential in it."""
        auth: Any = self.options.connection.auth
        where = urlsplit(path)
        query = parse_qsl(where.query, keep_blank_values=True)
        if auth.type == "query":
            query = [pair for pair in query if pair[0] != auth.name]
        target = "/" if auth.type == "url" else f"{where.path}?{urlencode(sorted(query))}"
        content: Any = body
        try:
            content = [json.loads(line) for line in body.splitlines()] if body else None
            if body and auth.type == "body":
                content = [_without(one, auth.name) for one in content]
        except ValueError:
            pairs = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
            hidden = auth.name if auth.type in ("body", "form_digest") else None
            content = sorted(pair for pair in pairs if pair[0] != hidden) or body
        return method, target, content

    def _own(self, request: Request) -> Any:
        return self._plain(request.method, request.target, request.body)

    def _candidates(self, mode: Mode) -> Iterator[list[str]]:
        """The keys of every request that these rows could become."""
        endpoint = self._endpoints.get(mode)
        if endpoint is None:
            return
        names = list(self.gone if mode == "delete" else self.sent)
        most = min(endpoint.rows_at_most or len(names), len(names))
        for size in range(1, most + 1):
            yield from map(list, permutations(names, size))

    def _request(self, mode: Mode, names: Sequence[str]) -> Request | None:
        endpoint = self._endpoints[mode]
        template = Template(endpoint, self._keys, [] if mode == "delete" else self._fields, self._prefix)
        rows = []
        for name in names:
            key, fields = (self.gone[name], "") if mode == "delete" else self.sent[name]
            if endpoint.asks_ref and name not in self._refs:
                return None
            row = (*key, *([self._refs[name]] if endpoint.asks_ref else []))
            rows.append(row if mode == "delete" else (*row, fields))
        return template.request(rows)

    def _found(self, asked: Any) -> tuple[int, Any] | None:
        """The answer to a search for one key."""
        find = self.options.find
        if find is None:
            return None
        template = Template(find, self._keys, [], self._prefix)
        for name, key in {**self.gone, **{name: key for name, (key, _) in self.sent.items()}}.items():
            if asked == self._own(template.request([key])):
                there = name in self.objects
                if split(find.path.partition("?")[0])[1::2]:
                    at = ".".join(filter(None, (find.at, find.ref)))
                    return (200, _put({}, at, self._refs[name])) if there else (404, {})
                item: Any = _put({}, find.ref, self._refs.get(name, ""))
                if find.match is not None:
                    item = _put(item, find.match.at[0], text(key[0]))
                return 200, _put({}, find.at, [item] if there else [])
        return None

    # what it does, and what it answers

    def _write(self, mode: Mode, names: Sequence[str], body: bytes) -> tuple[int, Any]:
        refused = [n for n, name in enumerate(names) if name in self.bad and mode != "delete"]
        rules = self.destination.rules(mode)
        self.bodies.append((OPERATION_NAMES[mode], self.seen[-1][1], body))
        if mode == "update_only" and any(name not in self.objects for name in names):
            return 404, {}
        whole = refused and not _names_bad_rows(rules) and len(names) > 1
        if not whole:
            for n, name in enumerate(names):
                if n not in refused:
                    self._keep(mode, name)
        if whole or (refused and len(names) == 1 and not _names_bad_rows(rules)):
            return _refusal(rules)
        job = self.options.upsert.job if mode == "upsert" and self.options.upsert else None
        if job is not None and job.id is not None:
            self._job = _answer(job.outcome, [str(n) for n in names], refused, {}, names)[1]
            return rules.ok[0], _put(_accepting(rules), job.id.at, "job-1")
        refs = {n: self._refs[name] for n, name in enumerate(names) if name in self._refs}
        return _answer(rules, self._named(rules, names), refused, refs, names)

    def _named(self, rules: Rules, names: Sequence[str]) -> list[str]:
        """How an answer names these rows."""
        return [str(n) for n in range(len(names))] if rules.match[0].to == "$row_no" else list(names)

    def _keep(self, mode: Mode, name: str) -> None:
        if mode == "delete":
            self.arrived[mode, name, ""] += 1
            self.objects.pop(name, None)
            return
        _, fields = self.sent[name]
        self.arrived[mode, name, fields] += 1
        if mode == "append":
            self.doubled += name in self.objects
        self._refs.setdefault(name, str(100 + len(self._refs)))
        self.merge(name, json.loads(fields))

    def _job_s(self, method: str, path: str) -> tuple[int, Any] | None:
        """The state of the last job, or its errors."""
        job = self.options.job
        if job is None or method != "GET":
            return None
        file = f"{self._prefix}/errors.file"
        errors = file if job.errors_url else self._prefix + (job.errors_path or "").replace("$job", "job-1")
        if (job.errors_url or job.errors_path) and path == errors:
            found = self._job.get("errors", [])
            return 200, _csv(found) if job.errors_format == "csv" else _put({}, job.errors_at, found)
        if path == self._prefix + job.path.replace("$job", "job-1"):
            ended = _satisfying(self._job.get("job") or {}, job.done)
            return 200, _put(ended, job.errors_url, file) if job.errors_url else ended
        return None


def _names_bad_rows(rules: Rules) -> bool:
    simple = rules.index.pattern is None
    return rules.rows in ("positional", "listed", "errors_by_value") or (
        rules.rows == "errors_by_index" and simple
    )


def _answer(
    rules: Rules, named: Sequence[str], bad: Sequence[int], refs: Mapping[int, str], names: Sequence[str]
) -> tuple[int, Any]:
    """The answer in which all rows but the `bad` ones were written."""
    case = next((one for one in rules.cases if one.means == "written" and one.when is not None), None)
    if case is not None and not rules.ok:
        return case.status[0], _satisfying({}, case.when)
    content = _accepting(rules)
    if case is not None and not bad:
        content = _satisfying(content, case.when)
    if rules.failed is not None:
        for n, path in enumerate(rules.failed.at):
            content = _put(content, path, len(bad) if n == 0 else 0)
    rows, at = rules.rows, rules.at[0].replace("*", "0")
    if rows == "all_or_nothing" and len(named) == 1 and rules.ref and 0 in refs:
        content = _put(content, rules.ref, refs[0])
    elif rows == "all_or_nothing" and rules.ref and len(named) > 1:
        items = [
            _put(_put({}, rules.match[0].at[0], name), rules.ref, refs.get(n)) for n, name in enumerate(named)
        ]
        content = _put(content, at, items)
    elif rows in ("positional", "listed"):
        good = [_item(rules, named, n, refs, bad=n in bad) for n in range(len(named))]
        if rules.errors_at is None:
            content = _put(content, at, good)
        else:
            content = _put(content, at, [one for n, one in enumerate(good) if n not in bad])
            content = _put(content, rules.errors_at, [one for n, one in enumerate(good) if n in bad])
    elif rows in ("errors_by_index", "errors_by_value"):
        content = _put(content, at, _errors(rules, named, bad))
    partial = [status for status in rules.partial if status not in rules.ok]
    return (partial or rules.ok)[0] if bad and rows != "positional" else _status(rules, content), content


def _accepting(rules: Rules) -> Any:
    """What the answer to a request has that was not refused as a whole."""
    content: Any = {}
    for wanted in rules.ok_when:
        content = _satisfying(content, wanted)
    return content


def _status(rules: Rules, content: Any) -> int:
    """A status of success that can have this content."""
    return next((one for one in rules.ok if one != 204 or not content), rules.ok[0])


def _item(rules: Rules, named: Sequence[str], n: int, refs: Mapping[int, str], *, bad: bool) -> Any:
    item: Any = {} if bad or rules.row_ok is None else _satisfying({}, rules.row_ok)
    item = _explained(item, rules) if bad else item
    if rules.ref and n in refs and not bad:
        item = _put(item, rules.ref, refs[n])
    if rules.rows == "listed":
        item = _put(item, rules.match[0].at[0], named[n])
    if rules.inside is not None and isinstance(item.get(rules.inside), dict):
        item[rules.inside] = b64encode(json.dumps(item[rules.inside]).encode()).decode()
    return item


def _errors(rules: Rules, named: Sequence[str], bad: Sequence[int]) -> Any:
    """The list of bad rows; an object if their names are its members."""
    if rules.rows == "errors_by_index" and rules.index.at == "$name":
        return {str(n + rules.first): _explained({}, rules) for n in bad}
    if rules.rows == "errors_by_index":
        at, numbers = rules.index.at, [n + rules.first for n in bad]
        return [n if at == "" else _put(_explained({}, rules), at, n) for n in numbers]
    at = rules.match[0].at[0]
    return [named[n] if at == "" else _put(_explained({}, rules), at, named[n]) for n in bad]


def _refusal(rules: Rules) -> tuple[int, Any]:
    """A refusal of a whole request."""
    taken = {status for case in rules.cases for status in case.status} | {*rules.ok, *rules.partial}
    status = next((one for one in (422, 400, 409) if one not in taken), 422)
    return status, _explained({}, rules)


def _explained(item: Any, rules: Rules) -> Any:
    for paths, word in ((rules.code, _REFUSED["code"]), (rules.reason, _REFUSED["reason"])):
        item = _put(item, paths[0].replace("*", "0"), word)
    return item


def _satisfying(content: Any, match: Match | None) -> Any:
    if match is None:
        return content
    if match.empty:
        return _put(content, match.at, [])
    return _put(content, match.at, match.values[0] if match.values else match.holds[0])


def _csv(errors: Sequence[Mapping[str, Any]]) -> bytes:
    """Errors as a table."""
    file = StringIO(newline="")
    table = DictWriter(file, list(errors[0]) if errors else [])
    table.writeheader()
    table.writerows(errors)
    return file.getvalue().encode()


def _put(content: Any, path: str, value: Any) -> Any:
    """The content with this value at a dotted path; numbers index lists."""
    step, _, rest = path.partition(".")
    if not path:
        return value
    if step.isdecimal():
        items = list(content) if isinstance(content, list) else []
        items += [{}] * (int(step) + 1 - len(items))
        items[int(step)] = _put(items[int(step)], rest, value)
        return items
    members = dict(content) if isinstance(content, dict) else {}
    return {**members, step: _put(members.get(step, {}), rest, value)}


def _without(content: Any, name: str) -> Any:
    if isinstance(content, list):
        return [_without(one, name) for one in content]
    return (
        {key: value for key, value in content.items() if key != name}
        if isinstance(content, dict)
        else content
    )
