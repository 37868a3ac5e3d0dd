"""Options and arguments whose value may come from a variable `CPSIM_*` or `cpsim.toml`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.config.settings import Setting

RUNS: Final = Path("runs")
"""Where run folders are made, and looked for, unless the setting `runs` names another folder."""
CREDENTIALS: Final = re.compile(r"(?<=//)[^/\s]*@|^[^/\s]*:[^/\s]*@")
"""A name and a password, which no address may have, and which are not printed."""
PLACES: Final = "cpsim.settings"
FOUND: Final = "cpsim.settings.found"
"""Keys of what a context keeps: the settings that there are, and those that were taken, by the parameter's name."""


class _Settable(click.Parameter):
    """A parameter that is not required to be typed.

    Args:
        setting: the name of its setting.
    """

    def __init__(self, *args: Any, setting: str, **kwargs: Any) -> None:  # noqa: ANN401 - those of click
        super().__init__(*args, **kwargs)
        self.setting = setting

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """The value on the command line, else that of the setting, else the default."""
        value, source = super().consume_value(ctx, opts)
        if source is not ParameterSource.DEFAULT or ctx.resilient_parsing:
            return value, source
        target = next((each.name for each in ctx.command.params if getattr(each, "setting", "") == "target"), "")
        typed = opts.get(target or "")
        setting = _setting(ctx, self.setting, typed if isinstance(typed, str) else None, has_target=bool(target))
        if setting is None:
            return value, source
        ctx.meta.setdefault(FOUND, {})[self.name] = setting
        return setting.value, ParameterSource.DEFAULT_MAP

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Take the value; an error about one that was not typed says where it comes from."""
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            if (setting := ctx.meta.get(FOUND, {}).get(self.name)) is None:
                raise
            message = f"{error.message.rstrip('.')}; it comes from {printable(setting.origin)}"
            raise click.BadParameter(message, ctx, self) from error


class SettableOption(_Settable, click.Option):
    """An option that is not required to be typed."""


class SettableArgument(_Settable, click.Argument):
    """An argument that is not required to be typed."""


def announce(ctx: click.Context) -> None:
    """Print on standard error which settings were taken, and where each comes from."""
    for parameter in ctx.command.params:
        setting = ctx.meta.get(FOUND, {}).get(parameter.name)
        if setting is not None:
            text = setting.value if isinstance(setting.value, str) else " ".join(setting.value)
            value = CREDENTIALS.sub("...@", text)
            name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
            click.echo(f"cpsim: {name} {printable(value)}, from {printable(setting.origin)}", err=True)


def runs_folder(ctx: click.Context | None) -> Path:
    """The folder in which run folders are made and looked for."""
    setting = None if ctx is None else _setting(ctx, "runs")
    return RUNS if setting is None else Path(str(setting.value))


def _setting(
    ctx: click.Context, name: str, typed_target: str | None = None, *, has_target: bool = False
) -> Setting | None:
    """A setting, from the first place that counts; the places are read once for a command line."""
    from cpsim.config import settings

    if name in settings.OF_TARGET and not has_target:
        return None  # the command sends to no target that could be meant
    if PLACES not in ctx.meta:
        ctx.meta[PLACES] = settings.find(os.environ, Path())
    return settings.chosen(ctx.meta[PLACES], name, typed_target)
