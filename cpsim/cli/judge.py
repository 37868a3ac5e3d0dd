"""`cpsim judge`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cpsim.cli.group import FAILED, INVALID, ExtraCommand, cli


@cli.command(cls=ExtraCommand, extra="run")
@click.argument("folder", metavar="RUNFOLDER", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, as verdict.json has it.")
def judge(folder: Path, as_json: bool) -> None:
    """Judge a run again, from the evidence in its run folder; nothing need be running.

    The exit status is 0 if the verdict is valid, 1 if invalid, 2 if unknown, as that of cpsim run without --assert.

    \b
    cpsim judge runs/smoke-20260301-120000-000000
    cpsim judge copied/from/another/machine --json
    """
    from cpsim.evidence.files import EvidenceFolder
    from cpsim.judge.judge import CHECKERS, checkers_of_others
    from cpsim.judge.judge import judge as judged
    from cpsim.run.folder import json_text, verdict_document
    from cpsim.run.summary import verdict_lines
    from cpsim.ui.terminal import Stages, console

    evidence = EvidenceFolder(folder)
    checkers = [*CHECKERS, *checkers_of_others()]
    with Stages() as stages:
        stages.begin("judging")
        head = evidence.head()
        verdict = judged(evidence.partitions(), head, checkers)
    text = json_text(verdict_document(head, verdict))
    if as_json:
        click.echo(text, nl=False)
    else:
        for line in verdict_lines(verdict, head.command):
            console.print(line, highlight=False)
        earlier = folder / "verdict.json"
        if earlier.is_file() and earlier.read_text(encoding="utf-8") != text:
            console.print(f"              [yellow]not as at the end of the run[/]: see {earlier}", highlight=False)
    sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[verdict.ruling])
