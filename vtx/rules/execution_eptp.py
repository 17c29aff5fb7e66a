"""EPTP switching: VM function 0 (SDM, "EPTP Switching")."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vtx.facts.controls import Proc2
from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["eptp_is_valid"]


class _WithEptp:
    """What the checks of VM entry see of a VMCS that had this EPT pointer."""

    proc2 = int(Proc2.ENABLE_EPT)

    def __init__(self, eptp: int) -> None:
        self._eptp = eptp

    def __getitem__(self, field: Field) -> int:
        assert field is Field.EPT_POINTER
        return self._eptp


def eptp_is_valid(processor: Processor, eptp: int) -> bool:
    """Tell whether VM entry would accept `eptp` as the EPT pointer."""
    from vtx.rules import entry_controls_ept as checks

    vmcs = cast("Vmcs", _WithEptp(eptp))
    return all(
        holds(vmcs, processor)
        for holds in (
            checks.ept_memory_type_is_supported,
            checks.ept_walk_length_is_supported,
            checks.ept_accessed_and_dirty_flags_are_supported,
            checks.ept_supervisor_shadow_stack_control_is_supported,
            checks.ept_pointer_reserved_bits_are_0,
            checks.ept_pointer_is_within_the_physical_width,
        )
    )
