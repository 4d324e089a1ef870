"""Turn functions into commands. Each field of a dataclass becomes an option and a variable of make.

    @command("python -m build_scripts repo --model ./my-checkpoint")
    def repo(options: BuildOptions) -> None:
        "Build the model repository."

`make repo MODEL=./mine` sets TRITON_TC_MODEL, which counts as `--model ./mine`. Names, help and limits of all options
are in `options.OPTIONS`. Uses the standard library only, because the probes of a container run through it.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NoReturn

import build_scripts
from build_scripts.core.errors import ServingError
from build_scripts.core.options import INSTALL_VARIABLES, OPTIONS, VARIABLE_PREFIX

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# Exit code of a wrong command line; 1 is any other error.
USAGE = 2
PROGRAM = "python -m build_scripts"


@dataclass(frozen=True)
class Field:
    """One option of a command. kind: str, int, float, bool or Path."""

    name: str
    kind: type
    default: Any

    def read(self, text: str) -> Any:
        """The value that a text means. An empty one means the default, except where None and "" differ."""
        if not text and not (self.kind is str and self.default is None):
            return self.default
        option = OPTIONS[self.name]
        if self.kind is bool:
            if text.lower() not in TRUE + FALSE:
                raise ServingError(f"{option.variable}={text}: expected 1 or 0")
            return text.lower() in TRUE
        try:
            value = self.kind(text)
        except ValueError as error:
            expected = "a whole number" if self.kind is int else "a number"
            raise ServingError(f"{option.variable}={text}: expected {expected}") from error
        if option.minimum is not None and not value >= option.minimum:
            raise ServingError(f"{option.variable}={text}: expected {option.minimum:g} or more")
        return value


class Command:
    """A function with the options that it takes. Calling it calls the function."""

    def __init__(self, function: Callable, example: str, leave_out: Sequence[str]):
        self.function, self.example = function, example
        self.name, self.help = function.__name__, " ".join((function.__doc__ or "").split())
        # parameter -> its dataclass, or None, and the fields that it is made of
        self.parameters: dict[str, tuple[Any, list[Field]]] = {}
        hints = typing.get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            kind = hints[parameter.name]
            if is_dataclass(kind):
                inner = typing.get_type_hints(kind)
                taken = [one for one in fields(kind) if one.name not in leave_out]
                own = [field_of(one.name, inner[one.name], one.default) for one in taken]
                self.parameters[parameter.name] = kind, own
            else:
                self.parameters[parameter.name] = None, [field_of(parameter.name, kind, parameter.default)]
        self.fields = [field for _, own in self.parameters.values() for field in own]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    @property
    def variables(self) -> list[str]:
        return [OPTIONS[field.name].variable for field in self.fields]

    def parser(self, program: str) -> argparse.ArgumentParser:
        parser = _Parser(
            prog=program,
            usage=f"{program} [options]",
            description=self.help,
            epilog=f"Example: {self.example}",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        for field in self.fields:
            option = OPTIONS[field.name]
            shown = f"; default: {field.default}" if field.default not in (None, "", False) else ""
            what: dict[str, Any] = (
                {"action": "store_const", "const": TRUE[0]} if field.kind is bool else {"metavar": option.variable}
            )
            parser.add_argument(option.flag, dest=field.name, help=option.help.replace("%", "%%") + shown, **what)
        return parser

    def arguments(self, program: str, given: Sequence[str]) -> dict[str, Any]:
        """The function's arguments: from the command line, else from the environment, else the defaults."""
        takes_value = {OPTIONS[field.name].flag for field in self.fields if field.kind is not bool}
        texts = vars(self.parser(program).parse_args(_joined(given, takes_value)))
        values = {}
        for field in self.fields:
            text = texts.get(field.name, os.environ.get(VARIABLE_PREFIX + OPTIONS[field.name].variable))
            values[field.name] = field.default if text is None else field.read(text)
        return {
            name: kind(**{field.name: values[field.name] for field in own}) if kind else values[name]
            for name, (kind, own) in self.parameters.items()
        }


def command(example: str, leave_out: Sequence[str] = ()) -> Callable[[Callable], Command]:
    """Make a command of a function. leave_out: fields of its dataclasses that keep their defaults."""
    return lambda function: Command(function, example, leave_out)


def field_of(name: str, hint: Any, default: Any) -> Field:
    """hint: a type, or one that may also be None."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return Field(name, kinds[0] if kinds else hint, default)


def run(one: Command, given: Sequence[str] | None = None, program: str = "") -> int:
    """Run a command on its command line; returns the exit code. A domain error becomes one line."""
    try:
        refuse_unknown_variables()
        hint_at_bare_variables(one)
        arguments = one.arguments(program or PROGRAM, sys.argv[1:] if given is None else given)
        return one(**arguments) or 0
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `… | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python complains when it flushes at the end
        return 1
    except KeyboardInterrupt:
        return 130


def run_one_of(commands: Iterable[Command], given: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if given is None else given) or [""]
    known = {one.name: one for one in commands}
    if name in known:
        return run(known[name], rest, f"{PROGRAM} {name}")
    if name == "--version":
        print(build_scripts.__version__)
        return 0
    if name in ("", "--help"):
        lines = "\n".join(f"  {one.name:9} {one.help.split('. ')[0].rstrip('.')}" for one in known.values())
        print(f"usage: {PROGRAM} COMMAND [--help] | --help | --version\n\n{lines}\n\nExample: {PROGRAM} serve --help")
        return 0 if name else USAGE
    print(f"error: {name}: no such command; there are {', '.join(known)}", file=sys.stderr)
    return USAGE


def refuse_unknown_variables() -> None:
    """Raise ServingError for a misspelt variable: make hands on whatever was typed."""
    known = [option.variable for option in OPTIONS.values()]
    given = [name.removeprefix(VARIABLE_PREFIX) for name in os.environ if name.startswith(VARIABLE_PREFIX)]
    unknown = sorted({*given} - {*known, *INSTALL_VARIABLES})
    if unknown:
        raise ServingError(f"{' '.join(unknown)}: no such variable; there are {' '.join(known)}")


def hint_at_bare_variables(one: Command) -> None:
    """Say that MODEL in the environment is not used. HOST is not worth a line: shells set it."""
    bare = [
        name
        for name in one.variables
        if name != "HOST" and name in os.environ and VARIABLE_PREFIX + name not in os.environ
    ]
    if bare:
        print(
            f"the environment's {' '.join(bare)} is not used; write `make {one.name} {bare[0]}=…`",
            file=sys.stderr,
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}; see {self.prog} --help\n")


def _joined(given: Sequence[str], takes_value: set[str]) -> list[str]:
    """`--text -5` as `--text=-5`: argparse would take the value for another option."""
    joined, rest = [], iter(given)
    for part in rest:
        value = next(rest, None) if part in takes_value else None
        joined.append(part if value is None else f"{part}={value}")
    return joined
