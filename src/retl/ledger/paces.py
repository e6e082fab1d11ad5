"""One account per connection of what its target may still be asked, for every process and host of one
ledger, on the ledger's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from retl.ledger.breakers import Breakers
from retl.pace.allowance import Account

T = TypeVar("T")

# The write that changes nothing takes the row's lock, which BEGIN has taken already on SQLite.
_TAKE = """
INSERT INTO retl_paces (connection, account) VALUES (?, ?)
ON CONFLICT (connection) DO UPDATE SET account = retl_paces.account RETURNING account
"""


class Paces(Breakers):
    """The ledger's accounts."""

    def account(self, connection: str) -> tuple[Account, float]:
        """As it stands, an empty one where nothing was taken yet, and the ledger's time in seconds."""
        found = self._database.query("SELECT account FROM retl_paces WHERE connection = ?", connection)
        return (Account.parse(found[0][0]) if found else Account()), self.now().timestamp()

    def settle_account(self, connection: str, change: Callable[[Account, float], T]) -> T:
        """What `change` makes of the account and the ledger's time, durable for all who share it."""
        with self._database.transaction():
            text = self._database.query(_TAKE, connection, Account().text())[0][0]
            account = Account.parse(text)
            result = change(account, self.now().timestamp())
            sql = "UPDATE retl_paces SET account = ? WHERE connection = ?"
            self._database.change(sql, account.text(), connection)
        return result

    def forget_holds(self, connection: str) -> bool:
        """Ask the target again although it wanted to be left alone; did it?"""

        def forget(account: Account, now: float) -> bool:
            there = max(account.spent, account.held) > now
            account.spent = account.held = 0.0
            return there

        return self.settle_account(connection, forget)
