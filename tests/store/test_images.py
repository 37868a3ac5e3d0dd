"""SQLite itself: images of a log's file as a power cut may leave it, each opened again."""

import random
from contextlib import closing
from functools import partial
from itertools import pairwise

import pytest

from cpsim.store.file import LogFile
from cpsim.store.log import Log, cut

KIND = "TEST"
COMMITS = 15
HEADER, FRAME_HEADER, PAGE, SECTOR = 32, 24, 4096, 512


class FilmedFile(LogFile):
    """A file of which an image is taken after each commit."""

    def __init__(self, path, kind, *, pages_to_checkpoint, images):
        super().__init__(path, kind)
        self._path = path
        self._pages = pages_to_checkpoint
        self._images = images

    def open(self, tables):
        super().open(tables)
        super().execute(f"PRAGMA wal_autocheckpoint = {self._pages}")
        self._take()

    def execute(self, sql, parameters=()):
        super().execute(sql, parameters)
        if sql == "COMMIT":
            self._take()

    def keep_mark(self):
        """SQLite has synchronised each step of it before the next."""
        super().keep_mark()
        if self._images and self._image() != self._images[-1]:
            self._take()

    def _image(self):
        wal = self._path.with_name(f"{self._path.name}-wal")
        return self._path.read_bytes(), wal.read_bytes()

    def _take(self):
        self._images.append(self._image())


@pytest.fixture
def film(tmp_path):
    """Return film(pages) -> (images, states): what the files were, and the records were, after each commit."""

    def run(pages_to_checkpoint):
        chance = random.Random(1)
        images, states = [], []
        file = partial(FilmedFile, pages_to_checkpoint=pages_to_checkpoint, images=images)
        with closing(Log(tmp_path / "log", KIND, file=file, threaded=False)) as log:
            states.append([])
            for commit in range(COMMITS):
                first = max(0, log.last - 10)
                records = [f"{commit}:{number}" + "x" * chance.choice([0, 1, 3_000]) for number in range(3)]
                statements = cut(first) if chance.random() < 0.5 else ()
                rows = states[-1] + list(enumerate(records, log.last + 1))
                log.append(records, *statements)
                assert log.step()
                state = [row for row in rows if not statements or row[0] > first]
                states += [state] * (len(images) - len(states))  # one more where the file was marked
        assert len(images) == len(states) > COMMITS
        return images, states

    return run


@pytest.fixture
def found(tmp_path):
    """Return found(database, wal) -> the records of a log with these files."""
    path = tmp_path / "again" / "log"
    path.parent.mkdir()

    def read(database, wal):
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(database)
        path.with_name("log-wal").write_bytes(wal)
        with closing(Log(path, KIND, threaded=False)) as log:
            return log.read(0, log.last, 10_000)

    return read


@pytest.mark.thorough
def test_a_write_ahead_log_that_was_cut_anywhere_has_the_commits_before(film, found):
    """Each that is there as a whole, and none of which the end is missing."""
    images, states = film(pages_to_checkpoint=0)
    database, wal = images[-1]
    assert all(image[0] == database for image in images)
    ends = [len(image[1]) for image in images]
    assert (len(wal) - HEADER) % (FRAME_HEADER + PAGE) == 0
    frames = range(HEADER, len(wal) + 1, FRAME_HEADER + PAGE)
    assert set(ends) <= set(frames)
    for frame in frames:
        for size in (frame - 1, frame, frame + FRAME_HEADER + PAGE // 2):
            committed = sum(end <= size for end in ends) - 1
            expected = states[committed] if committed >= 0 else []
            if ends[0] <= size <= len(wal):
                assert found(database, wal[:size]) == expected, size


@pytest.mark.parametrize("pages_to_checkpoint", [0, 4])
def test_a_commit_of_which_some_sectors_are_missing_is_there_whole_or_not_at_all(film, found, pages_to_checkpoint):
    """A sector is written, not written, or written with nonsense, each by itself."""
    images, states = film(pages_to_checkpoint)
    chance = random.Random(2)
    seen = set()
    for (before, after), (had, has) in zip(pairwise(images), pairwise(states), strict=True):
        for _ in range(5):
            if before[0] == after[0]:
                old, new = before[1], after[1]
                if old[:HEADER] != new[:HEADER]:  # begun anew: the header is durable before what follows
                    old = new[:HEADER] + old[HEADER:]
                records = found(after[0], mixed(old, new, chance))
                assert records in (had, has)
                seen.add("not at all" if records == had else "whole")
            else:  # the write-ahead log was durable before it was copied into the database
                assert found(mixed(before[0], after[0], chance), after[1]) == has
                seen.add("copied")
    assert seen == {"not at all", "whole"} | ({"copied"} if pages_to_checkpoint else set())


def mixed(before, after, chance):
    """What is on disk when only some sectors of a change were written."""
    kept = chance.choice([0.5, 0.9, 0.99])
    pieces = []
    for start in range(0, len(after), SECTOR):
        old, new = before[start : start + SECTOR], after[start : start + SECTOR]
        if old != new and chance.random() > kept:
            same = next(place for place, byte in enumerate(new) if old[place : place + 1] != bytes([byte]))
            nonsense = new[:same] + chance.randbytes(len(new) - same)  # a write leaves what is beside it
            new = chance.choice([old.ljust(len(new), b"\0"), nonsense])
        pieces.append(new)
    return b"".join(pieces)
