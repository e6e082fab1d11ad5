"""Transforms of text, as SQL."""

from __future__ import annotations

_TRANSFORMS: dict[str, str] = {
    "trim": r"trim({}, E' \t\n\r\x0b\x0c')",
    "lower": "lower({})",
    "upper": "upper({})",
    "sha256_hex": "sha256({})",
    "md5_hex": "md5({})",
}


def transform_sql(name: str, expr: str) -> str:
    """SQL for a transform of a string's storage type; NULL stays NULL. `trim` takes ASCII white space."""
    return _TRANSFORMS[name].format(expr)
