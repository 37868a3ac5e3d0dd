"""Moving commands from one spool to another: an export, a file, an import.

An export takes what a spool holds out of delivery: from then on no daemon opens the spool, which keeps its content. So
nothing is lost with the file, which can be written again, and nothing is delivered from both places. An import is one
commit, with the export's id, so that a second import of the same file changes nothing.

A batch that is under way moves with its id, and is the first that the next daemon sends: a server that knows ids
applies it once.
"""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.export_file import FORMAT, QUEUED, UNDER_WAY, VERSION, Entry, Export, Header, UnderWay, lines_of
from cpsim.daemon.failed import DAMAGED, DEAD_LETTER, SELECT_FAILED, FailedCommand, failed_command, insert_failed
from cpsim.daemon.spool import KIND, MAX_COMMANDS, TABLES, decoded
from cpsim.daemon.spool_status import existing
from cpsim.errors import CpsimError
from cpsim.store.file import InUse
from cpsim.store.log import Log, cut
from cpsim.store.schema import sum_of
from cpsim.system.new_file import new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from cpsim.store.log import Statement

UNDELIVERED: Final = "FROM log, cut WHERE log.position > cut.position AND record <> ''"
SELECT_QUEUED: Final = f"""
SELECT log.position, at_us, CAST(record AS BLOB), {sum_of("record")} {UNDELIVERED} ORDER BY log.position
"""
SET_TIMES: Final = "UPDATE log SET at_us = value FROM json_each(?) WHERE position = ? + key"
"""Gives new records the times at which they were first received."""
UNKNOWN: Final = "it was sent with a record that is damaged now: whether it was applied is unknown"


def export_to(spool: Path, place: Path | IO[bytes]) -> Export:
    """Write what a spool holds to a new file or to a stream, and take it out of delivery; return what was written.

    A spool that was exported before is written again, with the same id.

    Raises:
        CpsimError: there is no such spool, it is in use, or the file exists or cannot be written; or the stream cannot,
            whose reader may have what was written, so that the spool stays out of delivery.
    """
    with closing(_opened(existing(spool))) as log:
        marks = log.query("SELECT id, at_us FROM exported")
        id_, at_us = marks[0] if marks else (uuid.uuid4().hex, SYSTEM_CLOCK.now_us())
        export = _content(log, id_, at_us)

        def take_out() -> None:
            if not marks:
                log.wait(("INSERT INTO exported VALUES (?, ?)", (id_, at_us)))

        if isinstance(place, Path):
            with new_file(place) as partial:
                with partial.open("wb") as file:
                    file.writelines(lines_of(export))
                take_out()
        else:
            take_out()  # first, for what has come out of a stream may be imported
            try:
                place.writelines(lines_of(export))
                place.flush()
            except OSError as error:
                raise CpsimError(
                    f"{spool} is taken out of delivery, and its export could not be written whole: {error.strerror}: "
                    "export it again, which writes the same"
                ) from error
    return export


def import_into(spool: Path, export: Export, *, open_log: Callable[..., Log] = Log) -> str:
    """Add what was exported to a spool, in one commit; return a line that says what was done.

    The spool is created if it is missing. What it exported itself is put back into delivery.

    Raises:
        CpsimError: the spool is in use, full, of another project, was exported, or has imported what overlaps with
            this; or it has a queue that a batch under way cannot stand before; or it cannot be written. It is as it
            was.
    """
    header = export.header
    with closing(_opened(spool, open_log)) as log:
        imported = {id_ for (id_,) in log.query("SELECT id FROM imported")}
        own = {id_ for (id_,) in log.query("SELECT id FROM exported")}
        note = ("INSERT INTO imported VALUES (?, ?)", (header.id, SYSTEM_CLOCK.now_us()))
        if header.id in imported:
            return f"{spool} has imported export {header.id} before: nothing was changed\n"
        if header.id in own:
            log.wait(("DELETE FROM exported", ()), note)
            return f"{spool} delivers again what it had exported, {export.counts}: import it nowhere else\n"
        if own:
            raise CpsimError(f"{spool} was exported: name another spool, or import its own export to have it back")
        if both := imported & set(header.contains):
            raise CpsimError(
                f"{spool} has imported {min(both)}, which is a part of export {header.id}, too: commands would double"
            )
        log.wait(*_changes(log, export), note, records=_records(export))
        return f"imported {export.counts} into {spool}\n"


def _opened(spool: Path, open_log: Callable[..., Log] = Log) -> Log:
    try:
        return open_log(spool, KIND, TABLES)
    except InUse as problem:
        raise CpsimError(f"{spool} is in use by a daemon: stop the daemon, and run this command again") from problem


def _content(log: Log, id_: str, at_us: int) -> Export:
    """Return what a spool holds; what is damaged there becomes dead letters, as when a daemon finds it."""
    batches = log.query("SELECT id, last, named FROM batch")
    last = max((last for _, last, _ in batches), default=0)
    waiting: list[Entry] = []
    dead: list[Entry] = []
    is_doubtful = False
    for position, received_us, record, written in log.query(SELECT_QUEUED):
        _, text = decoded(position, record, written)
        if (shown := _shown_if_damaged(text)) is None:
            waiting.append(Entry(UNDER_WAY if position <= last else QUEUED, received_us, text))
        else:
            problem = f"record {position} of {log.path.name} is damaged: what was received is unknown"
            dead.append(Entry(DEAD_LETTER, received_us, shown, problem))
            is_doubtful |= position <= last
    if is_doubtful:
        dead += [Entry(DEAD_LETTER, at_us, each.command, UNKNOWN) for each in waiting if each.state == UNDER_WAY]
        waiting = [each for each in waiting if each.state == QUEUED]
        batches = []
    failed = [
        Entry(row.why, row.at_us, row.command, row.error) for row in map(failed_command, log.query(SELECT_FAILED))
    ]
    entries = [*failed, *dead, *waiting]
    header = Header(
        FORMAT,
        VERSION,
        id_,
        next((project for (project,) in log.query("SELECT project FROM owner")), None),
        at_us,
        [known for (known,) in log.query("SELECT id FROM imported ORDER BY at_us, id")],
        len(entries),
        next((UnderWay(batch, bool(named)) for batch, _, named in batches), None),
    )
    return Export(header, entries)


def _shown_if_damaged(text: str) -> str | None:
    """Return a text for a record that is not what was received; None for any other."""
    if text.startswith(DAMAGED):
        return text
    frame = text.encode(errors="surrogateescape")
    return None if frame.decode(errors="ignore") == text else f"{DAMAGED}{frame!r}"


def _records(export: Export) -> list[str]:
    """Return the new records: an empty one keeps the number of each failed command from being given again."""
    return ["" for _ in export.failed] + [each.command for each in (*export.under_way, *export.queued)]


def _changes(log: Log, export: Export) -> Iterator[Statement]:
    """Yield the SQL that follows the new records; raises CpsimError if the spool cannot have them."""
    header, failed, under_way = export.header, export.failed, export.under_way
    ((queued,),) = log.query(f"SELECT count(*) {UNDELIVERED}")
    ((held,),) = log.query("SELECT count(*) + ? FROM failed", (queued,))
    for (owner,) in log.query("SELECT project FROM owner"):
        if held and header.project not in {None, owner}:
            raise CpsimError(
                f"{log.path} holds {held:,} commands of project {owner!r}, and the export is of {header.project!r}: "
                "name another spool"
            )
    if held + header.lines > MAX_COMMANDS:
        raise CpsimError(
            f"{log.path} would hold {held + header.lines:,} commands, and takes {MAX_COMMANDS:,}: name another spool"
        )
    if under_way and queued:
        raise CpsimError(
            f"{log.path} has {queued:,} commands queued, and the export has a batch of {len(under_way):,} under way, "
            "which has to be sent first: name a new spool, or empty this one by --drain"
        )
    first = log.last + 1
    if header.project is not None:
        yield "DELETE FROM owner", ()
        yield "INSERT INTO owner VALUES (?)", (header.project,)
    times = [each.at_us for each in (*failed, *under_way, *export.queued)]
    yield SET_TIMES, (json.dumps(times), first)
    for position, each in enumerate(failed, first):
        yield insert_failed(FailedCommand(position, each.at_us, each.state, each.command, each.error))
    if not queued:
        yield from cut(first + len(failed) - 1)
    if header.under_way is not None:
        last = first + len(failed) + len(under_way) - 1
        yield "INSERT INTO batch VALUES (?, ?, ?)", (header.under_way.batch, last, header.under_way.named)
