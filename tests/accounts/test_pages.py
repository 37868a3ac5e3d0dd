"""The slots of a server, read page by page into a temporary file."""

import io
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.accounts import pages as pages_module
from cpsim.accounts.observer import CannotObserve, Observer
from cpsim.accounts.view import NEXT
from cpsim.fake import ANY_PORT, Fake
from cpsim.system.mapped import let_go
from cpsim.system.mapped_rows import MappedRows, pieces

CREDENTIALS = ("p", "hush")


def alloc(*slots):
    return [("alloc", {"slot": slot, "credits": 5}) for slot in slots]


@pytest.fixture
def fake():
    with Fake(dict([CREDENTIALS]), http=ANY_PORT) as fake:
        fake.accounts.apply("p", alloc(*"abcdefg"))
        yield fake


@pytest.fixture
def asked(fake, monkeypatch):
    """An observer whose pages have three slots; `asked` has the requests for tables, and what is done after each."""
    monkeypatch.setattr(pages_module, "PAGE", 3)
    observer = Observer(parse_endpoint(fake.addresses["http"]), CREDENTIALS, 5.0)
    observer.asked, observer.then = [], {}
    table = observer.control.table

    def ask(name, query=None):
        observer.asked.append((name, query))
        answer = table(name, query)
        return observer.then.pop(len(observer.asked), lambda answer: answer)(answer)

    monkeypatch.setattr(observer.control, "table", ask)
    return observer


def changed(answer, metadata=None, columns=None):
    """A page with another next one, or without some of its columns."""
    page = pq.read_table(io.BytesIO(answer)).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(page.select(columns or page.column_names), sink)
    return sink.getvalue()


def test_a_request_has_one_page_of_slots(asked, fake):
    slots = asked.view().slots
    assert slots["slot"].to_pylist() == list("abcdefg")
    assert slots == pq.read_table(io.BytesIO(fake.inspector.slots_parquet()))
    places = [query and query.get("cursor", 0) for name, query in asked.asked if name == "slots.parquet"]
    assert places == [0, 3, 6]
    assert slots["slot"].num_chunks == 1  # thousands of pages would take memory for as many arrays of each column


def test_commands_are_applied_between_two_pages(asked, fake):
    def applied(answer):
        assert fake.accounts.apply("p", alloc("h", "i")) == []
        return answer

    asked.then[2] = applied
    assert asked.view().slots["slot"].to_pylist() == list("abcdefghi")


def test_a_server_that_has_no_pages_is_asked_for_all(asked, fake):
    asked.then[1] = lambda answer: None
    assert len(asked.view().slots) == 7
    assert [query for name, query in asked.asked if name == "slots.parquet"] == [{"limit": 3}, None]
    asked.then[len(asked.asked) + 1] = lambda answer: fake.inspector.slots_parquet()
    assert len(asked.view().slots) == 7


@pytest.mark.parametrize(
    ("number", "change", "told"),
    [
        (1, {"metadata": {NEXT: b"more"}}, "what is no object of JSON"),
        (1, {"metadata": {NEXT: b"[1]"}}, "what is no object of JSON"),
        (2, {"metadata": {NEXT: b'{"project":"p","cursor":3}'}}, "leads no further"),
        (2, {"columns": ["project", "slot"]}, "without the columns of the first"),
    ],
)
def test_pages_that_mislead_are_told(asked, number, change, told):
    asked.then[number] = lambda answer: changed(answer, **change)
    with pytest.raises(CannotObserve, match=f"slots.parquet on http.*names as the next page .*{told}"):
        asked.view()


def test_a_page_that_is_gone_is_told(asked, fake):
    def reset(answer):
        fake.reset()
        return answer

    asked.then[1] = reset
    with pytest.raises(CannotObserve, match="without the columns of the first"):
        asked.view()


def test_where_there_is_no_room_for_slots_it_is_told(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(CannotObserve, match=r"cannot be written below .*missing: .*with TMPDIR"):
        asked.view()


def test_what_was_let_go_is_read_again():
    part = pa.table({"text": ["one", None, "three"], "number": [1, 2, 3]})
    with MappedRows(part.schema) as rows:
        for _ in range(4):
            rows.add(part)
        table = rows.table()
    assert table == pa.concat_tables([part] * 4)
    let_go()
    read = list(pieces(table, 5))
    assert [len(piece) for piece in read] == [5, 5, 2]
    assert pa.concat_tables(read) == table
