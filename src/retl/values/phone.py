"""SQL for phone numbers in the international form E.164: `+` and 8 to 15 digits.

Spaces, `-`, `.`, `/` and brackets go; nothing is guessed. A number without `+` can be read only where the
sync says of which country it is; `(0)` inside an international one, `00` or an extension can be read in
more than one way. Whether a number is in use, nobody here knows.
"""

from __future__ import annotations

from retl.values.sql import literal

REASON = "this is not an unambiguous phone number: + and 8 to 15 digits"
_WHOLE = r"\+[1-9][0-9]{7,14}"


def e164_sql(expr: str, country: str | None, trunk: str) -> str:
    """SQL for the number in a string; a number that cannot be read is unchanged. `country` is the calling
    code of numbers without `+`, `trunk` the prefix that is dialled only inside the country."""
    bare = f"regexp_replace({expr}, '[ ./()-]', '', 'g')"
    forms = [bare]
    if country is not None:
        rest = f"substr({bare}, {len(trunk) + 1})"
        # without a trunk prefix, a number that starts with the calling code may already contain it
        clear = (
            f"starts_with({bare}, {literal(trunk)})"
            if trunk
            else f"NOT starts_with({bare}, {literal(country)})"
        )
        national = f"CASE WHEN {clear} AND {rest} NOT LIKE '0%' THEN {literal('+' + country)} || {rest} END"
        forms.append(national)
    cases = " ".join(f"WHEN regexp_full_match({form}, '{_WHOLE}') THEN {form}" for form in forms)
    twice = f"regexp_matches({expr}, '\\( *0 *\\)')"
    return f"CASE WHEN {twice} THEN {expr} {cases} ELSE {expr} END"


def unread_sql(expr: str) -> str:
    """SQL: TRUE if the result of `e164_sql` is not a number. Never NULL."""
    return f"({expr} IS NOT NULL AND NOT regexp_full_match({expr}, '{_WHOLE}'))"
