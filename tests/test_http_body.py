"""Rows become requests exactly: shapes, paths, encodings, and what cannot be said is refused."""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from typing import Any
from urllib.parse import parse_qsl, unquote
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from retl.destinations.batch import Field, Shape
from retl.destinations.http import csvbody
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.options import HttpOptions
from retl.errors import DefinitionError, Poisoned
from retl.net.messages import Request
from retl.values.types import Type
from tests.destinations.rows import Rows

ROWS = [
    (1, '{"name":"Ann","total":1.10,"at":null}'),
    (2, '{"name":"é \\"q\\"","total":20000000000000000001}'),
]


def template(keys: tuple[str, ...] = ("id",), **endpoint: Any) -> Template:
    return Template(Endpoint(**{"path": "/rows", **endpoint}), keys, ["name", "total", "at"])


def body(rows: Any = ROWS, keys: tuple[str, ...] = ("id",), **endpoint: Any) -> str:
    return template(keys, **endpoint).request(rows).body.decode()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, '{"id":1,"name":"Ann","total":1.10,"at":null}'),
        ("$row", '{"id":1,"name":"Ann","total":1.10,"at":null}'),
        ("$fields", '{"name":"Ann","total":1.10,"at":null}'),
        ("$key", "1"),
        ({"ext": "$id", "a": "$fields"}, '{"ext":1,"a":{"name":"Ann","total":1.10,"at":null}}'),
        ({"n": "$row_no", "k": "$key", "t": "$total"}, '{"n":"0","k":1,"t":1.10}'),
        ({"a": ["$name", {"b": "$at"}]}, '{"a":["Ann",{"b":null}]}'),
        ({"type": "person", "v": 1, "on": True, "no": None}, '{"type":"person","v":1,"on":true,"no":null}'),
        ({"price": "$$5", "n": "$field.name"}, '{"price":"$5","n":"Ann"}'),
    ],
)
def test_a_row_takes_the_shape_it_is_given(row: Any, expected: str) -> None:
    assert body(ROWS[:1], row=row) == expected


def test_rows_are_wrapped_where_the_target_wants_them() -> None:
    assert body(wrap="rows", row="$key") == '{"rows":[1,2]}'
    assert body(wrap="", row="$key") == "[1,2]"
    envelope = {"data": {"type": "job", "list": "L"}, "dry": False}
    wrapped = json.loads(body(wrap="data.attributes.data", envelope=envelope, row={"no": "$row_no"}))
    assert wrapped == {
        "data": {"type": "job", "list": "L", "attributes": {"data": [{"no": "0"}, {"no": "1"}]}},
        "dry": False,
    }


def test_digits_survive() -> None:
    assert '"total":1.10' in body(ROWS[:1])
    assert '"t":20000000000000000001' in body(ROWS[1:], row={"t": "$total"})
    rows = [(Decimal("12345678901234567890.0001000"), UUID(int=1), datetime(2026, 1, 2, tzinfo=UTC), "{}")]
    assert body(rows, ("a", "b", "c")) == (
        '{"a":12345678901234567890.0001000,"b":"00000000-0000-0000-0000-000000000001",'
        '"c":"2026-01-02T00:00:00Z"}'
    )


def test_a_field_the_row_has_not_got_is_left_out() -> None:
    assert body(ROWS[1:], row={"a": "$at", "list": ["$at", "$name"]}) == '{"list":["é \\"q\\""]}'


def test_a_delete_sends_its_key_or_nothing() -> None:
    bare = Template(Endpoint(method="DELETE", path="/rows/{id}"), ["id"], []).request([("a b",)])
    assert (bare.method, bare.target, bare.headers, bare.body) == ("DELETE", "/rows/a%20b", (), b"")
    many = Template(Endpoint(method="POST", path="/gone", wrap="ids", row="$key"), ["id"], [])
    assert many.request([("a",), ("b",)]).body == b'{"ids":["a","b"]}'


def test_rows_as_lines_and_as_forms() -> None:
    lines = template(encoding="ndjson", row={"id": "$id"}).request(ROWS)
    assert lines.body == b'{"id":1}\n{"id":2}\n'
    assert dict(lines.headers)["Content-Type"] == "application/x-ndjson"
    form = body(ROWS[:1], encoding="form", row={"id": "$id", "metadata": "$fields", "tags": ["a", "b"]})
    assert dict(parse_qsl(form, keep_blank_values=True)) == {
        "id": "1",
        "metadata[name]": "Ann",
        "metadata[total]": "1.10",
        "metadata[at]": "",
        "tags[0]": "a",
        "tags[1]": "b",
    }


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("../../etc/passwd")
@example("//evil.example/")
@example("a\r\nHost: evil.example")
@example("?a=b#c")
@example("%2e%2e")
@example("@evil.example:80")
@example("null")
def test_a_value_stays_in_its_segment(value: str) -> None:
    single = template(method="PUT", path="/v1/rows/{id}/end?at={name}", row="$fields")
    try:
        target = single.request([(value, '{"name":"n/o"}')]).target
    except Poisoned:
        assert value in ("", ".", "..")
        return
    path, _, query = target.partition("?")
    assert query == "at=n%2Fo"
    head, v1, rows, name, end = path.split("/")
    assert (head, v1, rows, unquote(name), end) == ("", "v1", "rows", value, "end")
    assert target.isascii()
    assert target.isprintable()


@pytest.mark.parametrize("fields", ["{}", '{"name":null}', '{"name":""}', '{"name":".."}'])
def test_a_path_needs_its_values(fields: str) -> None:
    with pytest.raises(Poisoned):
        template(path="/by/{name}").request([(1, fields)])


def test_what_cannot_be_one_request_is_poisoned_before_it_is_sent() -> None:
    for refused, code in (
        (template(wrap="rows", max_rows=1), "TOO_MANY_ROWS"),
        (template(path="/rows/{id}"), "TOO_MANY_ROWS"),
        (template(), "TOO_MANY_ROWS"),
        (template(wrap="rows", max_bytes=20), "TOO_LARGE"),
    ):
        with pytest.raises(Poisoned) as caught:
            refused.request(ROWS)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("endpoint", "row"),
    [
        ({"row": {"id": "$id"}}, ("\ud800", "{}")),
        ({"path": "/rows/{id}"}, ("\ud800", "{}")),
        ({"row": "$fields"}, (1, '{"name":"\ud800"}')),
        ({"row": "$row"}, (1, '{"name":"\ud800"}')),
        ({"row": {"n": "$name"}}, (1, '{"name":"\ud800"}')),
    ],
)
def test_half_a_character_is_poison(endpoint: dict[str, Any], row: Any) -> None:
    with pytest.raises(Poisoned) as caught:
        template(**endpoint).request([row])
    assert caught.value.code == "NOT_UNICODE"


def test_a_row_is_several_lines_made_by_python_or_by_sql() -> None:
    row = ["$key", {"doc": {"t": "$text", "j": "$json"}}]
    upsert = {"path": "/b", "encoding": "ndjson", "lines": True, "row": row, "max_rows": 9}
    fields = (Field("text", Type("string")), Field("json", Type("json")))
    shape = Shape("s", "state", (Field("id", Type("string")),), fields)
    rows = Rows(shape, [("a\x1e", "x\ny\x1e", '{"z":\r\n1}'), ("b", None, "2")])
    options = HttpOptions(connection={"base_url": "https://a.example"}, upsert=upsert)
    by_sql = HttpDestination(options, shape).preview(rows.batch()).partition(b"\r\n\r\n")[2]
    made = Template(Endpoint(**upsert), ["id"], ["text", "json"])
    request = made.request(rows.documents(0, 1))
    expected = ["a\x1e", {"doc": {"t": "x\ny\x1e", "j": {"z": 1}}}, "b", {"doc": {"t": None, "j": 2}}]
    for body in (by_sql, request.body):
        assert [json.loads(line) for line in body.split(b"\n")[:-1]] == expected
    assert made.texts(request)(1) == {"b", "2"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "rows"},
        {"path": "//evil.example/rows"},
        {"path": "/v1//rows"},
        {"path": "/v1/../rows"},
        {"path": "https://evil.example/"},
        {"path": "/rows#x"},
        {"path": "/rows?q='{id}'"},
        {"path": "/rows?q=%22{id:soql}%22"},
        {"path": "/rows/{id:odata}"},
        {"path": "/rows?ids=('$keys')"},
        {"path": "/ro ws"},
        {"path": "/rows\r\nX: y"},
        {"path": "/rows/{id}", "max_rows": 2},
        {"max_rows": 2},
        {"envelope": {"a": 1}},
        {"wrap": "a.b", "envelope": {"a": 1}},
        {"wrap": "a", "envelope": {"a": 1}},
        {"wrap": "rows", "encoding": "form"},
        {"encoding": "multipart"},
        {"encoding": "multipart", "wrap": ""},
        {"encoding": "multipart", "wrap": "a.b"},
        {"encoding": "multipart", "wrap": "a", "envelope": {"a": 1}},
        {"encoding": "multipart", "wrap": "a", "envelope": {"b": [1]}},
        {"encoding": "multipart", "wrap": "a", "row": ["$key"]},
        {"encoding": "multipart", "wrap": "a", "headers": {"content-type": "multipart/form-data"}},
        {"method": "GET"},
        {"lines": True, "row": ["$key"]},
        {"lines": True, "row": "$row", "encoding": "ndjson"},
        {"headers": {"X": "a\r\nb"}},
        {"headers": {"X Y": "a"}},
        {"headers": {"Host": "$id"}},
        {"headers": {"X": "$keys"}},
        {"headers": {"X": "$row"}},
        {"rows": 1},
    ],
)
def test_endpoints_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Endpoint(**{"path": "/rows", **wrong})


@pytest.mark.parametrize("row", [{"a": "$nobody"}, "$name.first", ["$"]])
def test_a_shape_names_only_fields_there_are(row: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        template(row=row)
    assert caught.value.code == "HTTP_PLACEHOLDER"
    with pytest.raises(DefinitionError):
        template(keys=("a", "b"), row="$key")


def test_a_request_is_read_back_as_it_was_written() -> None:
    request = Request("POST", "/v1/a%20b?x=1", (("Host", "h:1"), ("Prefer", "a: b")), b"x\r\n\r\ny")
    assert Request.load(request.dump()) == request
    assert request.dump().startswith(b"POST /v1/a%20b?x=1\r\nHost: h:1\r\nPrefer: a: b\r\n\r\n")


@pytest.mark.parametrize(
    ("endpoint", "row", "texts"),
    [
        ({"wrap": "rows", "row": {"id": "$id", "n": "$name", "c": "word"}}, 0, {"1", "Ann"}),
        ({"wrap": "rows", "row": {"id": "$id"}}, None, {"1", "2"}),
        ({"encoding": "ndjson", "row": {"id": "$id"}}, 1, {"2"}),
        ({"encoding": "csv", "row": {"id": "$id", "n": "$name"}}, 1, {"2", 'é "q"'}),
    ],
)
def test_it_knows_the_texts_a_row_was_sent_with(endpoint: Any, row: int | None, texts: set[str]) -> None:
    made = template(**endpoint)
    assert made.texts(made.request(ROWS))(row) == texts


def test_it_knows_the_texts_of_paths_and_forms() -> None:
    made = template(path="/rows/{id}", encoding="form", row="$fields")
    assert made.texts(made.request([("a b", '{"name":"Ann"}')]))(0) == {"a b", "Ann"}


def test_values_are_cast_as_the_target_wants_them() -> None:
    text = {"values": "string", "nulls": ""}
    assert body(ROWS[:1], row="$fields", cast=text) == '{"name":"Ann","total":"1.10","at":""}'
    assert body(ROWS[:1], row={"t": "$total", "a": "$at"}, cast=text) == '{"t":"1.10","a":""}'
    assert body(ROWS[:1], row="$row", cast={"nulls": "omit"}) == '{"id":1,"name":"Ann","total":1.10}'
    assert body(ROWS[:1], row=["$at", "$name"], cast={"nulls": "#N/A"}) == '["#N/A","Ann"]'
    assert body(ROWS[:1], row=["$key", "$id", "$total"], cast={"keys": "string"}) == '["1","1",1.10]'
    assert body([(7, "{}")], row="$row", cast={"keys": "string"}) == '{"id":"7"}'
    rows = [(1, '{"name":[1,"é"],"at":true}')]
    assert body(rows, row="$fields", cast=text) == '{"name":"[1,\\"é\\"]","at":"true"}'


def test_objects_can_be_one() -> None:
    assert body(ROWS[:1], row={"$merge": [{"type": "x"}, "$row"]}) == (
        '{"type":"x","id":1,"name":"Ann","total":1.10,"at":null}'
    )
    assert body([(1, "{}")], row={"$merge": [{"type": "x"}, "$fields"]}) == '{"type":"x"}'


def test_the_fields_that_nothing_names_are_the_others() -> None:
    listed = {"$each": "$others", "as": {"field": "$name", "value": "$value", "is": ["$$x", 1]}}
    assert json.loads(body(ROWS[:1], row={"$merge": [{"id": "$key"}, {"$only": ["name", "gone"]}]})) == {
        "id": 1,
        "name": "Ann",
    }
    row = {"n": "$name", "t": "{$total}", "own": listed, "rest": "$others"}
    expected = {"n": "Ann", "t": "1.10", "rest": {"at": None}}
    expected["own"] = [{"field": "at", "value": None, "is": ["$x", 1]}]
    assert json.loads(body(ROWS[:1], row=row)) == expected
    assert body(ROWS[:1], row={"own": {"$each": {"$only": ["total"]}, "as": ["$name", "$value"]}}) == (
        '{"own":[["total",1.10]]}'
    )
    assert body(ROWS[1:], row={"own": listed, "n": "$name", "t": "$total"}, cast={"nulls": "omit"}) == (
        '{"n":"é \\"q\\"","t":20000000000000000001}'  # no other field: no list
    )
    for wrong in (
        {"$each": "$others", "as": "$key"},
        {"$each": "$others", "as": "a {$name}"},
        {"$each": "$key"},
    ):
        with pytest.raises(DefinitionError):
            body(row={"x": wrong})


def test_a_value_stands_anywhere_in_a_path_and_a_dollar_sign_is_said_twice() -> None:
    made = template(method="PATCH", path="/$$batch/$id.json?n={name}&t=$total", row="$fields")
    assert made.request(ROWS[:1]).target == "/$batch/1.json?n=Ann&t=1.10"
    with pytest.raises(DefinitionError) as caught:
        template(path="/rows/$batch")
    assert "'batch'" in caught.value.message
    assert "`$$` is a dollar sign" in (caught.value.hint or "")


def test_a_part_can_be_base64_and_a_path() -> None:
    row = {"url": {"$path": "/t/{id}/$name"}, "body": {"$base64": {"n": "$name"}}}
    made = template(wrap="r", row=row)
    request = made.request([("a/b", '{"name":"A b"}')])
    assert json.loads(request.body) == {
        "r": [{"url": "/t/a%2Fb/A%20b", "body": b64encode(b'{"n":"A b"}').decode()}]
    }
    assert "A b" in made.texts(request)(0)


def test_all_keys_or_the_whole_body_can_stand_in_the_query() -> None:
    many = Template(Endpoint(method="DELETE", path="/gone?ids=$keys&all=no", max_rows=3), ["id"], [])
    request = many.request([("a/b",), (2,)])
    assert (request.target, request.body) == ("/gone?ids=a%2Fb,2&all=no", b"")
    whole = template(method="DELETE", path="/gone?p=$body", wrap="data", row=["$key"]).request(ROWS)
    assert (unquote(whole.target), whole.body) == ('/gone?p={"data":[[1],[2]]}', b"")


def test_the_target_s_own_ids_stand_where_they_are_asked_for() -> None:
    rows = [("a", "x/1", '{"name":"Ann"}'), ("b", "2", '{"name":"Bob"}')]
    listed = {
        "path": "/o",
        "wrap": "rows",
        "row": {"$merge": [{"id": "$ref"}, "$row"]},
        "cast": {"refs": "string"},
    }
    assert json.loads(Template(Endpoint(**listed), ["key"], ["name"]).request(rows).body) == {
        "rows": [{"id": "x/1", "key": "a", "name": "Ann"}, {"id": "2", "key": "b", "name": "Bob"}]
    }
    one = Template(Endpoint(method="PATCH", path="/o/$ref", row="$fields"), ["key"], ["name"])
    assert one.request(rows[:1]).target == "/o/x%2F1"
    for path, target in {
        "/o?ids=$refs&all=no": "/o?ids=x%2F1,2&all=no",
        "/o?a=b&ids%5B%5D=$refs": "/o?a=b&ids%5B%5D=x%2F1&ids%5B%5D=2",
    }.items():
        many = Template(Endpoint(method="DELETE", path=path, max_rows=2), ["key"], [])
        request = many.request([row[:2] for row in rows])
        assert (request.target, request.body) == (target, b"")


def test_a_row_that_is_too_large_for_itself_is_poison() -> None:
    with pytest.raises(Poisoned) as caught:
        body(ROWS, wrap="rows", max_row_bytes=40)
    assert caught.value.code == "TOO_LARGE"
    assert json.loads(body(ROWS, wrap="rows", max_row_bytes=60))["rows"][0]["name"] == "Ann"


# CSV


def test_rows_are_lines_of_csv_under_one_head() -> None:
    rows = [(1, '{"name":"Ann","total":1.10,"at":null}'), (2, '{"name":"","total":1e400,"at":[1,"x"]}')]
    made = template(encoding="csv", max_rows=100).request(rows)
    assert dict(made.headers)["Content-Type"] == "text/csv; charset=utf-8"
    assert made.body == b'"id","name","total","at"\r\n1,"Ann",1.10,\r\n2,"",1e400,"[1,""x""]"\r\n'


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.none() | st.text(st.characters(codec="utf-8"))),
        min_size=1,
    )
)
@example([("a,b", '"'), ("\r\n", ""), ("'", None), ("=1+1", "\x00")])
def test_csv_says_every_text_exactly(rows: list[tuple[str, str | None]]) -> None:
    sent = [(key, json.dumps({"name": name}, ensure_ascii=False)) for key, name in rows]
    shape = template(encoding="csv", row={"id": "$id", "n": "$name"}).request(sent).body.decode()
    assert list(csv.reader(StringIO(shape, newline=""), strict=True))[1:] == [
        [key, name or ""] for key, name in rows
    ]
    for (_, name), line in zip(rows, csvbody.read(shape.encode()), strict=True):
        assert line[1] == (name or "")


def test_rows_with_other_columns_are_another_body() -> None:
    rows = [(1, '{"name":"Ann","total":1}'), (2, '{"name":"Bob"}')]
    with pytest.raises(Poisoned) as caught:
        template(encoding="csv").request(rows)
    assert caught.value.code == "CSV_COLUMNS"
    assert [template(encoding="csv").request([row]).body.count(b",") for row in rows] == [4, 2]


def test_rows_are_a_file_in_a_form() -> None:
    rows = [(1, '{"name":"Ann"}'), (2, '{"name":null}')]
    endpoint = {"encoding": "multipart", "wrap": "file", "envelope": {"dry": False, "list": 7}}
    made = template(max_rows=100, **endpoint).request(rows)
    head = dict(made.headers)["Content-Type"]
    line = head.removeprefix("multipart/form-data; boundary=")
    assert made.body.decode().split(f"--{line}") == [
        "",
        '\r\nContent-Disposition: form-data; name="dry"\r\n\r\nfalse\r\n',
        '\r\nContent-Disposition: form-data; name="list"\r\n\r\n7\r\n',
        '\r\nContent-Disposition: form-data; name="file"; filename="file.csv"\r\n'
        'Content-Type: text/csv; charset=utf-8\r\n\r\n"id","name"\r\n1,"Ann"\r\n2,\r\n\r\n',
        "--\r\n",
    ]
    with pytest.raises(Poisoned, match="bytes"):
        template(max_bytes=100, **endpoint).request(rows)


@pytest.mark.parametrize("row", ["$key", ["$id"], 5])
def test_a_line_of_csv_is_an_object(row: Any) -> None:
    with pytest.raises(ValidationError, match="object"):
        Endpoint(path="/rows", encoding="csv", row=row)


# a joined value is one value


@pytest.mark.parametrize("path", ["/gone?ids=$keys", "/gone?ids=$keys&all=no"])
@pytest.mark.parametrize(("bad", "code"), [("a,b", "KEY_CHARACTER"), (",", "KEY_CHARACTER"), ("", "NO_PATH")])
def test_a_list_in_a_query_has_no_value_that_could_be_two(path: str, bad: str, code: str) -> None:
    many = Template(Endpoint(method="DELETE", path=path, max_rows=3), ["id"], [])
    with pytest.raises(Poisoned) as caught:
        many.request([("a",), (bad,)])
    assert caught.value.code == code
    repeated = Template(Endpoint(method="DELETE", path="/gone?ids%5B%5D=$keys", max_rows=3), ["id"], [])
    if bad:
        assert parse_qsl(repeated.request([("a",), (bad,)]).target.partition("?")[2]) == [
            ("ids[]", "a"),
            ("ids[]", bad),
        ]


@given(
    st.sampled_from(
        ["/o/{a}-{b}", "/o/{a}--{b}", "/o(x='{a}',y='{b}')", "/o?k={a}%2C{b}", "/o?k=$a:{b}&l=1"]
    ),
    st.lists(
        st.tuples(*[st.text("a-',y=:", min_size=1, max_size=5)] * 2), min_size=2, max_size=2, unique=True
    ),
)
@example("/o/{a}--{b}", [("a-", "b"), ("a", "-b")])
def test_two_keys_have_two_addresses(path: str, keys: list[tuple[str, str]]) -> None:
    made = Template(Endpoint(method="DELETE", path=path), ["a", "b"], [])
    found = []
    for key in keys:
        with suppress(Poisoned):
            found.append(unquote(made.request([key]).target))
    assert len(set(found)) == len(found)


def test_two_values_with_nothing_between_them_are_a_definition_error() -> None:
    with pytest.raises(ValidationError, match="something between"):
        Endpoint(method="DELETE", path="/o/{a}{b}")


# nulls, field by field


@pytest.mark.parametrize(
    ("nulls", "expected"),
    [
        ({"at": "omit"}, '{"id":1,"name":null,"total":1.10}'),
        ({"*": "omit", "at": None}, '{"id":1,"total":1.10,"at":null}'),
        ({"*": "", "at": "#N/A"}, '{"id":1,"name":"","total":1.10,"at":"#N/A"}'),
        ({"name": ""}, '{"id":1,"name":"","total":1.10,"at":null}'),
    ],
)
def test_an_empty_field_is_sent_as_its_own_rule_says(nulls: Any, expected: str) -> None:
    rows = [(1, '{"name":null,"total":1.10,"at":null}')]
    assert body(rows, cast={"nulls": nulls}) == expected
    fields = expected.replace('"id":1,', "")
    assert body(rows, cast={"nulls": nulls}, row="$fields") == fields
    one = {name: f"${name}" for name in ("name", "total", "at")}
    assert body(rows, cast={"nulls": nulls}, row=one) == fields


def test_a_rule_for_a_field_that_is_not_sent_is_a_definition_error() -> None:
    upsert = {"path": "/rows", "cast": {"nulls": {"*": "omit", "nmae": None}}}
    options = HttpOptions(connection={"base_url": "http://127.0.0.1"}, upsert=upsert)
    text = Type("string")
    with pytest.raises(DefinitionError, match="nmae") as caught:
        HttpDestination(options, Shape("sync", "state", (Field("id", text),), (Field("name", text),)))
    assert caught.value.code == "OPTION_UNUSED"
