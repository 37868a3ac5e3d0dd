"""The file of a recording."""

import stat

import pytest

from cpsim.record.recording import RecordedReply, Recording


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_recording_is_for_its_owner_alone(tmp_path, suffix):
    path = tmp_path / f"traffic.{suffix}"
    recording = Recording(path)
    recording.frame(b"alloc,slot=s,credits=1", RecordedReply(0, 1, "accepted"))
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o600]
    recording.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
