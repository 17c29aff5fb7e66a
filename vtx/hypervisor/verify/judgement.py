"""What comes of one case: both sides, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vtx.errors import VtxError

__all__ = ["Judgement", "Skip", "Verdict", "difference"]

#: What is compared of a case, by name.
Verdict = dict[str, Any]


class Skip(VtxError):
    """A case cannot be replayed.

    Attributes
    ----------
    why : str
        The reason, the same words for all cases that share it.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class Judgement(NamedTuple):
    """One case, replayed.

    Attributes
    ----------
    ours, theirs : dict
        What was compared.
    deviations : tuple of str
        Names of the deviations that decided which side counts; empty if both agree.
    sdm_side : bool
        With `deviations`: our side is the one the manual's words are on.
    """

    ours: Verdict
    theirs: Verdict
    deviations: tuple[str, ...] = ()
    sdm_side: bool = False

    @property
    def agree(self) -> bool:
        """Both sides are the same."""
        return self.ours == self.theirs


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
    """Return both sides with only what differs, and the kind that it belongs to."""
    keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    if keys and "kind" in ours and "kind" not in keys:
        keys.insert(0, "kind")
    left = {key: ours[key] for key in keys if key in ours}
    right = {key: theirs[key] for key in keys if key in theirs}
    return left, right
