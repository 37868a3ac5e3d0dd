"""What is checked, and how: `nox -s tests`, `lint`, `docs`, `readme`, `bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint"]
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
DEVELOPMENT = nox.project.dependency_groups(PROJECT, "dev")
LINTERS = nox.project.dependency_groups(PROJECT, "lint")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted({"3.11", "3.12", "3.13", THIS_PYTHON})


def install_wheel(session: nox.Session, extra: str = "") -> None:
    """Build the wheel and install that: what is tested is what is shipped."""
    folder = Path(session.create_tmp())
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), ".", silent=True)
    (wheel,) = folder.glob("*.whl")
    session.install(f"{wheel}{extra}", *DEVELOPMENT)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests against the built wheel."""
    install_wheel(session, "[all]")
    environment = {"CPSIM_TEST_INSTALLED": "1", "TMPDIR": "/tmp"}  # noqa: S108 - sockets need short paths
    session.run("pytest", *(session.posargs or ["-n", "3", "--dist", "worksteal"]), env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("-e", ".[run]", *LINTERS)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("mypy", "tests/typing/public_api.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, in which a warning is an error, into `build/docs`."""
    session.install("-e", ".[all]", *nox.project.dependency_groups(PROJECT, "docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs", *session.posargs)


@nox.session(python=False)
def readme(session: nox.Session) -> None:
    """Run the README's first command in a fresh clone, as a newcomer does."""
    clone = Path(session.create_tmp()) / "clone"
    session.run("rm", "-rf", str(clone), external=True)
    session.run("git", "clone", "-q", ".", str(clone), external=True)
    command = (clone / "README.md").read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    session.chdir(clone)
    session.run("bash", "-euc", command, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Print ratios measured side by side; `nox -s bench -- NEW.json --compare OLD.json` also those of before."""
    install_wheel(session, "[load,report]")
    session.run("python", "tests/benchmarks/ratios.py", *session.posargs)
