"""What somebody wrote to say which syncs a command is about. `selection` finds the syncs."""

from __future__ import annotations

from msgspec import Struct

MODIFIED = "state:modified"


class Choice(Struct, frozen=True):
    """The union of `names` and `tags`, or every sync without them, less `exclude`. `failed`: only those whose
    last run did not end with success. `state`: what `state:modified` compares with.

    A name is a sync, a glob, tag:T, to:CONNECTION, dbt:MODEL+, state:modified, or several of them with
    commas, which a sync must fit all."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all: bool = False
    failed: bool = False
    state: str | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing was asked for."""
        return self == Choice(all=self.all)

    @property
    def compares(self) -> bool:
        return any(MODIFIED in name.split(",") for name in (*self.names, *self.exclude))

    @property
    def may_be_empty(self) -> bool:
        """Whether no sync at all is a good answer, rather than a mistake in what was written."""
        return self.failed or self.compares

    def nothing(self) -> str:
        """The sentence for an empty answer."""
        if not self.failed:
            return f"nothing to do: no selected sync was modified since {self.state}"
        since = f" and was modified since {self.state}" if self.compares else ""
        return f"nothing to do: no selected sync failed at its last run{since}"


EVERY = Choice()
