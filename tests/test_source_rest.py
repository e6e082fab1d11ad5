"""An API as a source: all pages are read, exactly and once, or the run fails and says why."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tenacity import wait_none

from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Later, Mismatch, RetlError, SourceError, Stopped
from retl.observe.signals import Stop
from retl.pace import limiter
from retl.project.contracts import Contract
from retl.sources.api import Invocation, Since
from retl.sources.rest import Rest, RestConnection, RestOptions
from retl.testing.faults import answer, changed, cut, dripping, passed, reset, throttled
from retl.testing.server import TOKEN
from retl.values.from_json import Misfit, reader
from retl.values.types import Type
from tests.canary import SECRET, Watch
from tests.commands import Workshop
from tests.servers import Database
from tests.shop import KINDS, Shop

ID: Mapping[str, Any] = {"id": {"type": "integer"}}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_PAUSES", wait_none())


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop([{"id": number} for number in range(10)]) as api:
        yield api


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path, Stop()) as made:
        yield made


def source(
    shop: Shop,
    kind: str,
    contract: Mapping[str, Any] = ID,
    *,
    connection: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    watermark: str | None = None,
    **options: Any,
) -> Rest:
    """The rows of one way of paging; `options` replace or join its own."""
    page = {"page": yaml.safe_load(KINDS[kind]), "items": "data"} if kind in KINDS else {}
    given = {"path": f"/v1/{kind}", **page, **options}
    auth = {"type": "bearer", "token": TOKEN}
    server = {"base_url": shop.url, "auth": auth, "retry": {"attempts": 4}, **(connection or {})}
    return Rest(
        RestConnection.model_validate(server),
        RestOptions.model_validate(given),
        Invocation(
            Path(),
            variables or {},
            contract=Contract.model_validate({"columns": contract}),
            watermark=watermark,
        ),
    )


def read(workspace: Workspace, source: Rest, since: Since | None = None) -> list[tuple[Any, ...]]:
    """The rows as DuckDB has them."""
    with source.open(workspace) as snapshot:
        columns = list(snapshot.description.columns)
        query = snapshot.rows(columns, since)
        return workspace.run(f"SELECT {', '.join(columns)} FROM ({query.sql})", query.parameters)


def failure(workspace: Workspace, source: Rest) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(workspace, source)
    return caught.value


def ids(rows: list[tuple[Any, ...]]) -> list[int]:
    return sorted(int(row[0]) for row in rows)


# pages


@pytest.mark.parametrize("kind", [*KINDS, "all"])
@pytest.mark.parametrize("count", [0, 1, 4, 9, 12])
def test_every_way_of_paging_reads_every_row_once(workspace: Workspace, kind: str, count: int) -> None:
    with Shop([{"id": number} for number in range(count)]) as shop:
        assert ids(read(workspace, source(shop, kind))) == list(range(count))


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_every_way_of_paging_survives_what_passes(workspace: Workspace, shop: Shop, kind: str) -> None:
    again = [throttled(0), reset(applied=False), reset(applied=True)]
    later = [cut(), answer(503, Retry_After="0"), answer(500)]
    shop.misbehave(*again, passed, *later)
    assert ids(read(workspace, source(shop, kind))) == list(range(10))


FAULTS: dict[str, tuple[Any, str]] = {
    "a web page": (answer(200, "<html>log in", Content_Type="text/html"), "HTTP_NO_JSON"),
    "a text": (answer(200, "id\n1\n", Content_Type="text/csv"), "HTTP_NO_JSON"),
    "nothing": (answer(200), "HTTP_NO_JSON"),
    "half of the JSON": (answer(200, '{"data": [{"id": 1}, '), "HTTP_NO_JSON"),
    "no UTF-8": (answer(200, b'{"data": [{"id": 1, "x": "\xff"}]}'), "HTTP_NO_JSON"),
    "a number": (answer(200, "7"), "HTTP_NO_JSON"),
    "no list": (answer(200, '{"error": "try later"}'), "MART_UNREADABLE"),
    "an object": (answer(200, '{"data": {"id": 1}}'), "MART_UNREADABLE"),
    "null": (answer(200, '{"data": null}'), "MART_UNREADABLE"),
    "a list of numbers": (answer(200, '{"data": [1], "total": 1, "has_more": false}'), "MART_UNREADABLE"),
    "no content": (answer(204), "HTTP_204"),
    "no right": (answer(403, '{"token": "x"}'), "HTTP_403"),
    "no path": (answer(404), "HTTP_404"),
    "a redirect": (answer(302, Location="http://127.0.0.1:1/"), "HTTP_302"),
    "a wrong token": (answer(401), "HTTP_401"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_wrong_answer_is_a_failure_and_no_short_mart(
    workspace: Workspace, shop: Shop, kind: str, fault: str
) -> None:
    wrong, code = FAULTS[fault]
    shop.misbehave(passed, wrong)
    found = failure(workspace, source(shop, kind))
    assert (found.code, found.exit_code) == (code, 1)
    assert len(shop.seen) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_pass_ends_with_the_last_attempt(workspace: Workspace, shop: Shop, kind: str) -> None:
    shop.misbehave(passed, *[answer(503)] * 4)
    assert failure(workspace, source(shop, kind)).code == "HTTP_503"
    assert len(shop.seen) == 5


def test_a_server_that_is_not_there_is_named(workspace: Workspace, shop: Shop) -> None:
    found = failure(workspace, source(shop, "all", connection={"base_url": "http://127.0.0.1:1"}))
    assert found.code == "HTTP_UNREACHED"


def test_an_api_that_caps_its_pages_loses_no_row(workspace: Workspace) -> None:
    with Shop([{"id": number} for number in range(10)], most=3) as shop:
        for kind in KINDS:
            assert ids(read(workspace, source(shop, kind))) == list(range(10))


@pytest.mark.parametrize(
    ("page", "requests"),
    [
        ("{number: page, size: 4, size_param: limit}", 4),  # the last page is empty
        ("{number: page, size: 4, size_param: limit, until: short}", 3),
        ("{number: page, size: 4, size_param: limit, total: total}", 3),
        ("{number: page, size: 4, size_param: limit, has_more: has_more}", 3),
        ("{number: page, size: 5, size_param: limit, until: short}", 3),
        ("{number: page, size: 5, size_param: limit, total: total}", 2),
        ("{number: page, size: 10, size_param: limit, total: total}", 1),
    ],
)
def test_the_last_page_is_known_by_what_the_api_says(
    workspace: Workspace, shop: Shop, page: str, requests: int
) -> None:
    found = source(shop, "number", page=yaml.safe_load(page))
    assert ids(read(workspace, found)) == list(range(10))
    assert len(shop.seen) == requests


def test_pages_may_count_from_zero(workspace: Workspace, shop: Shop) -> None:
    shop.misbehave(answer(200, '[{"id": 1}]'), answer(200, "[]"))
    assert ids(read(workspace, source(shop, "all", page={"number": "page", "first": 0}))) == [1]
    assert shop.asked == ["/v1/all?page=0", "/v1/all?page=1"]


@pytest.mark.parametrize(
    ("kind", "page", "items"),
    [
        ("number", {"number": "p"}, "data"),  # the API does not know `p`, so every page is the first
        ("offset", {"offset": "skip"}, "data"),
        ("cursor", {"cursor": "meta.next", "param": "after"}, "data"),
    ],
)
def test_a_page_that_comes_twice_is_a_failure_and_no_endless_mart(
    workspace: Workspace, shop: Shop, kind: str, page: dict[str, str], items: str
) -> None:
    shop.most = 4
    found = failure(workspace, source(shop, kind, page=page, items=items))
    assert (found.code, "twice" in found.message) == ("MART_UNREADABLE", True)
    assert len(shop.seen) == 2


def test_a_cursor_that_does_not_move_is_a_failure(workspace: Workspace, shop: Shop) -> None:
    def stuck(content: Any) -> Any:
        return {**content, "data": [], "meta": {"next": "4="}}

    shop.misbehave(changed(stuck), changed(stuck))
    found = failure(workspace, source(shop, "cursor"))
    assert "twice" in found.message


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost.example.com/v1/next",
        "//127.0.0.2/v1/next",
        "https://token@127.0.0.1/v1/next",
        "file:///etc/passwd",
        "http://127.0.0.1:1/v1/next",
        "/v1/next\r\nX: y",
        "http://[::1/",
    ],
)
def test_an_answer_never_chooses_the_server(workspace: Workspace, shop: Shop, url: str) -> None:
    shop.misbehave(changed(lambda content: {**content, "@odata.nextLink": url}))
    found = failure(workspace, source(shop, "next"))
    assert "another server" in found.message
    assert url not in str(found) + str(found.hint)
    assert len(shop.seen) == 1


def test_a_next_address_may_be_relative_or_name_the_other_scheme(workspace: Workspace, shop: Shop) -> None:
    url = f"https://127.0.0.1:{shop.port}/v1/next?offset=4&limit=4"
    shop.misbehave(changed(lambda content: {**content, "@odata.nextLink": url}))
    assert ids(read(workspace, source(shop, "next"))) == list(range(10))


@pytest.mark.parametrize(
    ("page", "fault", "says"),
    [
        ({"next": "next", "has_more": "has_more"}, {}, "but not where"),
        ({"has_more": "has_more"}, {}, "but not where"),
        ({"next": "data"}, {}, "no text"),
        ({"cursor": "data"}, {}, "no text or number"),
        ({"cursor": "meta.next", "has_more": "more"}, {}, "neither true nor false"),
        ({"cursor": "meta.next", "total": "count"}, {}, "no number of rows"),
        ({"cursor": "meta.next", "total": "total"}, {"total": -1}, "no number of rows"),
        ({"number": "page", "has_more": "has_more"}, {"data": [], "has_more": True}, "the page has none"),
    ],
)
def test_an_answer_that_contradicts_itself_is_a_failure(
    workspace: Workspace, shop: Shop, page: dict[str, str], fault: dict[str, Any], says: str
) -> None:
    shop.most = 4
    shop.misbehave(changed(lambda content: {**content, **fault}))
    found = failure(workspace, source(shop, "cursor", page=page))
    assert (found.code, says in found.message) == ("MART_UNREADABLE", True), found.message


def test_an_api_whose_total_moves_is_read_three_times_and_then_refused(
    workspace: Workspace, shop: Shop
) -> None:
    shop.moves = True
    assert failure(workspace, source(shop, "offset")).code == "SOURCE_MOVES"


@pytest.mark.parametrize("total", [9, 11])
def test_a_total_that_is_not_what_came_is_noticed_and_read_again(
    workspace: Workspace, shop: Shop, total: int
) -> None:
    page = {**yaml.safe_load(KINDS["cursor"]), "total": "total"}
    shop.misbehave(changed(lambda content: {**content, "total": total}))
    assert ids(read(workspace, source(shop, "cursor", page=page))) == list(range(10))
    assert len(shop.seen) == 6
    shop.misbehave(*[changed(lambda content: {**content, "total": total})] * 9)
    assert failure(workspace, source(shop, "cursor", page=page)).code == "SOURCE_MOVES"


def test_lists_in_lists_are_one_list(workspace: Workspace, shop: Shop) -> None:
    orders = [{"lines": [{"id": 1}, {"id": 2}]}, {"lines": []}, {"lines": [{"id": 3}]}]
    shop.misbehave(answer(200, json.dumps({"a": {"orders": orders}})))
    assert ids(read(workspace, source(shop, "all", items="a.orders[].lines"))) == [1, 2, 3]
    shop.misbehave(answer(200, json.dumps(orders)))
    assert ids(read(workspace, source(shop, "all", items="[].lines"))) == [1, 2, 3]
    shop.misbehave(answer(200, json.dumps([*orders, {}])))
    assert "no list" in failure(workspace, source(shop, "all", items="[].lines")).message


# requests


def test_a_compressed_answer_is_read_and_a_bomb_is_not(workspace: Workspace, shop: Shop) -> None:
    shop.misbehave(answer(200, gzip.compress(b'[{"id": 1}]'), Content_Encoding="gzip"))
    assert ids(read(workspace, source(shop, "all"))) == [1]
    bomb = answer(200, gzip.compress(b" " * 1_000_000 + b"[]"), Content_Encoding="gzip")
    shop.misbehave(*[bomb] * 4)
    assert failure(workspace, source(shop, "all", max_bytes=65536)).code == "HTTP_CUT_OFF"


def test_an_answer_is_not_larger_than_it_may_be(workspace: Workspace, shop: Shop) -> None:
    shop.rows = [{"id": 1, "x": "x" * 2000}]
    found = failure(workspace, source(shop, "all", max_bytes=1024))
    assert (found.code, found.hint) == ("HTTP_CUT_OFF", "ask for smaller pages, or raise `max_bytes`")


def test_a_long_pause_is_for_a_later_run(workspace: Workspace, shop: Shop) -> None:
    shop.misbehave(passed, throttled(3000))
    found = failure(workspace, source(shop, "cursor"))
    assert isinstance(found, Later)
    assert len(shop.seen) == 2


def test_all_pages_have_one_deadline(workspace: Workspace, shop: Shop) -> None:
    found = failure(workspace, source(shop, "cursor", timeout=0))
    assert "was not read to its end within 0 s" in found.message
    assert shop.seen == []


def test_a_stop_ends_an_answer_that_does_not_end(workspace: Workspace, shop: Shop) -> None:
    import threading

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    shop.misbehave(passed, dripping(head, 20))

    def stop() -> None:
        while len(shop.seen) < 2:
            workspace.stop.event.wait(0.01)
        workspace.stop.request(15)

    other = threading.Thread(target=stop)
    other.start()
    with pytest.raises(Stopped):
        read(workspace, source(shop, "cursor"))
    other.join()


def test_an_expired_token_is_renewed_once(workspace: Workspace, shop: Shop) -> None:
    class Tokens(Shop):
        given = 0

        def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
            if path != "/token":
                return super().serve(method, path, headers, body)
            self.given += 1
            return 200, {"access_token": TOKEN, "expires_in": 3600}

    with Tokens([{"id": number} for number in range(10)]) as api:
        auth = {
            "type": "oauth2",
            "token_url": f"{api.url}/token",
            "client_id": "us",
            "client_secret": "x",
        }
        api.misbehave(passed, passed, answer(401))
        assert ids(read(workspace, source(api, "cursor", connection={"auth": auth}))) == list(range(10))
        assert api.given == 2
        api.misbehave(passed, passed, answer(401), passed, answer(401))
        assert failure(workspace, source(api, "cursor", connection={"auth": auth})).code == "HTTP_401"


def test_parameters_headers_and_variables_are_sent_as_they_are(workspace: Workspace, shop: Shop) -> None:
    found = source(
        shop,
        "all",
        params={"q": "a b&c=d/é", "n": 5, "on": True, "s": ["x", "y"], "day": "$day", "price": "$$5"},
        headers={"X-Version": "2026-11"},
        connection={"headers": {"X-Team": "ours"}},
        variables={"day": "2026-11-28"},
    )
    read(workspace, found)
    ((_, path, headers, _),) = shop.seen
    assert path == "/v1/all?q=a%20b%26c%3Dd%2F%C3%A9&n=5&on=true&s=x&s=y&day=2026-11-28&price=%245"
    assert (headers["x-version"], headers["x-team"]) == ("2026-11", "ours")


def test_a_key_in_the_query_is_sent_once_also_if_the_next_address_repeats_it(
    workspace: Workspace, shop: Shop
) -> None:
    auth = {"type": "query", "name": "key", "value": TOKEN}
    url = f"/v1/next?key={TOKEN}&offset=4&limit=4"
    shop.misbehave(changed(lambda content: {**content, "@odata.nextLink": url}))
    assert ids(read(workspace, source(shop, "next", connection={"auth": auth}))) == list(range(10))
    assert all(path.count(TOKEN) == 1 for path in shop.asked)


@pytest.mark.parametrize(
    ("mark", "times", "sent"),
    [
        (Since("at", "TIMESTAMP WITH TIME ZONE", "2026-11-28 10:00:00+00"), "iso", "2026-11-28T10:00:00Z"),
        (Since("at", "TIMESTAMP", "2026-11-28 10:00:00.5"), "iso", "2026-11-28T10:00:00.500000"),
        (Since("at", "TIMESTAMP WITH TIME ZONE", "2026-11-28 10:00:00.9999+00"), "epoch_s", "1795860000"),
        (Since("at", "TIMESTAMP", "2026-11-28 10:00:00.9999"), "epoch_ms", "1795860000999"),
        (Since("at", "DATE", "2026-11-28"), "iso", "2026-11-28"),
        (Since("at", "BIGINT", "17"), "epoch_s", "17"),
        (None, "iso", "2020-01-01"),
    ],
)
def test_a_mark_is_sent_as_the_api_writes_times(
    workspace: Workspace, shop: Shop, mark: Since | None, times: str, sent: str
) -> None:
    shop.rows = []
    params, more = {"updated": "$watermark"}, {"initial": "2020-01-01", "times": times}
    read(workspace, source(shop, "all", params=params, watermark="at", **more), mark)
    assert shop.asked == [f"/v1/all?updated={sent.replace(':', '%3A')}"]


def test_without_a_mark_or_a_first_one_the_parameter_is_left_out(workspace: Workspace, shop: Shop) -> None:
    read(workspace, source(shop, "all", params={"since": "$watermark"}, watermark="at"))
    assert shop.asked == ["/v1/all"]


def test_check_asks_once(shop: Shop) -> None:
    source(shop, "cursor").check(Stop())
    assert len(shop.seen) == 1
    shop.misbehave(answer(403))
    with pytest.raises(SourceError, match="403 Forbidden"):
        source(shop, "cursor").check(Stop())


def test_the_file_of_the_rows_is_private_and_goes_away(workspace: Workspace, shop: Shop) -> None:
    with source(shop, "all").open(workspace) as snapshot:
        snapshot.rows(["id"])
        (file,) = workspace.directory.glob("*.jsonl")
        assert file.stat().st_mode & 0o777 == 0o600
    assert not file.exists()


def test_the_version_is_a_digest_of_the_rows(workspace: Workspace, shop: Shop) -> None:
    def version() -> str:
        with source(shop, "number").open(workspace) as snapshot:
            snapshot.rows(["id"])
            return snapshot.description.version

    first = version()
    assert first.startswith("10 rows ")
    assert version() == first
    shop.rows[3] = {"id": 33}
    assert version() != first


# definitions


@pytest.mark.parametrize(
    "wrong",
    [
        {"page": {"number": "page", "cursor": "next"}},
        {"page": {"cursor": "next", "first": 0}},
        {"page": {"number": "page", "param": "x"}},
        {"page": {"cursor": "next", "until": "short", "size": 4}},
        {"page": {"number": "page", "until": "short"}},
        {"page": {"number": "page", "size": 4}},
        {"page": {"number": "page", "size_param": "limit"}},
        {"page": {"number": "page", "size": 4, "until": "short", "total": "total"}},
        {"initial": "2020-01-01"},
        {"params": {"since": ["$watermark"]}},
        {"path": "v1"},
        {"path": "/v1/../secret"},
        {"path": "/v1?x=1"},
        {"path": "//elsewhere.example.com/v1 "},
        {"headers": {"X": "a\r\nb"}},
        {"unknown": 1},
    ],
)
def test_an_option_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RestOptions.model_validate({"path": "/v1", **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "http://api.example.com"},
        {"auth": {"type": "url", "url": "https://api.example.com/secret"}},
        {"auth": {"type": "body", "name": "k", "value": "v"}},
        {"limits": {"per": 5}},
    ],
)
def test_a_connection_that_cannot_read_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RestConnection.model_validate({"base_url": "https://api.example.com", **wrong})


def test_json_needs_a_contract(shop: Shop) -> None:
    with pytest.raises(DefinitionError, match="needs a contract"):
        Rest(RestConnection(base_url=shop.url), RestOptions(path="/v1"), Invocation(Path(), {}))


def test_what_a_definition_leaves_open_is_named(shop: Shop, workspace: Workspace) -> None:
    with pytest.raises(DefinitionError, match=r"\$week, but there is no such variable"):
        source(shop, "all", params={"from": "$week"}).open(workspace)
    with pytest.raises(DefinitionError, match=r"\$watermark needs"):
        source(shop, "all", params={"from": "$watermark"})
    with pytest.raises(DefinitionError, match="not in the contract"):
        source(shop, "all", optional=["phone"]).open(workspace)


# values

EXACT: list[tuple[str, str, str]] = [
    ("integer", "9223372036854775807", "9223372036854775807"),
    ("integer", '"9223372036854775807"', "9223372036854775807"),
    ("integer", "1e2", "100"),
    ("integer", "-0", "0"),
    ("decimal", "12345678901234567.89", "12345678901234567.89"),
    ("decimal", '"0.10"', "0.1"),
    ("decimal", "1e-2", "0.01"),
    ("float", "0.1", "0.1"),
    ("float", "-1.7976931348623157e308", "-1.7976931348623157e+308"),
    ("string", '"a\\u00e9\\ud83d\\ude00\\n"', "aé😀\n"),
    ("string", '""', ""),
    ("boolean", "true", "true"),
    ("date", '"0001-01-01"', "0001-01-01"),
    ("timestamp", '"9999-12-31T23:59:59.999999"', "9999-12-31 23:59:59.999999"),
    ("timestamptz", '"2026-11-28T10:00:00+05:30"', "2026-11-28 04:30:00+00"),
    ("timestamptz", '"2026-11-28T10:00:00.120000000Z"', "2026-11-28 10:00:00.12+00"),
    ("json", '{"a": 1.10, "b": [12345678901234567.89]}', '{"a": 1.10, "b": [12345678901234567.89]}'),
    ("uuid", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
]
TYPES = {"decimal": {"type": "decimal", "max_digits": 20, "decimal_places": 2}}


@pytest.mark.parametrize(("kind", "text", "value"), EXACT)
def test_a_value_that_fits_is_exact(
    workspace: Workspace, shop: Shop, kind: str, text: str, value: str
) -> None:
    shop.misbehave(answer(200, f'[{{"id": {text}}}, {{"id": null}}, {{}}]'))
    found = source(shop, "all", {"id": TYPES.get(kind, {"type": kind})})
    with found.open(workspace) as snapshot:
        query = snapshot.rows(["id"])
        rows = workspace.run(f"SELECT id::VARCHAR FROM ({query.sql})")
    assert [row[0].rstrip("0") if kind == "decimal" and row[0] else row[0] for row in rows] == [
        value,
        None,
        None,
    ]


@st.composite
def numbers(draw: st.DrawFn) -> bytes:
    """JSON numbers as APIs write them, some of them as texts, some of them no numbers."""
    whole = draw(st.one_of(st.just("0"), st.from_regex(r"[1-9][0-9]{0,24}", fullmatch=True)))
    fraction = draw(st.one_of(st.just(""), st.from_regex(r"\.[0-9]{1,22}", fullmatch=True)))
    exponent = draw(st.sampled_from(["", "", "", "e2", "E-3", "e+0", "e19"]))
    text = (
        draw(st.sampled_from(["", "-"]))
        + draw(st.sampled_from(["", "", "", "0"]))
        + whole
        + fraction
        + exponent
    )
    quote = draw(st.sampled_from(["", "", '"']))
    return f"{quote}{text}{quote}".encode()


@given(numbers(), st.integers(1, 38), st.integers(0, 38))
def test_any_number_is_read_exactly_or_not_at_all(raw: bytes, digits: int, places: int) -> None:
    kinds = [Type("integer"), Type("decimal", max_digits=digits, decimal_places=min(places, digits))]
    for kind in kinds:
        try:
            found: Any = reader(kind).read(raw)
        except Misfit:
            found = None
        text = raw.decode().strip('"')
        value = Decimal(text) if not re.match("-?0[0-9]", text) else None
        if value is not None and kind.name == "integer":
            fits = value == value.to_integral_value() and -(2**63) <= value < 2**63
        elif value is not None:
            scaled = value.scaleb(min(places, digits), Context(prec=99))
            fits = scaled == scaled.to_integral_value(context=Context(prec=99)) and abs(scaled) < 10**digits
        assert (found is not None) == (value is not None and fits), (raw, kind)
        assert found is None or Decimal(found) == value


# The type of a column, a value, and what DuckDB's own reader of JSON makes of it; the source reads it as it is
# or rejects its row.
BENT: list[tuple[str, str, str]] = [
    ("BIGINT", "1.5", "2"),
    ("BIGINT", "true", "1"),
    ("DECIMAL(38,2)", "12345678901234567.89", "12345678901234567.68"),
    ("DECIMAL(12,2)", "0.125", "0.13"),
    ("DOUBLE", "1e400", "inf"),
    ("VARCHAR", "1.10", "1.1"),
    ("VARCHAR", "12345678901234567.89", "1.2345678901234568e+16"),
    ("BOOLEAN", '"true"', "true"),
    ("DATE", '"2026-1-2"', "2026-01-02"),
    ("TIMESTAMP WITH TIME ZONE", '"2026-11-28 10:00:00"', "2026-11-28 10:00:00+00"),
    ("VARCHAR[]", "[1, true]", "[1, true]"),
    ("JSON", '{"a": 12345678901234567.89}', '{"a":12345678901234568.0}'),
]


@pytest.mark.parametrize(("kind", "value", "bent"), BENT)
def test_duckdb_s_own_reader_would_bend_values(tmp_path: Path, kind: str, value: str, bent: str) -> None:
    """Why pages are not handed to it: docs/decisions/0060-json-of-apis.md. A DuckDB that no longer does this fails
    here."""
    (tmp_path / "page").write_text(f'{{"id": {value}}}\n')
    read = f"read_json('{tmp_path}/page', format = 'newline_delimited', columns = {{id: '{kind}'}})"
    with duckdb.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        assert connection.execute(f"SELECT id::VARCHAR FROM {read}").fetchall() == [(bent,)]


def test_a_column_that_no_row_has_is_drift_unless_the_api_leaves_out_what_is_empty(
    workspace: Workspace, shop: Shop
) -> None:
    contract = {**ID, "phone": {"type": "string"}}
    found = failure(workspace, source(shop, "all", contract))
    assert isinstance(found, Mismatch)
    assert (found.code, "optional: [phone]" in str(found.hint)) == ("SOURCE_DRIFT", True)
    assert len(read(workspace, source(shop, "all", contract, optional=["phone"]))) == 10
    shop.rows = []
    assert read(workspace, source(shop, "all", contract)) == []


def test_a_row_as_large_as_an_answer_is_read(workspace: Workspace, shop: Shop) -> None:
    text = "x" * 17_000_000
    shop.misbehave(answer(200, json.dumps([{"id": text}])))
    found = source(shop, "all", {"id": {"type": "string"}}, max_bytes=20_000_000)
    assert read(workspace, found) == [(text,)]


# runs

CONTRACT = """
  id: {type: integer}
  price: {type: decimal, max_digits: 12, decimal_places: 2}
  tags: {type: list, items: string, nullable: true}
  active: {type: boolean, nullable: true}
  at: {type: timestamptz, nullable: true}
  more: {type: json, nullable: true}
"""
PROJECT = """
vars: {from: "2026-01-01"}
sources:
  shop: {type: rest, base_url: "${SHOP}", auth: {type: bearer, token: "${TOKEN}"}, retry: {attempts: 2},
         limits: {requests: 1000, per: 1s, concurrency: 2}}
"""
INTO = "{type: postgres, table: crm.items, create: true}"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database, shop: Shop) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.environment |= {"SHOP": shop.url, "TOKEN": TOKEN}
    made.write("retl.yml", PROJECT)
    return made


def define(workshop: Workshop, source: str, **parts: str) -> None:
    given = {"key": "[id]", "contract": CONTRACT, "destination": INTO, **parts}
    workshop.sync("items", source=source, **given)


def rows_of(postgres: Database) -> list[tuple[Any, ...]]:
    with postgres.connect() as connection:
        return connection.execute("SELECT * FROM crm.items ORDER BY id").fetchall()


CURSOR = "{from: shop, path: /v1/cursor, items: data, page: {cursor: meta.next}, params: {limit: 2}}"


def test_rows_of_an_api_reach_postgres_with_every_digit(
    workshop: Workshop, shop: Shop, postgres: Database
) -> None:
    shop.rows = [
        {"id": 2**62, "price": 1234567890.12, "tags": ["a", None], "active": True, "at": None, "more": None},
        {"id": "7", "price": "0.10", "at": "2026-11-28T10:00:00Z", "more": {"x": 1.5}},
        {"id": 3, "price": 5, "tags": [], "active": False},
    ]
    define(workshop, CURSOR)
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 3)
    with postgres.connect() as connection:
        found = connection.execute(
            "SELECT id::text, price::text, tags::text, active, at::text, more::text FROM crm.items i ORDER BY i.id"
        ).fetchall()
    assert found == [
        ("3", "5.00", "{}", False, None, None),
        ("7", "0.10", None, None, "2026-11-28 10:00:00+00", '{"x": 1.5}'),
        (str(2**62), "1234567890.12", "{a,NULL}", True, None, None),
    ]
    assert workshop.json("show")["source_version"].startswith("3 rows ")
    (run,) = workshop.json("sync")["syncs"]
    assert (run["unchanged"], run["updated"]) == (3, 0)


def test_a_variable_may_be_given_with_the_run_alone(workshop: Workshop, shop: Shop) -> None:
    shop.rows = [{"id": 3, "price": 5, "tags": [], "active": False, "at": None, "more": None}]
    define(workshop, CURSOR.replace("limit: 2", "limit: 2, from: $week"))
    for command in ("validate", "sync"):
        said = workshop.retl(command)
        assert (said.code, "VAR_MISSING" in said.err) == (2, True), said.err
        assert workshop.retl(command, "--var", "week=2026-11-23").code == 0
    assert workshop.retl("status").code == 0


def test_a_value_of_another_type_is_a_reject_of_its_row(
    workshop: Workshop, shop: Shop, postgres: Database
) -> None:
    full = {"tags": [], "active": True, "at": "2026-11-28T10:00:00Z", "more": {}}
    shop.rows = [{"id": n, "price": 1, **full} for n in range(400)]
    wrong: list[tuple[str, Any]] = [
        *(("id", value) for value in ("x", 1.5, 2**63, "007")),
        *(("price", value) for value in (1.005, "cheap", 10**10, True)),
        *(("tags", value) for value in ("a", [1])),
        *(("at", value) for value in ("yesterday", 1700000000, "2026-11-28T10:00:00")),
        ("active", "yes"),
        ("more", "a\0b"),
    ]
    for row, (column, value) in zip(shop.rows, wrong, strict=False):
        row[column] = value
    define(workshop, CURSOR.replace("limit: 2", "limit: 100"))
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS_WITH_REJECTS", 400 - len(wrong))
    assert {one["code"] for one in run["rejects"]} == {"UNREPRESENTABLE", "KEY_TYPE"}
    assert [row[0] for row in rows_of(postgres)] == list(range(len(wrong), 400))


def test_check_reaches_the_source_and_validate_does_not(workshop: Workshop, shop: Shop) -> None:
    define(workshop, CURSOR)
    assert workshop.retl("validate").code == 0
    assert shop.seen == []
    assert workshop.retl("check").code == 0
    assert len(shop.seen) == 1
    shop.misbehave(answer(403))
    said = workshop.retl("check", "--output", "json")
    assert said.document["destinations"][0]["error"]["code"] == "HTTP_403"


def test_a_sync_without_a_contract_is_refused_with_its_line(workshop: Workshop) -> None:
    define(workshop, CURSOR)
    text = (workshop.folder / "syncs/items.yml").read_text()
    workshop.write("syncs/items.yml", text.replace(f"contract: {CONTRACT}\n", ""))
    said = workshop.retl("validate")
    assert said.code == 2
    assert "items.yml:1" in said.err
    assert "needs a contract" in said.err


def test_a_contract_that_is_a_model_gives_the_types(
    workshop: Workshop, shop: Shop, postgres: Database
) -> None:
    workshop.write(
        "ours.py",
        "from decimal import Decimal\nfrom typing import Annotated\nfrom pydantic import BaseModel, Field\n"
        "class Item(BaseModel):\n    id: int\n"
        "    price: Annotated[Decimal, Field(max_digits=12, decimal_places=2)]\n    name: str | None\n",
    )
    shop.misbehave(answer(200, '{"data": [{"id": 1, "price": 1234567890.10, "name": "é"}]}'))
    define(workshop, CURSOR, contract="ours:Item")
    assert workshop.json("sync")["syncs"][0]["inserted"] == 1
    assert [str(value) for value in rows_of(postgres)[0]] == ["1", "1234567890.10", "é"]


def test_syncs_of_one_source_share_its_limits(workshop: Workshop, shop: Shop) -> None:
    workshop.write("retl.yml", PROJECT.replace("requests: 1000, per: 1s", "per_day: 3"))
    define(workshop, CURSOR)
    shop.rows = [
        {"id": n, "price": 1, "tags": [], "active": True, "at": None, "more": None} for n in range(4)
    ]
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], len(shop.seen)) == ("SUCCESS", 2)
    said = workshop.retl("sync", "--output", "json")
    assert said.document["syncs"][0]["error"]["code"] == "BUDGET_SPENT"
    assert (said.code, len(shop.seen)) == (75, 3)


FULL = {"tags": [], "active": True, "more": {}, "price": 1}


def test_a_run_asks_for_what_is_newer_than_its_mark(
    workshop: Workshop, shop: Shop, postgres: Database
) -> None:
    shop.rows = [{"id": n, "at": f"2026-11-0{n}T00:00:00Z", **FULL} for n in range(1, 6)]
    since = CURSOR.replace("limit: 2", "limit: 9, since: $watermark").replace(
        "items", "initial: '2026-11-02', items"
    )
    define(workshop, since, changes="{watermark: at, lookback: 12h}")
    assert workshop.json("sync")["syncs"][0]["inserted"] == 4
    shop.rows += [{"id": 7, "at": "2026-11-07T00:00:00Z", **FULL}]
    (run,) = workshop.json("sync")["syncs"]
    assert (run["read"], run["inserted"], run["unchanged"]) == (2, 1, 1)
    assert [path.rpartition("=")[2] for path in shop.asked] == ["2026-11-02", "2026-11-04T12%3A00%3A00Z"]


def test_a_row_that_is_gone_is_deleted_only_where_the_user_says_that_the_api_is_complete(
    workshop: Workshop, shop: Shop, postgres: Database
) -> None:
    shop.rows = [{"id": n, "at": None, **FULL} for n in range(30)]
    define(workshop, CURSOR, deletes="delete")
    assert "SOURCE_INCOMPLETE" in workshop.retl("validate").err
    define(workshop, CURSOR.replace("items", "complete: true, items"), deletes="delete")
    assert workshop.json("sync")["syncs"][0]["inserted"] == 30
    del shop.rows[:2]
    assert workshop.json("sync")["syncs"][0]["deleted"] == 2
    shop.misbehave(passed, answer(500), answer(500))
    said = workshop.retl("sync", "--output", "json")
    assert (said.code, said.document["syncs"][0]["deleted"]) == (1, 0)
    assert [row[0] for row in rows_of(postgres)] == list(range(2, 30))


# inputs

ITEMS = "{id: {type: integer}, price: {type: decimal, max_digits: 12, decimal_places: 2}, more: {type: json}}"
INPUTS = f"""
  inputs:
    i: {{from: shop, path: /v1/cursor, items: data, page: {{cursor: meta.next}}, columns: {ITEMS}}}
    u: {{table: users}}
  sql: "SELECT i.id, i.price, i.more ->> '$.color' AS color FROM i JOIN u ON u.user_id = i.id"
"""


def test_an_api_can_be_one_of_several_inputs(workshop: Workshop, shop: Shop, postgres: Database) -> None:
    shop.misbehave(answer(200, '{"data": [{"id": 1, "price": 1234567890.10, "more": {"color": "red"}}]}'))
    define(
        workshop,
        INPUTS,
        contract="{id: {type: integer}, color: {type: string}, price: {type: decimal, max_digits: 12, decimal_places: 2}}",
    )
    assert workshop.json("sync")["syncs"][0]["inserted"] == 1
    with postgres.connect() as connection:
        assert connection.execute("SELECT id, color, price::text FROM crm.items").fetchall() == [
            (1, "red", "1234567890.10")
        ]


def test_a_value_of_another_type_in_an_input_stops_the_run_and_is_no_null(
    workshop: Workshop, shop: Shop
) -> None:
    rows = [{"id": 1, "price": "a secret", "more": {}}, {"id": 2, "price": "a secret", "more": {}}]
    shop.misbehave(answer(200, json.dumps({"data": rows})))
    define(
        workshop,
        INPUTS,
        contract="{id: {type: integer}, price: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
    )
    said = workshop.retl("sync", "--output", "json")
    (run,) = said.document["syncs"]
    assert (run["status"], run["error"]["code"]) == ("FAILED", "MART_UNREADABLE")
    assert "2 rows of the input i have a value of price that its type cannot hold" in run["error"]["message"]
    assert "a secret" not in said.out + said.err


def test_an_input_without_snapshots_makes_deletes_ask_for_complete(workshop: Workshop) -> None:
    define(workshop, INPUTS, contract="{id: {type: integer}}", deletes="delete")
    assert "SOURCE_INCOMPLETE" in workshop.retl("validate").err


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (ITEMS, "has no effect"),  # the sync has a contract
        ("{id: {type: integer, ge: 0}}", "only a type"),
        ("{id: {type: decimal}}", "max_digits"),
    ],
)
def test_columns_are_only_types_and_only_without_a_contract(
    workshop: Workshop, columns: str, says: str
) -> None:
    define(workshop, CURSOR.replace("items", f"columns: {columns}, items"))
    said = workshop.retl("validate")
    assert (said.code, says in said.err) == (2, True), said.err


# secrets


def test_neither_tokens_nor_cursors_nor_queries_are_ever_said(
    tmp_path: Path, postgres: Database, shop: Shop
) -> None:
    watch = Watch(Workshop(tmp_path / "project"), tmp_path / "temporary")
    workshop = watch.workshop
    workshop.use(postgres=postgres)
    secret = SECRET.replace("\\", "")
    workshop.environment |= {"SHOP": shop.url, "T": secret, "RETL_LOG_LEVEL": "debug"}
    body = json.dumps({"data": [{"id": secret}], "meta": {"next": secret}, "message": secret})
    faults = [
        [answer(200, body)] * 2,
        [answer(200, body), reset(applied=False)],
        [answer(401, body)],
        [answer(500, body)],
        [answer(200, body.replace('"data"', '"rows"'))],
        [answer(302, Location=f"http://127.0.0.1/{quote(secret)}")],
    ]
    auths = ('{type: query, name: key, value: "${T}"}', '{type: header, name: X-Key, value: "${T}"}')
    for fault, auth in zip(faults, auths * 3, strict=True):
        more = "retry: {attempts: 1}"
        workshop.write(
            "retl.yml", f'sources:\n  shop: {{type: rest, base_url: "${{SHOP}}", auth: {auth}, {more}}}\n'
        )
        define(workshop, CURSOR.replace("limit: 2", 'limit: 2, q: "${T}"'))
        shop.faults.clear()
        shop.misbehave(*fault)
        said = workshop.retl("sync")
        assert said.code == 1
        watch.heard.append(("sync", said.out + said.err))
    for words in (("check",), ("show", "--output", "json"), ("runs",)):
        said = workshop.retl(*words)
        watch.heard.append((words[0], said.out + said.err))
    shop.misbehave(*faults[0])
    assert watch.retl("sync").code == 1
    assert watch.leaks(secret) == []
