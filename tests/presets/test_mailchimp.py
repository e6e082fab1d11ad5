"""Mailchimp: errors named by address and counted; an archived member cannot be archived again."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from retl.batch import UNKNOWN as NOBODY_KNOWS
from retl.batch import Field, Kind, Outcome
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import WHOLE, Proof, Recorded, lines

BASIC = "Basic " + b64encode(f"retl:{TOKEN}".encode()).decode()


class Mailchimp(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != BASIC:
            return 401, {"title": "API Key Invalid"}
        if method == "DELETE":
            known = self.users.pop(unquote(path.rpartition("/")[2]), None)
            return (204, None) if known is not None else (405, {"title": "Method Not Allowed"})
        members, errors = json.loads(body)["members"], []
        if len(members) > 500:
            return 400, {"title": "Bad Request", "detail": "more than 500 members"}
        for one in members:
            name, fields = one["email_address"], one["merge_fields"]
            if str(fields["visits"]).startswith("-"):
                errors.append({"email_address": name, "error": "not a number", "error_code": "ERROR_GENERIC"})
            else:
                self.users.setdefault(name, {}).update(fields)
        return 200, {
            "errors": errors,
            "error_count": len(errors),
            "total_created": len(members) - len(errors),
        }


class TestMailchimp(Proof):
    preset, vendor, limit = "mailchimp", Mailchimp, 500
    connection = {"api_key": TOKEN, "server": "us1"}
    parameters = {"list": "LIST"}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"list": "LIST"}
    special = {
        "a bare 403": [fake.answer(403)],
        "more errors than names": [fake.changed(lambda said: {**said, "error_count": 1})],
    }
    doubtful = frozenset({"more errors than names"})
    golden = (
        "mailchimp_batch_list_members.jsonl",
        0,
        {"list": "LIST"},
        (Field("LTV", WHOLE),),
        [("a@x.io", 5)],
    )

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": row[2]}

    def alike(self, request: dict[str, Any]) -> Any:
        for one in request["body"]["members"]:
            one.pop("email_type", None)  # the default
        return request

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/mailchimp.jsonl"):
            if one["method"] == "DELETE":
                yield Recorded(one, ["somebody"], [Kind.WRITTEN], "delete")

    def test_a_count_without_names_leaves_all_in_doubt(self) -> None:
        one = {"status": 200, "resp_headers": {}, "resp_body": {"errors": [], "error_count": 1}}
        assert self.read(Recorded(one, ["a", "b"], [])) == Outcome(NOBODY_KNOWS)
