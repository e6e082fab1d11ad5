"""Look-ups by key: no name leaves its quotes, and no record is taken for another."""

from __future__ import annotations

from urllib.parse import unquote

from retl.destinations.salesforce_bulk import soql


def asked(names: list[str], *, numbers: bool = False) -> list[str]:
    return [unquote(query) for query in soql.lookups("Contact", "Ext__c", names, numbers=numbers)]


def test_names_are_quoted_and_numbers_are_not() -> None:
    head = "SELECT Id, Ext__c FROM Contact WHERE Ext__c IN ("
    assert asked(["a", "o'neil", "back\\", "x') OR (Id != '"]) == [
        head + r"'a','o\'neil','back\\','x\') OR (Id != \''" + ")"
    ]
    assert asked(["1", "22"], numbers=True) == [f"{head}1,22)"]
    assert asked([]) == []


def test_a_query_is_short_enough_for_an_address() -> None:
    queries = list(soql.lookups("Contact", "Ext__c", [f"k{n}" for n in range(205)], numbers=False))
    assert [query.count("%2C") + query.count("','") + query.count("%27,%27") + 1 for query in queries] == [
        101,  # one more than names: the comma between the two columns
        101,
        6,
    ]
    long = list(soql.lookups("Contact", "Ext__c", ["é" * 1000] * 5, numbers=False))
    assert all(len(query) < 16_000 for query in long)
    assert len(long) == 5


def test_an_id_is_taken_only_where_one_record_has_exactly_this_name() -> None:
    records = [
        {"Id": "1", "Ext__c": "ann"},
        {"Id": "2", "Ext__c": "Bob"},
        {"Id": "3", "Ext__c": "cy"},
        {"Id": "4", "Ext__c": "cy"},
        {"Id": "5", "Ext__c": "Dan"},
        {"Id": "6", "Ext__c": "dan"},
    ]
    assert soql.ids("Ext__c", ["ann", "bob", "cy", "dan", "eve"], records) == ["1", (), (), "6", None]
    assert soql.ids("Ext__c", ["7", "70"], [{"Id": "1", "Ext__c": 7.0}]) == ["1", None]
