"""Work done ahead in a thread, while its results are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Ahead"]

_T = TypeVar("_T")
_PATIENCE_SECONDS = 0.1


class Ahead(Generic[_T]):
    """Iterates over what `produce` yields, running it in a thread; its errors are raised here.

    Parameters
    ----------
    produce : callable
        Returns the iterator.
    waiting : int
        At most so many results wait to be used.
    """

    def __init__(self, produce: Callable[[], Iterator[_T]], waiting: int) -> None:
        self._produce = produce
        self._queue: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(waiting)
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[_T]:
        # A daemon: one that waits for a pipe must not keep an interrupted program alive.
        threading.Thread(target=self._work, name="vtx-ahead", daemon=True).start()
        try:
            while True:
                item, error = self._queue.get()
                if error is not None:
                    raise error
                if item is None:
                    return
                yield item
        finally:
            self._stopped.set()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._produce():
                if not self._put(item, None):
                    return
        except BaseException as caught:  # raised again where the results are used
            error = caught
        self._put(None, error)

    def _put(self, item: _T | None, error: BaseException | None) -> bool:
        """Hand over a result; False if nobody wants one any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=_PATIENCE_SECONDS)
                return True
            except queue.Full:
                continue
        return False
