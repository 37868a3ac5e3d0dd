"""What the tests of runs share."""

import sys

import pytest

from cpsim import cli


@pytest.fixture
def cpsim(monkeypatch, capsys):
    """Return cpsim(*arguments) -> (exit status, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cpsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return exited.value.code, *capsys.readouterr()

    return call
