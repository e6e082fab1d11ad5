"""One run as a page to look at: facts of the ledger's history in, one self-contained HTML text out.

`gather` reads, `page` writes; between them are the frozen Facts. It asks no warehouse and no target, loads
nothing from any network, needs no JavaScript, and shows no value of a row: of a reject it knows the key,
the code and the reason, and the key is masked where it is sensitive.
"""

from __future__ import annotations

from retl.app.report.facts import Facts, Reason, gather
from retl.app.report.funnel import Step, delivered, funnel

__all__ = ["Facts", "Reason", "Step", "delivered", "funnel", "gather"]
