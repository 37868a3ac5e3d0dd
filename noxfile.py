"""The checks: `nox --list` lists the sessions.

`tests/requirements.txt` locks what a session installs, with versions and hashes; `nox -s lock` rewrites it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import nox
from nox.command import CommandFailed

# nothing is compiled when it is installed: each process, pip's too, would compile all that it imports
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
nox.options.sessions = ["tests", "lint"]
nox.options.error_on_missing_interpreters = True

PYTHONS = ("3.11", "3.12", "3.13")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROGRAMS: dict[str, str] = {}
"""The folder with the programs of each environment, by the name of the session that made it."""
LOCK = "tests/requirements.txt"
LOCK_OF_NOX = "tests/requirements-nox.txt"
UV = str(Path(sys.executable).with_name("uv"))
"""The uv that the lock of nox has installed beside it."""
UV_OF_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
}
"""What uv has for options of pip's that say where packages are."""
EVERYTHING = ("pyproject.toml", "--all-extras", "--group", "dev", "--group", "docs", "--group", "lint")


def find_python(version: str) -> str:
    """The path of a Python of a version, or its bare name if there is none.

    Searches the PATH, where a name may be a broken shim, and the folders of pyenv and uv.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    for folder in (*folders, *sorted(pyenv.glob(f"{version}.*/bin")), *sorted(uv.glob(f"cpython-{version}.*/bin"))):
        python = folder / f"python{version}"
        if python.is_file() and is_python(python, version):
            return str(python)
    return f"python{version}"


def is_python(path: Path, version: str) -> bool:
    """Whether a program is a Python of a version."""
    script = "import sys; print(*sys.version_info[:2], sep='.')"
    try:
        done = subprocess.run([path, "-c", script], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    except OSError:
        return False
    return done.stdout.strip() == version


def environment(session: nox.Session) -> None:
    """Install what the lock names, the build backend too, and the wheel that is built with it: what is shipped."""
    install_locked(session)
    PROGRAMS[session.name] = str(Path(session.bin).resolve())


def install_locked(session: nox.Session) -> None:
    """Install what the lock names, and the wheel."""
    install(session, "--require-hashes", "-r", LOCK)
    install_wheel(session)


def install_wheel(session: nox.Session) -> None:
    """Build the wheel with the installed backend, and install it."""
    install(session, "--no-build-isolation", "--force-reinstall", ".")


def install(session: nox.Session, *arguments: str) -> None:
    """Install with uv, which takes a tenth of pip's time, or with pip, which may be configured as uv cannot be."""
    into = ("--no-deps", "--python", f"{session.bin}/python", *arguments)
    try:
        session.run_install(UV, "pip", "install", "-q", *into, external=True, env=settings_of_uv())
    except CommandFailed:
        session.install("--no-compile", "--no-deps", *arguments)


@cache
def settings_of_uv() -> dict[str, str]:
    """The environment in which uv, which reads nothing of pip's configuration, looks for packages where pip does."""
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    for section in ("global", "install", ":env:"):  # the last that sets an option decides
        for option, value in re.findall(rf"^{section}\.([a-z-]+)=(.+)$", listed, re.MULTILINE):
            if option in UV_OF_PIP:
                between = "," if option == "find-links" else " "
                found[UV_OF_PIP[option]] = between.join(ast.literal_eval(value).split())
    return {name: value for name, value in found.items() if name not in os.environ}


def run(
    session: nox.Session, name: str, program: str, *arguments: str, silent: bool = False, **environment: str
) -> None:
    """Run a program of the environment of that name; silently, it is heard only if it fails."""
    path = f"{PROGRAMS[name]}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, **environment}
    session.run(f"{PROGRAMS[name]}/{program}", *arguments, env=env, external=True, silent=silent)


def run_tests(session: nox.Session, name: str, *chosen: str, processes: int = 2) -> None:
    """Run tests against the wheel that is installed in the environment of that name."""
    # sockets need short paths; trio's plugin of hypothesis, which is not ours, would be imported by each process
    environment = {"CPSIM_TEST_INSTALLED": "1", "TMPDIR": "/tmp", "HYPOTHESIS_NO_PLUGINS": "1"}  # noqa: S108
    options = session.posargs
    if not options and processes > 1:
        # what is imported is compiled once, not by all processes at the same time
        run(session, name, "pytest", *chosen, "--collect-only", "-qq", silent=True, **environment)
        options = ["-n", str(processes), "--dist", "worksteal"]
    run(session, name, "pytest", *chosen, *options, **environment)


def tests(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    run_tests(session, "environment")


def tests_of_a_python(session: nox.Session) -> None:
    """Run the tests that take minutes, in one process."""
    run_tests(session, session.name.replace("tests", "environment"), processes=1)


nox.session(environment)
nox.session(tests, python=False, requires=["environment"])
for version in PYTHONS:
    others = [] if version == THIS_PYTHON else ["other-pythons"]
    requires = [f"environment-{version}"]
    nox.session(environment, name=requires[0], python=find_python(version))
    nox.session(tests_of_a_python, name=f"tests-{version}", python=False, requires=requires, tags=others)


@nox.session(python=False, requires=["environment"])
def thorough(session: nox.Session) -> None:
    """Run the other tests: those that start processes, browsers or foreign servers, or take long."""
    run_tests(session, "environment", "-m", "thorough", processes=4)  # many of them wait


TORTURES = {
    "site": "tests/torture/torture.py",
    "files": "tests/torture/attacks.py",
    "damaged": "tests/torture/damaged.py",
    "replies": "tests/torture/replies.py",
    "disk": "tests/torture/full_disk.py",
    "uploads": "tests/torture/uploads.py",
    "kill": "tests/store/kill.py",
    "soak": "tests/robustness/soak.py",
}
"""What `nox -s torture` runs, by name; all but the last, which takes as long as one likes, if none is named."""


@nox.session(python=False, requires=["environment"])
def torture(session: nox.Session) -> None:
    """Attack everything; `-- NAME OPTION...` is one attack, with its options.

    site: the whole site from 10,000 seeds. files: files and processes at work. damaged: damaged files. replies: hostile
    replies. disk: 50 rounds of a full disk. uploads: two cases of uploads. kill: processes that are killed. soak: 30
    minutes of mixed load; --minutes.
    """
    name, *options = session.posargs or ["all"]
    if name in TORTURES:
        run(session, "environment", "python", TORTURES[name], *options)
    elif name == "all":
        for script in list(TORTURES.values())[:-1]:
            run(session, "environment", "python", script)
    else:  # a number of seeds, and the first
        run(session, "environment", "python", TORTURES["site"], *session.posargs)


@nox.session(python=False, requires=["environment"])
def conformance(session: nox.Session) -> None:
    """Plant faults in a plain server and a plain daemon, and print which clauses of `cpsim verify` find them."""
    run(session, "environment", "python", "tests/conformance/planted.py", *session.posargs)
    run(session, "environment", "python", "tests/conformance/planted_daemons.py")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run all tests with the lowest versions that pyproject.toml allows."""
    test_resolution(session, "lowest-direct")


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests with the newest versions that pyproject.toml allows today."""
    test_resolution(session, "highest")


def test_resolution(session: nox.Session, resolution: str) -> None:
    """Run all tests with the versions of a uv resolution."""
    chosen = str(Path(session.create_tmp()) / "requirements.txt")
    compile_ = (UV, "pip", "compile", "-q", *EVERYTHING, "--resolution", resolution, "--python", "python")
    written = ("--no-emit-index-url", "--only-binary", ":all:", "-o", chosen)
    session.run_install(*compile_, *written, external=True, env=settings_of_uv())
    install(session, "-r", chosen)
    install_wheel(session)
    PROGRAMS[session.name] = session.bin
    run_tests(session, session.name, "-m", "")


@nox.session(python=False)
def lock(session: nox.Session) -> None:
    """Rewrite the locks with the newest versions that pyproject.toml allows, for all Pythons and systems."""
    session.env.update(settings_of_uv())
    compile_ = (UV, "pip", "compile", "-q", "--universal", "--python-version", PYTHONS[0], "--generate-hashes")
    written = ("--no-emit-index-url", "--no-annotate", "--custom-compile-command", "nox -s lock", "-o")
    session.run(*compile_, "--upgrade", *EVERYTHING, *written, LOCK)
    of_nox = Path(session.create_tmp()) / "nox.in"
    of_nox.write_text("nox[uv]\n", encoding="utf-8")
    session.run(*compile_, "--constraints", LOCK, str(of_nox), *written, LOCK_OF_NOX)


@nox.session(python=False, requires=["environment"])
def lint(session: nox.Session) -> None:
    """Check style and types."""
    run(session, "environment", "ruff", "check")
    run(session, "environment", "ruff", "format", "--check")
    run(session, "environment", "mypy")
    run(session, "environment", "mypy", "tests/typing/public_api.py")


@nox.session(python=False, requires=["environment"])
def docs(session: nox.Session) -> None:
    """Build the documentation, in which a warning is an error, into `build/docs`."""
    options = ("-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")
    run(session, "environment", "sphinx-build", *options, *session.posargs)


@nox.session(python=False, requires=["environment"])
def pictures(session: nox.Session) -> None:
    """Draw the documentation's pictures of the pages again; it needs a browser."""
    run(session, "environment", "python", "docs/pictures.py")


@nox.session(python=False)
def readme(session: nox.Session) -> None:
    """Run the README's first two commands and its first test in a fresh clone, as a newcomer does."""
    with tempfile.TemporaryDirectory() as folder:  # outside this project, whose settings pytest would read
        clone = Path(folder) / "clone"
        session.run("git", "clone", "-q", ".", str(clone), external=True)
        text = (clone / "README.md").read_text(encoding="utf-8")
        install, move = (block.split("```")[0] for block in text.split("```sh\n")[1:3])
        test = text.split("```python test_credit.py\n")[1].split("```")[0]
        with session.chdir(clone):
            session.run(
                "bash", "-euc", f'{install}{move}printf %s "$0" > test_credit.py && pytest -q', test, external=True
            )


@nox.session
def bench(session: nox.Session) -> None:
    """Print ratios measured side by side; `nox -s bench -- NEW.json --compare OLD.json` compares with earlier ones.

    `nox -s bench -- --slots 10000000` measures only so many slots: the ledger alone, and a fake with them.
    """
    install_locked(session)
    session.run("python", "tests/benchmarks/ratios.py", *session.posargs)
