"""retl: reverse ETL that data engineers trust.

SQL finds what changed; the contract judges it; the adapter only translates. Read ``run/pipeline.py`` first:
it is the data path, in order. Programs start with `open`:

    with retl.open("shop") as session:
        summary = session.sync("user_segments")
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from retl.app.session import Session

__version__ = "0.1.0"
BEGUN = monotonic()  # when this process began with retl: its imports are part of what a run takes


def open(project: Path | str | None = None, env: str | None = None) -> Session:
    """Open the project in a folder (RETL_PROJECT or the working directory by default), under the environment
    file of `env`. Close the session, or use it in a `with`. Raises DefinitionError if a file is wrong."""
    from retl.app.session import open_session

    return open_session(project, env)
