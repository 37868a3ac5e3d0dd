"""Where nox looks for the Pythons on which the tests are run."""

import importlib.util
from pathlib import Path

import pytest

NOXFILE = Path(__file__).parents[1] / "noxfile.py"
SHIM = "echo 'pyenv: python3.13: command not found' >&2; exit 127"


@pytest.fixture(scope="module")
def noxfile():
    pytest.importorskip("nox", reason="nox runs the sessions")
    spec = importlib.util.spec_from_file_location("noxfile", NOXFILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(place, program): a program `python3.13` in a folder of a machine that has no other."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))

    def put(place, program):
        path = tmp_path / place / "python3.13"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return put


@pytest.mark.parametrize("place", ["bin", "pyenv/versions/3.13.0/bin", "uv/cpython-3.13.1-linux-x86_64-gnu/bin"])
def test_a_python_is_found_beside_a_shim_that_does_not_run(noxfile, put, place):
    put("shims", SHIM)
    python = put(place, "echo 3.13")
    assert noxfile.find_python("3.13") == python


def test_a_python_of_another_version_is_none(noxfile, put):
    put("bin", "echo 3.12")
    assert noxfile.find_python("3.13") == "python3.13"
