"""What answers mean: by status, by row, by case; and that no reason tells a value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retl.destinations.batch import ABSENT, PRESENT, WRITTEN, Kind, Outcome
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Count, Rules
from retl.errors import Ambiguous, Poisoned, Systemic, TargetError, Unavailable
from retl.net.lookup import Match, look, text
from retl.net.messages import Reply
from retl.net.scrub import LONGEST_REASON, scrub
from retl.net.waits import LONGEST_WAIT, HeaderWait, Quota, Usage, quota, wait_asked

POSITIONAL = Rules(
    ok=(200,),
    partial=(207,),
    rows="positional",
    at="results",
    row_ok={"at": "status", "in": ["ok"]},
    row_retry={"at": "error.code", "in": ["locked"]},
    ref="id",
)
LISTED = Rules(
    partial=(207,),
    rows="listed",
    at="results",
    errors_at="errors",
    match={"at": ["trace", "context.trace.0"], "to": "$row_no"},
    code="category",
)


def reply(status: int, content: Any = None, **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def sent(rows: int = 3, *, idempotent: bool = True) -> Sent:
    def names(to: str) -> list[str]:
        return [str(n) if to == "$row_no" else f"k{n}@example.com" for n in range(rows)]

    return Sent(rows, idempotent, names, lambda row: ["secret value"] if row is None else [f"value of {row}"])


def kinds(outcome: Outcome, rows: int = 3) -> list[Kind]:
    return [outcome.result(n).kind for n in range(rows)]


# by status


@pytest.mark.parametrize("status", [425, 429, 503])
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_refusal_for_now_is_unavailable_whatever_was_asked(status: int, idempotent: bool) -> None:
    with pytest.raises(Unavailable):
        interpret(reply(status), Rules(), sent(idempotent=idempotent))


@pytest.mark.parametrize("status", [408, 500, 502, 504, 520, 529])
def test_a_server_that_broke_is_asked_again_only_where_twice_is_once(status: int) -> None:
    with pytest.raises(Unavailable):
        interpret(reply(status), Rules(), sent())
    with pytest.raises(Ambiguous):
        interpret(reply(status), Rules(), sent(idempotent=False))


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_refused_batch_is_halved_and_a_refused_row_is_rejected(status: int) -> None:
    answer = reply(status, {"error": {"code": "BAD", "message": "this will not do"}})
    with pytest.raises(Poisoned) as caught:
        interpret(answer, Rules(), sent(2))
    assert "this will not do" in caught.value.message
    result = interpret(answer, Rules(), sent(1)).default
    assert (result.kind, result.code, result.reason) == (Kind.REJECTED, "BAD", "this will not do")


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 402, 403, 404, 405, 410, 501])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_somebody_has_to_mend_stops_the_run(status: int, rows: int) -> None:
    with pytest.raises(Systemic) as caught:
        interpret(reply(status, location="https://elsewhere.example/"), Rules(), sent(rows))
    assert "elsewhere" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 201, 400, 404, 422])
@pytest.mark.parametrize(
    "page",
    [Reply(200, {"content-type": "text/html"}, b"x"), Reply(200, {}, b"  <!DOCTYPE html>"), Reply(200, {}, b"<html>")],
)  # fmt: skip
def test_a_web_page_is_no_answer_of_an_api(status: int, page: Reply) -> None:
    with pytest.raises(Systemic):
        interpret(Reply(status, page.headers, page.body), Rules(), sent(1))


def test_a_gateway_may_say_come_back_in_html() -> None:
    with pytest.raises(Unavailable):
        interpret(reply(503, b"<html>down</html>"), Rules(), sent())


def test_a_success_nobody_listed_is_nobodys_to_guess() -> None:
    with pytest.raises(Ambiguous):
        interpret(reply(206, {}), Rules(), sent())
    with pytest.raises(Ambiguous):
        interpret(reply(207, {}), Rules(), sent())


def test_a_cut_off_or_unreadable_success_is_ambiguous() -> None:
    for broken in (Reply(200, {}, b"", whole=False), reply(200, b'{"results": ['), reply(200, b"\xff")):
        for rules in (Rules(), POSITIONAL):
            with pytest.raises(Ambiguous):
                interpret(broken, rules, sent())


def test_a_target_that_tells_nothing_of_rows_may_answer_in_any_words() -> None:
    assert interpret(reply(200, b"ok"), Rules(rows="none"), sent()) == Outcome(WRITTEN)


# by row


def test_rows_are_judged_by_position() -> None:
    items = [
        {"status": "ok", "id": 7},
        {"status": "no", "error": {"code": "E1", "message": "no value of 1 here"}},
        {"status": "no", "error": {"code": "locked"}},
    ]
    outcome = interpret(reply(207, {"results": items}), POSITIONAL, sent())
    assert kinds(outcome) == [Kind.WRITTEN, Kind.REJECTED, Kind.RETRY]
    assert outcome.result(0).ref == "7"
    assert (outcome.result(1).code, outcome.result(1).reason) == ("E1", "no … here")


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"results": None}, {"results": {}}, {"results": []}, {"results": [{"status": "ok"}] * 2},
     {"results": [{"status": "ok"}] * 4}],
)  # fmt: skip
def test_an_answer_of_another_length_says_nothing(content: Any) -> None:
    outcome = interpret(reply(200, content), POSITIONAL, sent())
    assert (kinds(outcome), outcome.divides) == ([Kind.UNKNOWN] * 3, False)
    assert "results for 3 rows" in str(outcome.default.reason)


def test_types_count_when_an_item_is_judged() -> None:
    rules = Rules(rows="positional", row_ok={"at": "success", "in": [True]})
    assert kinds(interpret(reply(200, [{"success": 1}]), rules, sent(1)), 1) == [Kind.REJECTED]
    assert kinds(interpret(reply(200, [{"success": True}]), rules, sent(1)), 1) == [Kind.WRITTEN]


def test_listed_rows_may_come_in_any_order_and_the_unlisted_are_unknown() -> None:
    content = {"results": [{"trace": "2"}], "errors": [{"category": "BAD", "context": {"trace": ["0"]}}]}
    outcome = interpret(reply(207, content), LISTED, sent())
    assert kinds(outcome) == [Kind.REJECTED, Kind.UNKNOWN, Kind.WRITTEN]
    assert outcome.result(0).code == "BAD"


def test_an_answer_that_contradicts_itself_is_unknown() -> None:
    content = {"results": [{"trace": "1"}, {"trace": "0"}], "errors": [{"trace": "1"}]}
    assert kinds(interpret(reply(207, content), LISTED, sent())) == [Kind.WRITTEN, Kind.UNKNOWN, Kind.UNKNOWN]


def test_errors_by_index_leave_the_others_written() -> None:
    rules = Rules(ok=(201,), partial=(207,), rows="errors_by_index", at="errors", code="type", reason="type")
    assert interpret(reply(201, {"message": "success"}), rules, sent()) == Outcome(WRITTEN)
    outcome = interpret(reply(207, {"errors": [{"index": 1, "type": "bad"}]}), rules, sent())
    assert kinds(outcome) == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
    named_none = interpret(reply(207, {"errors": []}), rules, sent())
    assert (kinds(named_none), named_none.divides) == ([Kind.UNKNOWN] * 3, True)


@pytest.mark.parametrize("index", [3, -1, None, "x", 1.0, True])
def test_an_error_that_names_no_row_of_ours_may_be_meant_for_any(index: Any) -> None:
    rules = Rules(rows="errors_by_index", at="errors")
    content = {"errors": [{"index": index}, {"index": 0}]}
    assert kinds(interpret(reply(200, content), rules, sent())) == [Kind.REJECTED, Kind.UNKNOWN, Kind.UNKNOWN]


def test_errors_by_value_name_rows_by_their_key() -> None:
    rules = Rules(rows="errors_by_value", at="invalid")
    outcome = interpret(reply(200, {"invalid": ["k2@example.com"]}), rules, sent())
    assert kinds(outcome) == [Kind.WRITTEN, Kind.WRITTEN, Kind.REJECTED]
    assert kinds(interpret(reply(200, {"invalid": ["who"]}), rules, sent())) == [Kind.UNKNOWN] * 3


@given(
    st.sampled_from(["positional", "listed", "errors_by_index", "errors_by_value"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 4) | st.sampled_from(["ok", "0", "k1@example.com"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["results", "status", "index"]), inner),
        max_leaves=12,
    ),
)  # fmt: skip
def test_whatever_an_answer_holds_each_row_gets_one_result(rows: Any, content: Any) -> None:
    rules = Rules(rows=rows, at="results", row_ok={"at": "status", "in": ["ok"]})
    outcome = interpret(reply(200, content), rules, sent())
    assert set(outcome.exceptions) <= {0, 1, 2}
    if rows in ("positional", "listed") and not look(content, "results"):
        assert Kind.WRITTEN not in kinds(outcome)


# by case


def test_an_error_inside_an_ok_is_seen() -> None:
    rules = Rules(ok_when={"at": "ok", "in": [True]}, code="error", reason="error")
    assert interpret(reply(200, {"ok": True}), rules, sent()) == Outcome(WRITTEN)
    with pytest.raises(Poisoned):
        interpret(reply(200, {"ok": False, "error": "invalid_blocks"}), rules, sent())
    assert (
        interpret(reply(200, {"ok": False, "error": "invalid_blocks"}), rules, sent(1)).default.code
        == "invalid_blocks"
    )
    both = Rules(ok_when=[{"at": "ok", "in": [True]}, {"at": "warnings", "in": [0]}])
    for warnings, kind in ((0, Kind.WRITTEN), (1, Kind.REJECTED)):
        found = interpret(reply(200, {"ok": True, "warnings": warnings}), both, sent(1))
        assert found.default.kind is kind


@pytest.mark.parametrize(
    ("means", "expected"),
    [("written", WRITTEN), ("kept", PRESENT), ("absent", ABSENT), ("unavailable", Unavailable), ("unknown", Ambiguous),
     ("systemic", Systemic), ("refused", Poisoned)],
)  # fmt: skip
def test_a_case_decides_before_the_table(means: str, expected: Any) -> None:
    rules = Rules(
        cases=[{"status": [200, 409], "when": {"at": "errors.0.code", "in": ["606"]}, "means": means}]
    )
    answer = reply(409, {"errors": [{"code": "606"}]})
    if isinstance(expected, type) and issubclass(expected, TargetError):
        with pytest.raises(expected):
            interpret(answer, rules, sent())
    else:
        assert interpret(answer, rules, sent()) == Outcome(expected)
    with pytest.raises(Poisoned):
        interpret(reply(409, {"errors": [{"code": "1"}]}), rules, sent())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": "positional"},
        {"partial": [207]},
        {"errors_at": "errors"},
        {"rows": "some"},
        {"row_ok": {"at": "x"}},
        {"row_ok": {"at": "x", "empty": False}},
        {"rows": "listed", "first": 1},
        {"oks": [200]},
    ],
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rules(**wrong)


# waiting


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("27", 27.0), ("7.279562", 7.279562), ("0", 0.0), ("-5", 0.0), ("999999", LONGEST_WAIT), ("inf", None),
     ("nan", None), ("soon", None), ("", None), ("Sat, 21 Nov 2026 06:00:30 GMT", 30.0),
     ("Sat, 21 Nov 2026 05:00:00 GMT", 0.0), ("Sat, 21 Nov 2099 06:00:30 GMT", LONGEST_WAIT),
     ("Sat, 21 Nov 2026 06:00:30 -0000", 30.0), ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
     ("Sat, 21 Nov 2026 06:00:30 +9999", None), ("9" * 400, None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_moment_on_the_targets_clock(given: str, seconds: float | None) -> None:
    answer = reply(429, retry_after=given, date="Sat, 21 Nov 2026 06:00:00 GMT")
    assert wait_asked(answer.headers) == seconds
    with pytest.raises(Unavailable) as caught:
        interpret(answer, Rules(), sent())
    assert caught.value.retry_after == seconds


def test_other_headers_can_say_how_long() -> None:
    answer = reply(429, x_reset="1795240830", date="Sat, 21 Nov 2026 06:00:00 GMT")
    assert wait_asked(answer.headers, HeaderWait(header="X-Reset", unit="epoch_s")) == 1795240830 - 1795240800
    assert wait_asked(reply(429, x_wait="1500").headers, HeaderWait(header="X-Wait", unit="ms")) == 1.5
    assert wait_asked(reply(429, retry_after="9").headers, HeaderWait(header="X-Wait")) == 9.0
    unreadable = reply(429, x_wait="soon", retry_after="9")
    assert wait_asked(unreadable.headers, HeaderWait(header="X-Wait")) == 9.0


# reasons


def test_a_reason_holds_no_value_of_the_row() -> None:
    values = ["Ann O'Neil", "ann@example.com", "42", "ab", "true story"]
    assert scrub("no such user: ANN@example.com (42)", values) == "no such user: … (…)"
    assert scrub("O'Neil is taken", values) == "…'… is taken"
    assert scrub("xann@example.comx", values) == "x…x"
    assert scrub("ann@example.com", values) is None
    assert scrub("fine\n\x1b[31m as it is", []) == "fine [31m as it is"
    assert len(scrub("x y" * 500, []) or "") == LONGEST_REASON


@given(st.text(min_size=1), st.text(), st.text())
def test_no_value_survives_in_a_reason(value: str, before: str, after: str) -> None:
    told = scrub(f"{before} {value} {after}", [value])
    words = [word for word in value.split() if word.isalnum()]
    assert told is None or not set(words) & set(told.split())


def test_a_code_that_holds_a_value_is_dropped() -> None:
    answer = reply(422, {"error": {"code": "taken_by secret value", "message": "secret value is taken"}})
    result = interpret(answer, Rules(), sent(1)).default
    assert (result.code, result.reason) == ("HTTP_422", "… is taken")


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [({"a": [{"b": 1}]}, "a.0.b", 1), ([1], "", [1]), ({"a": 1}, "a.b", None), ([1], "1", None), ([1], "x", None), (None, "a", None)],
)  # fmt: skip
def test_paths_lead_somewhere_or_to_nothing(value: Any, path: str, found: Any) -> None:
    assert look(value, path) == found


def test_a_value_has_one_text() -> None:
    from datetime import UTC, date, datetime
    from decimal import Decimal
    from uuid import UUID

    values = ["a", 7, True, Decimal("1E-10"), Decimal("1E+3"), date(2026, 1, 2), UUID(int=1), 2**70]
    assert [text(value) for value in values] == [
        "a", "7", "true", "0.0000000001", "1000", "2026-01-02", str(UUID(int=1)), str(2**70),
    ]  # fmt: skip
    assert text(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00Z"


# counts, pointers, and what is inside


def counted(failed: Any, errors: list[Any], rows: Any = "errors_by_value") -> Outcome:
    rules = Rules(rows=rows, at="errors", failed="failed", match={"at": "key"})
    return interpret(reply(200, {"failed": failed, "errors": errors}), rules, sent())


def test_failures_that_are_counted_and_not_named_leave_the_others_in_doubt() -> None:
    named = [{"key": "k1@example.com", "code": "BAD"}]
    assert kinds(counted(1, named)) == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
    assert kinds(counted(2, named)) == [Kind.UNKNOWN, Kind.REJECTED, Kind.UNKNOWN]
    assert kinds(counted(3, named)) == [Kind.REJECTED] * 3
    assert counted("1", named) == counted(1, named)
    for nonsense in (None, "one", "-1", "1" * 30, True, -1, 4, 1.0):
        outcome = counted(nonsense, named)
        assert (Kind.WRITTEN in kinds(outcome), outcome.divides) == (False, False)


def test_counts_alone_tell_all_none_or_nothing() -> None:
    assert counted(0, [], "counts_only") == Outcome(WRITTEN)
    assert kinds(counted(3, [], "counts_only")) == [Kind.REJECTED] * 3
    some = counted(1, [], "counts_only")
    assert (kinds(some), some.divides) == ([Kind.UNKNOWN] * 3, True)
    assert some.default.reason == "the target refused 1 of 3 rows and named none"


def test_a_pointer_with_one_number_is_an_index() -> None:
    rules = Rules(rows="errors_by_index", at="errors", index="at")
    for pointer in ("/data/2/email", "data[2].email", "2"):
        outcome = interpret(reply(200, {"errors": [{"at": pointer}]}), rules, sent())
        assert kinds(outcome) == [Kind.WRITTEN, Kind.WRITTEN, Kind.REJECTED]
    for pointer in ("/data/2/phones/0", "/data/email"):
        outcome = interpret(reply(200, {"errors": [{"at": pointer}]}), rules, sent())
        assert (kinds(outcome), outcome.divides) == ([Kind.UNKNOWN] * 3, True)


def test_the_first_identity_that_an_item_tells_names_its_row() -> None:
    both = [{"at": "trace", "to": "$row_no"}, {"at": ["email", "id"], "to": "$key"}]
    items = [{"trace": "2", "email": "k0@example.com"}, {"id": "k1@example.com"}, {"other": 1}]
    outcome = interpret(reply(200, items), Rules(rows="listed", match=both), sent())
    assert kinds(outcome) == [Kind.UNKNOWN, Kind.WRITTEN, Kind.WRITTEN]


def test_what_was_not_looked_at_comes_again() -> None:
    rules = Rules(rows="listed", at="done", retry_at="left", match={"at": ["id", ""], "to": "$row_no"})
    outcome = interpret(reply(200, {"done": [{"id": "1"}], "left": ["0", "1"]}), rules, sent())
    assert kinds(outcome) == [Kind.RETRY, Kind.WRITTEN, Kind.UNKNOWN]


@pytest.mark.parametrize("body", ["%%%", "bm8=", "", None, 7])
def test_an_inside_that_cannot_be_opened_is_no_success(body: Any) -> None:
    rules = Rules(rows="positional", inside="body", row_ok={"at": "body.ok", "in": [True]})
    assert kinds(interpret(reply(200, [{"body": body}]), rules, sent(1)), 1) == [Kind.REJECTED]


def test_a_text_can_be_recognised_by_what_it_holds() -> None:
    rules = Rules(
        rows="none", cases=[{"status": [200], "when": {"holds": "error 429"}, "means": "unavailable"}]
    )
    with pytest.raises(Unavailable):
        interpret(reply(200, b"it was error 429, sorry"), rules, sent())
    assert interpret(reply(200, b"1"), rules, sent()) == Outcome(WRITTEN)
    with pytest.raises(ValidationError):
        Rules(ok_when={"at": "x"})


def test_a_429_that_does_not_say_how_long_has_the_usual_wait() -> None:
    for status, headers, seconds in ((429, {}, 30.0), (429, {"retry_after": "2"}, 2.0), (503, {}, None)):
        with pytest.raises(Unavailable) as caught:
            interpret(reply(status, **headers), Rules(wait="30s"), sent())
        assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("usage", "headers", "expected"),
    [
        ({"limit": "L", "remaining": "R", "reset": {"header": "T", "unit": "ms"}},
         {"l": "100", "r": "25", "t": "10000"}, Quota(0.25, 10.0)),
        ({"limit": "L", "remaining": "R", "reset": {"header": "T", "unit": "epoch_s"}},
         {"l": "100", "r": "0", "t": "1795240830", "date": "Sat, 21 Nov 2026 06:00:00 GMT"}, Quota(0.0, 30.0)),
        ({"limit": "L", "remaining": "R"}, {"l": "100", "r": "50"}, Quota(0.5)),
        ({"limit": "L", "remaining": "R"}, {"l": "100"}, None),
        ({"limit": "L", "remaining": "R"}, {"l": "0", "r": "0"}, None),
        ({"limit": "L", "remaining": "R"}, {"l": "many", "r": "few"}, None),
        ({"header": "U", "used": r"api-usage=(\d+)/(\d+)"}, {"u": "api-usage=695/1000"}, Quota(0.305)),
        ({"header": "U", "used": r"api-usage=(\d+)/(\d+)"}, {"u": "per-app=1"}, None),
    ],
)  # fmt: skip
def test_headers_tell_what_is_left(usage: Any, headers: dict[str, str], expected: Quota | None) -> None:
    assert quota(headers, Usage(**usage)) == expected


# the target's own ids

TELLING = Rules(at="records", match={"at": "mail", "to": "$key"}, ref="id")


def records(*pairs: tuple[int, Any]) -> Reply:
    return reply(200, {"records": [{"mail": f"k{n}@example.com", "id": id} for n, id in pairs]})


@pytest.mark.parametrize(
    ("pairs", "refs"),
    [
        ([(2, "c"), (0, 7), (1, "b")], ["7", "b", "c"]),  # by name, in whatever order
        ([(0, "a"), (9, "z")], ["a", None, None]),  # and what is not named tells none
        ([(0, "a"), (1, "b"), (1, "c")], ["a", None, None]),  # nor what is named twice
        ([(0, None), (1, "b")], [None, "b", None]),
    ],
)
def test_an_ok_for_all_tells_the_ids_of_rows_that_its_items_name(pairs: Any, refs: list[str | None]) -> None:
    outcome = interpret(records(*pairs), TELLING, sent())
    assert kinds(outcome) == [Kind.WRITTEN] * 3
    assert [outcome.result(n).ref for n in range(3)] == refs


@pytest.mark.parametrize("content", [{"id": 7}, [{"id": 7}], {"records": [{"id": 7}]}])
def test_an_answer_about_one_row_is_about_that_row(content: Any) -> None:
    at = "" if isinstance(content, list) else "records"
    assert interpret(reply(200, content), Rules(at=at, ref="id"), sent(1)).result(0).ref == "7"


def test_a_row_that_was_there_already_tells_its_id() -> None:
    rules = POSITIONAL.model_copy(update={"row_kept": Match(at="status", **{"in": ["old"]})})
    outcome = interpret(reply(200, {"results": [{"status": "old", "id": "x"}]}), rules, sent(1))
    assert (outcome.result(0).kind, outcome.result(0).ref) == (Kind.SKIPPED, "x")


def test_one_of_several_that_is_absent_is_found_by_halving() -> None:
    rules = Rules(cases=({"status": [404], "means": "some_absent"},))
    with pytest.raises(Poisoned):
        interpret(reply(404), rules, sent(2))
    assert interpret(reply(404), rules, sent(1)) == Outcome(ABSENT)


def test_a_pattern_finds_the_index_among_other_numbers() -> None:
    rules = Rules(rows="errors_by_index", at="errors", index={"at": "field", "pattern": r"members\[(\d+)\]"})
    answer = reply(400, {"errors": [{"field": "members[2].user_identifiers[0].email"}]})
    outcome = interpret(answer, rules, sent())
    assert (kinds(outcome), outcome.divides) == ([Kind.RETRY, Kind.RETRY, Kind.REJECTED], True)


def test_a_line_s_number_is_an_index_after_the_first() -> None:
    rules = Rules(rows="errors_by_index", index="line", first=2)
    outcome = interpret(reply(200, [{"line": "2"}, {"line": 4}]), rules, sent())
    assert kinds(outcome) == [Kind.REJECTED, Kind.WRITTEN, Kind.REJECTED]
    assert kinds(interpret(reply(200, [{"line": "1"}]), rules, sent())) == [Kind.UNKNOWN] * 3


@pytest.mark.parametrize("nothing", [[], {}, ""])
def test_a_list_of_errors_with_nothing_in_it_is_a_success(nothing: Any) -> None:
    rules = Rules(ok_when={"at": "data.userErrors", "empty": True}, rows="all_or_nothing")
    assert interpret(reply(200, {"data": {"userErrors": nothing}}), rules, sent()) == Outcome(WRITTEN)
    for other in ([{"message": "no"}], None, 0, False, "no"):
        with pytest.raises(Poisoned):
            interpret(reply(200, {"data": {"userErrors": other}}), rules, sent())


def test_a_count_is_a_sum_and_may_be_absent_or_a_text() -> None:
    paths = ["done.*.errors.*.count", "rest"]
    job = {"done": [{"errors": [{"count": "1"}, {"count": 1}]}, {"errors": []}, {}], "rest": "0"}
    assert Count(at=paths).of(job) == 2
    assert Count(at=paths).of({"done": [], "rest": 0}) is None
    assert Count(at=paths, absent=0).of({"done": [], "rest": "3"}) == 3
    assert Count(at=paths, absent=0).of({}) == 0
    for nonsense in (None, "", "x", 1.0, True, [1]):
        assert Count(at="rest").of({"rest": nonsense}) is None
    rules = Rules(rows="counts_only", failed={"at": "failed", "absent": 0})
    assert interpret(reply(200, {}), rules, sent()) == Outcome(WRITTEN)


def test_errors_by_index_may_be_a_map_or_lists_of_numbers() -> None:
    by_name = Rules(rows="errors_by_index", at="errors", index="$name", reason="")
    outcome = interpret(reply(200, {"errors": {"1": "no such field"}}), by_name, sent())
    assert kinds(outcome) == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
    assert outcome.result(1).reason == "no such field"
    assert interpret(reply(200, {"errors": {}}), by_name, sent()) == Outcome(WRITTEN)
    listed = Rules(rows="errors_by_index", at="invalid.*", index="")
    outcome = interpret(reply(200, {"invalid": {"time": [0, 2], "user_id": [2]}}), listed, sent())
    assert kinds(outcome) == [Kind.REJECTED, Kind.WRITTEN, Kind.REJECTED]


REFUSED_ROWS = Rules(ok=(200,), partial=(400,), rows="errors_by_index", at="failed", reason="error")


@pytest.mark.parametrize(
    "content", [{"error": "no such project"}, {"error": "no such project", "failed": []}]
)
def test_a_refusal_that_names_no_row_is_quoted(content: Any) -> None:
    outcome = interpret(reply(400, content), REFUSED_ROWS, sent())
    assert (kinds(outcome), outcome.divides) == ([Kind.UNKNOWN] * 3, True)
    assert outcome.default.reason == "the target answered 400 Bad Request: no such project"
    alone = interpret(reply(400, content), REFUSED_ROWS, sent(1)).default
    assert (alone.kind, alone.code, alone.reason) == (Kind.REJECTED, "HTTP_400", "no such project")
    listed = Rules(partial=(400,), rows="listed", at="failed", reason="error")
    assert interpret(reply(400, content), listed, sent(1)).default == alone


def test_a_refusal_that_is_no_json_refuses_the_row() -> None:
    assert interpret(reply(400, b"Bad request"), REFUSED_ROWS, sent()).divides
    assert interpret(reply(400, b"Bad request"), REFUSED_ROWS, sent(1)).default.kind is Kind.REJECTED


def test_an_error_that_names_no_row_is_meant_for_the_only_one() -> None:
    rules = Rules(rows="errors_by_index", at="errors")
    outcome = interpret(reply(200, {"errors": [{"index": 7, "message": "no"}]}), rules, sent(1))
    assert (outcome.result(0).kind, outcome.result(0).reason) == (Kind.REJECTED, "no")


def test_a_name_that_two_rows_have_names_neither() -> None:
    def names(to: str) -> list[str]:
        return ["x", "x", "y"]

    twice = Sent(3, True, names, lambda row: [])
    rules = Rules(rows="listed", at="results", match={"to": "$half"})
    outcome = interpret(reply(200, {"results": ["x", "y"]}), rules, twice)
    assert kinds(outcome) == [Kind.UNKNOWN, Kind.UNKNOWN, Kind.WRITTEN]


# a throttle in other words


THROTTLED = {"status": [200, 400], "when": {"at": "code", "in": ["slow"]}, "means": "unavailable"}


def asked(rules: Rules, answer: Reply) -> float | None:
    with pytest.raises(Unavailable) as caught:
        interpret(answer, rules, sent())
    return caught.value.retry_after


def test_a_throttle_in_a_200_is_given_the_time_that_the_rules_name() -> None:
    told = reply(200, {"code": "slow"})
    assert asked(Rules(cases=[THROTTLED]), told) is None
    assert asked(Rules(wait="30s", cases=[THROTTLED]), told) == 30.0
    assert asked(Rules(wait="30s", cases=[{**THROTTLED, "wait": "2s"}]), told) == 2.0
    assert asked(Rules(wait="30s", cases=[THROTTLED]), reply(200, {"code": "slow"}, retry_after="7")) == 7.0
    assert asked(Rules(wait="30s"), reply(429)) == 30.0
    assert asked(Rules(wait="30s"), reply(503)) is None


def test_the_time_to_wait_may_be_in_the_answer() -> None:
    rules = Rules(retry_after={"at": "error.again_ms", "unit": "ms"}, wait="30s")
    assert asked(rules, reply(429, {"error": {"again_ms": 1500}})) == 1.5
    assert asked(rules, reply(429, {"error": {"again_ms": "1500"}})) == 1.5
    for silent in ({"error": {}}, {"error": {"again_ms": [1]}}, b"slow down", None):
        assert asked(rules, reply(429, silent)) == 30.0
    for wrong in ({"header": "X", "at": "y"}, {"unit": "s"}):
        with pytest.raises(ValidationError):
            Rules(retry_after=wrong)
