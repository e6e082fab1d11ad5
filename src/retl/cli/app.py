"""The commands, and what they share: options, errors, exit codes.

A command is a function of an Invocation and its own options. It returns an exit code, or None for 0.
Shared options may come before or after its name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from msgspec import Struct
from msgspec.structs import replace

from retl.app.failures import exit_code
from retl.cli import output, problems
from retl.cli.choosing import CHOOSING, made, parameters
from retl.cli.grouping import Grouped
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError, RetlError

Command = Callable[..., int | None]

Project = Annotated[Path | None, typer.Option(help="The project's folder [RETL_PROJECT].", metavar="DIR")]
Environment = Annotated[str | None, typer.Option(help="Read config.NAME.env.", metavar="NAME")]
Output = Annotated[Literal["table", "json"] | None, typer.Option(help="table (default) or json.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show sensitive values and keys.")]
DETAILED = "--detailed-exitcode"  # 2 says that there are changes, so no error may have it
ELSEWHERE = {  # options of other tools, and of other commands of this one: what to type instead
    "--plan": "`retl apply FILE` delivers a plan",
    **dict.fromkeys(
        ("--select", "--models", "--model", "-s", "-m"),
        "syncs are named without an option: `retl sync orders tag:crm`",
    ),
}
SHARED: dict[str, Any] = {"project": Project, "env": Environment, "output": Output, "debug": Debug}

app = typer.Typer(
    name="retl",
    help="Send what changed in the warehouse to the systems people work in.",
    cls=Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Outcome(Struct):
    """The result of one command line."""

    invocation: Invocation
    code: int | None = None
    wrong: int = 2  # the exit code of a wrong definition or command line


def run(words: list[str], begun: float, *, once: bool = False) -> int:
    """Run one command line and return its exit code. If it is the only one of this process (`once`), the
    other commands are not made."""
    from retl.cli import families

    outcome = Outcome(Invocation(begun=begun), wrong=1 if DETAILED in words else 2)
    entry = families.command_of(words) if once else families.commands()
    try:
        code = entry(words, prog_name="retl", standalone_mode=False, obj=outcome)
        return outcome.code if outcome.code is not None else int(code or 0)
    except typer.TyperException as problem:
        return _usage(problem, outcome)
    except typer.Abort:
        return 130
    except SystemExit as ended:  # after the words for a shell's completion
        return int(ended.code or 0)


@app.callback()
def shared(
    context: typer.Context,
    project: Project = None,
    env: Environment = None,
    output: Output = None,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    context.obj.invocation = replace(
        context.obj.invocation, folder=project, environment=env, output=output or "table", debug=debug
    )


def command(
    group: typer.Typer,
    name: str,
    *,
    reveals: bool = False,
    negative: bool = False,
    chooses: Sequence[str] = CHOOSING,
    formats: Any = Output,
    ledger: bool = False,
) -> Callable[[Command], Command]:
    """Register a function as the command `name` of a group; its docstring is its help. A parameter `choice`
    stands for the options that choose syncs, or those of them in `chooses`. With `negative` an argument may
    be -1; the command itself then refuses words that look like options. `formats`: what `--output` takes.
    `ledger`: the command needs only the ledger, so wrong sync files do not stop it."""

    def register(function: Command) -> Command:
        settings = {"ignore_unknown_options": True} if negative else None
        group.command(name, context_settings=settings)(
            with_shared_options(function, reveals=reveals, chooses=chooses, formats=formats, ledger=ledger)
        )
        return function

    return register


def with_shared_options(
    function: Command,
    *,
    reveals: bool = False,
    alone: bool = False,
    chooses: Sequence[str] = CHOOSING,
    formats: Any = Output,
    ledger: bool = False,
) -> Command:
    """Wrap a command for typer: add the shared options, pass an Invocation, turn any result or error into
    the exit code. With `alone` it runs only if no subcommand follows, whose name is its only argument."""
    hints = get_type_hints(function, include_extras=True)
    asked = [
        one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for one in list(inspect.signature(function).parameters.values())[1:]
        if one.name != "context"
    ]
    wants_context = "context" in hints
    chooses = [name for name in chooses if not (alone and name == "words")]
    chosen = parameters(chooses) if any(one.name == "choice" for one in asked) else []
    shared = {**SHARED, "output": formats, **({"reveal": Reveal} if reveals else {})}
    taken = [
        _keyword("context", typer.Context),
        *chosen,
        *(one for one in asked if one.name != "choice"),
        *(_keyword(name, kind, False if kind in (Debug, Reveal) else None) for name, kind in shared.items()),
    ]

    def called(*, context: typer.Context, **given: Any) -> int:
        outcome: Outcome = context.find_root().obj
        outcome.invocation = invocation = replace(_invoked(outcome.invocation, given), reads=ledger)
        if alone and context.invoked_subcommand is not None:
            return 0
        if chosen:
            given["choice"] = made(given)
        if wants_context:
            given["context"] = context
        outcome.code = _run(outcome, context.command_path, lambda: function(invocation, **given))
        return outcome.code

    for name in ("__module__", "__name__", "__doc__"):
        setattr(called, name, getattr(function, name))
    called.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in taken}
    return called


def _keyword(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _invoked(before: Invocation, given: dict[str, Any]) -> Invocation:
    """The invocation with the shared options that were given after the command; they are taken out."""
    named = {name: given.pop(name, None) for name in ("project", "env", "output", "debug", "reveal")}
    return replace(
        before,
        folder=named["project"] or before.folder,
        environment=named["env"] or before.environment,
        output=named["output"] or before.output,
        debug=named["debug"] or before.debug,
        reveal=before.reveal or bool(named["reveal"]),
    )


def _run(outcome: Outcome, path: str, call: Callable[[], int | None]) -> int:
    invocation = outcome.invocation
    try:
        code = call()
    except (Exception, KeyboardInterrupt) as problem:
        if isinstance(problem, typer.TyperException | typer.Exit | typer.Abort):
            raise
        if isinstance(problem, RetlError) and (problem.code, problem.hint) == ("USAGE", None):
            problem.hint = f"{path} --help"
        problems.report(problem, debug=invocation.debug)
        code = exit_code(problem)
        code = outcome.wrong if code == DefinitionError.exit_code else code
        if invocation.output == "json":
            document = problems.document(problem) | {"exit_code": code}
            output.write(output.document_text(document))
        return code
    finally:
        invocation.close()
    # A command that only prints has failed if the output is lost. A command that ran syncs has its own code.
    return code if code is not None else int(invocation.output_lost)


def _choice(message: str) -> str | None:
    """A hint with the nearest of the words that an option takes."""
    from retl.project.validation import did_you_mean

    wrong, _, known = message.partition(" is not one of ")
    words = re.findall(r"'([^']*)'", wrong)
    return did_you_mean(words[-1], re.findall(r"'([^']+)'", known)) if known and words else None


def _usage(problem: typer.TyperException, outcome: Outcome) -> int:
    """Report a wrong command line like any other error."""
    message = problem.format_message() if hasattr(problem, "format_message") else str(problem)
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "retl"
    if type(problem).__name__ == "NoArgsIsHelpError":
        output.say(message)
        return outcome.wrong
    meant = next((hint for option, hint in ELSEWHERE.items() if message.endswith(f": {option}")), None)
    message = message.replace("Value error, ", "")
    error: RetlError = DefinitionError("USAGE", message, hint=meant or _choice(message) or f"{path} --help")
    problems.report(error)
    if outcome.invocation.output == "json":
        output.write(output.document_text(problems.document(error) | {"exit_code": outcome.wrong}))
    return outcome.wrong
