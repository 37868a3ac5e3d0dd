"""Long computations beside Locust's greenlets: a worker that is silent for long is lost to its master."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from gevent.threadpool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_THREAD: Final = ThreadPool(1)


def aside(compute: Callable[[], T]) -> T:
    """Compute in a thread, one computation after the other, while greenlets run; raises what it raises."""
    found, error = _THREAD.apply(_tried, (compute,))
    if error is not None:
        raise error
    value: T = found
    return value


def _tried(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """A value or an exception, which gevent would print."""
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - raised by `aside`
        return None, error
