"""Where nox looks for the Pythons on which the tests are run, and for what it installs."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def settings_of_uv(noxfile, tmp_path, monkeypatch):
    """settings_of_uv(lines): uv's environment, for what a configuration of pip says."""
    for name in ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", *noxfile.UV_OF_PIP.values()):
        monkeypatch.delenv(name, raising=False)

    def read(lines):
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        (tmp_path / "pip.conf").write_text(lines, encoding="utf-8")
        noxfile.settings_of_uv.cache_clear()
        return noxfile.settings_of_uv()

    yield read
    noxfile.settings_of_uv.cache_clear()


def test_uv_looks_where_pip_is_configured_to_look(settings_of_uv, monkeypatch):
    found = settings_of_uv(
        """
        [global]
        index-url = https://user:word@mirror.example/simple
        extra-index-url =
            https://one.example/simple
            https://two.example/simple
        find-links = /wheels /more
        cert = /etc/its.pem
        [install]
        trusted-host = one.example
        cert = /etc/other.pem
        [freeze]
        timeout = 3
        """
    )
    assert found.pop("UV_INDEX_STRATEGY") == "unsafe-best-match"  # pip looks in all of them, too
    assert found.pop("UV_SYSTEM_CERTS")
    assert found == {
        "UV_DEFAULT_INDEX": "https://user:word@mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "one.example",
        "SSL_CERT_FILE": "/etc/other.pem",
    }
    monkeypatch.setenv("PIP_INDEX_URL", "https://nearer.example/simple")
    monkeypatch.setenv("UV_FIND_LINKS", "/own")
    found = settings_of_uv("[global]\nindex-url = https://mirror.example/simple\nfind-links = /wheels\n")
    assert found["UV_DEFAULT_INDEX"] == "https://nearer.example/simple"
    assert "UV_FIND_LINKS" not in found


def test_pip_installs_where_uv_cannot(noxfile, settings_of_uv, tmp_path):
    settings_of_uv("")
    installed = []

    def fail(*command, **_):
        assert command[:3] == (noxfile.UV, "pip", "install")
        raise noxfile.CommandFailed

    session = SimpleNamespace(
        bin=str(tmp_path), run_install=fail, install=lambda *arguments: installed.append(arguments)
    )
    noxfile.install(session, "--require-hashes", "-r", "lock.txt")
    assert installed == [("--no-compile", "--no-deps", "--require-hashes", "-r", "lock.txt")]
