"""HTTP requests that follow a run, as a user writes them: `then`.

It knows which values of the run a request may have, and not how they are filled in: `destinations/http` does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from retl.model import Definition

# Of the run that the request follows. `changed` is the sum of inserted, updated and deleted.
RUN_VALUES = (
    "id",
    "sync",
    "environment",
    "status",
    "code",
    "started_at",
    "finished_at",
    "read",
    "changed",
    "inserted",
    "updated",
    "deleted",
    "unchanged",
    "rejected",
    "skipped",
    "in_doubt",
)


class FollowUp(Definition):
    """A request to a connection over HTTP after each run that ends like this. `path` follows the connection's
    base_url. Path, headers and body may have values of the run, such as {$run.id}."""

    connection: str
    when: Annotated[Literal["changed", "success", "failed"], Field(alias="if")]
    method: Literal["POST", "PUT", "PATCH", "DELETE", "GET", "PURGE"] = "POST"
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/"
    headers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")], str] = Field(default={})
    body: Any = None
    required: bool = False


def _several(value: object) -> object:
    return [value] if isinstance(value, dict) else value


Then = Annotated[
    tuple[FollowUp, ...], BeforeValidator(_several, json_schema_input_type=FollowUp | list[FollowUp])
]
