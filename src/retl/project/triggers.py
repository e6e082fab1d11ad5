"""When `retl watch` runs a sync: at intervals, at times of the clock, when its source changed, on request, or
when a topic of Kafka names keys.

A definition only: `app/watch` follows it. A sync without triggers runs only by hand or by another scheduler.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Required, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator, with_config
from typing_extensions import TypedDict

from retl.model import Definition, Duration, Timezone

_CLOSED = ConfigDict(extra="forbid")  # for the spellings below, which exist only for the JSON Schema
CatchUp: TypeAlias = Literal["once", "skip"]
RecordPart: TypeAlias = Literal["key", "value"]
KeyFormat: TypeAlias = Literal["text", "json"]
Window: TypeAlias = Annotated[Duration, Field(ge=0.1, le=3600)]


class Trigger(Definition):
    """One reason to run a sync: exactly one of `every`, `cron`, `changed`, `event` and `topic`. `catch_up`
    decides about what was missed while nothing watched: run once, or skip it. The topic itself keeps that."""

    every: Annotated[Duration, Field(ge=1)] | None = None
    cron: str | None = None
    timezone: Timezone = "UTC"
    changed: bool = False
    notify: str | None = None  # the channel on which the source's PostgreSQL says that it changed
    look: Annotated[Duration, Field(ge=1)] = 10.0  # seconds between two looks at the source
    event: bool = False
    topic: str | None = None  # whose records name keys of rows that may have changed
    from_: str | None = Field(default=None, alias="from")  # the connection of the topic's cluster
    part: RecordPart = "key"  # of a record, that has the key
    format: KeyFormat | None = None  # default: text for the record's key, if the sync's has one column
    window: Window = 1.0  # seconds in which records are collected for one run
    catch_up: CatchUp = "once"

    @field_validator("cron")
    @classmethod
    def _read(cls, cron: str | None) -> str | None:
        if cron is not None:
            from cronsim import CronSim, CronSimError

            try:
                next(CronSim(cron, datetime.now(UTC)))
            except CronSimError as problem:
                raise ValueError(f"`cron` {cron!r} cannot be read: {problem}") from None
            except StopIteration:
                raise ValueError(f"`cron` {cron!r} is a time that never comes") from None
        return cron

    @model_validator(mode="after")
    def _one(self) -> Trigger:
        named = (self.every, self.cron, self.changed or None, self.event or None, self.topic)
        if sum(one is not None for one in named) != 1:
            raise ValueError("a trigger has exactly one of every, cron, changed, event and topic")
        if self.topic is not None and self.from_ is None:
            raise ValueError("`topic` needs `from`, a connection of type kafka in retl.yml")
        if self.topic is not None and "catch_up" in self.model_fields_set:
            raise ValueError("`catch_up` has no effect with `topic`: it keeps what was missed")
        if self.notify is not None and (len(self.notify.encode()) > 63 or not self.notify):
            raise ValueError("a channel of PostgreSQL has 1 to 63 bytes")
        if self.notify is not None and "look" in self.model_fields_set:
            raise ValueError("`look` has no effect with `notify`: the database says when it changed")
        return self


@with_config(_CLOSED)
class EverySpelling(TypedDict, total=False):
    every: Required[Duration]
    catch_up: CatchUp


@with_config(_CLOSED)
class CronSpelling(TypedDict, total=False):
    cron: Required[str]
    timezone: Timezone
    catch_up: CatchUp


@with_config(_CLOSED)
class LookSpelling(TypedDict, total=False):
    look: Duration
    notify: str


@with_config(_CLOSED)
class ChangedSpelling(TypedDict, total=False):
    changed: Required[Literal[True] | LookSpelling]
    catch_up: CatchUp


@with_config(_CLOSED)
class EventSpelling(TypedDict, total=False):
    event: Required[Literal[True]]
    catch_up: CatchUp


_Topic = TypedDict(
    "_Topic",
    {
        "topic": Required[str],
        "from": Required[str],
        "part": RecordPart,
        "format": KeyFormat,
        "window": Duration,
    },
    total=False,
)


@with_config(_CLOSED)
class TopicSpelling(_Topic):
    pass


TriggerSpelling = (
    Literal["changed", "event"]
    | EverySpelling
    | CronSpelling
    | ChangedSpelling
    | EventSpelling
    | TopicSpelling
)
_OPTIONS = {
    "every": set[str](),
    "cron": {"timezone"},
    "changed": set[str](),
    "event": set[str](),
    "topic": {"from", "part", "format", "window"},
}


def _trigger(value: object) -> object:
    """The spellings → the fields of Trigger."""
    if value in ("changed", "event"):
        return {value: True}
    if isinstance(value, Trigger):
        return value
    named = [name for name in _OPTIONS if isinstance(value, dict) and name in value]
    if isinstance(value, dict) and len(named) == 1:
        kind = named[0]
        if extra := sorted(map(str, value.keys() - {kind, "catch_up"} - _OPTIONS[kind])):
            raise ValueError(f"`{kind}` has no option {extra[0]}")
        if kind == "changed" and isinstance(how := value["changed"], dict):
            if not how or not how.keys() <= {"look", "notify"}:
                raise ValueError("`changed` has only the options look and notify")
            return {**value, "changed": True, **how}
        if kind not in ("changed", "event") or value[kind] is True:
            return value
    raise ValueError(
        "`when` must be changed, event, {every: 1h}, {cron: '0 6 * * *', timezone: Europe/Berlin},"
        " {changed: {notify: channel}}, {topic: purchases, from: stream}, or a list of these"
    )


def _listed(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("`when` must name a trigger, or be left out")
    return value if isinstance(value, list | tuple) else [value]


OneTrigger = Annotated[Trigger, BeforeValidator(_trigger, json_schema_input_type=TriggerSpelling)]
Triggers = Annotated[
    tuple[OneTrigger, ...],
    BeforeValidator(_listed, json_schema_input_type=TriggerSpelling | list[TriggerSpelling]),
]
