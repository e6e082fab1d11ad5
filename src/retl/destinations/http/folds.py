"""What an API ignores when it compares keys, as data. It decides nothing about rows."""

from __future__ import annotations

from collections.abc import Sequence

from retl.destinations.batch import Field, Folds
from retl.errors import DefinitionError
from retl.model import Definition
from retl.values.keys import Fold

Ignored = bool | tuple[str, ...]  # by every text of the key, or by these fields of it


class KeyFolds(Definition):
    """What the target ignores when it compares keys: `true` for every text of the key, or a list of fields.
    `blanks` are those before and after the text."""

    case: Ignored = False
    accents: Ignored = False
    blanks: Ignored = False

    def of(self, key: Sequence[Field]) -> tuple[Folds, ...]:
        """Per field of the key; empty if none is folded."""
        words: tuple[tuple[Fold, Ignored], ...] = (
            ("case", self.case),
            ("accents", self.accents),
            ("blanks", self.blanks),
        )

        def folded(field: Field) -> Folds:
            texts = field.type.name == "string"
            return tuple(w for w, by in words if texts and (by is True or (by and field.name in by)))

        found = tuple(map(folded, key))
        return found if any(found) else ()

    def refuse_unused(self, key: Sequence[Field]) -> None:
        """DefinitionError OPTION_UNUSED if a part concerns no text of the key."""
        texts = [field.name for field in key if field.type.name == "string"]
        for by in (self.case, self.accents, self.blanks):
            if by is not False and not (texts if by is True else by and set(by) <= set(texts)):
                named = "no field of the key is a text" if by is True else f"the key's texts are {texts}"
                raise DefinitionError("OPTION_UNUSED", f"`folds` has no effect: {named}")
