"""One trace on many CPUs: run once for each shape, priced once for each profile."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError, NotSupported, UnknownName, VtxError
from vtx.lab.categories import Category, Counted
from vtx.lab.ledger import Ledger, price
from vtx.lab.profile import Profile, Status, load_profile, plain_number

if TYPE_CHECKING:
    from vtx.lab.table import Table

__all__ = ["Comparison", "Outcome", "State", "compare"]

SCHEMA = "vtx.compare/1"


class State(StrEnum):
    """How a profile fared."""

    PRICED = "priced"
    NO_DATA = "no data"
    """It ran, but the profile has no prices."""
    NOT_SUPPORTED = "not supported"
    """The CPU does not have what the trace needs."""
    STOPPED = "stopped"
    """The run could not go on."""


@dataclass(frozen=True)
class Outcome:
    """What the comparison says of one profile.

    Parameters
    ----------
    profile : Profile
        Which.
    state : State
        How it fared.
    why : str
        The reason, if it is not priced.
    counted : Counted or None
        The run, if there was one; profiles of one shape share it.
    """

    profile: Profile
    state: State
    why: str
    counted: Counted | None

    @cached_property
    def ledger(self) -> Ledger:
        """The costs; only for an outcome that is priced."""
        if self.state is not State.PRICED or self.counted is None:
            raise InputError(f"{self.profile.id} is {self.state.value}: {self.why}")
        return price(self.counted, self.profile)

    def as_dict(self, base: Outcome | None) -> dict[str, Any]:
        """Return plain values for JSON."""
        result = {**self.profile.summary(), "state": self.state.value, "why": self.why or None}
        if self.state is not State.PRICED:
            return result
        ledger = self.ledger
        relative = float(ledger.ns / base.ledger.ns) if base and base.ledger.ns else None
        return {**result, "exits": ledger.samples, "relative_time": relative, **ledger.as_dict()}


@dataclass(frozen=True)
class Comparison:
    """The costs of one trace on several CPUs.

    Parameters
    ----------
    title : str
        What was run.
    outcomes : tuple of Outcome
        One for each profile, in the order asked for.
    runs : int
        How often the trace was run: once for each shape.
    """

    title: str
    outcomes: tuple[Outcome, ...]
    runs: int

    @property
    def priced(self) -> tuple[Outcome, ...]:
        """The outcomes that have figures."""
        return tuple(o for o in self.outcomes if o.state is State.PRICED)

    def baseline(self, profile: str | None) -> Outcome | None:
        """Return the outcome that the others are compared with.

        Raises
        ------
        UnknownName
            The comparison has no such profile.
        InputError
            It has no figures.
        """
        if profile is None:
            return None
        for outcome in self.outcomes:
            if profile in (outcome.profile.id, outcome.profile.file):
                if outcome.state is not State.PRICED:
                    fared = f"it is {outcome.state.value}: {outcome.why}"
                    raise InputError(f"{profile} cannot be the baseline: {fared}")
                return outcome
        known = [outcome.profile.id for outcome in self.outcomes]
        raise UnknownName("profile in this comparison", profile, known)

    def table(self, baseline: str | None = None) -> Table:
        """Return the comparison as a table; ``print`` shows it as plain text."""
        from vtx.lab.report import comparison_table

        return comparison_table(self, baseline)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        return self.table()._repr_html_()

    def to_pandas(self, baseline: str | None = None) -> Any:
        """Return one row for each profile, with the figures of :meth:`as_dict`.

        Parameters
        ----------
        baseline : str, optional
            The profile that `relative_time` relates to.

        Returns
        -------
        pandas.DataFrame
            Cycles and nanoseconds; nested figures have a point in their names.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from vtx.lab.frames import flat, frame

        return frame(flat(entry) for entry in self.as_dict(baseline)["profiles"])

    def as_dict(self, baseline: str | None = None) -> dict[str, Any]:
        """Return plain values for JSON, with the version of their layout."""
        base = self.baseline(baseline)
        return {
            "schema": SCHEMA,
            "title": self.title,
            "baseline": base.profile.id if base else None,
            "runs": self.runs,
            "profiles": [outcome.as_dict(base) for outcome in self.outcomes],
        }

    def csv(self, baseline: str | None = None) -> str:
        """Return one line for each profile; fields without a figure are empty."""
        base = self.baseline(baseline)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        shares = [f"{status.value}_share" for status in Status]
        categories = [f"{category.key}_cycles" for category in Category]
        head = ["profile", "state", "why", "exits", "cycles", "ns", "relative_time"]
        bounds = ["cycles_low", "cycles_high", "ns_low", "ns_high"]
        writer.writerow([*head, *shares, *categories, *bounds])
        for outcome in self.outcomes:
            writer.writerow(_csv_row(outcome, base))
        return out.getvalue()


def _csv_row(outcome: Outcome, base: Outcome | None) -> list[object]:
    start: list[object] = [outcome.profile.id, outcome.state.value, outcome.why]
    if outcome.state is not State.PRICED:
        return [*start, *[""] * (8 + len(Status) + len(Category))]
    ledger = outcome.ledger
    relative = float(ledger.ns / base.ledger.ns) if base and base.ledger.ns else ""
    missing = ledger.unpriced_categories()
    cycles = [
        "" if category in missing else plain_number(value)
        for category, value in ledger.by_category.items()
    ]
    return [
        *start,
        ledger.samples,
        plain_number(ledger.cycles),
        float(ledger.ns),
        relative,
        *(ledger.share(status) for status in Status),
        *cycles,
        *map(plain_number, ledger.bounds),
        *map(float, ledger.ns_bounds),
    ]


def compare(
    profiles: Iterable[Profile | str],
    run: Callable[[Profile], Counted],
    *,
    title: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Price one trace on several CPUs.

    Parameters
    ----------
    profiles : iterable of Profile or str
        CPUs, by name, path or as loaded.
    run : callable
        Runs the trace on a machine with the shape of a profile. It is called once for each
        shape; the lab does not know how traces are run.
    title : str
        What was run, for the table.
    progress : callable, optional
        Told the profile, how many are done and how many there are.
    """
    chosen = [p if isinstance(p, Profile) else load_profile(p) for p in profiles]
    counted: dict[object, Counted] = {}
    outcomes = []
    for done, profile in enumerate(chosen):
        if progress is not None:
            progress(profile.id, done, len(chosen))
        outcomes.append(_outcome(profile, run, counted))
    return Comparison(title, tuple(outcomes), len(counted))


def _outcome(
    profile: Profile, run: Callable[[Profile], Counted], counted: dict[object, Counted]
) -> Outcome:
    key = profile.shape_key
    if key not in counted:
        try:
            counted[key] = run(profile)
        except NotSupported as refusal:
            return Outcome(profile, State.NOT_SUPPORTED, str(refusal), None)
        except InputError:
            # The trace itself is wrong, on every CPU.
            raise
        except VtxError as stop:
            return Outcome(profile, State.STOPPED, str(stop), None)
    if not profile.has_prices:
        why = profile.prices["round_trip"].source
        return Outcome(profile, State.NO_DATA, why, counted[key])
    return Outcome(profile, State.PRICED, "", counted[key])
