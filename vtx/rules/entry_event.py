"""Events that end a VM entry after it has begun to load state.

SDM, "Machine-Check Events During VM Entry". The instructions look for them themselves
(:mod:`vtx.rules.vmx_entry`), once everything else has succeeded.
"""

from __future__ import annotations

from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import MACHINE_CHECK
from vtx.rules.declaration import Checks, Live

check = Checks()


@check(
    "mce.during_entry",
    MACHINE_CHECK,
    live=(Live.PENDING,),
    note=(
        "depending on its timing a machine check is delivered in the host before the entry, makes "
        "the entry fail, or is delivered in the guest after it; the manual defines no qualification"
    ),
)
def no_machine_check_occurs_during_entry(vmcs: Vmcs, processor: Processor) -> bool:
    """No machine-check event occurs while the VM entry loads guest state."""
    return not processor.pending.machine_check
