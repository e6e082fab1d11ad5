"""What databases in one file share: the connection to the file, and the sentences of its failures."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Self

from pydantic import Field

from retl.destinations.sql.table import may_write
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


def unopened(path: Path, why: str) -> Systemic:
    """With the reason, if it is the path."""
    if os.path.isdir(path):
        return Systemic("58030", f"{path} is a folder", hint="`path` must name a file in it")
    if not os.path.isdir(path.parent):  # also if a folder above it is closed to us
        hint = f"`mkdir -p {shlex.quote(str(path.parent))}` makes it; or correct `path`"
        words = f"{path.name} {why}: there is no folder {path.parent} that this account can see"
        return Systemic("58030", words, hint=hint)
    hint = "check the path and the rights of its folder; `create: true` makes a file that is missing"
    return Systemic("58030", f"{path.name} {why}", hint=hint)


def may_make(path: Path) -> None:
    """Systemic 58030 or 42501 if this account cannot make the file: its folder is not made."""
    if not os.path.isdir(path.parent):
        raise unopened(path, "cannot be made")
    if not may_write(path.parent):
        raise read_only(path.name)
