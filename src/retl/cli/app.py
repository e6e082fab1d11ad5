"""The commands, and what they share: options, errors, exit codes.

A command is a function of an Invocation and its own options. It returns an exit code, or None for 0.
Shared options may come before or after its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from retl.app.failures import exit_code
from retl.cli import output, problems
from retl.cli.invocation import Invocation
from retl.cli.output import Format
from retl.errors import DefinitionError, RetlError

Command = Callable[..., int | None]

Project = Annotated[Path | None, typer.Option(help="The project's folder [RETL_PROJECT].", metavar="DIR")]
Environment = Annotated[str | None, typer.Option(help="Read config.NAME.env.", metavar="NAME")]
Output = Annotated[Format | None, typer.Option(help="table (default) or json.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show sensitive values and keys.")]
SHARED: dict[str, Any] = {"project": Project, "env": Environment, "output": Output, "debug": Debug}

app = typer.Typer(
    name="retl",
    help="Send what changed in the warehouse to the systems people work in.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Outcome:
    """The result of one command line."""

    invocation: Invocation
    code: int | None = None


def run(words: list[str], begun: float) -> int:
    """Run one command line and return its exit code."""
    from retl.cli import families

    outcome = Outcome(Invocation(begun=begun))
    try:
        families.register()
        code = app(words, prog_name="retl", standalone_mode=False, obj=outcome)
        return outcome.code if outcome.code is not None else int(code or 0)
    except typer.TyperException as problem:
        return _usage(problem, outcome.invocation)
    except typer.Abort:
        return 130


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
    group: typer.Typer, name: str, *, reveals: bool = False, reserved: bool = False
) -> Callable[[Command], Command]:
    """Register a function as the command `name` of a group; its docstring is its help."""

    def register(function: Command) -> Command:
        settings = {"ignore_unknown_options": True} if reserved else None
        group.command(name, hidden=reserved, context_settings=settings)(
            with_shared_options(function, reveals=reveals)
        )
        return function

    return register


def with_shared_options(function: Command, *, reveals: bool = False, alone: bool = False) -> Command:
    """Wrap a command for typer: add the shared options, pass an Invocation, turn any result or error into
    the exit code. With `alone` it runs only if no subcommand follows."""
    hints = get_type_hints(function, include_extras=True)
    own = [
        one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for one in list(inspect.signature(function).parameters.values())[1:]
    ]
    shared = {**SHARED, **({"reveal": Reveal} if reveals else {})}
    joined = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=kind,
            default=False if kind in (Debug, Reveal) else None,
        )
        for name, kind in shared.items()
    ]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def called(*, context: typer.Context, **given: Any) -> int:
        outcome: Outcome = context.find_root().obj
        before = outcome.invocation
        named = {name: given.pop(name, None) for name in ("project", "env", "output", "debug", "reveal")}
        outcome.invocation = invocation = replace(
            before,
            folder=named["project"] or before.folder,
            environment=named["env"] or before.environment,
            output=named["output"] or before.output,
            debug=named["debug"] or before.debug,
            reveal=before.reveal or bool(named["reveal"]),
        )
        if alone and context.invoked_subcommand is not None:
            return 0
        outcome.code = _run(invocation, lambda: function(invocation, **given))
        return outcome.code

    called.__module__, called.__name__, called.__doc__ = (
        function.__module__,
        function.__name__,
        function.__doc__,
    )
    called.__signature__ = inspect.Signature([context, *own, *joined])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in (context, *own, *joined)}
    return called


def _run(invocation: Invocation, call: Callable[[], int | None]) -> int:
    try:
        code = call()
    except (Exception, KeyboardInterrupt) as problem:
        if isinstance(problem, typer.TyperException | typer.Exit | typer.Abort):
            raise
        problems.report(problem, debug=invocation.debug)
        if invocation.output == "json":
            output.write(output.document_text(problems.document(problem)))
        return exit_code(problem)
    finally:
        invocation.close()
    # A command that only prints has failed if the output is lost. A command that ran syncs has its own code.
    return code if code is not None else int(invocation.output_lost)


def _usage(problem: typer.TyperException, invocation: Invocation) -> int:
    """Report a wrong command line like any other error."""
    message = problem.format_message() if hasattr(problem, "format_message") else str(problem)
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "retl"
    if type(problem).__name__ == "NoArgsIsHelpError":
        output.say(message)
        return 2
    error: RetlError = DefinitionError("USAGE", message, hint=f"{path} --help")
    problems.report(error)
    if invocation.output == "json":
        output.write(output.document_text(problems.document(error)))
    return 2
