"""Quick access to the members of enumerations."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

__all__ = ["plain_members"]

_Enumeration = TypeVar("_Enumeration", bound=type[Enum])


def plain_members(enumeration: _Enumeration) -> _Enumeration:
    """Make the members of an enumeration plain attributes of its class (a class decorator).

    From Python 3.12 on they are. In 3.11 `Field.GUEST_RIP` goes through a descriptor written in
    Python, which costs 0.2 microseconds each time: more than all the rest of a VM-entry check.
    """
    for name, member in enumeration.__members__.items():
        # EnumType forbids rebinding a member; this rebinds each to itself.
        type.__setattr__(enumeration, name, member)
    return enumeration
