"""Where a fake is, as environment variables for programs in any language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.net.control import CONTROL_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def environment_of(addresses: Mapping[str, str], project: str, secret_file: Path | None) -> dict[str, str]:
    """The variables `CREDITPIGGY_...`, of what there is.

    Args:
        addresses: by `unix`, `tcp` and `http`.
        project: the project's id.
        secret_file: holds its secret.
    """
    url = addresses.get("http")
    variables = {
        "CREDITPIGGY_ENDPOINT": addresses.get("unix", addresses.get("tcp")),
        "CREDITPIGGY_TCP": addresses.get("tcp"),
        "CREDITPIGGY_URL": url,
        "CREDITPIGGY_CONTROL": None if url is None else url.removesuffix("/api") + CONTROL_PATH.rstrip("/"),
        "CREDITPIGGY_PROJECT": project,
        "CREDITPIGGY_SECRET_FILE": None if secret_file is None else str(secret_file.absolute()),
    }
    return {name: value for name, value in variables.items() if value is not None}
