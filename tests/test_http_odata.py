"""Many requests in one, and their answers: exactly so, or not at all."""

from __future__ import annotations

import pytest

from retl.destinations.http import odata
from retl.errors import Ambiguous
from retl.net.messages import Reply, Request

KIND = {"content-type": "multipart/mixed; boundary=b1"}
WRITTEN = (
    b"--b1\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    b"HTTP/1.1 204 No Content\r\nOData-EntityId: https://x/accounts(1)\r\n\r\n\r\n"
)
REFUSED = (
    b"--b1\r\nContent-Type: application/http\r\n\r\n"
    b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n{"error":{"code":"0x1"}}\r\n'
)
END = b"--b1--\r\n"


def test_each_part_is_an_answer_of_its_own() -> None:
    first, second = odata.replies(Reply(200, KIND, WRITTEN + REFUSED + END))
    assert (first.status, first.headers["odata-entityid"], first.body) == (204, "https://x/accounts(1)", b"")
    assert (second.status, second.content) == (404, {"error": {"code": "0x1"}})


@pytest.mark.parametrize(
    "kind",
    [
        'multipart/mixed; boundary="b1"',
        "Multipart/Mixed;boundary=b1",
        "multipart/mixed; charset=utf-8; boundary=b1",
    ],
)
def test_a_boundary_is_named_in_several_ways(kind: str) -> None:
    assert len(odata.replies(Reply(200, {"content-type": kind}, WRITTEN + END))) == 1


def test_an_answer_without_a_body_may_leave_its_empty_line_to_the_boundary() -> None:
    (found,) = odata.replies(Reply(200, KIND, WRITTEN.removesuffix(b"\r\n\r\n") + b"\r\n" + END))
    assert (found.status, found.headers["odata-entityid"]) == (204, "https://x/accounts(1)")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, WRITTEN + END),
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "multipart/mixed"}, WRITTEN + END),
        ({"content-type": "multipart/mixed; boundary=other"}, WRITTEN + END),
        (KIND, b""),
        (KIND, END[:-3]),
        (KIND, WRITTEN),
        (KIND, WRITTEN + REFUSED),
        (KIND, WRITTEN + END + b"more"),
        (KIND, b"before" + WRITTEN + END),
        (KIND, (WRITTEN + END).replace(b"\r\n", b"\n")),
        (KIND, WRITTEN.replace(b"application/http", b"text/plain") + END),
        (KIND, WRITTEN.replace(b"application/http", b"multipart/mixed; boundary=c") + END),
        (KIND, WRITTEN.replace(b"HTTP/1.1 204", b"HTTP/1.1 20x") + END),
        (KIND, WRITTEN.replace(b"OData-EntityId: ", b"OData EntityId ") + END),
        (KIND, WRITTEN.replace(b"--b1\r\n", b"--b12\r\n") + END),
    ],
)
def test_what_is_not_exactly_that_is_no_answer(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(Ambiguous):
        odata.replies(Reply(200, headers, body))


def test_every_cut_of_an_answer_is_no_answer() -> None:
    whole = WRITTEN + REFUSED + END.removesuffix(b"\r\n")
    for length in range(len(whole)):
        with pytest.raises(Ambiguous):
            odata.replies(Reply(200, KIND, whole[:length]))
    with pytest.raises(Ambiguous):
        odata.replies(Reply(200, KIND, whole, whole=False))


def test_requests_are_parts_with_crlf_at_every_end() -> None:
    patch = Request("PATCH", "/a(k='1')", (("Content-Type", "application/json"),), b'{"n":"x\\r\\n"}')
    delete = Request("DELETE", "/a(k='2')", (("If-Match", "*"),), b"")
    body = odata.multipart([patch, delete], "b1")
    head = b"--b1\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    assert body == (
        head
        + b"PATCH /a(k='1') HTTP/1.1\r\nContent-Type: application/json\r\n\r\n"
        + b'{"n":"x\\r\\n"}\r\n'
        + head
        + b"DELETE /a(k='2') HTTP/1.1\r\nIf-Match: *\r\n\r\n\r\n--b1--\r\n"
    )
    assert body.count(b"\n") == body.count(b"\r\n")


def test_a_write_is_a_change_set_of_its_own_where_the_server_wants_them() -> None:
    get, patch = Request("GET", "/a('1')", (), b""), Request("PATCH", "/a('1')", (("If-Match", "*"),), b"{}")
    body = odata.multipart([get, patch], "b1", sets=True)
    part = b"Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
    assert body == (
        b"--b1\r\n" + part + b"\r\nGET /a('1') HTTP/1.1\r\n\r\n\r\n"
        b'--b1\r\nContent-Type: multipart/mixed; boundary="set1_b1"\r\n\r\n'
        b"--set1_b1\r\n" + part + b"Content-ID: 1\r\n\r\nPATCH /a('1') HTTP/1.1\r\nIf-Match: *\r\n\r\n{}\r\n"
        b"--set1_b1--\r\n\r\n--b1--\r\n"
    )


def test_the_answer_to_a_change_set_is_its_only_part_or_one_refusal() -> None:
    inner = (WRITTEN + END).replace(b"--b1", b"--c")
    done = (
        b"--b1\r\nContent-Type: multipart/mixed; boundary=c\r\nContent-Length: 200\r\n\r\n" + inner + b"\r\n"
    )
    found = odata.replies(Reply(202, KIND, done + REFUSED + END), sets=True)
    assert [one.status for one in found] == [204, 404]
    two = done.replace(b"--c--", WRITTEN.replace(b"--b1", b"--c") + b"--c--")
    for wrong in (two, done.replace(b"--c--", b""), done.replace(b"boundary=c", b"boundary=d")):
        with pytest.raises(Ambiguous):
            odata.replies(Reply(202, KIND, wrong + END), sets=True)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("A1", "'A1'"),
        ("o'neil", "'o%27%27neil'"),
        ("''", "'%27%27%27%27'"),
        ("a b)", "'a%20b%29'"),
        ("a,b='c", "'a%2Cb%3D%27%27c'"),
        ("é", "'%C3%A9'"),
        ("x\r\nHTTP/1.1", "'x%0D%0AHTTP%2F1.1'"),
    ],
)
def test_a_key_cannot_leave_its_quotes(value: str, written: str) -> None:
    assert odata.address("a", {"k": value}, {"k": True}) == f"a(k={written})"


def test_a_key_of_several_columns_names_each() -> None:
    key, quoted = {"number": "7", "code": "x"}, {"number": False, "code": True}
    assert odata.address("a", key, quoted) == "a(number=7,code='x')"
