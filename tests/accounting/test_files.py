"""Reports as files: every value survives, and none is taken for something else."""

import csv
import gzip
import hashlib
import json
import os
import re
import threading
import xml.etree.ElementTree as ET
from collections import defaultdict
from datetime import datetime
from itertools import pairwise

import pandas as pd
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from openpyxl import load_workbook

from cpsim.accounting import Accounts, Note, Report, Table, boinc, build, excel, files
from cpsim.errors import CpsimError
from cpsim.server.store import Store
from cpsim.system.replacing import replacing

from .conftest import Site

HOSTILE = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "@sum",
    "-1",
    'a"b,c\nd',
    "<script>alert(1)</script>",
    "| x |",
    "\u202eevil",
    "ä\x07",
]


@pytest.fixture
def hostile(week):
    """Accounts, and a report whose values want to be something else."""
    frame = pd.DataFrame(
        {
            "machine": HOSTILE,
            "credits": pd.array([2**53 - 1, *range(len(HOSTILE) - 2), None], dtype="Int64"),
            "share": [0.1, float("nan"), float("inf"), *[1e-12] * (len(HOSTILE) - 3)],
            "holds": [True] * len(HOSTILE),
            "at": pd.to_datetime(["2026-10-25T00:30Z"] * len(HOSTILE)).tz_convert("Europe/Zurich"),
        }
    )
    with week.load(timezone="Europe/Zurich") as accounts:
        yield accounts, [Report("own", "Own: values", [Table("Odd values", frame), Note("A note.")])]


def test_csv(hostile, tmp_path):
    files.write_csv(*hostile, tmp_path / "csv")
    with (tmp_path / "csv" / "own-odd-values.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["machine"] for row in rows] == HOSTILE
    assert rows[0]["credits"] == "9007199254740991"
    assert rows[-1]["credits"] == ""
    assert rows[1]["share"] == ""
    assert rows[0]["at"] == "2026-10-25T02:30:00+02:00"
    assert rows[0]["holds"] == "true"
    with (tmp_path / "csv" / "checks.csv").open(encoding="utf-8") as file:
        assert {row["holds"] for row in csv.DictReader(file)} == {"true"}


def test_parquet(hostile, tmp_path):
    files.write_parquet(*hostile, tmp_path / "tables")
    found = pq.read_table(tmp_path / "tables" / "own-odd-values.parquet")
    assert found["machine"].to_pylist() == HOSTILE
    assert str(found.schema.field("credits").type) == "int64"
    assert found["credits"].to_pylist()[0] == 2**53 - 1
    assert found["credits"].to_pylist()[-1] is None


def test_json(hostile):
    document = json.loads(files.json_text(*hostile), parse_constant=pytest.fail)
    assert document["balanced"] is True
    assert document["timezone"] == "Europe/Zurich"
    assert document["projects"] == ["p", "q"]
    assert all(row[-1] for row in document["checks"]["rows"])
    (report,) = document["reports"]
    (table,) = report["tables"]
    assert [row[0] for row in table["rows"]] == HOSTILE
    assert table["rows"][0][1] == 2**53 - 1
    assert table["rows"][2][2] is None  # JSON has no infinity
    assert report["notes"] == ["A note."]


def test_excel(hostile, tmp_path):
    excel.write(*hostile, tmp_path / "credit.xlsx")
    book = load_workbook(tmp_path / "credit.xlsx")
    assert book.sheetnames == ["Contents", "Conservation laws", "Odd values"]
    rows = list(book["Odd values"].iter_rows(min_row=2))
    assert {row[0].data_type for row in rows} == {"s"}  # none is a formula
    assert [row[0].value for row in rows][:3] == HOSTILE[:3]
    assert rows[0][1].value == "9007199254740991"  # a number of Excel's would lose the last digit
    assert rows[1][1].value == 0
    assert rows[0][3].value is True
    assert [row[0].quotePrefix for row in rows[:6]] == [True] * 4 + [False] * 2  # nor when somebody edits it


def test_a_workbook_can_be_sent(hostile, tmp_path):
    """It has contents with links, heads that stay in sight and filter, and numbers and times that are shown as such."""
    accounts, _ = hostile
    reports = [*hostile[1], *build(accounts, ["leaderboards"])]
    excel.write(accounts, reports, tmp_path / "credit.xlsx")
    book = load_workbook(tmp_path / "credit.xlsx")
    contents = book["Contents"]
    assert "The books balance: 10 conservation laws hold." in [row[0].value for row in contents.iter_rows()]
    links = {cell.value: cell.hyperlink.location for (cell,) in contents.iter_rows(max_col=1) if cell.hyperlink}
    assert set(links.values()) == {f"'{name}'!A1" for name in book.sheetnames[1:]}
    assert links["Leading machines"] == "'Leading machines'!A1"
    assert {cell.value for cell in contents["A"]} >= {"Own: values", "A note."}
    for sheet in book.worksheets[1:]:
        assert sheet.freeze_panes == "A2"
        assert sheet.auto_filter.ref == sheet.dimensions
    sheet = book["Odd values"]
    assert [cell.value for cell in sheet[1]] == ["Machine", "Credits", "Share", "Holds", "At (Europe/Zurich)"]
    first = sheet[3]
    assert (first[1].number_format, first[4].number_format) == ("#,##0", "yyyy-mm-dd hh:mm:ss")
    assert first[4].value == datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001 - Excel's times have no zone
    assert sheet["C2"].number_format == "#,##0.000000"
    widths = {name: sheet.column_dimensions[name].width for name in "ABE"}
    assert widths["A"] > len(HOSTILE[1])
    assert widths["E"] > len("2026-10-25 02:30:00")
    assert widths["B"] < 30


def test_markdown(hostile):
    text = files.markdown(*hostile)
    assert "<script>" not in text
    assert r"\| x \|" in text
    assert "The books balance." in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {7, 6}  # of the checks, and of the values


def test_text_stays_itself_in_markdown(week):
    """A reader of GitHub's tables shows each name as it is, or says which characters it is that cannot be shown."""
    names = [
        *("a|b", "*a* _b_ ~~c~~", "`a``b`", "<b>a</b>", "[a](b)", "![a](b)", "&amp; &#65;", r"a\|b\\", "$x$", "# a"),
        *("a\nb\r\nc", " a  b ", "a\tb", "---", "1. a", "- a", "    a", "http://a_b_c/*d*", "\N{GRINNING FACE}", "   "),
    ]
    frame = pd.DataFrame({"a|b": [*names, "a\x1b[2J\u202eb"]})
    blocks = [block for name in names for block in (Table(name, frame[:0], name), Note(name))]
    with week.load() as accounts:
        text = files.markdown(accounts, [Report("own", "Own: *odd* | names", [Table("All", frame), *blocks])])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    shown = defaultdict(list)
    for before, token in pairwise(tokens):
        if token.type == "inline":
            shown[before.type].append("".join(part.content for part in token.children))
    assert shown["td_open"][-len(names) - 1 :] == [*names, r"a\x1b[2J\u202eb"]
    assert shown["heading_open"][-len(names) - 2 :] == ["Own: *odd* | names", "All", *names]
    assert shown["paragraph_open"][-2 * len(names) :] == [name for name in names for _ in range(2)]
    assert shown["th_open"][-1] == "a|b"
    assert not {token.type for token in tokens} & {"hr", "fence", "code_block", "html_block", "bullet_list_open"}
    assert not {part.type for token in tokens for part in token.children or ()} - {
        "text",
        "text_special",
        "strong_open",
        "strong_close",
    }


def test_tables_of_one_title_have_names_of_their_own():
    frame = pd.DataFrame({"a": [1]})
    reports = [Report("r", "R", [Table("Machine x/1", frame), Table("Machine x-1", frame), Table("../../etc", frame)])]
    assert [name for name, _ in files.tables(reports)] == ["r-machine-x-1", "r-machine-x-1-2", "r-..-..-etc"]


def test_sheets_have_short_names_of_their_own(week, tmp_path):
    frame = pd.DataFrame({"a": [1]})
    reports = [Report("r", "R", [Table(f"A very long title that goes on and on {n}", frame) for n in range(12)])]
    with week.load() as accounts:
        excel.write(accounts, reports, tmp_path / "x.xlsx")
    names = load_workbook(tmp_path / "x.xlsx").sheetnames
    assert len(names) == len(set(names)) == 14
    assert max(map(len, names)) <= 31


def test_a_sheet_is_named_like_its_table():
    titles = [
        *[("Counters", "Leading users"), ("Leaderboards", "Leading users"), ("Leaderboards", "leading Users")],
        *[("R", "Leading machines by recent average credit"), ("R", "Machine " + "x" * 40), ("R", "Machine a/b: 'c'")],
        *[("R", "history"), ("R", "\N{GRINNING FACE}" * 20), ("R", "[]'")],
    ]
    names = excel.sheet_names(titles)
    assert names == [
        *("Leading users (Counters)", "Leading users (Leaderboards)", "leading Users (Leaderboards) 2"),
        *("Leading machines by recent…", f"Machine {'x' * 22}…", "Machine a-b- 'c"),
        *("history 2", "\N{GRINNING FACE}" * 15 + "…", "--"),
    ]
    assert max(len(name.encode("utf-16-le")) for name in names) <= 2 * 31


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "credit.md"
    path.write_text("before")
    with pytest.raises(OSError, match="no such reader"), replacing(path) as partial:
        _write_half(partial)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(path):
    path.write_text("half")
    raise OSError("no such reader")


def test_no_project_leads_the_boinc_export_out_of_its_folder(site, tmp_path):
    hostile = ["..", ".", "../up", "a/b", "a_b", "~", "q"]
    for project in hostile:
        site.server.apply(project, [("alloc", {"slot": "s", "credits": 5}), ("claim", {"slot": "s", "machine": "m"})])
    with site.load() as accounts:
        boinc.write(accounts, tmp_path / "deep" / "stats")
    written = list(tmp_path.rglob("tables.xml"))
    assert len({path.parent for path in written}) == len(hostile)
    assert all(path.parent.parent == tmp_path / "deep" / "stats" for path in written)


def test_the_boinc_export_has_the_documented_elements(site, tmp_path):
    site.server.link([("m<1>", "ann & co"), ("m2", "bob"), ("m4", "Bj\u00f6rk")])
    for slot, machine, credits in (("a", "m<1>", 100), ("b", "m3", 5), ("c", "m2", 0), ("d", "m4", 7)):
        site.alloc(slot, credits=credits)
        site.at(1).claim(slot, machine)
    site.at(8).alloc("later")
    with site.load() as accounts:
        boinc.write(accounts, tmp_path / "stats")
    written = sorted((tmp_path / "stats").iterdir())
    assert [path.name for path in written] == ["host.gz", "tables.xml", "team.gz", "user.gz"]
    tables = ET.parse(tmp_path / "stats" / "tables.xml").getroot()
    assert tables.tag == "tables"
    end_s = datetime.fromisoformat("2026-01-09T00:00:00+00:00").timestamp()
    granted_s = datetime.fromisoformat("2026-01-02T00:00:00+00:00").timestamp()
    assert {child.tag: child.text for child in tables if not len(child)} == {
        "update_time": str(int(end_s)),
        "nusers_total": "2",
        "nteams_total": "0",
        "nhosts_total": "2",
        "total_credit": "107",
    }
    assert [name.text for name in tables.iterfind("applications/application/name")] == ["p"]
    assert list(_rows(tmp_path / "stats" / "team.gz", "teams", "team")) == []
    ann, bjork = _rows(tmp_path / "stats" / "user.gz", "users", "user")  # bob has no credit, and is not listed
    assert list(ann) == ["id", "name", "create_time", "total_credit", "expavg_credit", "expavg_time", "cpid"]
    assert (ann["id"], ann["name"], ann["total_credit"]) == ("1", "ann & co", "100")
    assert float(ann["expavg_credit"]) == pytest.approx(50, rel=1e-6)  # 100 in its first day, read a week later
    assert float(ann["expavg_time"]) == pytest.approx(end_s, abs=1)
    assert bjork["name"] == "Bj\u00f6rk"
    text = gzip.decompress((tmp_path / "stats" / "user.gz").read_bytes()).decode("ascii")
    assert "<name>Bj&#246;rk</name>" in text
    assert text.splitlines().count("<user>") == text.splitlines().count("</user>") == 2
    first, second = _rows(tmp_path / "stats" / "host.gz", "hosts", "host")  # m3 is nobody's, and m2 has no credit
    assert list(first)[:5] == ["id", "userid", "total_credit", "expavg_credit", "expavg_time"]
    assert {"p_vendor", "p_model", "os_name", "os_version"} <= set(first)
    assert (first["id"], first["userid"], first["total_credit"]) == ("1", "1", "100")
    assert first["create_time"] == first["rpc_time"] == str(int(granted_s))
    assert second["total_credit"] == "7"


def _cpids(folder):
    return {
        row.get("name", row["id"]): row.get("cpid", row.get("host_cpid"))
        for kind in ("user", "host")
        for row in _rows(folder / f"{kind}.gz", f"{kind}s", kind)
    }


@pytest.mark.thorough
def test_ids_for_strangers_agree_between_exports_and_differ_between_servers(make_site, tmp_path):
    found = []
    for number, path in enumerate(["a.db", "b.db", None]):
        for again in range(2):
            store = Store(tmp_path / path) if path else None
            site = Site(tmp_path / f"export-{number}-{again}", projects=("p",), store=store)
            if not again or store is None:
                site.server.link([("m", "ann")])
                site.alloc("x", credits=5)
                site.claim("x", "m")
            with site.load() as accounts:
                boinc.write(accounts, tmp_path / f"{number}-{again}")
            if store is not None:
                store.close()
            found.append(_cpids(tmp_path / f"{number}-{again}"))
    first, restarted, second, again, third, fourth = found
    assert first == restarted
    assert second == again
    every = [cpid for cpids in (first, second, third, fourth) for cpid in cpids.values()]
    assert len(set(every)) == len(every) == 8
    assert all(re.fullmatch("[0-9a-f]{32}", cpid) for cpid in every)
    assert hashlib.md5(b"ann").hexdigest() not in every


def test_accounts_without_a_salt_get_ids_from_their_first_slot(week, tmp_path):
    def export(name):
        path = week.export() / "accounts.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
        with Accounts.load(week.folder, projects=["p"]) as accounts:
            boinc.write(accounts, tmp_path / name)
        return _cpids(tmp_path / name)

    before = export("before")
    week.alloc("later", credits=3)
    week.claim("later", "m1")
    after = export("after")
    assert {name: after[name] for name in before} == before
    assert hashlib.md5(b"ann").hexdigest() not in before.values()


def _rows(path, root, row):
    tree = ET.fromstring(gzip.decompress(path.read_bytes()))
    assert tree.tag == root
    for element in tree:
        assert element.tag == row
        yield {child.tag: child.text for child in element}


def test_numbers_of_the_boinc_export_stay(site, tmp_path):
    """Whoever comes later does not renumber those who were there, and the same accounts give the same bytes."""
    site.server.link([(f"m{number}", "ann") for number in range(3)])
    for number in range(3):
        site.alloc(f"s{number}", credits=3 - number)
        site.claim(f"s{number}", f"m{number}")
        with site.load() as accounts:
            boinc.write(accounts, tmp_path / str(number))
            boinc.write(accounts, tmp_path / "again")
    assert (tmp_path / "again" / "host.gz").read_bytes() == (tmp_path / "2" / "host.gz").read_bytes()
    hosts = [[host["id"] for host in _rows(tmp_path / str(n) / "host.gz", "hosts", "host")] for n in range(3)]
    assert hosts == [["1"], ["1", "2"], ["1", "2", "3"]]


def test_the_boinc_export_of_several_projects_is_several(week, tmp_path):
    with week.load() as accounts:
        boinc.write(accounts, tmp_path / "stats")
    assert sorted(path.name for path in (tmp_path / "stats").iterdir()) == ["p", "q"]


def test_the_boinc_export_needs_accounts(week, tmp_path):
    (week.export() / "accounts.parquet").unlink()
    with Accounts.load(week.folder) as accounts, pytest.raises(CpsimError, match="no table of machines and users"):
        boinc.write(accounts, tmp_path / "stats")


@pytest.mark.thorough
def test_all_reports_in_all_formats(week, tmp_path):
    with week.load() as accounts:
        reports = build(accounts)
        files.write_csv(accounts, reports, tmp_path / "csv")
        files.write_parquet(accounts, reports, tmp_path / "parquet")
        excel.write(accounts, reports, tmp_path / "x.xlsx")
        names = {path.stem for path in (tmp_path / "csv").iterdir()}
        assert names == {path.stem for path in (tmp_path / "parquet").iterdir()}
        assert "leaderboards-leading-machines" in names
        assert json.loads(files.json_text(accounts, reports))
        assert files.markdown(accounts, reports).count("\n## ") == len(reports)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("new", encoding="utf-8")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8") == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


def test_a_pipe_is_written_and_stays(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    with replacing(pipe) as partial:
        partial.write_text("new", encoding="utf-8")
    reader.join()
    assert read == ["new"]
    assert pipe.is_fifo()
