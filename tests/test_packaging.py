"""What is shipped: everything that runs, and nothing else."""

import email
import itertools
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cpsim.system.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PACKAGES = ("cpdaemon", "cpsim")
CONTENT = {name: f"cpsim/_content/{name}" for name in ("scenarios", "reports", "accounts")}
SHIPPED = (*PACKAGES, *CONTENT, "docs", "tests")
FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "Containerfile", "LICENSE", "README.md", "noxfile.py", "pyproject.toml"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with a wheel and an sdist of the sources."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def sources(folder):
    """The files of a folder as it is checked out."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    kept = (path for path in files if "__pycache__" not in path.parts and not path.name.startswith("."))
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_the_wheel_has_the_packages_and_the_content(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {
            name.partition(".dist-info/")[2]: archive.read(name) for name in archive.namelist() if name not in names
        }
    expected = {name for package in PACKAGES for name in sources(package)}
    expected |= {f"{where}{name.removeprefix(folder)}" for folder, where in CONTENT.items() for name in sources(folder)}
    assert names == expected
    assert wheel.name.endswith("-py3-none-any.whl")
    assert info.keys() == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert info["entry_points.txt"].decode().split() == [
        *("[console_scripts]", "cpsim", "=", "cpsim.__main__:main"),
        *("[pytest11]", "cpsim", "=", "cpsim.pytest_plugin"),
    ]


def test_the_wheel_says_what_it_needs(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Name"] == "creditpiggy-sim"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == {"all", "dask", "load", "report", "run", "sql", "test"}
    always = {line.partition(">")[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert not always & set(itertools.chain(*EXTRAS.values()))


def test_the_sdist_has_what_it_takes_to_build_and_test(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert members - {"PKG-INFO", ".gitignore"} == FILES.union(*map(sources, SHIPPED))


@pytest.mark.thorough
def test_a_wheel_of_the_sdist_is_the_same(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (checkout,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    assert (tmp_path / "dist" / wheel.name).read_bytes() == wheel.read_bytes()
