"""One of a thing is told as one."""

from __future__ import annotations

import pytest

from retl.observe.summary import Estimate


@pytest.mark.parametrize(("word", "one"), [("requests", "1 request "), ("messages", "1 message ")])
def test_an_estimate_of_one_is_told_as_one(word: str, one: str) -> None:
    assert str(Estimate(1, 0.0, "50 per 10 s", word)).startswith(one)
    assert str(Estimate(2, 0.0, "50 per 10 s", word)).startswith(f"2 {word} ")
