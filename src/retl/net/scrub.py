"""Removes row values from a target's messages: reasons are stored and shown, values are not."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST_REASON = 200  # characters


def scrub(sentence: str, values: Iterable[str]) -> str | None:
    """A target's sentence without the values, at most LONGEST_REASON characters on one line; None if nothing
    is left. Whole values are removed, and each of their words wherever it is a word."""
    line = "".join(c if c.isprintable() else " " for c in sentence[: 20 * LONGEST_REASON])
    words: set[str] = set()
    folded = line.casefold()
    for value in values:
        if len(value) > 3 and value.casefold() in folded:
            line = re.sub(re.escape(value), "…", line, flags=re.IGNORECASE)
        words.update(word.casefold() for word in re.findall(r"\w+", value))
    line = re.sub(r"\w+", lambda found: "…" if found[0].casefold() in words else found[0], line)
    line = " ".join(line.split())
    if not re.search(r"\w", line):
        return None
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"
