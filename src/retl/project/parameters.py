"""The types of `vars` and of --var, which SQL reads as `$name`: what is written decides, as in YAML.

A number is a number, a day (2026-11-20, or `today`) is a date, and everything else is text. A text from the
environment that is no day stays text. It renders nothing: a value never becomes SQL text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from retl.errors import DefinitionError
from retl.project.yamlfile import plain

TODAY = "today"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def given(name: str, text: str, declared: Any) -> Any:
    """The value of --var NAME=TEXT, of the type of its value in retl.yml; without one as YAML reads it.
    DefinitionError VAR_INVALID if it is of another type."""
    value = plain(text)
    kind: Any = type(declared)
    if declared is None:
        return value
    if kind is str and is_day(declared):
        if not is_day(text):
            raise _invalid(name, "a day, such as 2026-11-20, or today", declared, text)
        return text
    if kind is str:
        return text
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise _invalid(name, _KINDS[kind], declared, text)
    return kind(value)


def bound(values: Mapping[str, Any], declared: Mapping[str, Any], today: date) -> dict[str, Any]:
    """The values as they are bound: days are dates, unless the value in retl.yml is another text."""
    return {name: _bound(value, declared.get(name), today) for name, value in values.items()}


def _bound(value: Any, declared: Any, today: date) -> Any:
    is_text = isinstance(declared, str) and not is_day(declared)
    if is_text or not isinstance(value, str) or not is_day(value):
        return value
    return today if value == TODAY else date.fromisoformat(value)


def is_day(text: str) -> bool:
    """Whether a text is a day of the calendar, or `today`."""
    if text == TODAY:
        return True
    try:
        return bool(_DAY.fullmatch(text) and date.fromisoformat(text))
    except ValueError:
        return False


def _invalid(name: str, wanted: str, declared: Any, text: str) -> DefinitionError:
    return DefinitionError(
        "VAR_INVALID",
        f"--var {name} takes {wanted}, as its value in retl.yml is ({declared}), not {text!r}",
        hint=f"change it under `vars:` in retl.yml if {name} is of another type",
    )
