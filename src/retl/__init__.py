"""retl: reverse ETL that data engineers trust.

SQL finds what changed; the contract judges it; the adapter only translates.
Read ``pipeline.py`` first: it is the data path, in order.
"""

from time import monotonic

__version__ = "0.1.0"
BEGUN = monotonic()  # when this process began with retl: its imports are part of what a run takes
