"""One cell of a sweep: a trace on a CPU under options, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vtx
from vtx.errors import NotSupported, VtxError

__all__ = ["Cell", "run_cell"]


@dataclass(frozen=True)
class Cell:
    """What is run.

    Attributes
    ----------
    trace : str
        File of the trace.
    digest : str
        Of the file's content: a changed trace is another cell.
    profile : str
        CPU profile, by name or file.
    options : tuple of (str, object)
        Keys of the trace that are overridden, with their values.
    """

    trace: str
    digest: str
    profile: str
    options: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """What identifies the cell from one run of the sweep to the next."""
        what = [Path(self.trace).name, self.digest, self.profile, self.options, vtx.__version__]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def name(self) -> str:
        """The cell in words, for messages."""
        options = "".join(f", {key}={value}" for key, value in self.options)
        return f"{Path(self.trace).stem} on {Path(self.profile).stem}{options}"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run one cell and return its row.

    Parameters
    ----------
    cell : Cell
        What to run.

    Returns
    -------
    dict
        Flat and plain: `key`, `trace`, `profile`, one entry for each option, `status` (``"ok"``,
        ``"no data"``, ``"not supported"`` or ``"failed"``), `error`, `seconds`, and for a run
        `outcome`, `steps`, `references`, `exits`, the translation's counters (``tlb.*``), exits by
        reason (``exits.*``) and for a priced one `cycles`, `ns`, the shares of each status and the
        cycles of each category (``cycles.*``). Nothing is raised: what goes wrong is in the row.
    """
    row: dict[str, Any] = {
        "key": cell.key,
        "trace": Path(cell.trace).stem,
        "profile": cell.profile,
        **{f"option.{key}": _scalar(value) for key, value in cell.options},
        "status": "ok",
        "error": None,
    }
    start = time.monotonic()
    try:
        row |= _run(cell)
    except NotSupported as refusal:
        row |= {"status": "not supported", "error": str(refusal)}
    except VtxError as error:
        row |= {"status": "failed", "error": str(error)}
    except Exception as error:  # a cell that fails must not end the sweep
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return str(value)
    return json.dumps(value, sort_keys=True)


def _run(cell: Cell) -> dict[str, Any]:
    from vtx.hypervisor.replay import replay
    from vtx.hypervisor.trace import load_trace
    from vtx.lab.ledger import price
    from vtx.lab.profile import Status, load_profile

    trace = load_trace(cell.trace, options=dict(cell.options))
    profile = load_profile(cell.profile)
    run = replay(trace, profile.shape)
    row: dict[str, Any] = {
        "outcome": run.outcome,
        "steps": run.steps,
        "references": run.references,
        "exits": run.total_exits,
        **{f"exits.{reason.name.lower()}": count for reason, count in run.exits.items()},
        **{f"tlb.{name}": count for name, count in run.translation.items()},
    }
    if not profile.has_prices:
        return row | {"status": "no data", "error": profile.prices["round_trip"].source}
    ledger = price(run, profile)
    return {
        **row,
        "cycles": float(ledger.cycles),
        "ns": float(ledger.ns),
        **{f"share.{status.value}": ledger.share(status) for status in Status},
        **{f"cycles.{c.key}": float(cycles) for c, cycles in ledger.by_category.items()},
    }
