"""A row's value stays in its place, whatever it holds: another parser of the language finds it whole."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from email import message_from_bytes
from email.parser import HeaderParser
from io import StringIO
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from retl.destinations.batch import Field, Shape
from retl.destinations.http import odata as dataverse
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.options import HttpOptions
from retl.destinations.salesforce_bulk import soql
from retl.errors import DefinitionError, Poisoned
from retl.net.messages import Request
from retl.values.types import Type

NASTY = [
    *("O'Neil", "''", "'", "1',Client='200", "x' or 1 eq 1 or 'a' eq '", "a\\", "\\'", "') OR (Id != '"),
    *("a,b", ")", "1,Client=200", "Name", "null", "datetime'2026-01-01'", "a\r\nHost: evil", "\n", "\r"),
    *('"', '","role":"admin', '\\"', "{", "}", "{id}", "{$key}", "$key", "$$", "a&b=c", "a=b", "a;b", "a#b"),
    *("../..", "%2e%2e", "%27", "%", "+", " ", " a", "é", "\u2028", "\u0085", "\0", "a]b[c", "1e5", "-1"),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(NASTY)


def made(value: Any, name: str = "n", keys: tuple[str, ...] = ("id",), **endpoint: Any) -> Request:
    template = Template(Endpoint(**{"path": "/rows", **endpoint}), keys, ["name"])
    return template.request([(*(value for _ in keys), json.dumps({"name": name}))])


def attempt(make: Callable[[], Request]) -> Request | str:
    """The request, or the code of the row's refusal."""
    try:
        return make()
    except Poisoned as error:
        return error.code


def odata_literals(text: str) -> list[str]:
    """The text literals of an OData expression, as a server reads it; `?` stands where each was."""
    found = re.findall(r"'((?:[^']|'')*)'", text)
    return [re.sub(r"'(?:[^']|'')*'", "?", text), *(one.replace("''", "'") for one in found)]


def soql_literals(text: str) -> list[str]:
    """The same for SOQL."""
    letters = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}

    def plain(one: str) -> str:
        return re.sub(r"\\(.)", lambda m: letters.get(m[1], m[1]), one, flags=re.DOTALL)

    pattern = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
    return [pattern.sub("?", text), *map(plain, pattern.findall(text))]


PLACES: list[tuple[str, Callable[[str], list[str]], str]] = [
    ("/Customers('{id}')", odata_literals, "/rows/Customers(?)"),
    ("/Customers(Company='{id}',CustNum=7)", odata_literals, "/rows/Customers(Company=?,CustNum=7)"),
    ("/Customers(A='a/b',B=%27{$key}%27)/Name", odata_literals, "/rows/Customers(A=?,B=?)/Name"),
    ("/Customers?$$filter=Name eq '{id}'", odata_literals, "/rows/Customers?$filter=Name eq ?"),
    ("/q?q=SELECT Id FROM C WHERE N = '{id:soql}'", soql_literals, "/rows/q?q=SELECT Id FROM C WHERE N = ?"),
]


@given(TEXTS)
@pytest.mark.parametrize(("path", "parser", "around"), PLACES)
def test_a_value_stays_between_its_quotes(path: str, parser: Any, around: str, value: str) -> None:
    target = made(value, method="PATCH", path="/rows" + path.replace(" ", "%20"), row="$fields").target
    assert target.isascii()
    assert target.count("?") == path.count("?")
    read = parser(unquote(target))
    assert read[0] == around
    assert read[-1] == value


@given(TEXTS)
def test_a_text_between_double_quotes_of_a_query_is_read_back(value: str) -> None:
    target = made(value, path="/rows?filter=equals(email,%22{id:json}%22)&x=1", row="$fields").target
    (asked,) = parse_qs(target.partition("?")[2])["filter"]
    head, tail = "equals(email,", ")"
    assert asked.startswith(head)
    assert asked.endswith(tail)
    assert json.loads(asked[len(head) : -len(tail)]) == value


@given(TEXTS)
def test_a_value_of_a_query_is_one_parameter(value: str) -> None:
    target = made(value, path="/rows?a={id}&b={$name}", row="$fields").target
    assert parse_qsl(target.partition("?")[2], keep_blank_values=True) == [("a", value), ("b", "n")]


@given(TEXTS | st.integers().map(str) | st.uuids().map(str))
@example("true")
@example("2026-11-21T06:00:00Z")
def test_without_quotes_only_a_literal_is_a_key(value: str) -> None:
    request = attempt(lambda: made(value, path="/C(Company='x',Num={id})", row="$fields"))
    if isinstance(request, str):
        assert request == "NO_LITERAL"
        assert not re.fullmatch(r"-?\d+", value, re.ASCII)
        return
    inner = unquote(request.target).removeprefix("/C(Company='x',Num=").removesuffix(")")
    assert inner == value
    assert not set(inner) & set("'\",()/ ")
    assert not re.fullmatch(r"(?!true|false)[A-Za-z_]\w*", inner)


@given(TEXTS)
def test_dataverse_and_salesforce_escape_by_the_same_functions(value: str) -> None:
    assert odata_literals(unquote(dataverse.address("a", {"k": value}, {"k": True}))) == ["a(k=?)", value]
    (query,) = soql.lookups("C", "N", [value], numbers=False)
    assert soql_literals(unquote(query)) == ["SELECT Id, N FROM C WHERE N IN (?)", value]


@given(TEXTS)
def test_a_value_of_a_header_is_read_back_or_refused(value: str) -> None:
    headers = {"X-Id": "$id", "If-Match": 'W/"{$id}"', "Fixed": "a$$b"}
    request = attempt(lambda: made(value, row="$fields", headers=headers))
    if isinstance(request, str):
        assert request == "NO_HEADER"
        plain = value.isascii() and value.isprintable() and value == value.strip()
        assert not plain or set(value) & set('"\\')
        return
    text = "".join(f"{name}: {one}\r\n" for name, one in request.headers)
    read = HeaderParser().parsestr(text + "\r\n")
    assert (read["X-Id"], read["If-Match"], read["Fixed"]) == (value, f'W/"{value}"', "a$b")
    assert len(read.items()) == 4
    assert Request.load(request.dump()) == request


@given(TEXTS)
def test_a_value_inside_a_text_is_the_value_and_no_more(value: str) -> None:
    row = {"urn": "urn:li:{$id}:{$field.name}", "soql": "N = '{$id:soql}'", "cost": "$$5 and 1$ {x} {{name}}"}
    body = json.loads(made(value, row=row).body)
    assert body["urn"] == f"urn:li:{value}:n"
    assert soql_literals(body["soql"]) == ["N = ?", value]
    assert body["cost"] == "$5 and 1$ {x} {{name}}"


@given(TEXTS)
def test_a_json_text_holds_the_whole_part(value: str) -> None:
    row = {"Message": {"$json": {"id": "$key", "all": "$row"}}, "twice": {"$json": {"$json": "$key"}}}
    for encoding in ("json", "form"):
        body = made(value, row=row, encoding=encoding).body.decode()
        sent = dict(parse_qsl(body)) if encoding == "form" else json.loads(body)
        assert json.loads(sent["Message"]) == {"id": value, "all": {"id": value, "name": "n"}}
        assert json.loads(json.loads(sent["twice"])) == value


@given(st.dictionaries(TEXTS, TEXTS, max_size=3), TEXTS)
def test_a_form_is_read_back_or_refused(tree: dict[str, str], value: str) -> None:
    template = Template(
        Endpoint(path="/rows", encoding="form", row={"a": "$key", "t": "$data"}), ["id"], ["data"]
    )
    request = attempt(lambda: template.request([(value, json.dumps({"data": tree}))]))
    if isinstance(request, str):
        assert request == "FORM_NAME"
        assert any({"[", "]"} & set(name) for name in tree)
        return
    read = parse_qsl(request.body.decode(), keep_blank_values=True)
    assert read == [("a", value), *((f"t[{name}]", one) for name, one in tree.items())]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_rows_of_csv_and_of_lines_are_read_back(rows: list[tuple[str, str]]) -> None:
    pretty = [(key, json.dumps({"name": {"a": name}}, indent=1)) for key, name in rows]
    for encoding in ("csv", "ndjson"):
        template = Template(
            Endpoint(path="/r", encoding=encoding, row={"i": "$key", "d": "$name"}), ["id"], ["name"]
        )
        body = template.request(pretty).body.decode()
        if encoding == "csv":
            _, *read = csv.reader(StringIO(body, newline=""))
            assert [(key, json.loads(one)) for key, one in read] == [(key, {"a": one}) for key, one in rows]
        else:
            lines = [json.loads(line) for line in body.removesuffix("\n").split("\n")]
            assert lines == [{"i": key, "d": {"a": name}} for key, name in rows]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), TEXTS)
def test_rows_in_a_form_stay_in_their_file(rows: list[tuple[str, str]], constant: str) -> None:
    given = {"format": "csv", 'a"\r\nb: c': constant.replace("$", "$$").replace("{", "(")}
    template = Template(
        Endpoint(path="/r", encoding="multipart", wrap='fi"le', envelope=given), ["id"], ["name"]
    )
    sent = [(key, json.dumps({"name": name})) for key, name in rows]
    request = template.request(sent)
    assert template.request(sent) == request
    head = dict(request.headers)["Content-Type"].encode()
    boundary = head.partition(b"boundary=")[2]
    read = message_from_bytes(b"Content-Type: " + head + b"\r\n\r\n" + request.body)
    assert not read.defects
    parts: Any = read.get_payload()
    assert request.body.count(boundary) == len(parts) + 1 == len(given) + 2
    names = [unquote(part.get_param("name", header="content-disposition")) for part in parts]
    assert names == [*given, 'fi"le']
    contents = [part.get_payload(decode=True).decode() for part in parts]
    assert contents[:-1] == [value.replace("$$", "$") for value in given.values()]
    assert list(csv.reader(StringIO(contents[-1], newline=""))) == [["id", "name"], *map(list, rows)]
    assert template.texts(request)(0) >= set(rows[0]) - {"csv", constant}


@pytest.mark.parametrize("data", ['"x"', '["type"]', "1", "null", '{"type":"admin"}'])
def test_a_value_joined_to_an_object_replaces_no_constant(data: str) -> None:
    template = Template(Endpoint(path="/r", row={"$merge": [{"type": "user"}, "$data"]}), ["id"], ["data"])
    with pytest.raises(Poisoned):
        template.request([(1, f'{{"data":{data}}}')])


@pytest.mark.parametrize(
    "endpoint",
    [
        {"row": {"to": "dear {name}"}},
        {"row": {"to": "dear $name"}},
        {"row": {"to": "id-$key"}},
        {"row": {"to": "a {$nobody}"}},
        {"row": {"x.{$key}": 1}},
        {"row": {"$json": "$row", "more": 1}},
        {"row": {"$path": 5}},
        {"row": {"query": "mutation { x(id: {$key}) }"}},
        {"row": "$key", "wrap": "rows", "envelope": {"list": "$name"}},
        {"row": "$key", "wrap": "rows", "envelope": {"list": ["of {$key}"]}},
        {"row": "$key", "wrap": "rows", "envelope": {"list": "of {name}"}},
        {"headers": {"X-Id": "{id}"}},
        {"headers": {"X-Id": "a-$id"}},
        {"headers": {"X-Id": "$nobody"}},
    ],
)
def test_a_placeholder_that_is_not_filled_in_is_refused(endpoint: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError) as caught:
        made(1, **endpoint)
    assert caught.value.code == "HTTP_PLACEHOLDER"


SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("name", Type("string")),))


@pytest.mark.parametrize("value", ["$name", "{$key}", "k {id}"])
def test_a_header_of_the_connection_takes_no_value_of_a_row(value: str) -> None:
    http = {"base_url": "https://api.example.com", "headers": {"X": value}}
    with pytest.raises(DefinitionError) as caught:
        HttpDestination(HttpOptions(connection=http, upsert={"path": "/r"}), SHAPE)
    assert caught.value.code == "HTTP_PLACEHOLDER"
    http["headers"] = {"X": "a$name{$5}"}  # a secret may look like anything else
    HttpDestination(HttpOptions(connection=http, upsert={"path": "/r"}), SHAPE).close()


@pytest.mark.parametrize(
    "wrong", [{"check": {"path": "/r/{id}"}}, {"check": {"path": "/r/$key"}}, {"job": "/j/{id}"}]
)
def test_requests_of_no_row_have_no_placeholder(wrong: dict[str, Any]) -> None:
    if "job" in wrong:
        match = {"at": "s", "in": ["x"]}
        job = {"id": "id", "path": wrong["job"], "done": match, "failed": match, "outcome": {}}
        wrong = {"upsert": {"path": "/r", "job": job}}
    with pytest.raises(ValidationError):
        HttpOptions(**{"connection": {"base_url": "https://a.example"}, "upsert": {"path": "/r"}, **wrong})


def test_a_graphql_document_keeps_its_variables() -> None:
    query = "mutation($id: ID!, $name: String) { save(id: $id) {id} }"
    row = {"query": query, "variables": {"id": "$key", "name": "$name"}}
    assert json.loads(made("1", row=row).body) == {"query": query, "variables": {"id": "1", "name": "n"}}
    wrapped = made("1", wrap="variables.ids", row="$key", envelope={"query": query, "cost": "$$5"})
    assert json.loads(wrapped.body) == {"query": query, "cost": "$5", "variables": {"ids": ["1"]}}


def test_a_text_is_null_where_a_value_in_it_is() -> None:
    row = {"a": "n {$name}", "b": {"$json": "$gone"}, "c": 1}
    for nulls, expected in ((None, {"a": None, "c": 1}), ("omit", {"c": 1}), ("", {"a": "", "c": 1})):
        endpoint = Endpoint(path="/r", row=row, cast={"nulls": nulls})
        template = Template(endpoint, ["id"], ["name", "gone"])
        assert json.loads(template.request([(1, '{"name":null}')]).body) == expected
    with pytest.raises(Poisoned):
        Template(Endpoint(path="/r", headers={"If-Match": "$name"}), ["id"], ["name"]).request(
            [(1, '{"name":null}')]
        )


KEY = ("O'Neil, A=1)", 7, date(2026, 11, 29), UUID(int=5), Decimal("1.50"), True)
MOMENT = datetime(2026, 11, 29, 7, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("$predicate", "(A='O''Neil, A=1)',B=7,C=2026-11-29,D={0},E=1.50,F=true,G=2026-11-29T06:00:00Z)"),
        (
            "$predicate_v2",
            "(A='O''Neil, A=1)',B=7,C=datetime'2026-11-29T00:00:00',D=guid'{0}',E=1.50M,F=true,"
            "G=datetimeoffset'2026-11-29T06:00:00Z')",
        ),
    ],
)
def test_a_key_of_several_fields_is_an_address_by_the_types_of_its_values(word: str, wanted: str) -> None:
    template = Template(Endpoint(method="DELETE", path=f"/Orders({word})"), list("ABCDEFG"), [])
    target = template.request([(*KEY, MOMENT)]).target
    assert unquote(target) == "/Orders" + wanted.format(UUID(int=5))
    assert "O'Neil, A=1)" not in target
    assert template.endpoint.rows_at_most == 1
    assert template.endpoint.named(list("ABCDEFG")) == set("ABCDEFG")


@given(TEXTS)
def test_one_field_of_a_key_is_an_address_without_its_name(value: str) -> None:
    target = made(value, method="DELETE", path="/Orders($predicate)").target
    assert odata_literals(unquote(target)) == ["/Orders(?)", value]


@pytest.mark.parametrize("value", ["", None, 1.5, datetime(2026, 1, 1), Decimal("NaN")])
def test_a_value_without_a_literal_is_refused(value: Any) -> None:
    assert attempt(lambda: made(value, method="DELETE", path="/Orders($predicate)")) == "NO_LITERAL"


@pytest.mark.parametrize("path", ["/Orders/$predicate", "/Orders(A=$predicate)", "/Orders?k=($predicate)"])
def test_a_predicate_stands_alone_in_parentheses_of_a_path(path: str) -> None:
    with pytest.raises(ValidationError, match="whole key"):
        Endpoint(path=path)
