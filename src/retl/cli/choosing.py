"""The options that choose syncs, the same in every command that takes syncs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from retl.app.choice import Choice
from retl.cli import completing

_Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SYNC",
        help="A sync, a glob, tag:TAG, to:CONNECTION, dbt:MODEL+ or state:modified; a,b must fit both.",
        show_default=False,
        autocompletion=completing.words,
    ),
]
_Names = Annotated[
    list[str] | None,
    typer.Option("--sync", metavar="SYNC", help="The same, or all.", autocompletion=completing.words),
]
_Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Every sync with this tag.", autocompletion=completing.tags),
]
_Excluded = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="SYNC",
        help="Leave these out; written as SYNC.",
        autocompletion=completing.words,
    ),
]
_Failed = Annotated[
    bool,
    typer.Option("--failed", help="Only those whose last run did not end with success, or did not start."),
]
_State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="REF|FOLDER|FILE",
        help="What state:modified compares with: a commit, a copy of the project, `retl list` as json.",
    ),
]
_PARTS: dict[str, tuple[Any, Any]] = {
    "words": (_Words, None),
    "names": (_Names, None),
    "tags": (_Tags, None),
    "exclude": (_Excluded, None),
    "failed": (_Failed, False),
    "state": (_State, None),
}
CHOOSING = tuple(_PARTS)
STANDING = CHOOSING[:4]  # for a command that stays and chooses again whenever the files change


def parameters(names: Sequence[str]) -> list[inspect.Parameter]:
    """The parameters of a command for these options."""
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=_PARTS[name][0], default=_PARTS[name][1]
        )
        for name in names
    ]


def made(given: dict[str, Any]) -> Choice:
    """Take these options out of what a command was given."""
    words, names, tags, exclude, failed, state = (given.pop(name, None) for name in _PARTS)
    return Choice(
        names=(*(words or ()), *(names or ())),
        tags=tuple(tags or ()),
        exclude=tuple(exclude or ()),
        failed=bool(failed),
        state=state,
    )
