"""A contract's rules as SQL predicates, true for values that Pydantic surely accepts.

They never reject a row. If DuckDB and Pydantic could judge a value differently, the predicate is FALSE and
the model judges the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from retl.contract.model import BOUNDS, Rule
from retl.values import storage
from retl.values.sql import literal, quoted
from retl.values.types import Type


def clearing(name: str, rule: Rule, timezone: str) -> Iterator[str]:
    """Predicates, never NULL. If all are true, the value surely passes its rule."""
    column = quoted(name)
    if not rule.nullable:
        yield f"{column} IS NOT NULL"
    exact = storage.exact(rule.type, column, rule.column_type, timezone)
    if exact != "TRUE":
        yield exact
    tests = list(_limiting(rule, storage.cast(rule.type, column, rule.column_type, timezone)))
    if tests:
        yield f"({column} IS NULL OR coalesce({' AND '.join(tests)}, FALSE))"


def _limiting(rule: Rule, value: str) -> Iterator[str]:
    count = f"len({value})" if rule.type.name == "list" else f"length({value})"  # code points, as in Pydantic
    if rule.type.name == "list" and not rule.item_nullable:
        yield f"len(list_filter({value}, lambda e: e IS NULL)) = 0"
    if rule.min_length:
        yield f"{count} >= {rule.min_length}"
    if rule.max_length is not None:
        yield f"{count} <= {rule.max_length}"
    if rule.pattern is not None:
        yield (
            f"regexp_matches({value}, {literal(rule.pattern)})"
            if _PATTERN.fullmatch(rule.pattern)
            else "FALSE"
        )
    if rule.one_of is not None:
        yield _among(rule, value)
    for part in BOUNDS:
        if (limit := getattr(rule, part)) is not None:
            yield _inside(rule.type, value, part, limit)


def _among(rule: Rule, value: str) -> str:
    """Compared with collation C, because the column's own collation may treat 'A' and 'a' as equal."""
    options = rule.one_of or ()
    if rule.type.name == "integer":
        return f"{value} IN ({', '.join(str(int(option)) for option in options)})"
    if any("\0" in str(option) for option in options):
        return "FALSE"
    return f'({value} COLLATE "C") IN ({", ".join(literal(str(option)) for option in options)})'


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _inside(type: Type, value: str, part: str, limit: Any) -> str:
    """A limit as SQL; FALSE if SQL and Pydantic could compare differently."""
    name, sign = type.name, _SIGNS[part]
    if isinstance(limit, bool):
        return "FALSE"
    if name in ("integer", "decimal") and isinstance(limit, int | Decimal) and Decimal(limit).is_finite():
        return _inside_digits(type, value, part, Decimal(limit))
    if name == "float" and isinstance(limit, int | float) and abs(limit) < 2**53:
        return f"{value} {sign} CAST({literal(repr(float(limit)))} AS DOUBLE)"
    if name == "date" and isinstance(limit, date) and not isinstance(limit, datetime):
        return f"{value} {sign} CAST({literal(limit.isoformat())} AS DATE)"
    if isinstance(limit, datetime) and name == ("timestamptz" if limit.tzinfo else "timestamp"):
        return f"{value} {sign} CAST({literal(limit.isoformat())} AS {storage.storage_type(type)})"
    return "FALSE"


def _inside_digits(type: Type, value: str, part: str, limit: Decimal) -> str:
    """A limit rounded inwards to the digits of the storage type, so that no cast is needed."""
    places, digits = type.decimal_places or 0, type.max_digits or 19
    context = Context(prec=400, Emin=-999999, Emax=999999)
    step = Decimal(1).scaleb(-places, context)
    try:
        rounded = limit.quantize(
            step, rounding=ROUND_CEILING if part in ("ge", "gt") else ROUND_FLOOR, context=context
        )
    except ArithmeticError:
        return "FALSE"
    strict = part in ("gt", "lt") and rounded == limit
    top = Decimal(2**63 - 1) if type.name == "integer" else Decimal(10**digits - 1).scaleb(-places, context)
    bottom = -top - 1 if type.name == "integer" else -top
    if not bottom <= rounded <= top:
        return "TRUE" if (rounded < 0) == (part in ("ge", "gt")) else "FALSE"
    sign = _SIGNS[part][0] if strict else _SIGNS[part][0] + "="
    return f"{value} {sign} CAST('{rounded:f}' AS {storage.storage_type(type)})"


# RE2 and Pydantic's engine agree on these: ASCII letters, groups, simple classes, small repeats. \d, \w and
# \s mean ASCII in RE2 and Unicode in Pydantic, so a match in RE2 is also one in Pydantic, unless they are
# negated.
_PATTERN = re.compile(
    r"""(?:
        (?: [A-Za-z0-9\ _@%#!:;,<>=/'"&~`-] | \\[.\-+*?()\[\]{}^$|\\] | \\[dws] | \.
          | \[ (?: [A-Za-z0-9\ _@%+.*?,:;/!#$=()] | -(?!-) | \\[.\-+*?()\[\]{}^$|\\] | \\[dws] )+ \]
          | \[\^ (?: [A-Za-z0-9\ _@%+.*?,:;/!#$=()] | -(?!-) | \\[.\-+*?()\[\]{}^$|\\] )+ \]
        ) (?: [*+?]\?? | \{[0-9]{1,2}(?:,[0-9]{0,2})?\}\?? )?
      | [\^$|] | \((?!\?) | \)(?:[*+?]\??)?
    )*""",
    re.VERBOSE,
)
