"""MariaDB: the same as `mysql`, under its own name."""

from __future__ import annotations

from retl.sources import mysql


class MariaDB(mysql.MySQL):
    """A table or a SELECT of a MariaDB database."""

    evidence = "MariaDB 10.11"
