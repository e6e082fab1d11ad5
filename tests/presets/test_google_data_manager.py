"""Google Data Manager: jobs that count whom they refused, for members who come and go."""

from __future__ import annotations

from typing import Any

from tests.presets.google import KEY, Google
from tests.presets.oauth import expire
from tests.presets.proof import Proof

HASH = "ab" * 32


class DataManager(Google):
    """A job is done at the second request for its state; `d@x.io` is refused, and counted."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.jobs: list[dict[str, Any]] = []

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "GET":
            job = self.jobs[int(path.rpartition("=")[2])]
            job["asked"] += 1
            state = "PROCESSING" if job["asked"] < 2 else job["state"]
            counts = {"errorCounts": [{"recordCount": "1", "reason": "INVALID_FORMAT"}]} if job["bad"] else {}
            return 200, {"requestStatusPerDestination": [{"requestStatus": state, "errorInfo": counts}]}
        if len(content["audienceMembers"]) > 10_000:
            return 400, {"error": {"status": "INVALID_ARGUMENT", "message": "too many members"}}
        keys = [one["userData"]["userIdentifiers"][0]["emailAddress"] for one in content["audienceMembers"]]
        bad = [key for key in keys if key == "d@x.io"]
        for key in keys:
            if path.endswith(":remove"):
                self.users.pop(key, None)
            elif key not in bad:
                self.users[key] = {}
        state = "FAILED" if len(bad) == len(keys) else "PARTIAL_SUCCESS" if bad else "SUCCESS"
        self.jobs.append({"state": state, "bad": bad, "asked": 0})
        return 200, {"requestId": str(len(self.jobs) - 1)}


class TestDataManager(Proof):
    preset, vendor, key, renews = "google_data_manager", DataManager, "email_hash", True
    connection = {"key": KEY}
    parameters = {"account": "123", "audience": "987", "consent": "CONSENT_GRANTED"}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("d@x.io",)
    deletes = parameters
    contract = ("google/datamanager.json", "#/schemas/IngestAudienceMembersRequest")
    golden = ("google_datamanager_ingest.jsonl", 0, parameters, (), [(HASH,)])

    def expire(self, api: Any) -> None:
        expire(api)

    def alike(self, request: dict[str, Any]) -> Any:
        """The SDK asks for numbers instead of names, gives a consent of its own, and only validates."""
        body = request["body"]
        to = [one["productDestinationId"] for one in body["destinations"]]
        return request["method"], request["path"].partition("?")[0], to, body["audienceMembers"]
