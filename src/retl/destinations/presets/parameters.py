"""What a preset's user sets: the keys of a connection and the parameters of a sync."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr

from retl.model import Definition
from retl.net.lookup import text

_TYPES: dict[str, Any] = {"text": str, "integer": int, "boolean": bool, "list": tuple[str, ...]}


class Parameter(Definition):
    """A key of a connection or a sync: required unless it has a default or is optional."""

    about: str
    type: Literal["text", "integer", "boolean", "list"] = "text"
    one_of: tuple[str, ...] = ()
    secret: bool = False
    optional: bool = False
    default: Any = None

    @property
    def is_required(self) -> bool:
        return self.default is None and not self.optional

    @property
    def sample(self) -> Any:
        """An allowed value."""
        word = SecretStr("x") if self.secret else self.one_of[0] if self.one_of else "x"
        return {"text": word, "integer": 1, "boolean": True, "list": ("x",)}[self.type]

    def field(self) -> tuple[Any, Any]:
        """The parameter as a field of a model."""
        kind: Any = SecretStr if self.secret else Literal[self.one_of] if self.one_of else _TYPES[self.type]
        if self.is_required:
            return kind, Field(description=self.about)
        default = tuple(self.default) if isinstance(self.default, list) else self.default
        return kind | None, Field(default, description=self.about)

    def refusal(self, wanted: Any) -> str | None:
        """Why an `only_if` cannot use this condition, or None."""
        if wanted in ("given", "missing"):
            return None
        if not isinstance(wanted, list) or not wanted:
            return "a list of values is expected here, or `given`, or `missing`"
        never = [one for one in wanted if not self._can_be(one)]
        return f"the parameter is never {text(never[0])}" if never else None

    def _can_be(self, value: Any) -> bool:
        return type(value) is _TYPES[self.type] and (not self.one_of or value in self.one_of)
