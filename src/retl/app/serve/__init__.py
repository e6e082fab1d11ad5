"""`retl serve`: the ledger as read-only web pages, live.

It answers GET and HEAD, and the POST of a login. It opens the ledger to read, never holds it, and asks no
target. It starts no run and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from time import monotonic
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from retl.app import html
from retl.app.failures import described
from retl.app.loaded import LoadedProject
from retl.app.serve.access import Access
from retl.app.serve.rows import SECONDS, Explainer
from retl.app.serve.views import VIEWS, Query, link
from retl.app.server import Answer, Refused, Request, Server, parse
from retl.app.session import Session
from retl.errors import DefinitionError, Later, RetlError
from retl.ledger import Ledger
from retl.observe import log

DEFAULT = "127.0.0.1:8081"
READ_AGAIN = 2.0  # seconds that one reading of the ledger serves
MISSING = ("PATH_UNKNOWN", "SYNC_UNKNOWN", "RUN_UNKNOWN")
_POLICY = "Content-Security-Policy"


class Serve:
    """The pages of a project, served until it is closed. A context manager."""

    def __init__(
        self,
        opened: Callable[[], LoadedProject],
        environment: str | None = None,
        *,
        listen: str = DEFAULT,
        token: str | None = None,
        names: tuple[str, ...] = (),
        failed: Callable[[BaseException], object] = lambda _problem: None,
    ) -> None:
        """`opened` reads the project's files, now and at each `reload`. `names`: other hosts that requests
        may name. DefinitionError LISTEN, SERVE_TOKEN."""
        self._opened, self._environment, self._failed = opened, environment, failed
        self.access = Access(parse(listen)[0], token, names)
        self._use(opened())
        self.server = Server(listen, self.answer, deadline=SECONDS + 10)
        self.address = f"{listen.rpartition(':')[0]}:{self.server.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self._rows.close()
        self._reading.close()

    def reload(self) -> None:
        """Use the files as they are now. If they are wrong, the former definitions stay in use."""
        try:
            self._use(self._opened())
        except RetlError as problem:
            log.event("definitions_broken", level="error", code=problem.code, message=problem.message)
        else:
            log.event("definitions_read", syncs=sorted(self.project.syncs))

    def _use(self, project: LoadedProject) -> None:
        self.project = project
        self._reading = Reading(project, self._environment)
        self._rows = Explainer(project, self._environment)

    def answer(self, request: Request) -> Answer:
        """The answer to a request, whatever happens."""
        try:
            return self._answer(request)
        except Refused:
            raise
        except Later as problem:
            return _problem(503, problem, {"Retry-After": "5"})
        except RetlError as problem:
            return _problem(404 if problem.code in MISSING else 503, problem)
        except Exception as problem:  # noqa: BLE001 - one page's failure is not the server's
            self._failed(problem)
            return _problem(500, problem)

    def _answer(self, request: Request) -> Answer:
        if not self.access.is_for_us(request.headers):
            return _said(
                421, "HOST_UNKNOWN", "this name is not one of this server", "start it with --host NAME"
            )
        if self.access.is_from_elsewhere(request):
            return _said(403, "OTHER_SITE", "another site asked for this page", None)
        if request.method == "POST" and self.access.token is not None:
            return self._login(request)
        if request.method == "POST":
            return _said(405, "METHOD", "these pages can only be read", None, {"Allow": "GET, HEAD"})
        if not self.access.admits(request):
            return _page(401, html.render("login", wrong=False), {"WWW-Authenticate": "Bearer"})
        return _page(200, self._read(request.target))

    def _login(self, request: Request) -> Answer:
        cookie = self.access.login(request)
        if cookie is None:
            log.event("login_refused", level="warning")
            return _page(401, html.render("login", wrong=True), {"WWW-Authenticate": "Bearer"})
        # To the page that asked for the login; two slashes would be the name of another server.
        to = "/" + request.target.lstrip("/\\")
        return Answer(303, "text/plain; charset=utf-8", "", {"Location": to, "Set-Cookie": cookie})

    def _read(self, target: str) -> str:
        """The page at an address. DefinitionError if there is none."""
        path, name, query = _parsed(target)
        with self._reading.ledger() as ledger:
            if path != "row":
                return VIEWS[path](self.project, ledger, name, query)
            made_at = ledger.now()
        return self._rows.page(query, made_at)


def _parsed(target: str) -> tuple[str, str, Query]:
    """The key of VIEWS or `row`, the name, and the query. DefinitionError PATH_UNKNOWN."""
    unknown = DefinitionError("PATH_UNKNOWN", "there is no such page", hint="the first page is /")
    try:
        parts = urlsplit(target)
        query = parse_qs(parts.query, max_num_fields=32)
    except ValueError:
        raise unknown from None
    path, _, name = parts.path.removeprefix("/").partition("/")
    path += "/" if name else ""
    if path not in VIEWS and path != "row":
        raise unknown
    return path, unquote(name), query


class Reading:
    """The ledger, opened to read when a page needs it and closed soon after, so that requests in a row share
    one reading and nothing is held in between."""

    def __init__(self, project: LoadedProject, environment: str | None) -> None:
        self._project, self._environment = project, environment
        self._turn = threading.Lock()
        self._session: Session | None = None
        self._since = 0.0

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """One request at a time. LedgerError."""
        with self._turn:
            if monotonic() - self._since >= READ_AGAIN:
                self._close()
            if self._session is None:
                self._session, self._since = Session(self._project, self._environment), monotonic()
                closing = threading.Timer(READ_AGAIN, self.close)
                closing.daemon = True
                closing.start()
            yield self._session.ledger()

    def close(self) -> None:
        with self._turn:
            self._close()

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


def _page(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    policy = f"{html.policy()}; frame-ancestors 'none'"
    return Answer(status, "text/html; charset=utf-8", text, {_POLICY: policy, **(headers or {})})


def _problem(status: int, problem: BaseException, headers: Mapping[str, str] | None = None) -> Answer:
    found = described(problem)
    return _said(status, found["code"], found["message"], found["hint"], headers)


def _said(
    status: int, code: str, message: str, hint: str | None, headers: Mapping[str, str] | None = None
) -> Answer:
    shown = {"title": HTTPStatus(status).phrase, "code": code, "message": message, "hint": hint}
    known = link if status not in (403, 421) else html.nowhere
    return _page(status, html.render("problem", "", known, **shown), headers)
