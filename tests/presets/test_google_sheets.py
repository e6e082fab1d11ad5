"""Google Sheets: rows below a table, and rows with tags that stay with them."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest

from retl.destinations.batch import Kind
from retl.errors import DefinitionError
from tests import api as fake
from tests.presets.google import KEY
from tests.presets.oauth import expire
from tests.presets.proof import Proof
from tests.presets.sheets import FakeSheets


class TestGoogleSheets(Proof):
    preset, vendor, renews = "google_sheets", partial(FakeSheets, refuse=["d@x.io"]), True
    connection = {"key": KEY}
    parameters: ClassVar = {"spreadsheet": "s", "columns": ["id", "name", "visits"], "rows": "tagged"}
    bad = ("d@x.io", "Dan", 4)
    deletes: ClassVar = parameters
    appended: ClassVar = {**parameters, "rows": "appended", "range": "People!A:C"}
    contract = ("google/sheets.json", "")
    special = {"the answer to a creation is lost": [fake.passed, fake.passed, fake.reset(applied=True)]}

    def contents(self, api: Any) -> dict[str, Any]:
        return {line[0]: dict(zip(("name", "visits"), line[1:], strict=True)) for line in api.lines if line}

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: "" if value is None else value for name, value in super().sent_as(row).items()}

    def expire(self, api: Any) -> None:
        expire(api)

    def test_people_may_sort_and_delete_lines(self, api: FakeSheets) -> None:
        written = self.deliver(api, self.rows)
        api.lines.reverse()
        del api.lines[api.lines.index(api.tags.pop(100)[1])]
        changed = [(key, f"{name}!", visits) for key, name, visits in self.rows]
        self.deliver(api, changed, refs=[one.ref for one in written])
        assert (self.contents(api), len(api.lines)) == (self.expected(changed), 3)

    def test_lines_are_appended_in_blocks_and_halved(self, api: FakeSheets, monkeypatch: Any) -> None:
        monkeypatch.setattr(self, "write", "append", raising=False)
        with pytest.raises(DefinitionError, match="means: made"):
            self.deliver(api, self.rows)
        results = self.deliver(api, [*self.rows, self.bad], parameters=self.appended)
        assert [one.kind for one in results] == [Kind.WRITTEN] * 3 + [Kind.REJECTED]
        assert sorted(self.contents(api)) == ["a@x.io", "b@x.io", "c@x.io"]
