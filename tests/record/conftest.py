"""A recorder in a process of its own, in front of whatever a test has."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pyarrow.csv
import pyarrow.parquet
import pytest

from cpsim.fake import Fake
from cpsim.net.listen import Listen

PROJECT, SECRET = "demo", "a-secret-nobody-may-read"
CPSIM = [sys.executable, "-m", "cpsim"]


LIMITED = """
import resource, sys
from cpsim.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
del sys.argv[1]
main()
"""


def limited(size_bytes):
    """The program, with files that cannot grow any larger."""
    return [sys.executable, "-c", LIMITED, str(size_bytes)]


@pytest.fixture
def fake(tmp_path):
    with Fake(
        {PROJECT: SECRET}, unix=tmp_path / "daemon.socket", tcp=Listen("127.0.0.1:0"), http=Listen("127.0.0.1:0")
    ) as fake:
        yield fake


@pytest.fixture
def cpsim(command_line, tmp_path, monkeypatch, capfd):
    """cpsim(*arguments) -> its exit status, what it printed and what it complained of, in a folder with the secret."""
    (tmp_path / "secret").write_text(SECRET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = command_line(*arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=status, stdout=out, stderr=err)

    return call


@pytest.fixture
def recording(tmp_path):
    """recording(target, ...) -> a recorder while it runs: its `address`, and after `stop()` what it said and wrote."""

    @contextmanager
    def running(target, *options, listen=None, output="traffic.parquet", size_limit=None):
        listen = listen or ("./proxy.socket" if "/" in str(target) and "://" not in str(target) else ":0")
        process = subprocess.Popen(
            [
                *(CPSIM if size_limit is None else limited(size_limit)),
                "record",
                "--listen",
                listen,
                "--target",
                str(target),
                "-o",
                output,
                "--json",
                *options,
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        recorder = SimpleNamespace(process=process, file=tmp_path / output)
        try:
            kind, _, address = process.stdout.readline().strip().partition(" ")
            recorder.kind = kind
            recorder.address = str(tmp_path / "proxy.socket") if kind == "unix" else address

            def stop(number=signal.SIGTERM):
                process.send_signal(number)
                return ended()

            def ended():
                out, recorder.said = process.communicate(timeout=280)
                recorder.status = process.returncode
                recorder.summary = json.loads(out) if out else None
                return recorder

            recorder.stop, recorder.ended = stop, ended
            yield recorder
        finally:
            if process.poll() is None:
                process.kill()
            with suppress(ValueError):
                process.communicate(timeout=280)

    return running


def rows(path):
    """A recording's rows, in order of their times, with arguments as text."""
    read = pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table
    found = sorted(read(path).to_pylist(), key=lambda row: row["sent_us"])
    return [{"arguments": as_text(row), **row} for row in found]


def as_text(row):
    """The typed arguments of a row; none, if they are no typed ones."""
    if row.get("frame") is not None:
        return row["frame"].decode("latin-1")
    own = {column.removeprefix(f"{row['kind']}."): value for column, value in row.items() if "." in column}
    given = [(name, value) for name, value in own.items() if value is not None] + (row.get(row["kind"]) or [])
    return ",".join(f"{name}={value}" for name, value in given)
