"""One account of the request limits per connection, shared by all processes and hosts of one ledger, on the
ledger's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from retl.ledger.breakers import Breakers
from retl.pace.allowance import Account

T = TypeVar("T")

# The UPDATE changes nothing: it locks the row. On SQLite, BEGIN has locked already.
_TAKE = """
INSERT INTO retl_paces (connection, account) VALUES (?, ?)
ON CONFLICT (connection) DO UPDATE SET account = retl_paces.account RETURNING account
"""


class Paces(Breakers):
    """The ledger's accounts."""

    def account(self, connection: str) -> tuple[Account, float]:
        """The account (empty if nothing was used yet) and the ledger's time in seconds."""
        found = self._database.query("SELECT account FROM retl_paces WHERE connection = ?", connection)
        return (Account.parse(found[0][0]) if found else Account()), self.now().timestamp()

    def change_account(self, connection: str, change: Callable[[Account, float], T]) -> T:
        """Change the account in one transaction; returns the result of `change(account, ledger time)`."""
        with self._database.transaction():
            text = self._database.query(_TAKE, connection, Account().text())[0][0]
            account = Account.parse(text)
            result = change(account, self.now().timestamp())
            sql = "UPDATE retl_paces SET account = ? WHERE connection = ?"
            self._database.change(sql, account.text(), connection)
        return result

    def forget_holds(self, connection: str) -> bool:
        """End a pause that the target asked for; True if there was one."""

        def forget(account: Account, now: float) -> bool:
            there = max(account.spent, account.held) > now
            account.spent = account.held = 0.0
            return there

        return self.change_account(connection, forget)
