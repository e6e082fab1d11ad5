"""Braze: 201 is the success, and what was refused is told by its index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from retl.batch import Kind
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import Proof, Recorded, lines


class Braze(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        content = json.loads(body)
        if path == "/users/delete":
            gone = [self.users.pop(name, None) for name in content["external_ids"]]
            return 201, {"deleted": len(gone), "message": "success"}
        rows, errors = content["attributes"], []
        if len(rows) > 75:
            return 400, {"message": "more than 75 objects"}
        for index, row in enumerate(rows):
            if (row["visits"] or 0) < 0:
                errors.append({"type": "'visits' is invalid", "input_array": "attributes", "index": index})
            else:
                name = row.pop("external_id")
                self.users.setdefault(name, {}).update(row)
        if len(errors) == len(rows):
            return 400, {"message": "Valid data must be provided", "errors": errors}
        return 201, {
            "message": "success",
            "attributes_processed": len(rows),
            **({"errors": errors} if errors else {}),
        }


class TestBraze(Proof):
    preset, vendor, limit, key = "braze", Braze, 75, "external_id"
    connection = {"api_key": TOKEN, "instance": "rest.iad-01.braze.com"}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"erase": True}
    contract = (
        "braze/openapi.json",
        "#/paths/~1users~1track/post/requestBody/content/application~1json/schema",
    )
    special = {
        "429 and its own header": [fake.answer(429, b"{}", X_RateLimit_Retry_After="0")],
        "an error that names nobody": [
            fake.changed(lambda said: {**said, "errors": [{"type": "x", "index": 9}]})
        ],
    }
    doubtful = frozenset({"an error that names nobody"})

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/braze.jsonl"):
            if one["path"] == "/users/track":
                rows = one["req_body"]["attributes"]
                assert one["resp_body"]["attributes_processed"] == len(rows)
                yield Recorded(one, [row["external_id"] for row in rows], [Kind.WRITTEN] * len(rows))
            elif one["path"] == "/users/delete":
                names = one["req_body"]["external_ids"]
                yield Recorded(one, names, [Kind.WRITTEN] * len(names), "delete")

    def test_201_with_errors_by_index_refuses_those_rows_alone(self) -> None:
        said = {"message": "success", "attributes_processed": 2, "errors": [{"type": "bad", "index": 1}]}
        one = {"status": 201, "resp_headers": {}, "resp_body": said}
        outcome = self.read(Recorded(one, ["a", "b", "c"], []))
        assert [outcome.result(n).kind for n in range(3)] == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
