"""Runs the cells of a plan: over local processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vtx.errors import UsageError, VtxError
from vtx.sweep.cell import Cell, run_cell
from vtx.sweep.journal import Journal
from vtx.sweep.plan import Plan
from vtx.sweep.results import require_writer, write_results

__all__ = ["Report", "sweep"]

Rows = Iterator[dict[str, Any]]
#: Cells per process that are handed out ahead, so that none waits for the journal.
_AHEAD = 2
_CONNECT_SECONDS = "10s"


@dataclass(frozen=True)
class Report:
    """What a sweep did.

    Attributes
    ----------
    rows : tuple of dict
        Of all cells, in the order of the plan.
    run : int
        Cells that this call ran; the others were finished before.
    """

    rows: tuple[dict[str, Any], ...]
    run: int

    def count(self, status: str) -> int:
        """Return how many cells ended so."""
        return sum(1 for row in self.rows if row["status"] == status)


def sweep(
    plan: Plan,
    output: str | Path,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Run every cell of a plan that is not finished yet, and write all rows.

    Parameters
    ----------
    plan : Plan
        What to run.
    output : str or Path
        A ``.parquet`` or ``.csv`` file. Beside it lies a journal (``.journal``) from which an
        interrupted or killed sweep goes on; it is deleted with the last cell.
    jobs : int
        Local processes.
    scheduler : str, optional
        Address of a Dask scheduler, ``tcp://host:8786``; the cells run on its workers, which must
        have this version of vtx and see the traces under the same names.
    progress : callable, optional
        Told how many cells are done, how many there are, and which was the last.

    Raises
    ------
    UsageError
        The output cannot be written so, another sweep writes it, or the scheduler is not there.
    KeyboardInterrupt
        The sweep was interrupted; what is finished is kept.
    """
    path = Path(output)
    require_writer(path)
    cells = {cell.key: cell for cell in plan.cells}
    with Journal(path.with_name(path.name + ".journal")) as journal:
        journal.keep(cells)
        todo = [cell for key, cell in cells.items() if key not in journal.rows]
        if progress is not None:
            progress(len(journal.rows), len(cells), "")
        with _rows(todo, jobs, scheduler) as rows:
            for row in rows:
                journal.add(row)
                if progress is not None:
                    progress(len(journal.rows), len(cells), cells[row["key"]].name)
        ordered = tuple(journal.rows[key] for key in cells)
        write_results(path, ordered)
        # From here on the result stands for the journal.
        journal.path.unlink()
    return Report(ordered, len(todo))


@contextmanager
def _rows(cells: Sequence[Cell], jobs: int, scheduler: str | None) -> Iterator[Rows]:
    if not cells:
        yield iter(())
    elif scheduler is not None:
        with _cluster(cells, scheduler) as rows:
            yield rows
    elif jobs == 1 and len(cells) == 1:
        yield map(run_cell, cells)
    else:
        rows = _processes(cells, jobs)
        try:
            yield rows
        finally:
            rows.close()


def _processes(cells: Sequence[Cell], jobs: int) -> Any:
    """Run cells in local processes; a process that dies takes only its own cells with it."""
    waiting = list(reversed(cells))
    suspects: list[Cell] = []
    while waiting or suspects:
        # After a crash the cells that were under way run one by one, to find which it was.
        alone = bool(suspects)
        batch = [suspects.pop()] if alone else waiting
        pool = ProcessPoolExecutor(
            1 if alone else jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_die_with_parent,
        )
        running: dict[Future[dict[str, Any]], Cell] = {}
        broken = False
        try:
            while (batch and not broken) or running:
                while batch and not broken and len(running) < _AHEAD * jobs:
                    cell = batch.pop()
                    try:
                        running[pool.submit(run_cell, cell)] = cell
                    except BrokenProcessPool:  # it died between two cells that came back
                        broken = True
                        suspects.append(cell)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        broken = True
                        if alone:
                            yield _died(cell)
                        else:
                            suspects.append(cell)
        except GeneratorExit:
            _kill(pool)
            raise
        finally:
            pool.shutdown(wait=not broken, cancel_futures=True)


def _die_with_parent() -> None:
    """Let this process end when the sweep does, even by a signal that it cannot handle."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which stops its cells


def _kill(pool: ProcessPoolExecutor) -> None:
    """Stop the processes of a pool at once: their cells will run again."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()


def _died(cell: Cell) -> dict[str, Any]:
    return {
        "key": cell.key,
        "trace": Path(cell.trace).stem,
        "profile": cell.profile,
        **{f"option.{key}": str(value) for key, value in cell.options},
        "status": "failed",
        "error": "the process that ran this cell died (out of memory?)",
        "seconds": None,
    }


@contextmanager
def _cluster(cells: Sequence[Cell], address: str) -> Iterator[Rows]:
    """Run cells on a Dask cluster."""
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise UsageError("--scheduler needs Dask: pip install 'vtx[dask]'") from None
    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None
    by_key = {cell.key: cell for cell in cells}
    with client:
        futures = [client.submit(run_cell, cell, key=f"vtx-{key}") for key, cell in by_key.items()]

        def rows() -> Rows:
            for future in distributed.as_completed(futures, loop=client.loop):
                if future.status == "finished":
                    yield future.result()
                elif future.status == "error":
                    cell = by_key[future.key.removeprefix("vtx-")]
                    yield _died(cell) | {"error": f"on the cluster: {future.exception()}"}
                else:
                    raise VtxError(f"the cluster at {address} gave the sweep up: {future.status}")

        try:
            yield rows()
        finally:
            client.cancel(futures)
