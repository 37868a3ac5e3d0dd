"""Options of asserts: thresholds on figures, the past run that they are relative to, and the figures that count."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from cpsim.cli.options import DurationType
from cpsim.cli.settings import runs_folder
from cpsim.config.thresholds import METRICS, Threshold, names_by_kind
from cpsim.errors import CpsimError, UsageError

if TYPE_CHECKING:
    from cpsim.run.folder import OutputFolder


class ThresholdType(click.ParamType["Threshold"]):
    """A threshold on a figure, in its text form."""

    name = "threshold"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        """Parse the value."""
        try:
            return Threshold.parse(value)
        except CpsimError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The metrics that begin with the text; those of one kind of command once it has a bracket."""
        del ctx, param
        names = names_by_kind() if "[" in incomplete else METRICS
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class RunType(click.ParamType[Path]):
    """The folder of a past run, or its name below the folder of runs."""

    name = "run"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Find the folder."""
        path, runs = Path(value), runs_folder(ctx)
        found = next((each for each in (path, runs / path) if each.is_dir()), None)
        if found is None:
            close = get_close_matches(path.name, [run.name for run in _folders(runs)], n=1)
            hint = f"did you mean {close[0]}?" if close else "`cpsim runs` lists those that there are"
            self.fail(f"there is no run {value}, and none below {runs}; {hint}", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The runs whose names begin with the text, else folders."""
        del param
        names = [run.name for run in _folders(runs_folder(ctx)) if run.name.startswith(incomplete)]
        return [CompletionItem(name) for name in sorted(names)] or [CompletionItem(incomplete, type="dir")]


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


threshold_option = click.option(
    "--assert",
    "thresholds",
    type=ThresholdType(),
    multiple=True,
    metavar="METRIC<N",
    help="Exit with 1 unless a figure meets this: p99_ms<20, error_rate<0.001, p99_ms[claim]<20, "
    "p99_ms<=1.1*baseline, ...",
)
baseline_option = click.option(
    "--baseline",
    type=RunType(),
    metavar="RUN",
    help="The past run whose figures are `baseline` in an --assert: its folder, or its name below runs/.",
)
warm_up_option = click.option(
    "--warm-up",
    "warm_up_s",
    type=DurationType(),
    default=0.0,
    metavar="S",
    help="Leave operations of the first S seconds out of all figures, and so of --assert; not out of the verdict.",
)
stop_option = click.option(
    "--stop-on-breach",
    is_flag=True,
    help="End the replay as soon as an --assert cannot hold any more; exit with 1.",
)

fail_fast_option = click.option(
    "--fail-fast",
    is_flag=True,
    help="End the replay at the first slot that is found to be wrong, as soon as that can be seen; exit with 1.",
)


def against_baseline(thresholds: tuple[Threshold, ...], baseline: Path | None) -> tuple[Threshold, ...]:
    """The thresholds with the figures of the baseline that some are relative to.

    Raises:
        UsageError: there is no baseline or none is needed, or it does not have a figure.
    """
    relative = [threshold for threshold in thresholds if threshold.is_relative]
    if baseline is None:
        if relative:
            raise UsageError(f"--assert {relative[0]}: add --baseline RUN, the run that it is relative to")
        return thresholds
    if not relative:
        raise UsageError('--baseline goes with an --assert that is relative to it, such as "p99_ms<=1.1*baseline"')
    from cpsim.evidence import past

    try:
        figures = past.read(baseline).metrics()
        return tuple(threshold.against(figures) for threshold in thresholds)
    except CpsimError as error:
        raise UsageError(f"--baseline {baseline}: {error}") from error


def note_baseline(baseline: Path | None, output: OutputFolder) -> None:
    """Say on standard error how a run differs from its baseline in what was done."""
    from cpsim.run.comparison import baseline_note

    if note := baseline_note(baseline, output):
        click.echo(f"cpsim: {note}", err=True)
