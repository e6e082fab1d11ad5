"""retl: reverse ETL that data engineers trust.

SQL finds what changed; the contract judges it; the adapter only translates.
Read ``pipeline.py`` first: it is the data path, in order.
"""

__version__ = "0.1.0"
