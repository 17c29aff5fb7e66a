"""A broken rule is named, only that one is, and what cannot be told is said to be so."""

from __future__ import annotations

import pytest

from tests.rules import (
    broken_controls,
    broken_guest,
    broken_host,
    broken_segments,
    broken_state,
)
from tests.rules.entry_support import Broken
from vtx.errors import UnknownName
from vtx.explanation.causes import CAUSES, cause_of
from vtx.facts.controls import GROUPS
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.hypervisor.check import Cpu, Judgement, judge
from vtx.hypervisor.check_cpu import Assumed, least, most
from vtx.hypervisor.dumps import read_dumps
from vtx.machine.shape import Shape
from vtx.profiles import names
from vtx.rules.check import CHECKS

from .printers import KVM_ERAS, XEN_ERAS, dmesg, kvm, xen, xl_dmesg
from .samples import POSTS, valid, yaml

#: Counter-examples of all checks. In SMM and SEAM, and without Intel 64, nobody takes dumps.
CASES: tuple[Broken, ...] = tuple(
    case
    for case in (
        *broken_controls.CASES,
        *broken_host.CASES,
        *broken_guest.CASES,
        *broken_segments.CASES,
        *broken_state.CASES,
    )
    if not case.state.keys() & {"smm", "in_seam"} and "no_intel64" not in case.id
)
#: Which MSRs a model refuses only that model can tell.
OF_THE_MODEL = "msrload.model_specific"


def broken(judgement: Judgement) -> set[str]:
    return {rule.check.id for rule in judgement.failures}


def undecidable(judgement: Judgement) -> dict[str, tuple[str, ...]]:
    return {rule.check.id: rule.needs for rule in judgement.undecidable}


def judged(text: str, cpu: Cpu | None = None) -> Judgement:
    [dump] = read_dumps(text)
    return judge(dump, cpu)


def _document(case: Broken) -> str:
    text = yaml(dict(case.vmcs().fields()))
    if case.memory:
        rows = (f'  {at:#x}: "{data.hex()}"\n' for at, data in case.memory.items())
        text += "memory:\n" + "".join(rows)
    return text


def _kvm_dump(case: Broken) -> str:
    return dmesg(kvm(dict(case.vmcs().fields()), "fred")[0])


def _xen_dump(case: Broken) -> str:
    return xl_dmesg(xen(dict(case.vmcs().fields()), above="VCPU 0")[0])


@pytest.mark.parametrize("written", [_document, _kvm_dump, _xen_dump])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_exactly_the_broken_rules_are_named(case: Broken, written: object) -> None:
    assert callable(written)
    judgement = judged(written(case))
    assert broken(judgement) <= {case.id, *case.also}
    known = broken(judgement) | undecidable(judgement).keys()
    assert case.id in known or case.id == OF_THE_MODEL


def test_nearly_every_rule_is_decidable_in_a_document() -> None:
    open_ = {case.id for case in CASES if case.id not in broken(judged(_document(case)))}
    assert len(open_) < 25
    assert all(CHECKS[id].capability or CHECKS[id].live for id in open_)


@pytest.mark.parametrize("profile", ["skylake_sp", None])
@pytest.mark.parametrize("era", KVM_ERAS + XEN_ERAS)
def test_no_false_alarm_on_a_valid_vmcs(era: str, profile: str | None) -> None:
    if era in XEN_ERAS:
        text = xl_dmesg(xen(valid(), era, above="VCPU 0")[0])
    else:
        text = dmesg(kvm(valid(), era)[0])
    judgement = judged(text, Cpu(profile))
    assert judgement.failures == []
    assert judgement.verdict.kind == "vmexit"


@pytest.mark.parametrize("profile", ["skylake_sp", "ice_lake_sp", "sapphire_rapids", "haswell"])
def test_no_false_alarm_with_the_profile_of_the_cpu(profile: str) -> None:
    judgement = judged(yaml(valid(profile)), Cpu(profile))
    assert judgement.failures == []
    assert not any(rule.on_some_cpus for rule in judgement.undecidable)
    assert "maxphyaddr" not in judgement.assumed


POSTED = {
    "kvm_sti_shadow_in_smm": {"guest.interruptibility.sti_needs_if"},
    "xen_exception_without_error_code": {"ctl.entry.inject.error_code_required"},
    "kvm_interrupt_with_if_clear": {"guest.rflags.if.external_interrupt"},
    "xen_icebp_behind_mov_ss_quoted": {"guest.pending_debug.bs_must_be_1"},
    "kvm_accessed_bit_wrapped": {"guest.ds.type.accessed", "guest.es.type.accessed"},
    "xen_msr_load_quoted_printable": {"msrload.wrmsr_would_fault"},
}


@pytest.mark.parametrize("name", POSTED)
def test_posted_dumps(name: str) -> None:
    """The causes are those that were found in the threads."""
    judgement = judged((POSTS / f"{name}.txt").read_text(encoding="utf-8"))
    assert broken(judgement) == POSTED[name]
    assert all(rule.explains_verdict is not False for rule in judgement.failures)
    assert all(cause_of(rule.check) for rule in judgement.failures)


def test_every_posted_dump_is_judged() -> None:
    assert {path.stem for path in POSTS.glob("*.txt")} == POSTED.keys()


def test_causes_are_of_checks_there_are() -> None:
    assert CAUSES.keys() <= CHECKS.keys()


# ---- What cannot be told -------------------------------------------------------------------


def test_every_missing_field_makes_rules_undecidable_and_is_named() -> None:
    values = valid()
    names_of_needs = set()
    for field in (F.GUEST_CR0, F.GUEST_RFLAGS, F.VM_ENTRY_CONTROLS, F.HOST_RIP, F.EPT_POINTER):
        judgement = judged(yaml({f: v for f, v in values.items() if f is not field}))
        assert judgement.failures == []
        needs = {need for all_ in undecidable(judgement).values() for need in all_}
        assert FIELDS[field].name in needs
        names_of_needs |= needs
    assert "vmcs_link_pointer" not in names_of_needs


def test_a_field_that_no_activated_control_uses_is_not_needed() -> None:
    values = valid()
    del values[F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
    needs = {need for all_ in undecidable(judged(yaml(values))).values() for need in all_}
    assert "posted_interrupt_descriptor_address" not in needs


def test_capability_msrs_are_needed_where_cpus_differ() -> None:
    values = valid()
    assert (
        "IA32_VMX_PROCBASED_CTLS2" in undecidable(judged(yaml(values)))["ctl.exec.proc2_reserved"]
    )
    assert "ctl.exec.proc2_reserved" not in undecidable(judged(yaml(values), Cpu("skylake_sp")))


def test_what_no_cpu_allows_is_broken_without_a_profile() -> None:
    for field, value, id in (
        (F.PIN_BASED_CONTROLS, 0, "ctl.exec.pin_reserved.must_be_1"),
        (F.PIN_BASED_CONTROLS, 1 << 31 | 0x16, "ctl.exec.pin_reserved.must_be_0"),
        (F.GUEST_CR4, valid()[F.GUEST_CR4] | 1 << 15, "guest.cr4_fixed.must_be_0"),
        (F.GUEST_CR4, valid()[F.GUEST_CR4] & ~(1 << 13), "guest.cr4_fixed.must_be_1"),
    ):
        assert id in broken(judged(yaml(valid() | {field: value})))


@pytest.mark.parametrize("profile", names())
def test_the_two_imaginary_cpus_bracket_every_cpu(profile: str) -> None:
    cpu = Shape.of(profile)
    widest, least_ = most(Assumed()), least(Assumed())
    for key in GROUPS:
        group = GROUPS[key]
        parents = (group.activated_by or "").partition(".")
        if parents[0] and not cpu.supports(GROUPS[parents[0]].members[parents[2].upper()]):
            continue
        # Bits of the profile that have no name yet are not in the manual of the pinned revision.
        named = sum(map(int, group.members)) | group.default1_mask
        assert cpu.allowed1(key) & named & ~widest.allowed1(key) == 0
        assert least_.allowed1(key) & ~cpu.allowed1(key) == 0
        assert widest.allowed0(key) & ~cpu.allowed0(key) == 0
        assert cpu.allowed0(key) & ~least_.allowed0(key) == 0
    for msr in (Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1, Msr.IA32_VMX_CR4_FIXED0):
        assert cpu.msr(msr) == widest.msr(msr) == least_.msr(msr)
    assert cpu.msr(Msr.IA32_VMX_CR4_FIXED1) & ~widest.msr(Msr.IA32_VMX_CR4_FIXED1) == 0
    assert least_.msr(Msr.IA32_VMX_CR4_FIXED1) & ~cpu.msr(Msr.IA32_VMX_CR4_FIXED1) == 0


# ---- Assumptions ---------------------------------------------------------------------------


def test_assumptions_are_named_and_can_be_given() -> None:
    assert judged(yaml(valid())).assumed == {
        "maxphyaddr": 46, "linear_bits": 48, "ia32_efer.lma": 1, "smm": 0,
    }  # fmt: skip
    given = judged(yaml(valid()), Cpu(None, 39, 57)).assumed
    assert given.keys() == {"ia32_efer.lma", "smm"}
    written = "maxphyaddr: 39\nlinear_bits: 57\n"
    assert judged(yaml(valid()) + written).assumed == given


def test_a_rule_that_hangs_on_the_width_of_addresses_says_so() -> None:
    wide = yaml(valid() | {F.HOST_FS_BASE: 1 << 48})
    [rule] = judged(wide).failures
    assert rule.check.id == "host.fs.base_canonical"
    assert rule.hangs_on == ["57-bit linear addresses"]
    assert judged(wide, Cpu(linear_bits=57)).failures == []
    [rule] = judged(wide, Cpu(linear_bits=48)).failures
    assert rule.hangs_on == []


def test_five_level_paging_tells_the_linear_width() -> None:
    values = valid() | {F.HOST_FS_BASE: 1 << 48}
    values[F.HOST_CR4] |= 1 << 12
    judgement = judged(yaml(values))
    assert judgement.failures == []
    assert judgement.assumed["linear_bits"] == 57


def test_maxphyaddr_both_ways() -> None:
    beyond = yaml(valid() | {F.EPT_POINTER: 1 << 47 | 0x1E})
    [rule] = judged(beyond).failures
    assert (rule.check.id, rule.hangs_on) == ("ctl.exec.eptp.width", ["MAXPHYADDR 52"])
    assert judged(beyond, Cpu(maxphyaddr=48)).failures == []
    within = yaml(valid() | {F.EPT_POINTER: 1 << 40 | 0x1E})
    judgement = judged(within)
    assert judgement.failures == []
    assert [(c.id, w) for c, w in judgement.otherwise] == [("ctl.exec.eptp.width", "MAXPHYADDR 39")]
    assert judged(within, Cpu(maxphyaddr=39)).failures[0].check.id == "ctl.exec.eptp.width"


def test_what_the_processor_accepted_refutes_an_assumption() -> None:
    values = valid() | {F.EXIT_REASON: 0x8000_0021, F.GUEST_RFLAGS: 0}
    values |= {F.EPT_POINTER: 1 << 47 | 0x1E, F.HOST_FS_BASE: 1 << 48}
    judgement = judged(yaml(values))
    assert broken(judgement) == {"guest.rflags.reserved_1"}
    assert judgement.assumed["maxphyaddr"] == 52
    assert judgement.assumed["linear_bits"] == 57


def test_error_codes_of_newer_cpus() -> None:
    values = valid() | {F.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_030D}
    [rule] = judged(yaml(values)).failures
    assert rule.check.id == "ctl.entry.inject.error_code_required"
    assert rule.hangs_on == ["IA32_VMX_BASIC[56] = 1"]
    assert judged(yaml(values), Cpu("sapphire_rapids")).failures == []
    values[F.PRIMARY_PROCESSOR_BASED_CONTROLS] |= 1 << 17
    assert "ctl.entry.inject.error_code_required" not in broken(judged(yaml(values)))


def test_the_mode_of_the_vmm_is_not_guessed_from_one_address() -> None:
    low = dict.fromkeys((F.HOST_RSP, F.HOST_GDTR_BASE, F.HOST_IDTR_BASE, F.HOST_TR_BASE), 0x1000)
    values = valid() | low | {F.HOST_GS_BASE: 0, F.HOST_RIP: 1 << 63}
    judgement = judged(yaml(values))
    assert broken(judgement) == {"host.size64.rip_canonical"}
    assert "IA32_EFER.LMA" in undecidable(judgement)["host.size.lma0_host64"][0]
    assert "ia32_efer.lma" not in judgement.assumed


def test_unknown_profile() -> None:
    with pytest.raises(UnknownName, match="skylake_sp"):
        judged(yaml(valid()), Cpu("skylake_spp"))


# ---- The verdict ---------------------------------------------------------------------------


def test_rules_that_explain_the_verdict_come_first() -> None:
    values = valid() | {F.EXIT_REASON: 0x8000_0021, F.HOST_TR_SELECTOR: 0, F.GUEST_RFLAGS: 0}
    first, second = judged(yaml(values)).failures
    assert (first.check.id, first.explains_verdict) == ("guest.rflags.reserved_1", True)
    assert (second.check.id, second.explains_verdict) == ("host.tr.selector_null", False)


def test_checks_before_the_verdict_are_settled() -> None:
    values = valid() | {F.EXIT_REASON: 0x8000_0021, F.GUEST_RFLAGS: 0}
    judgement = judged(dmesg(kvm(values)[0]))
    for rule in judgement.undecidable:
        assert judgement.is_settled(rule) == rule.check.id.startswith(("ctl.", "host."))


@pytest.mark.parametrize(
    ("change", "kind", "error", "reason"),
    [
        ({F.CR3_TARGET_COUNT: 600}, "vmfail_valid", 7, None),
        ({F.HOST_TR_SELECTOR: 0}, "vmfail_valid", 8, None),
        ({F.GUEST_RFLAGS: 0}, "entry_failure", None, 0x8000_0021),
    ],
)
def test_without_a_verdict_the_rules_give_it(
    change: dict[F, int], kind: str, error: int | None, reason: int | None
) -> None:
    judgement = judged(yaml(valid() | {F.EXIT_REASON: 0} | change))
    verdict = judgement.verdict
    assert (verdict.kind, verdict.error, verdict.exit_reason) == (kind, error, reason)
    assert judgement.verdict_source == "rules"


@pytest.mark.parametrize(
    ("error", "id"),
    [
        (4, "basic.vmlaunch_launch_state"),
        (5, "basic.vmresume_launch_state"),
        (26, "basic.mov_ss_blocking"),
    ],
)
def test_error_numbers_that_say_it_themselves(error: int, id: str) -> None:
    above = f"d0v0 VMRESUME error: {error:#x}"
    judgement = judged(xl_dmesg(xen(valid(), above=above)[0]))
    assert broken(judgement) == {id}


def test_machine_check_during_entry() -> None:
    judgement = judged(dmesg(kvm(valid() | {F.EXIT_REASON: 0x8000_0029})[0]))
    assert broken(judgement) == {"mce.during_entry"}


def test_link_pointer_is_named_where_the_qualification_says_so() -> None:
    values = valid() | {F.EXIT_REASON: 0x8000_0021, F.EXIT_QUALIFICATION: 4}
    judgement = judged(dmesg(kvm(values)[0]))
    assert judgement.failures == []
    assert judgement.verdict.qualification == 4
    assert "guest.link_pointer.align" in undecidable(judgement)


def test_a_refused_entry_of_the_msr_area_kvm_prints() -> None:
    values = valid() | {F.EXIT_REASON: 0x8000_0022, F.EXIT_QUALIFICATION: 2}
    lines, _ = kvm(values)
    lines[lines.index("*** Host State ***") : 0] = [
        "MSR guest autoload:",
        "   0: msr=0x00000600 value=0x0000000000001000",
        "   1: msr=0x0000038f value=0xffffffffffffffff",
    ]
    [rule] = judged(dmesg(lines)).failures
    assert rule.check.id == "msrload.wrmsr_would_fault"
    assert "IA32_PERF_GLOBAL_CTRL (0x38f)" in rule.detail


def test_entries_that_need_no_processor_to_be_wrong() -> None:
    lines, _ = kvm(valid())
    lines[lines.index("*** Host State ***") : 0] = [
        "MSR guest autoload:",
        "   0: msr=0xc0000100 value=0x0000000000001000",
        "   1: msr=0x00000811 value=0x0000000000000000",
        "   2: msr=0x00001234 value=0x0000000000000000",
    ]
    judgement = judged(dmesg(lines))
    assert broken(judgement) == {"msrload.fs_base", "msrload.x2apic"}
