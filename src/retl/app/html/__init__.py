"""Facts → HTML: one set of templates for `retl report`, `retl serve` and `retl docs`.

Every page is whole in itself: no script, no image, no font, nothing from a network. The template passes every
text through `shown` and escapes it; no HTML is written in Python. The page's policy allows its own style
sheet by its digest and nothing else.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from retl.observe.redact import redact

COLOURS = {"SUCCESS": "good", "SUCCESS_WITH_REJECTS": "warn", "RUNNING": "muted", "INTERRUPTED": "warn"}
NAVIGATION = {
    "syncs": "Syncs",
    "runs": "Runs",
    "rejects": "Rejects",
    "conflicts": "Conflicts",
    "doubts": "In doubt",
    "lineage": "Lineage",
}

Link = Callable[[str, str], str | None]
"""A kind of page and a name → its address from the page that is made; None if there is no such page."""


def nowhere(_kind: str, _name: str = "") -> str | None:
    """The links of a page that stands alone."""
    return None


def render(template: str, here: str = "", link: Link = nowhere, **facts: object) -> str:
    """A whole HTML document. `here`: which of NAVIGATION it is."""
    navigation = [(kind, title, to) for kind, title in NAVIGATION.items() if (to := link(kind, ""))]
    shared = {"here": here, "link": link, "navigation": navigation, "style": _Sheet(style())}
    return _environment().get_template(f"{template}.html").render(facts, **shared, policy=policy())


class _Sheet(str):
    """A file of ours, which needs no escaping."""

    def __html__(self) -> str:
        return self


@cache
def style() -> str:
    return files(__name__).joinpath("style.css").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """What a page may load and do."""
    digest = b64encode(sha256(style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'self'"
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, span=span, utc=utc, value=value)
    made.globals.update(colours=COLOURS)
    return made


def shown(value: object) -> object:
    """A value without secrets, control characters or characters that reorder a line."""
    if value is None:
        return ""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # of a macro: its values have passed `shown`
        return value
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in redact(value))


def value(found: object) -> str:
    """A value of a row as the mart and JSON write it."""
    if found is None:
        return "NULL"
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, datetime) and found.tzinfo is not None:
        return found.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(found, list | tuple | dict):
        return json.dumps(found, ensure_ascii=False, default=str)
    return str(found)


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def utc(value: datetime, form: str) -> str:
    return value.astimezone(UTC).strftime(form)


def span(seconds: float | None) -> str:
    """A duration in its two largest units: 3 d 4 h, 12 m 5 s, 0.42 s."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s"
