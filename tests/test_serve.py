"""`retl serve`: what its pages say, who may see them, and that looking changes nothing."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from retl.app import html
from retl.app.resolve import open_project
from retl.app.serve import Serve
from retl.app.serve.rows import Explainer, keys
from retl.errors import DefinitionError, Later
from retl.observe import log
from tests import inprocess, served
from tests.commands import Workshop
from tests.served import CONTRACT, LOUD, MAIL
from tests.test_report import Elements
from tests.watching import Process, until

TOKEN = "token-of-the-tests-0123456789"
PATHS = (
    *("/", "/runs", "/runs?sync=customers", "/rejects", "/rejects?sync=customers", "/conflicts", "/doubts"),
    *("/lineage", "/syncs/customers", "/syncs/visits", "/syncs/letters", "/row?sync=visits"),
    *("/row?sync=customers&key=7", "/row?sync=customers&key=30", "/nowhere", "/syncs/nobody", "/runs/1"),
)


@dataclass
class Said:
    status: int
    headers: Message
    text: str

    @property
    def words(self) -> str:
        return " ".join(" ".join(Elements(self.text).texts).split())


class Visitor:
    """A browser without a browser: it asks a server in this process."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Said:
        client = HTTPConnection("127.0.0.1", self.serve.server.port, timeout=60)
        try:
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            client.request(method, path, body, named)
            answer = client.getresponse()
            return Said(answer.status, answer.headers, answer.read().decode())
        finally:
            client.close()

    def run_of(self, sync: str) -> str:
        (found,) = self.ask(f"/runs?sync={quote(sync)}").text.partition('href="/runs/')[2].partition('"')[:1]
        return f"/runs/{found}"


@contextmanager
def serving(made: Workshop, **options: Any) -> Iterator[Visitor]:
    environ = made.environ()
    opened = lambda: open_project(made.folder, environ=environ)  # noqa: E731
    with inprocess.own_state(), Serve(opened, listen="127.0.0.1:0", **options) as serve:
        yield Visitor(serve)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = served.shop(tmp_path_factory.mktemp("serve") / "shop")
    served.troubled(made)
    return made


@pytest.fixture(scope="module")
def pages(shop: Workshop, visitor: Visitor) -> dict[str, Said]:
    """All pages, and proof that nothing was written for them."""
    before = shop.snapshot()
    found = {path: visitor.ask(path) for path in (*PATHS, visitor.run_of("customers"))}
    assert shop.snapshot() == before
    return found


@pytest.fixture(scope="module")
def visitor(shop: Workshop) -> Iterator[Visitor]:
    with serving(shop) as made:
        yield made


def test_the_pages_tell_the_state_the_runs_and_what_waits(visitor: Visitor) -> None:
    first = visitor.ask("/").words
    for said in ("customers SUCCESS_WITH_REJECTS", "letters SUCCESS", "3 rows in doubt", "30 28 0 2"):
        assert said in first
    sync = visitor.ask("/syncs/customers").words
    for said in ("What the CRM knows", "1 d 2 h", "OUT_OF_RANGE 2", "Mail email trim, then lower; sensitive"):
        assert said in sync
    assert "Source a constant" in sync
    assert "email string sensitive Where letters go" in sync
    assert "SELECT * FROM visits" in visitor.ask("/syncs/visits").words
    assert (
        "customers 3 EDITED spend was edited at the target 0123456789abcdef"
        in visitor.ask("/conflicts").words
    )
    assert "customers 29 OUT_OF_RANGE" in visitor.ask("/rejects").words
    assert "letters" in visitor.ask("/doubts").words
    assert "users email customers sqlite:data/crm.db" in visitor.ask("/lineage").words
    assert "visits" not in visitor.ask("/runs?sync=customers").words.partition("newest")[2]


def test_a_run_is_the_page_of_the_report(visitor: Visitor) -> None:
    said = visitor.ask(visitor.run_of("customers"))
    assert said.status == 200
    for text in ("from what was read to what was delivered", "28", "Waiting now", "time per batch"):
        assert text in said.words
    assert '<a href="/syncs/customers">' in said.text


def test_a_row_is_found_by_its_key(visitor: Visitor, pages: dict[str, Said]) -> None:
    assert "nothing: it is the same as confirmed" in pages["/row?sync=customers&key=7"].words
    assert "reject it: spend is outside the range" in pages["/row?sync=customers&key=30"].words
    assert "note seen" in visitor.ask("/row?sync=visits&key=de&key=3").words
    unknown = visitor.ask("/row?sync=customers&key=no+number")
    assert (unknown.status, "KEY_UNKNOWN" in unknown.words) == (200, True)


def test_commands_in_what_a_row_needs_are_shown_as_code() -> None:
    row = {
        **dict.fromkeys(("verdict", "reject", "baseline", "row", "fields", "request")),
        "key": "7",
        "next": "nothing: it is late (`retl sync --key` sends it)",
    }
    page = html.render(
        "row",
        link=html.nowhere,
        name="s",
        columns=(),
        key=(),
        rows=[row],
        problems=[("CODE", "`retl sync` says <b>", "`retl state resume s` lets go of it")],
        made_at=datetime.now(UTC),
    )
    for command in ("retl sync --key", "retl sync", "retl state resume s"):
        assert f"<code>{command}</code>" in page
    assert ("`" in page.partition("</style>")[2], "&lt;b&gt;" in page) == (False, True)


def test_a_key_of_several_columns_is_written_in_every_way_it_may_be_meant(visitor: Visitor) -> None:
    project = visitor.serve.project
    visits, customers = project.syncs["visits"], project.syncs["customers"]
    assert list(keys(project, visits, ["de", "3"])) == ['["de",3]', '["de","3"]']
    assert list(keys(project, visits, ['["de",3]'])) == ['["de",3]']
    assert list(keys(project, customers, ["7"])) == ["7"]
    typed = customers.model_copy(update={"key": ("user_id", "email")})
    assert list(keys(project, typed, ["7", "7"])) == ['[7,"7"]']
    assert list(keys(project, typed, ["x", "7"])) == ['["x","7"]']  # which nothing has


def test_what_is_sensitive_is_masked_on_every_page(
    shop: Workshop, pages: dict[str, Said], tmp_path: Path
) -> None:
    assert not any(MAIL in page.text for page in pages.values())
    assert "email ***" in pages["/row?sync=customers&key=7"].words
    hidden = served.copy(shop, tmp_path / "hidden")
    served.customers(hidden, contract=CONTRACT.replace("{type: integer}", "{type: integer, sensitive: true}"))
    with serving(hidden) as other:
        texts = [
            other.ask(path).words for path in ("/rejects", "/syncs/customers", other.run_of("customers"))
        ]
        assert all("***" in text for text in texts)
        assert "customers *** OUT_OF_RANGE" in texts[0]
        assert "customers 29" not in texts[0]
        assert "Key ***" in other.ask("/row?sync=customers&key=29").words


def test_head_is_the_same_without_the_page(visitor: Visitor, pages: dict[str, Said]) -> None:
    for path in ("/conflicts", "/nowhere"):
        said = visitor.ask(path, "HEAD")
        assert (said.status, said.text) == (pages[path].status, "")
        assert said.headers["Content-Length"] == str(len(pages[path].text.encode()))


def test_every_page_is_whole_in_itself_and_kept_by_nobody(pages: dict[str, Said]) -> None:
    for said in pages.values():
        elements = Elements(said.text)
        assert elements.open == []
        assert {tag for tag, _ in elements.found}.isdisjoint({"script", "iframe", "img", "object", "embed"})
        for tag, attributes in elements.found:
            assert not any(name.startswith("on") or name in ("src", "style") for name in attributes), tag
            assert str(attributes.get("href", "/")).startswith(("/", "#", "data:,"))
        named = [str(a.get("id")) for _, a in elements.found if a.get("id")]
        assert len(named) == len(set(named))
        labelled = {a.get("for") for tag, a in elements.found if tag == "label"}
        fields = [a for tag, a in elements.found if tag in ("input", "select") and a.get("type") != "hidden"]
        assert all(field.get("id") in labelled for field in fields)
        policy = said.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith("frame-ancestors 'none'")
        assert "unsafe" not in policy
        assert said.headers["Cache-Control"] == "no-store"
        assert said.headers["X-Content-Type-Options"] == "nosniff"
        assert said.headers["Referrer-Policy"] == "no-referrer"
        assert said.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_page_that_is_not_there_says_so(visitor: Visitor) -> None:
    for path in (
        "/nowhere",
        "/syncs/nobody",
        "/runs/1",
        "/row?sync=nobody",
        "/syncs/",
        "/row/x",
        "/%00",
        "//x/y",
    ):
        assert visitor.ask(path).status == 404, path
    assert visitor.ask("/?" + "a=1&" * 40).status == 404


def test_pages_are_only_read(visitor: Visitor) -> None:
    for method, status in (("POST", 405), ("PUT", 501), ("DELETE", 501), ("OPTIONS", 501)):
        assert visitor.ask("/", method).status == status
    assert visitor.ask("/", "POST").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(name, 200) for name in ("localhost", "localhost:9", "127.0.0.1:80", "[::1]:8081", "10.0.0.7")],
        *[
            (name, 421)
            for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1")
        ],
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(visitor: Visitor, host: str, status: int) -> None:
    said = visitor.ask("/", Host=host)
    assert (said.status, "customers" in said.text) == (status, status == 200)


def test_other_sites_make_it_do_nothing_but_a_link_may_lead_here(visitor: Visitor) -> None:
    assert visitor.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    assert visitor.ask("/", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="cors").status == 403
    assert visitor.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
    assert visitor.ask("/", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="navigate").status == 200


def login(visitor: Visitor, token: str, path: str = "/", **headers: str) -> Said:
    kind = "application/x-www-form-urlencoded"
    return visitor.ask(path, "POST", urlencode({"token": token}), Content_Type=kind, **headers)


def test_with_a_token_nothing_is_shown_without_it(shop: Workshop) -> None:
    with serving(shop, token=TOKEN) as visitor:
        for path in PATHS:
            said = visitor.ask(path)
            assert (said.status, said.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "customers" not in said.text
            assert 'type="password"' in said.text
        for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 20):
            assert visitor.ask("/", Authorization=f"Bearer {quote(wrong)}").status == 401
            refused = login(visitor, wrong)
            assert (refused.status, refused.headers["Set-Cookie"]) == (401, None)
        assert visitor.ask("/", Authorization=f"Bearer {TOKEN}").status == 200
        assert visitor.ask(f"/?token={TOKEN}").status == 401
        assert login(visitor, TOKEN, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 403
        assert visitor.ask("/", "POST", "x" * (64 * 1024 + 1)).status == 413


def test_a_login_gives_a_cookie_that_is_not_the_token(shop: Workshop) -> None:
    with serving(shop, token=TOKEN) as visitor:
        said = login(visitor, TOKEN, "/rejects?sync=customers")
        assert (said.status, said.headers["Location"]) == (303, "/rejects?sync=customers")
        cookie = said.headers["Set-Cookie"]
        assert TOKEN not in cookie
        assert {"Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=43200"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert "Secure" in login(visitor, TOKEN, X_Forwarded_Proto="https").headers["Set-Cookie"]
        value = cookie.partition(";")[0]
        page = visitor.ask("/", Cookie=f"other=1; {value}")
        assert (page.status, TOKEN in page.text) == (200, False)
        name, _, content = value.partition("=")
        until_, _, signature = content.partition(".")
        for forged in (f"{int(until_) + 1}.{signature}", f"1.{signature}", until_, "", f"x.{signature}", "."):
            assert visitor.ask("/", Cookie=f"{name}={forged}").status == 401
        for path in ("//evil.example/", "/\\evil.example/", "/%5cevil.example"):
            to = login(visitor, TOKEN, path).headers["Location"]
            assert to.startswith("/")
            assert not to.startswith(("//", "/\\"))
    with serving(shop, token=TOKEN) as restarted:
        assert restarted.ask("/", Cookie=value).status == 401


@pytest.mark.parametrize(
    "options",
    [
        {"listen": "0.0.0.0:0"},
        {"listen": "[::]:0"},
        {"names": ("retl.example",)},
        {"token": "short"},
        {"token": ""},
    ],
)
def test_off_this_machine_it_needs_a_token(shop: Workshop, options: dict[str, Any]) -> None:
    with inprocess.own_state(), pytest.raises(DefinitionError, match="SERVE_TOKEN"):
        Serve(
            lambda: open_project(shop.folder, environ=shop.environ()), **{"listen": "127.0.0.1:0", **options}
        )


def test_behind_a_proxy_it_answers_to_the_name_it_is_given(shop: Workshop) -> None:
    with serving(shop, token=TOKEN, names=("Retl.example",)) as visitor:
        assert visitor.ask("/", Host="retl.example", Authorization=f"Bearer {TOKEN}").status == 200
        assert visitor.ask("/", Host="evil.example", Authorization=f"Bearer {TOKEN}").status == 421


def test_looking_holds_nothing(shop: Workshop, visitor: Visitor) -> None:
    before = shop.snapshot()
    visitor.ask("/")
    until(lambda: visitor.serve._reading._session is None, "the end of the reading")
    with closing(sqlite3.connect(shop.folder / ".retl" / "ledger.db", isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # a run records something
        assert visitor.ask("/").status == 200
        ledger.execute("UPDATE retl_meta SET value = value")
        ledger.execute("COMMIT")  # and no reader keeps it from that
    assert shop.snapshot() == before


def test_a_run_is_on_the_page_soon_after(shop: Workshop, visitor: Visitor) -> None:
    visitor.ask("/")
    shop.warehouse("INSERT INTO visits VALUES ('fr', 1, 'new')")
    run_id = shop.json("sync", "--sync", "visits")["syncs"][0]["run_id"]
    until(lambda: f"/runs/{run_id}" in visitor.ask("/").text)


def test_no_text_of_the_ledger_is_more_than_text(shop: Workshop, tmp_path: Path) -> None:
    made = served.copy(shop, tmp_path / "shop")
    made.sync(
        "evil",
        description=f'"{LOUD.replace(chr(34), "")}"',
        tags="['<b>']",
        destination="{connection: crm, table: t}",
    )
    served.hostile(made)
    with serving(made) as visitor:
        more = [
            f"/runs/{quote(LOUD, safe='')}",
            f"/syncs/{quote(LOUD, safe='')}",
            "/syncs/evil",
            "/runs?sync=<b>",
        ]
        paths = [path for path in PATHS if path != "/row?sync=customers&key=7"]
        for path in (*paths, *(quote(one, safe="/?=%") for one in more), visitor.run_of("customers")):
            said = visitor.ask(path)
            assert "<script" not in said.text, path
            assert "<img" not in said.text, path
            assert "\u202e" not in said.text, path
            assert Elements(said.text).open == []
            assert said.status == (404 if path in ("/nowhere", "/syncs/nobody", "/runs/1") else 200), path
        seen = sum(
            visitor.ask(path).text.count("&lt;script&gt;")
            for path in ("/", "/rejects", "/conflicts", "/doubts")
        )
        assert seen >= 8
        assert visitor.ask(visitor.run_of("customers")).text.count("&lt;script&gt;") >= 8


def test_one_row_is_explained_at_a_time_and_not_for_long(shop: Workshop, visitor: Visitor) -> None:
    with visitor.serve._rows._turn:
        said = visitor.ask("/row?sync=customers&key=7")
        assert (said.status, said.headers["Retry-After"], "ROW_BUSY" in said.words) == (503, "5", True)
    slow = Explainer(visitor.serve.project, None, seconds=0.0)
    with pytest.raises(Later, match="ROW_BUSY"):
        slow.explained(visitor.serve.project.syncs["customers"], ["7"])


def test_a_state_that_cannot_be_read_is_said(shop: Workshop, tmp_path: Path) -> None:
    made = served.copy(shop, tmp_path / "shop")
    with serving(made) as visitor:
        (made.folder / ".retl" / "ledger.db").write_bytes(b"no database at all" * 100)
        said = visitor.ask("/")
        assert (said.status, "STATE_UNREADABLE" in said.words) == (503, True)


def test_the_files_are_read_again_and_broken_ones_leave_what_is_in_use(
    shop: Workshop, tmp_path: Path
) -> None:
    made = served.copy(shop, tmp_path / "shop")
    told: list[str] = []
    with serving(made) as visitor:
        log.listen(listener := lambda event, _fields: told.append(event))
        made.write("syncs/customers.yml", "key: [x]\n")
        visitor.serve.reload()
        assert "Where letters go" in visitor.ask("/syncs/customers").words
        made.sync(
            "customers", description="Another sentence", destination="{connection: crm, table: customers}"
        )
        visitor.serve.reload()
        assert "Another sentence" in visitor.ask("/syncs/customers").words
        log.unlisten(listener)
    assert told == ["definitions_broken", "definitions_read"]


def test_the_command_serves_until_it_is_stopped(shop: Workshop) -> None:
    said = shop.retl("serve", "--token", "token-on-the-command-line")
    assert (said.code, "SERVE_TOKEN" in said.err) == (2, True)
    assert "token-on-the" not in said.err
    served_by = Process(shop, "--listen", "127.0.0.1:0", verb="serve", RETL_SERVE_TOKEN=TOKEN)
    try:
        served_by.says('"serving"')
        (begun,) = [json.loads(line) for line in served_by.said.splitlines() if '"serving"' in line]
        assert (begun["project"], begun["syncs"] > 0) == (str(shop.folder), True)
        port = int(served_by.said.partition("http://127.0.0.1:")[2].partition("/")[0])
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
            client.request("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
            assert client.getresponse().status == 200
        assert served_by.end(signal.SIGTERM) == 143
        assert TOKEN not in served_by.said
    finally:
        served_by.process.kill()
        served_by.process.wait()
