"""Tables in temporary files."""

import pyarrow as pa
import pytest

from cpsim.system.mapped import NoRoom
from cpsim.system.mapped_rows import MappedRows


def test_rows_without_room_say_where_room_is_needed(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with (
        pytest.raises(NoRoom, match="No space left on device; make room there, or name a folder"),
        MappedRows(pa.schema({"slot": pa.string()})),
    ):
        pass
