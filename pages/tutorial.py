"""docs/index.md: README's tutorial as the first page of the site."""

from __future__ import annotations

import re

_HEAD = "<!-- made from README.md by `make docs` -->\n"
_END = "## The sample project"
_NEXT = """## Next

[Concepts](concepts.md): change set, baseline, contract, guards, ledger ·
[on a schedule](guides/scheduling/index.md) · [leave another tool](guides/leaving.md) ·
[operate it](guides/operating.md) · [guarantees](guarantees.md)
"""


def page(readme: str) -> str:
    """README up to the sample project, with links relative to docs/."""
    text = readme.partition(_END)[0]
    return _HEAD + re.sub(r"\]\(docs/", "](", text) + _NEXT
