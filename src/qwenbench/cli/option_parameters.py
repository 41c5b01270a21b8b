"""From the fields of SweepOptions to the parameters of a typer command: each option is declared there alone."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from qwenbench.cli.runs import option
from qwenbench.sweep.options import CLUSTER, Flag, SweepOptions, flags_of, option_name

Command = Callable[..., int]

ClusterOption = Annotated[
    str | None,
    option(
        "Ray cluster whose nodes run the servers (sweep) or send the load (bench); needs qwenbench[ray]", panel=CLUSTER,
        metavar="auto|HOST:PORT|ray://HOST:PORT",
    ),
]  # fmt: skip


def takes_options(command: str, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Makes a function `f(given, **own)` a typer command that has the options of `command`, but those of the fields
    `without`, and its own parameters.

    `given` holds the fields of SweepOptions that were set on the command line, as values. Reading raises UsageError.
    """
    flags = {name: flag for name, flag in flags_of(command).items() if name not in without}

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = [one for name, one in signature.parameters.items() if name != "given"]
        fields = [_parameter(name, flag, SweepOptions.model_fields[name]) for name, flag in flags.items()]
        required = [one for one in own if one.default is inspect.Parameter.empty]
        optional = [one for one in own if one.default is not inspect.Parameter.empty]

        @functools.wraps(function)
        def run(**values: Any) -> int:
            written = {name: values.pop(name) for name in flags}
            return function(given=_read(written, flags), **values)

        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*required, *fields, *optional)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
        del run.__wrapped__  # typer would look through it and see the function's own parameters
        return run

    return decorate


def _read(written: dict[str, Any], flags: dict[str, Flag]) -> dict[str, Any]:
    """What was set, read by each option's own reader."""
    given = {}
    for name, value in written.items():
        if value is None or value == []:
            continue
        read = flags[name].read
        given[name] = value if read is None else read(value, option_name(name))
    return given


def _parameter(name: str, flag: Flag, field: FieldInfo) -> inspect.Parameter:
    # unset is None for every option: what was given is told apart from a default value
    kind = _command_line_type(flag, field)
    option = typer.Option(
        *(flag.names or (option_name(name),)),
        help=flag.help + _default(flag, field),
        rich_help_panel=flag.panel,
        metavar=flag.metavar or _choices(field),
        show_default=False,
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]  # a type that is made while running
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _command_line_type(flag: Flag, field: FieldInfo) -> Any:
    if flag.repeatable:
        return list[str]
    if flag.read is not None:
        return str
    kinds = [_plain(kind) for kind in _alternatives(field.annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else str


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _plain(kind: Any) -> Any:
    return str if get_origin(kind) is Literal else kind


def _choices(field: FieldInfo) -> str | None:
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return "|".join(words) or None


def _default(flag: Flag, field: FieldInfo) -> str:
    value = field.default
    if flag.default is not None:
        return f" (default: {flag.default})"
    if field.default_factory is not None or value is None or value is False or value == ():
        return ""
    if isinstance(value, tuple):
        return f" (default: {','.join(map(str, value))})"
    return f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"
