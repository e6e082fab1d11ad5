"""The parts of `retl --help`, and an example for each command."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer

GROUPS = {
    "Begin": ("init", "demo"),
    "Define": (
        *("list", "validate", "check", "test", "schema", "sources", "destinations", "presets", "contract"),
        *("dbt", "alerts"),
    ),
    "Run": ("plan", "sync", "apply", "watch"),
    "Look": ("status", "runs", "show", "explain", "log", "report", "docs", "serve"),
    "Decide and repair": (
        "rejects",
        "retry",
        "conflicts",
        "resolve",
        "reconcile",
        "rollback",
        "state",
        "erase",
    ),
    "Help": ("help",),
}
OTHERS = "More"

EXAMPLES = {
    "alerts": "retl alerts test",
    "alerts list": "retl alerts list",
    "alerts test": "retl alerts test",
    "apply": "retl apply user_segments.plan",
    "check": "retl check to:analytics_db",
    "conflicts": "retl conflicts user_segments",
    "conflicts dismiss": "retl conflicts dismiss --sync user_segments --key u000007",
    "conflicts list": "retl conflicts list tag:crm",
    "conflicts take": "retl conflicts take mart --sync user_segments --key u000007",
    "contract": "retl contract diff user_segments",
    "contract diff": "retl contract diff user_segments",
    "contract update": "retl contract update user_segments --yes",
    "dbt": "retl dbt exposures --out exposures.yml",
    "dbt exposures": "retl dbt exposures --out exposures.yml",
    "demo": "retl demo shop",
    "destinations": "retl destinations hubspot",
    "docs": "retl docs --out site",
    "erase": "retl erase --sync user_segments --key u000007 --reason 'ticket 4711'",
    "erase list": "retl erase list",
    "erase start": "retl erase start --subject user_id=u000007 --reason 'ticket 4711'",
    "erase verify": "retl erase verify",
    "explain": "retl explain user_segments --key u000007",
    "help": "retl help DELETE_RATE",
    "init": "retl init shop",
    "list": "retl list tag:daily",
    "log": "retl log user_segments --since 7d",
    "log show": "retl log show tag:crm --since 7d",
    "log verify": "retl log verify",
    "plan": "retl plan user_segments --out user_segments.plan",
    "presets": "retl presets list",
    "presets list": "retl presets list",
    "presets new": "retl presets new loyalty --curl 'curl https://api.example.com/members -d name=Ada'",
    "presets test": "retl presets test presets/loyalty.yml",
    "reconcile": "retl reconcile user_segments --sample 1000",
    "rejects": "retl rejects user_segments --values",
    "rejects dismiss": "retl rejects dismiss --sync user_segments --key u000008",
    "rejects list": "retl rejects list user_segments",
    "report": "retl report user_segments --out user_segments.html",
    "resolve": "retl resolve email_triggers",
    "retry": "retl retry user_segments",
    "rollback": "retl rollback user_segments --dry-run",
    "runs": "retl runs user_segments --limit 5",
    "schema": "retl schema > sync.schema.json",
    "serve": "retl serve --listen 127.0.0.1:8081",
    "show": "retl show user_segments",
    "sources": "retl sources iceberg",
    "state": "retl state show user_segments",
    "state adopt": "retl state adopt user_segments --yes",
    "state copy": "retl state copy --to file:state --yes",
    "state mv": "retl state mv old_segments user_segments --yes",
    "state pause": "retl state pause user_segments --reason 'CRM is being migrated'",
    "state prune": "retl state prune --dry-run",
    "state rebuild": "retl state rebuild user_segments --dry-run",
    "state reset": "retl state reset user_segments --yes",
    "state resume": "retl state resume user_segments",
    "state show": "retl state show user_segments",
    "state unfence": "retl state unfence --yes",
    "state unblock": "retl state unblock analytics_db --yes",
    "status": "retl status --fail-stale",
    "sync": "retl sync tag:daily --exclude user_segments",
    "test": "retl test user_segments",
    "validate": "retl validate --strict",
    "watch": "retl watch tag:daily",
}


class Grouped(typer.core.TyperGroup):
    """A group whose help lists its commands in the parts of GROUPS, each in the order of the commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: one for name, one in self.commands.items() if not one.hidden}
        placed = {name for names in GROUPS.values() for name in names}
        others = tuple(name for name in shown if name not in placed)
        room = formatter.width - 6 - max(map(len, shown))
        for title, names in {**GROUPS, OTHERS: others}.items():
            rows = [(name, one.get_short_help_str(room)) for name, one in shown.items() if name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Family(typer.core.TyperGroup):
    """A command with commands of its own. A first word that is none of them, nor one misspelt, is a sync."""

    before_sync: Sequence[str] | None = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        word = next(iter(args), "-")
        known = word.startswith("-") or word in self.commands or get_close_matches(word, self.commands)
        if self.before_sync is not None and not known:
            args = [*self.before_sync, *args]
        found: list[str] = super().parse_args(ctx, args)
        return found


def give_examples(group: typer.Typer, path: str = "") -> None:
    """Write its example under the help of each command."""
    entries: list[Any] = [*group.registered_commands, *group.registered_groups]
    for one in entries:
        name = f"{path}{one.name}"
        if name in EXAMPLES:
            one.epilog = f"Example: {EXAMPLES[name]}"
        inner = getattr(one, "typer_instance", None)
        if inner is not None:
            give_examples(inner, f"{name} ")
