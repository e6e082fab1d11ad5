"""The report of one run: from the ledger's history to one self-contained HTML page.

`gather` reads the frozen Facts, `page` writes them. It uses no warehouse, no target, no network and no
JavaScript. It shows no value of a row: of a reject it shows the key, the code and the reason, and a
sensitive key is masked.
"""

from __future__ import annotations

from retl.app.report.facts import Facts, Reason, gather
from retl.app.report.funnel import Step, delivered, funnel

__all__ = ["Facts", "Reason", "Step", "delivered", "funnel", "gather"]
