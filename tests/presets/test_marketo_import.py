"""Marketo's imports: a file in a form, a job, and a file of the rows that were refused."""

from __future__ import annotations

from typing import Any, ClassVar

from retl.destinations.batch import Kind
from retl.errors import Later
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.bulk import MarketoImports
from tests.presets.oauth import expire
from tests.presets.proof import Proof
from tests.presets.test_marketo import failed


class TestMarketoImport(Proof):
    preset, vendor, limit, key, renews = "marketo_import", MarketoImports, None, "email", True
    connection: ClassVar = {"client_id": "me", "client_secret": TOKEN, "munchkin": "123-ABC-456"}
    parameters: ClassVar = {"list": 7}
    bad = ("d@x.io", "Dan", 1)
    special: ClassVar = {
        "too many imports": [fake.answer(200, failed("1016"))] * 2,
        "a poll that breaks": [passed, fake.answer(500), fake.reset(applied=False)],
    }
    stops: ClassVar = {"a spent day": (fake.answer(200, failed("607")), Later)}

    def expire(self, api: Any) -> None:
        expire(api)

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": str(row[2])}

    def test_a_file_of_errors_that_is_none_is_fetched_again(self, api: MarketoImports) -> None:
        api.faults += [passed, passed, passed, fake.answer(200, failed("1099"))]
        results = self.deliver(api, [self.bad, *self.rows])
        assert [one.kind for one in results] == [Kind.REJECTED, *[Kind.WRITTEN] * 3]
        assert results[0].reason == "Invalid email"
