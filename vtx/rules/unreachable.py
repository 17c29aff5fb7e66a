"""Rules in the manual's lists of VM-entry checks that have no check here, and why.

The registry's tests take this table as the complete list of what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vtx import sdm

__all__ = ["WITHOUT_CHECK", "WithoutCheck"]


class WithoutCheck(NamedTuple):
    """A rule without a check of its own.

    Attributes
    ----------
    rule : str
        The rule as a sentence.
    section : Section
        Where the manual states it.
    reason : str
        Why there is no check.
    """

    rule: str
    section: sdm.Section
    reason: str


WITHOUT_CHECK: Mapping[str, WithoutCheck] = {
    "smm.guest_checks_controls": WithoutCheck(
        "For a return from SMM, guest-state checks that depend on VM-execution controls use those "
        "of the executive VMCS, or treat all of them as 0 when it returns to VMX root operation.",
        sdm.CHECKS_ON_THE_GUEST_STATE_AREA,
        "no VMCS can break it: it says by which controls the other guest-state checks judge, and "
        "VM entry judges by them",
    ),
}
