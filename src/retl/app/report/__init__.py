"""The report of one run: from the ledger's history to one HTML page, also for `retl serve` and `retl docs`.

`gather` reads the frozen Facts, `page` writes them. It uses no warehouse, no target and no network. It shows
no value of a row: of a reject it shows the key, the code and the reason, and a sensitive key is masked.
"""

from __future__ import annotations

from retl.app.report.facts import Facts, Reason, gather, open_reasons
from retl.app.report.funnel import Step, delivered, funnel

__all__ = ["Facts", "Reason", "Step", "delivered", "funnel", "gather", "open_reasons"]
