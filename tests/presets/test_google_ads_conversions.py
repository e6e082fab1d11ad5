"""Google Ads: good conversions are taken, bad ones are named by their index, known ones are kept."""

from __future__ import annotations

from typing import Any

from retl.destinations.batch import Kind
from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof
from tests.presets.queues import Queue


class Ads(TokenServer, Queue):
    token_path, grant = "/token", "refresh_token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/v25/customers/123:uploadClickConversions"
        assert content["partialFailure"] is True
        if len(content["conversions"]) > 2000:
            return 400, {"error": {"status": "INVALID_ARGUMENT", "message": "too many conversions"}}
        errors = [told for n, one in enumerate(content["conversions"]) if (told := self.error(n, one))]
        return 200, {"partialFailureError": {"code": 3, "details": [{"errors": errors}]}} if errors else {}

    def error(self, number: int, one: dict[str, Any]) -> dict[str, Any] | None:
        assert one.pop("conversionAction") == "customers/123/conversionActions/7"
        key = one.pop("orderId")
        code = "CLICK_CONVERSION_ALREADY_EXISTS" if key in self.objects else "UNPARSEABLE_GCLID"
        if key in self.objects or key in self.refuse:
            where = {
                "fieldPathElements": [{"fieldName": "conversions", "index": number}, {"fieldName": "gclid"}]
            }
            return {"errorCode": {"conversionUploadError": code}, "message": "no", "location": where}
        self.objects[key] = one
        return None


class TestGoogleAds(Proof):
    preset, vendor, write, limit, idempotent = "google_ads_conversions", Ads, "append", 2000, False
    renews = True
    connection = {
        "developer_token": "dev",
        "client_id": "me",
        "client_secret": TOKEN,
        "refresh_token": "again",
        "token_url": "https://vendor/token",
    }
    parameters = {"customer": "123", "action": "7"}
    bad = ("d@x.io", "Dan", 4)

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: value for name, value in super().sent_as(row).items() if value is not None}

    def expire(self, api: Any) -> None:
        expire(api)

    def test_a_conversion_that_is_there_is_kept(self, api: Ads) -> None:
        api.objects["a@x.io"] = {}
        kinds = [one.kind for one in self.deliver(api, self.rows)]
        assert kinds == [Kind.SKIPPED, Kind.WRITTEN, Kind.WRITTEN]
