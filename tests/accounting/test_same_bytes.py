"""The same report of the same accounts is the same bytes, in whichever order rows are read."""

import os
import random
import subprocess
import sys
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest

from cpsim.accounting import Accounts, build, excel, files, page, screen

from .conftest import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Machines that tie, times that add up to no round number, and names in both projects."""
    site = Site(tmp_path_factory.mktemp("site") / "export")
    site.server.link([(f"m{number}", f"user-{number % 3}") for number in range(6)])
    draw = random.Random(5)
    for number in range(160):
        project = "pq"[number % 2]
        site.at(number / 11 + draw.random() / 1000).alloc(f"job-{number // 2}", project=project, min=1, max=20)
        site.count(f"job-{number // 2}", project=project, events=number % 4)
        site.at(number / 11 + 0.05 + draw.random() / 100)
        site.claim(f"job-{number // 2}", f"m{number % 8}", project=project, credits=1 + number % 2)
    site.export()
    return site


def shuffled(site, folder, seed):
    """The same export, whose rows are in another order."""
    folder.mkdir()
    for name in ("slots.parquet", "accounts.parquet"):
        table = pq.read_table(site.folder / name)
        order = random.Random(seed).sample(range(len(table)), len(table))
        pq.write_table(table.take(order), folder / name, row_group_size=7 * seed)
    return folder


def written(accounts, folder):
    """Every file of every format, by name."""
    reports = build(accounts)
    files.write_csv(accounts, reports, folder / "csv")
    files.write_parquet(accounts, reports, folder / "parquet")
    excel.write(accounts, reports, folder / "credit.xlsx")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts = {"json": files.json_text, "markdown": files.markdown, "html": page.html, "terminal": screen.text}
    return found | {name: make(accounts, reports).encode() for name, make in texts.items()}


@pytest.mark.thorough
def test_the_order_of_rows_makes_no_difference(site, tmp_path, monkeypatch):
    found = []
    for seed in (1, 2):
        monkeypatch.chdir(tmp_path)
        (tmp_path / f"at-{seed}").mkdir()
        monkeypatch.chdir(tmp_path / f"at-{seed}")
        shuffled(site, tmp_path / f"at-{seed}" / "export", seed)
        with Accounts.load("export", top=3) as accounts:
            found.append(written(accounts, tmp_path / f"out-{seed}"))
    assert len(found[0]) > 60
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_a_workbook_has_no_time_of_its_own(site, tmp_path):
    with site.load() as accounts:
        excel.write(accounts, build(accounts, ["summary"]), tmp_path / "credit.xlsx")
    with ZipFile(tmp_path / "credit.xlsx") as book:
        assert {entry.date_time for entry in book.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert book.read("docProps/core.xml").count(b"1980-01-01T00:00:00Z") == 2


@pytest.mark.thorough
def test_hashes_and_the_zone_of_the_machine_make_no_difference(site, tmp_path):
    found = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        output = tmp_path / f"{seed}.html"
        command = [sys.executable, "-m", "cpsim", "report", str(site.folder), "--output", str(output)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": zone}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=280, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        found.append(output.read_bytes())
    assert found[0] == found[1]
