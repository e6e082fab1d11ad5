"""What databases in one file share: the connection to the file, and the sentences of its failures."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from retl.errors import Systemic, Unavailable
from retl.model import Definition, Duration


class DatabaseFile(Definition):
    """A file, relative to the project."""

    path: str
    lock_wait: Duration = 30.0
    timeout: Duration = Field(default=300.0, gt=0, description="For one batch.")

    def placed_in(self, folder: Path) -> Self:
        return self.model_copy(update={"path": str(folder / self.path)})


def held(who: str) -> Unavailable:
    """`who` says who has the file, and which it is."""
    return Unavailable(
        "55P03", who, hint="run again when it has ended, or raise `lock_wait` of the connection"
    )


def ended(file: str) -> Unavailable:
    return Unavailable("57014", f"a statement on {file} was ended; nothing of its batch was applied")


def full(file: str) -> Systemic:
    return Systemic("53100", f"there is no room for {file} on its disk", hint="make room, then run again")


def read_only(file: str) -> Systemic:
    words = f"{file} is read-only for this account"
    return Systemic("42501", words, hint="give it the right to write the file and its folder")


def unopened(file: str, why: str) -> Systemic:
    hint = "check the path and the rights of its folder; `create: true` makes a file that is missing"
    return Systemic("58030", f"{file} {why}", hint=hint)
