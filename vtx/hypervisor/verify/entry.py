"""``bochs-entry-1``: VM entries, from VMWRITE of every field to the first VM exit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtx.cpu import Cpu
from vtx.errors import EmulationStopped, GuestFault, InputError, VMfailInvalid, VMfailValid
from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.verify.code import MachineCode, UnknownCode
from vtx.hypervisor.verify.corpus import Corpus, require
from vtx.hypervisor.verify.golden import VMCS_REGION, VMXON_REGION
from vtx.hypervisor.verify.judgement import Skip, Verdict
from vtx.hypervisor.verify.machines import BareMachine, contents, numbers
from vtx.machine.registers import Activity, Segment
from vtx.rules.check import Stage, failing_checks
from vtx.rules.transitions_abort import VmxAbort

__all__ = ["EntryReplayer"]


_STAGES = {"vmfail_valid": Stage.CONTROLS_AND_HOST, "entry_failure": Stage.GUEST}
_LENGTH = int(Field.VM_EXIT_INSTRUCTION_LENGTH)
_REASON = int(Field.EXIT_REASON)
_QUALIFICATION = int(Field.EXIT_QUALIFICATION)
#: Exit reasons that are no instruction: the length that another implementation leaves is chance.
_ASYNCHRONOUS = frozenset(
    {
        ExitReason.EXCEPTION_OR_NMI, ExitReason.TRIPLE_FAULT, ExitReason.INTERRUPT_WINDOW,
        ExitReason.NMI_WINDOW, ExitReason.MONITOR_TRAP_FLAG, ExitReason.TPR_BELOW_THRESHOLD,
        ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIGURATION,
        ExitReason.PREEMPTION_TIMER, ExitReason.PAGE_MODIFICATION_LOG_FULL,
    }
)  # fmt: skip
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
_HOST_NUMBERS = ("rip", "rsp", "rflags", "cr0", "cr3", "cr4", "dr7")
_HOST_MSRS = {"efer": 0xC000_0080, "pat": 0x277, "sysenter_cs": 0x174, "sysenter_esp": 0x175,
              "sysenter_eip": 0x176}  # fmt: skip
#: What Bochs calls present bits (and its caching of them) is no register of the manual.
_USABLE = 1
#: Bits 11:8 of access rights are reserved; Bochs shows bits 19:16 of the limit there.
_RIGHTS = 0xF0FF
_FAILED = 1 << 31
_TIMER = Field.VMX_PREEMPTION_TIMER_VALUE
#: Access rights, and what is undefined in an unusable register: the limit, and the base but for
#: FS and GS.
_RIGHTS_FIELDS = {
    Field[f"GUEST_{name}_ACCESS_RIGHTS"]: (
        Field[f"GUEST_{name}_LIMIT"],
        *(() if name in ("FS", "GS") else (Field[f"GUEST_{name}_BASE"],)),
    )
    for name in ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
}
#: Bit 13 is CS.L, and reserved in the others.
_SAVED_RIGHTS = 0x1_D0FF
_UNUSABLE, _DPL, _TYPE, _RF = 1 << 16, 3 << 5, 0xF, 1 << 16


class EntryReplayer:
    """Replays the cases of one corpus.

    Parameters
    ----------
    corpus : Corpus
        Its header describes the CPU, the guests and their memory.
    """

    def __init__(self, corpus: Corpus) -> None:
        header = corpus.header
        try:
            require(header, "goldens", "mem", "vmxon", "vmcs")
            self._goldens = {
                name: (numbers(golden["fields"]), golden.get("host", {}))
                for name, golden in header["goldens"].items()
            }
            memory = contents(header["mem"]) | contents(header.get("host_mem", {}))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"malformed header: {error}", file=corpus.file, line=1) from None
        self._machine = BareMachine(header, corpus.file, memory)

    def prepare(self, case: Mapping[str, Any]) -> Cpu:
        """Return a processor whose current VMCS is that of a case, before VMLAUNCH."""
        cpu = self._machine.fresh(contents(case.get("mem", {})))
        enter_setup(cpu, self._goldens[case["base"]][0] | numbers(case["delta"]))
        return cpu

    def replay(self, case: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
        """Return what comes of a case here, and what came of it there."""
        require(case, "base", "delta", "verdict")
        golden = self._goldens.get(case["base"])
        if golden is None:
            raise InputError(f"the header has no golden {case['base']!r}")
        fields = golden[0] | numbers(case["delta"])
        theirs = self._theirs(case["verdict"], golden[1])
        cpu = self._machine.fresh(contents(case.get("mem", {})))
        failed = enter_setup(cpu, fields)
        set_clock(cpu, theirs)
        ours = launch(cpu)
        accept_order(cpu, ours, theirs)
        if "post" in theirs:
            ours["post"] = _post(cpu, fields)
            mask_length(ours, theirs)
            mask_undefined(fields, ours, theirs)
        if "host" in theirs and ours["kind"] in ("vmexit", "entry_failure"):
            ours["host"] = host_state(cpu)
            _align_host(ours["host"], theirs["host"])
            if ours["host"] == theirs["host"]:
                del ours["host"], theirs["host"]
        ours["vmwrite_failed"] = failed
        return ours, theirs

    def _theirs(self, verdict: Mapping[str, Any], host: Mapping[str, Any]) -> Verdict:
        kept = ("kind", "error", "exit_reason", "qualification", "activity", "abort_code")
        theirs: Verdict = {key: verdict[key] for key in kept if key in verdict}
        if "post" in verdict:
            theirs["post"] = numbers(verdict["post"])
        if "host" in verdict:
            theirs["host"] = dict(host) | verdict["host"]
        theirs["vmwrite_failed"] = sorted(int(f, 16) for f in verdict.get("vmwrite_failed", ()))
        return theirs


def enter_setup(cpu: Cpu, fields: Mapping[int, int]) -> list[int]:
    """Make a VMCS with these fields current; return the fields that VMWRITE refused."""
    cpu.vmxon(VMXON_REGION)
    cpu.vmclear(VMCS_REGION)
    cpu.vmptrld(VMCS_REGION)
    failed = []
    vmcs, writable = cpu.vmcs, cpu.writable_fields
    assert vmcs is not None
    for encoding, value in fields.items():
        if encoding in writable:
            vmcs[encoding] = value  # VMWRITE of such a field cannot fail here
            continue
        try:
            cpu.vmwrite(encoding, value)
        except VMfailValid:
            failed.append(encoding)
    return sorted(failed)


def launch(cpu: Cpu) -> Verdict:
    """Execute VMLAUNCH and say how it went."""
    cpu.set_program(MachineCode(cpu))
    try:
        exit = cpu.vmlaunch()
    except VMfailInvalid:
        return {"kind": "vmfail_invalid"}
    except VMfailValid as failure:
        return {"kind": "vmfail_valid", "error": failure.error}
    except GuestFault as fault:
        return {"kind": "host_exception", "vector": fault.vector}
    except VmxAbort as abort:
        return {"kind": "vmabort", "abort_code": int(abort.indicator)}
    except UnknownCode:
        raise Skip("the guest executes code that is not in the instruction table") from None
    except EmulationStopped:
        return _stopped(cpu)
    assert cpu.vmcs is not None
    return {
        "kind": "entry_failure" if exit.entry_failure else "vmexit",
        "exit_reason": cpu.vmcs[Field.EXIT_REASON],
        "qualification": cpu.vmcs[Field.EXIT_QUALIFICATION],
    }


def _stopped(cpu: Cpu) -> Verdict:
    """Say why a guest goes on without an exit: it waits, or it runs."""
    state = cpu.regs.activity_state
    if state == Activity.ACTIVE:
        return {"kind": "limit"}
    return {"kind": "idle", "activity": Activity(state).name.lower()}


def _post(cpu: Cpu, written: Mapping[int, int]) -> dict[int, int]:
    """Return the fields whose value differs from what was written."""
    vmcs, fields = cpu.vmcs, cpu.shape.fields
    assert vmcs is not None
    return {
        int(field): value
        for field, value in vmcs.values.items()
        if value != written.get(field, 0) and field in fields
    }


def mask_length(ours: Verdict, theirs: Verdict) -> None:
    """Leave out the instruction length where no instruction caused the exit."""
    reason = theirs.get("exit_reason", theirs["post"].get(_REASON, 0))
    if reason & _FAILED or reason & 0xFFFF in _ASYNCHRONOUS:
        ours["post"].pop(_LENGTH, None)
        theirs["post"].pop(_LENGTH, None)


def accept_order(cpu: Cpu, ours: Verdict, theirs: Verdict) -> None:
    """Take their choice of failure if it is one of several that the manual allows.

    Where several rules are broken, the order in which a processor finds them is not defined:
    within the checks on controls and host state (errors 7 and 8), and within those on guest state
    (exit qualifications 0 to 4).
    """
    keys = ("error", "exit_reason", "qualification")
    if all(ours.get(key) == theirs.get(key) for key in keys) or cpu.vmcs is None:
        return
    stage = _STAGES.get(ours["kind"])
    if stage is None or ours["kind"] != theirs["kind"]:
        return
    for check in failing_checks(cpu.vmcs, cpu):
        if check.area.stage is not stage:
            continue
        what = check.consequence
        if stage is Stage.GUEST:
            outcome = {"exit_reason": what.reason and what.reason | _FAILED}
            outcome["qualification"] = what.qualification
        else:
            outcome = {"error": what.error}
        if all(theirs.get(key) == value for key, value in outcome.items()):
            ours |= outcome
            if stage is Stage.GUEST:
                cpu.vmcs.values[Field.EXIT_QUALIFICATION] = what.qualification or 0
            return


def set_clock(cpu: Cpu, theirs: Verdict) -> None:
    """Let the VMX-preemption timer run as fast as it ran there.

    How many instructions execute while it counts down by 1 is a matter of the CPU. A timer that
    is 0 at VM entry, and what comes before or with its exit, is the manual's, and is left alone.
    """
    vmcs = cpu.vmcs
    assert vmcs is not None
    if vmcs.pin & Pin.ACTIVATE_VMX_PREEMPTION_TIMER and vmcs[_TIMER]:
        expired = theirs.get("exit_reason") == ExitReason.PREEMPTION_TIMER
        vmcs[_TIMER] = 0 if expired else 0xFFFF_FFFF


def mask_undefined(written: Mapping[int, int], ours: Verdict, theirs: Verdict) -> None:
    """Leave out of the fields after the exit what the manual does not define.

    Parameters
    ----------
    written : mapping of int to int
        Fields before VM entry.
    ours, theirs : dict
        With the fields that changed as ``"post"``.
    """
    sides = [dict(written) | side["post"] for side in (ours, theirs)]
    masks: dict[int, int] = dict.fromkeys(_RIGHTS_FIELDS, _SAVED_RIGHTS)
    masks[Field.GUEST_CS_ACCESS_RIGHTS] |= 1 << 13
    if not written.get(Field.GUEST_CR0, 0) & 1:
        masks[Field.GUEST_CS_ACCESS_RIGHTS] &= ~_TYPE
    for field, others in _RIGHTS_FIELDS.items():
        if all(side.get(field, 0) & _UNUSABLE for side in sides):
            masks |= dict.fromkeys(others, 0)
            masks[field] = _UNUSABLE | (_DPL if field == Field.GUEST_SS_ACCESS_RIGHTS else 0)
    if sides[1].get(_REASON) == ExitReason.TRIPLE_FAULT:
        masks[Field.GUEST_RFLAGS] = ~_RF
    masks[_TIMER] = 0
    for side, values in zip((ours, theirs), sides, strict=True):
        for number, mask in masks.items():
            side["post"].pop(int(number), None)
            if values.get(number, 0) & mask != written.get(number, 0) & mask:
                side["post"][int(number)] = values[number] & mask


def host_state(cpu: Cpu) -> dict[str, Any]:
    """Return the registers that a VM exit loads."""
    regs = cpu.regs
    state: dict[str, Any] = {name: getattr(regs, name) for name in _HOST_NUMBERS}
    state |= {name: regs.msrs.get(address, 0) for name, address in _HOST_MSRS.items()}
    for name in ("gdtr", "idtr"):
        table = getattr(regs, name)
        state[f"{name}_base"], state[f"{name}_limit"] = table.base, table.limit
    for name in _SEGMENTS:
        segment: Segment = getattr(regs, name)
        usable = int(segment.usable)
        rights = segment.access_rights & 0xFFFF
        state[name] = [usable, segment.selector, rights, segment.base, segment.limit]
    return state


def _align_host(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Leave out what no VM exit loads, and the parts of unusable segments that are undefined."""
    for name in [*theirs]:
        if name not in ours:
            del theirs[name]
    for name in [*ours]:
        if name not in theirs:
            del ours[name]
    for side in (ours, theirs):
        if "sysenter_cs" in side:
            side["sysenter_cs"] &= 0xFFFF_FFFF
        for name in _SEGMENTS:
            if name in side:
                side[name] = _defined_segment(name, list(side[name]))


def _defined_segment(name: str, segment: list[int]) -> list[int]:
    segment[0] &= _USABLE
    segment[2] &= _RIGHTS
    if not segment[0]:
        # Only the bases of FS and GS are defined in an unusable register after a VM exit.
        return [0, segment[1], 0, segment[3] if name in ("fs", "gs") else 0, 0]
    return segment
