"""The locks name every dependency in pyproject.toml, for each Python and system, at a version that is allowed there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("requirements.txt", "requirements-nox.txt")
ENTRY = re.compile(r"([\w.-]+)==(\S+)(?: ; (.+?))?((?: --hash=sha256:[0-9a-f]{64})+)")
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
SYSTEMS = {"linux": "Linux", "darwin": "Darwin"}


def entries(lock):
    """Each entry of a lock: the name, the version, the marker, the hashes."""
    text = (ROOT / "tests" / lock).read_text(encoding="utf-8").replace("\\\n", "")
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line and not line.startswith("#")]
    return [ENTRY.fullmatch(line) or pytest.fail(f"{lock}: {line}") for line in lines]


def needed():
    """Every requirement in pyproject.toml but the one of the project itself."""
    project = PROJECT["project"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
        PROJECT["build-system"]["requires"],
    ]
    requirements = [Requirement(text) for texts in lists for text in texts]
    return [each for each in requirements if each.name != project["name"]]


@pytest.fixture(params=[(python, system) for python in PYTHONS for system in SYSTEMS], ids="-".join)
def locked(request):
    """What is installed on a Python and a system: the version of each name, and nothing twice."""
    python, system = request.param
    there = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    environment = default_environment() | there | {"platform_system": SYSTEMS[system], "implementation_name": "cpython"}
    found = {}
    for name, version, marker, _ in (each.groups() for each in entries("requirements.txt")):
        if marker is None or Marker(marker).evaluate(environment):
            assert name not in found
            found[canonicalize_name(name)] = version
    return found


def test_every_requirement_is_locked_within_its_range(locked):
    for requirement in needed():
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock: nox -s lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, {version}: nox -s lock"


def test_the_lock_is_for_each_supported_python():
    assert PYTHONS == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_and_hashes_alone(lock):
    assert len(entries(lock)) > 5


def test_nox_is_locked_at_the_versions_of_everything():
    everything = {(name, version) for name, version, *_ in (each.groups() for each in entries("requirements.txt"))}
    of_nox = {(name, version) for name, version, *_ in (each.groups() for each in entries("requirements-nox.txt"))}
    assert "nox" in dict(of_nox)
    assert {name for name, _ in of_nox - everything} == {"uv"}  # which installs them
