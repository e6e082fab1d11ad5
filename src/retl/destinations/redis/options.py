"""The options under `destination:` in a sync that delivers to Redis."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from retl.destinations.redis.connection import RedisConnection
from retl.model import Definition, seconds


def _ttl(value: object) -> int | None:
    """'24h' → 86400, 'none' → None; ValueError unless it is whole seconds, 1 to 2^31."""
    if value == "none":
        return None
    ttl = seconds(value)
    if not (ttl.is_integer() and 1 <= ttl <= 2**31):
        raise ValueError("`ttl` is none or whole seconds, at least 1s")
    return int(ttl)


class OneField(Definition):
    """The value is this one field."""

    field: str


class RedisOptions(Definition):
    """The options under `destination:` in a sync."""

    connection: RedisConnection = RedisConnection()
    key: str = Field(
        description="Template of the Redis key, with all columns of the sync's key: `reco:{user_id}`."
    )
    value: Literal["json", "hash", "set", "zset", "stream"] | OneField = Field(
        "json", description="What the key holds: `json`, `hash`, `{field: NAME}`, `set`, `zset` or `stream`."
    )
    max_len: int | None = Field(
        None, ge=1, description="Of a stream: about how many entries stay; older ones are removed."
    )
    ttl: Annotated[
        int | None,
        BeforeValidator(_ttl),
        Field(
            description="When the key expires: seconds, or 24h. `none`: never.",
            json_schema_extra={"anyOf": [{"type": ["string", "number"]}]},
        ),
    ]

    @model_validator(mode="after")
    def _fits(self) -> RedisOptions:
        if self.max_len is not None and self.value != "stream":
            raise ValueError("`max_len` is for `value: stream`")
        return self
