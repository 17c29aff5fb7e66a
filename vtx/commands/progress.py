"""Progress of work that takes longer than a second, on standard error and on terminals only."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]

_PATIENCE_SECONDS = 1.0


class Progress:
    """A bar that appears when work has taken a second, and leaves nothing behind.

    Parameters
    ----------
    what : str
        What is being done.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._start = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, total: float, label: str = "") -> None:
        """Tell how many of `total` parts are done, and which is being worked on."""
        if self._bar is None and not self._appear():
            return
        assert self._bar is not None
        text = f"{self.what} {label}".strip()
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, completed=done, total=total, description=text)

    def _appear(self) -> bool:
        if time.monotonic() - self._start < _PATIENCE_SECONDS or not sys.stderr.isatty():
            return False
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(console=Console(stderr=True), transient=True)
        self._bar.start()
        return True
