"""Phone numbers become E.164 where they can be read in one way only; the others are rejects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.testing import FakeHubSpot
from retl.values import phone
from tests import duckdb_files, inprocess


def read(number: str | None, country: str | None = None, trunk: str = "") -> str | None:
    """The number as it would be sent; "?" for one that is a reject."""
    with duckdb.connect() as db:
        made = phone.e164_sql("n", country, trunk)
        row = db.execute(f"SELECT {made}, {phone.unread_sql(made)} FROM (SELECT ?::VARCHAR AS n)", [number])
        value, unread = row.fetchall()[0]
    assert isinstance(unread, bool)
    return "?" if unread else value


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, None),
        ("+4915112345678", "+4915112345678"),
        ("+49 (151) 123-456.78", "+4915112345678"),
        ("+1/415/5552671", "+14155552671"),
        ("+39 06 1234 5678", "+390612345678"),
        ("+12345678", "+12345678"),
        ("+123456789012345", "+123456789012345"),
        ("+1234567", "?"),
        ("+1234567890123456", "?"),
        ("+0123456789", "?"),
        ("+49 (0) 151 12345678", "?"),
        ("+49 ( 0)151 12345678", "?"),
        ("0049 151 12345678", "?"),
        ("0151 12345678", "?"),
        ("15112345678", "?"),
        ("+49 151 12345678 ext 5", "?"),
        ("+49 151 12345678\n", "?"),
        ("++4915112345678", "?"),
        ("4915112345678+", "?"),
        ("\uff0b4915112345678", "?"),
        ("+49151\u0661\u0662345678", "?"),
        ("", "?"),
        ("n/a", "?"),
    ],
)
def test_only_what_says_its_country_is_read(number: str | None, expected: str | None) -> None:
    assert read(number) == expected


@pytest.mark.parametrize(
    ("number", "country", "trunk", "expected"),
    [
        ("0151 123 456 78", "49", "0", "+4915112345678"),
        ("04921 123456", "49", "0", "+494921123456"),  # a town whose code begins like the country's
        ("+43 660 1234567", "49", "0", "+436601234567"),
        ("151 12345678", "49", "0", "?"),
        ("49 151 12345678", "49", "0", "?"),
        ("0049 151 12345678", "49", "0", "?"),
        ("(415) 555-2671", "1", "", "+14155552671"),
        ("1 415 555 2671", "1", "", "?"),
        ("06 1234 5678", "39", "", "?"),
        ("8 912 345 67 89", "7", "8", "+79123456789"),
        ("0151", "49", "0", "?"),
    ],
)
def test_a_declared_country_reads_its_own_numbers(
    number: str, country: str, trunk: str, expected: str
) -> None:
    assert read(number, country, trunk) == expected


def test_a_number_that_cannot_be_read_rejects_its_row_until_it_can(tmp_path: Path) -> None:
    rows = "('a@x.io', '+49 151 1234567'), ('b@x.io', NULL), ('c@x.io', '0151 1234567')"
    write(tmp_path, f"CREATE TABLE m AS SELECT * FROM (VALUES {rows}) t(email, phone)")
    (tmp_path / "syncs").mkdir()
    (tmp_path / "syncs" / "a.yml").write_text(
        "source: {table: m}\nkey: [email]\nguards: {max_reject_rate: 1}\n"
        "fields: {phone: {column: phone, transform: [trim, e164]}}\n"
        "destination: {connection: crm}\n"
    )
    with FakeHubSpot() as api:
        (tmp_path / "retl.yml").write_text(
            "warehouse: {path: mart.duckdb}\n"
            f"connections: {{crm: {{type: hubspot, token: {api.token}, base_url: '{api.url}'}}}}\n"
        )
        first = sync(tmp_path)
        assert [(one["key"], one["code"]) for one in first["rejects"]] == [("c@x.io", "NO_PHONE")]
        assert api.objects == {"a@x.io": {"phone": "+491511234567"}, "b@x.io": {"phone": ""}}
        write(tmp_path, "UPDATE m SET phone = 'unknown' WHERE email = 'b@x.io'")
        assert {one["key"] for one in sync(tmp_path)["rejects"]} == {"b@x.io", "c@x.io"}
        write(tmp_path, "UPDATE m SET phone = '+491519999999' WHERE email <> 'a@x.io'")
        assert sync(tmp_path)["rejected"] == 0
        assert {one["phone"] for one in api.objects.values()} == {"+491511234567", "+491519999999"}
        file = tmp_path / "syncs" / "a.yml"
        file.write_text(file.read_text().replace("e164]", "{e164: {country: 49, trunk: 0}}]"))
        again = sync(tmp_path)
        assert again["updated"] == 3, "another transform is another shape: every row is sent once"


def write(folder: Path, statement: str) -> None:
    with duckdb_files.opened(folder / "mart.duckdb") as mart:
        mart.execute(statement)


def sync(folder: Path) -> dict[str, Any]:
    done = inprocess.answer(["--project", str(folder), "sync", "--output", "json"], os.environ, Path.cwd())
    assert done.code == 0, done.err
    found: dict[str, Any] = done.document["syncs"][0]
    return found
