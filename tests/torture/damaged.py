"""Give every file that the command line reads to it damaged: cut, altered, empty, binary, of another kind.

    python tests/torture/damaged.py 20 --first 0

Each seed damages every file in every way once more. The exit status is 0 if each damaged file was read, or refused in
a message that names it; each that was not has a line, which repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.cli import main as command_line

SAMPLES = Path(__file__).parents[1] / "samples"
STATUSES = {0, 1, 2, 64}
DAEMON = """[api]
api_url = http://127.0.0.1:1/api
api_key = demo
api_secret = demo
flush_interval = 1
[server]
socket = unix
bind = nowhere/daemon.socket
"""
SERVER = """http = "127.0.0.1:1"
seed = 1
[[project]]
id = "physics"
secret = "secret"
[[daemon]]
project = "physics"
unix = "nowhere/daemon.socket"
flush_interval = 0.5
[clock]
start = 2026-03-01T00:00:00Z
rate = 60
[links]
worker-7 = "alice"
"""
SQL = """database = "duckdb:///nowhere.duckdb"
[slots]
query = "SELECT 1 AS slot"
"""
LOG = "".join(f"{job} {job * 10} 5 100 4 -1 -1 4 200 -1 {job % 3} {job % 4} 1 -1 1 1 -1 -1\n" for job in range(1, 9))
REPORT = '"""A report."""\n\n\ndef build(accounts):\n    return []\n'
PROGRAM = "from cpdaemon import Alloc\n\n\ndef commands(seed):\n    yield 0.0, Alloc('s', credits=1)\n"
ROWS = '{"project": "demo", "slot": "s", "state": "allocated", "machine": null, "credits": 1}\n'
SERVED = ("--server", "http://127.0.0.1:1/api", "--project", "demo")


class Reader(NamedTuple):
    """A file, and the arguments with which the program reads it."""

    file: str
    arguments: tuple[str, ...]


READERS = {
    "scenario": Reader("site.toml", ("scenarios", "write", "site.toml", "-o", "out.parquet")),
    "job log": Reader("site.swf", ("scenarios", "write", "site.swf", "-o", "out.parquet")),
    "packed job log": Reader("site.swf.gz", ("scenarios", "write", "site.swf.gz", "-o", "out.parquet")),
    "trace as CSV": Reader("recording.csv", ("scenarios", "write", "recording.csv", "-o", "out.parquet")),
    "trace as Parquet": Reader("recording.parquet", ("scenarios", "write", "recording.parquet", "-o", "out.parquet")),
    "workload": Reader("workload.parquet", ("scenarios", "write", "workload.parquet", "-o", "out.parquet")),
    "program": Reader("site.py", ("scenarios", "write", "site.py", "-o", "out.parquet")),
    "daemon's configuration": Reader("daemon.ini", ("daemon", "--config", "daemon.ini")),
    "server's configuration": Reader("serve.toml", ("serve", "--config", "serve.toml", "--unix", "nowhere/other")),
    "daemon's secret": Reader("secret", ("daemon", "--tcp", "nowhere:1", *SERVED, "--secret-file", "secret")),
    "server's secret": Reader(
        "secret", ("serve", "--unix", "nowhere/s", "--project", "demo", "--secret-file", "secret")
    ),
    "token": Reader("secret", ("serve", "--unix", "nowhere/s", "--control-token-file", "secret")),
    "verifier's secret": Reader(
        "secret",
        (
            "verify",
            "http://127.0.0.1:1/api",
            "--project",
            "demo",
            "--secret-file",
            "secret",
            "--dry-run",
            "-k",
            "CLAIM-1",
        ),
    ),
    "report": Reader("own.py", ("report", "run", "own.py")),
    "rows": Reader("rows/slots.jsonl", ("report", "--accounts", "rows", "summary")),
    "source of SQL": Reader("accounts.toml", ("report", "--accounts", "sql:accounts.toml", "summary")),
    **{
        f"run's {name}": Reader(f"run/{name}", ("judge", "run"))
        for name in (
            "run.json",
            "evidence.json",
            "journal.parquet",
            "ledger.parquet",
            "accounts.parquet",
            "workload.parquet",
            "verdict.json",
            "faults.json",
            "seconds.parquet",
        )
    },
    **{
        f"reported {name}": Reader(f"run/{name}", ("report", "run", "summary"))
        for name in ("run.json", "journal.parquet", "ledger.parquet", "accounts.parquet")
    },
    **{
        f"exported {name}": Reader(f"export/{name}", ("report", "export", "summary"))
        for name in ("accounts.parquet", "slots.parquet", "ledger.jsonl")
    },
}


def prepare(folder):
    """Write every file whole."""
    for name in ("recording.csv", "recording.parquet"):
        shutil.copy(SAMPLES / "v0.1" / name, folder / name)
    shutil.copy(SAMPLES / "v0.3/run/workload.parquet", folder / "workload.parquet")
    shutil.copytree(SAMPLES / "v0.3/run", folder / "run")
    shutil.copytree(SAMPLES / "v0.1/export", folder / "export")
    (folder / "rows").mkdir()
    texts = {
        "site.toml": (SAMPLES / "scenario.toml").read_text(encoding="utf-8"),
        "site.swf": LOG,
        "site.py": PROGRAM,
        "daemon.ini": DAEMON,
        "serve.toml": SERVER,
        "secret": "secret\n",
        "own.py": REPORT,
        "rows/slots.jsonl": ROWS,
        "accounts.toml": SQL,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "site.swf.gz").write_bytes(gzip.compress(LOG.encode()))


# Ways to damage a file: what is there before, and a source of chance; what is there afterwards


def cut(whole, chance):
    return whole[: chance.randrange(len(whole))]


def cut_of_a_byte(whole, chance):
    return whole[:-1]


def flipped(whole, chance):
    damaged = bytearray(whole)
    for _ in range(chance.choice((1, 1, 3, 30))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zeroed(whole, chance):
    at = chance.randrange(len(whole))
    length = min(chance.choice((1, 16, 512, 4096)), len(whole) - at)
    return whole[:at] + bytes(length) + whole[at + length :]


def doubled(whole, chance):
    return whole + whole


def shuffled(whole, chance):
    lines = whole.splitlines(keepends=True)
    chance.shuffle(lines)
    return b"".join(lines)


def empty(whole, chance):
    return b""


def blank(whole, chance):
    return b"\n \n\n"


def binary(whole, chance):
    return chance.randbytes(chance.choice((1, 10, 10_000)))


def in_latin_1(whole, chance):
    at = chance.randrange(len(whole) + 1)
    return whole[:at] + "\xe9\xff".encode("latin-1") + whole[at:]


def latin_1_at_the_front(whole, chance):
    return b"\xe9" + whole


def in_utf_16(whole, chance):
    return whole.decode("latin-1").encode("utf-16")


def with_a_mark(whole, chance):
    return b"\xef\xbb\xbf" + whole


def with_a_nul(whole, chance):
    at = chance.randrange(len(whole) + 1)
    return whole[:at] + b"\0" + whole[at:]


def nested(whole, chance):
    return b"[" * 100_000


def an_object_of_json(whole, chance):
    return chance.choice((b"{}", b"[]", b"null", b"1", b'"x"', b'{"table": 1}', b'{"a": {"a": [1]}}'))


def long_number(whole, chance):
    digits = [at for at, byte in enumerate(whole) if chr(byte).isdigit()]
    at = chance.choice(digits or [0])
    return whole[:at] + b"9" * chance.choice((20, 400, 5_000)) + whole[at + 1 :]


def word(whole, chance):
    """Another value in the place of one."""
    words = whole.split(b" ")
    words[chance.randrange(len(words))] = chance.choice(
        (b"nan", b"-1", b"1e999", b"''", b"[[]]", b"{}", b"true", b"\\")
    )
    return b" ".join(words)


def one_long_line(whole, chance):
    return b"x" * 3_000_000


def other_columns(whole, chance):
    return parquet(pa.table({"other": [1, 2], "columns": ["a", None]}))


def other_types(whole, chance):
    """The table itself, with columns of other types, or without them."""
    if whole[:4] != b"PAR1":
        return empty(whole, chance)
    table = pq.read_table(io.BytesIO(whole))
    if not table.num_columns:
        return whole
    at = chance.randrange(table.num_columns)
    name = table.column_names[at]
    length = table.num_rows
    other = chance.choice(
        (
            None,
            pa.nulls(length),
            pa.array([[1]] * length),
            pa.array([{"a": 1}] * length),
            pa.array(["x"] * length),
            pa.array([b"\xff"] * length),
            pa.array([1.5] * length),
            pa.array([-1] * length),
            pa.array([True] * length),
            pa.array([2**63 - 1] * length),
        )
    )
    table = table.remove_column(at) if other is None else table.set_column(at, name, other)
    return parquet(table)


def no_rows(whole, chance):
    if whole[:4] != b"PAR1":
        return empty(whole, chance)
    return parquet(pq.read_table(io.BytesIO(whole)).slice(0, 0))


def other_metadata(whole, chance):
    if whole[:4] != b"PAR1":
        return empty(whole, chance)
    table = pq.read_table(io.BytesIO(whole))
    metadata = dict(table.schema.metadata or {})
    for key, value in metadata.items():
        metadata[key] = chance.choice((b"", b"{}", b"null", b"[]", b"\xff", flipped(value, chance) if value else b""))
    return parquet(table.replace_schema_metadata(metadata))


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


DAMAGES = {
    damage.__name__.replace("_", " "): damage
    for damage in (
        *(
            cut,
            cut_of_a_byte,
            flipped,
            zeroed,
            doubled,
            shuffled,
            empty,
            blank,
            binary,
            in_latin_1,
            latin_1_at_the_front,
        ),
        *(in_utf_16, with_a_mark, with_a_nul, nested, an_object_of_json, long_number, word, one_long_line),
        *(other_columns, other_types, no_rows, other_metadata),
    )
}
OTHERS = ("is a folder", "is missing")
"""What is there instead of a file."""


def attempt(folder, reader, damage, seed, whole_said):
    """Damage a file, have it read, and mend it; returns what is wrong with what the program did, or None."""
    path = folder / READERS[reader].file
    whole = path.read_bytes()
    path.unlink()
    try:
        if damage == "is a folder":
            path.mkdir()
        elif damage in DAMAGES:
            path.write_bytes(DAMAGES[damage](whole, random.Random(f"{reader} {damage} {seed}")))
        status, said = ask(reader)
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        *_, frame = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]} ({frame.filename}:{frame.lineno})"
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
    if status not in STATUSES or "Traceback" in said:
        return f"exit status {status}: {said[-300:]}"
    if (
        status
        and path.name not in said
        and (path.parent == folder or path.parent.name not in said)
        and said != whole_said
        and "verdict " not in said
    ):
        return f"exit status {status}, and {path.name} is not named: {said[:200]}"
    return None


def ask(reader):
    """Have the program read a file, in this process; returns its exit status, and what it says in one line."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["cpsim", *READERS[reader].arguments]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("cpsim.system.process.do_without_pandas"),  # for good: this process needs it for other commands
    ):
        try:
            command_line()
        except SystemExit as exited:
            return exited.code, " ".join((err.getvalue() or out.getvalue()).split())
        finally:
            Path("out.parquet").unlink(missing_ok=True)
    raise AssertionError("the command line has not ended")


def run(seed, folder, readers=tuple(READERS)):
    """Attempt everything once; yields for each what it was, and what is wrong, or None."""
    for reader in readers:
        _, whole_said = ask(reader)
        for damage in (*DAMAGES, *OTHERS):
            wrong = attempt(folder, reader, damage, seed, whole_said)
            repeat = f"python tests/torture/damaged.py 1 --first {seed} --reader {reader!r}"
            yield reader, damage, wrong and f"{repeat}  # {damage}: {wrong}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", nargs="?", type=int, default=5, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--reader", choices=READERS, help="only this file")
    given = parser.parse_args()
    counts, failed = Counter(), 0
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path()
        prepare(folder)
        for seed in range(given.first, given.first + given.seeds):
            for reader, _, wrong in run(seed, folder, (given.reader,) if given.reader else tuple(READERS)):
                counts[reader] += 1
                if wrong is not None:
                    failed += 1
                    print(wrong, flush=True)
    print(json.dumps({"damaged": counts.total(), "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
