"""Accounts over HTTP: a document a table below a URL."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpsim.accounts.observer import CannotObserve
from cpsim.accounts.sources.files import SUFFIXES, TOGETHER, view_of_files
from cpsim.accounts.view import CONTRACTS, HOLDERS
from cpsim.net.http.client import CannotReach, download

if TYPE_CHECKING:
    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.accounts.view import View

ABSENT: Final = (404, 410, 501)
"""Statuses of what is not there; the last is a control API's that writes no Parquet."""
LONGEST_CONNECT_S: Final = 10.0


class WebSource:
    """A URL below which there are the documents of a folder of accounts, or the URL of one of them.

    Documents are downloaded into a temporary folder, and read from there.

    Args:
        url: without credentials and query.
    """

    def __init__(self, url: UrlEndpoint) -> None:
        self._url = url

    def __str__(self) -> str:
        return str(self._url)

    def read(self, pause_s: float) -> View:
        """Read what is there now."""
        with tempfile.TemporaryDirectory(prefix="cpsim-accounts-") as name:
            folder, path = Path(name), self._url.path
            if path.endswith(SUFFIXES):
                file = folder / path.rpartition("/")[2]
                if not self._fetched(path, file, pause_s):
                    raise CannotObserve(f"there are no accounts at {self}")
            else:
                file = folder
                together = self._fetched(f"{path}/{TOGETHER}", folder / TOGETHER, pause_s)
                for table in CONTRACTS:
                    if together and table in HOLDERS:
                        continue
                    for suffix in SUFFIXES:
                        if self._fetched(f"{path}/{table}{suffix}", folder / f"{table}{suffix}", pause_s):
                            break
            try:
                return view_of_files(file)
            except CannotObserve as error:
                raise CannotObserve(str(error).replace(str(file), str(self))) from error

    def _fetched(self, path: str, file: Path, pause_s: float) -> bool:
        """Whether there is a document at a path, which is then in the file."""
        with file.open("wb") as into:
            try:
                status = download(self._url, path, into, connect_s=min(pause_s, LONGEST_CONNECT_S), timeout_s=pause_s)
            except CannotReach as error:
                raise CannotObserve(f"{path.rpartition('/')[2]} at {self}: {error}") from error
        if status == 200:
            return True
        file.unlink()
        if status not in ABSENT:
            raise CannotObserve(f"GET {path} at {self} answered {status}: expected 200, or 404 where there is none")
        return False
