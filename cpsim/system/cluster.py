"""A Dask cluster, whose workers compute for us: how it is reached, and what goes wrong there."""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import CpsimError
from cpsim.system.extras import DISTRIBUTION, require

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_S: Final = 10


def connect(scheduler: str) -> Any:  # noqa: ANN401 - a `distributed.Client`, which mypy does not see
    """Connect to a Dask cluster; returns its `distributed.Client`, which the caller closes.

    Args:
        scheduler: its address, such as tcp://127.0.0.1:8786.

    Raises:
        CpsimError: Dask is not installed, there is no scheduler, or it has no workers.
    """
    require("dask", "--engine dask")
    from distributed import Client  # noqa: PLC0415 - not everybody has a cluster

    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CpsimError(f"cannot reach a Dask scheduler at {scheduler}: {error}") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        client.close()
        raise CpsimError(f"the Dask scheduler at {scheduler} has no workers: start some with dask worker") from error
    except BaseException:
        client.close()
        raise
    return client


@contextmanager
def workers_errors(scheduler: str) -> Iterator[None]:
    """Convert what a result of a cluster raises to CpsimErrors that name it."""
    from distributed import KilledWorker  # noqa: PLC0415 - not everybody has a cluster

    where = f"the Dask cluster at {scheduler}"
    try:
        yield
    except CpsimError as error:
        raise CpsimError(f"a worker of {where}: {error}") from error
    except KilledWorker as error:
        raise CpsimError(f"workers of {where} died, of which memory may be the reason: {error}") from error
    except CancelledError as error:
        raise CpsimError(f"{where} has gone, or dropped what it was asked for") from error
    except ImportError as error:
        raise _lacking(where, error) from error
    except RuntimeError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise _lacking(where, error.__cause__) from error


def _lacking(where: str, error: ImportError) -> CpsimError:
    return CpsimError(
        f"{where} lacks {error.name}: its scheduler and workers need {DISTRIBUTION}[dask], in the version that is here"
    )
