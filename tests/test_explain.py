"""Explanations of fields, exit reasons, controls, errors and capability MSRs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtx
from vtx.errors import UnknownName, UsageError
from vtx.explanation import KINDS, Article, Explanation, explain
from vtx.explanation.search import search
from vtx.facts.controls import GROUPS, ControlInfo
from vtx.facts.ept import ENTRY_FORMATS
from vtx.facts.exiting import BOUNDARY_PRIORITY, CHANGED, CONDITIONAL, EVENTS, UNCONDITIONAL
from vtx.facts.exits import EXITS
from vtx.facts.fields import FIELDS
from vtx.facts.instruction_errors import INSTRUCTION_ERRORS
from vtx.facts.msrs import CAPABILITY_MSRS
from vtx.facts.vmx_instructions import OUTCOMES, VMX_INSTRUCTIONS
from vtx.rules import exiting
from vtx.rules.check import CHECKS
from vtx.rules.unreachable import WITHOUT_CHECK


def only(explanation: Explanation) -> Article:
    assert len(explanation.articles) == 1
    return explanation.articles[0]


def kinds(explanation: Explanation) -> list[str]:
    return [article.kind for article in explanation.articles]


EVERYTHING = [
    *(("field", info.name) for info in FIELDS.values()),
    *(("exit", info.name) for info in EXITS.values()),
    *(("control", info.key) for group in GROUPS.values() for info in group.controls),
    *(("error", info.name) for info in INSTRUCTION_ERRORS.values()),
    *(("msr", info.name) for info in CAPABILITY_MSRS.values()),
    *(("instruction", name) for name in UNCONDITIONAL | CONDITIONAL | CHANGED),
    *(("event", name) for name in EVENTS),
]
CHECK_IDS = [*CHECKS, *WITHOUT_CHECK]


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_everything_in_the_tables_has_an_article(kind: str, name: str) -> None:
    article = only(explain(name, kind))
    assert (article.kind, article.name) == (kind, name)
    assert article.summary.endswith(".")
    assert article.sections
    text = explain(name, kind).text()
    assert " ".join(text.split()).startswith(article.title)
    assert all(len(line) <= 88 and line == line.rstrip() for line in text.splitlines())
    json.dumps(explain(name, kind).as_dict())


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_what_an_article_refers_to_can_be_explained(kind: str, name: str) -> None:
    for related in only(explain(name, kind)).related:
        assert explain(related).articles


def test_an_ept_violation_decoded_bit_by_bit() -> None:
    article = only(explain(48, qualification=0x181))
    assert article.title == "Exit reason 48 (0x30): EPT violation"
    table = article.tables[0]
    assert table.value == 0x181
    assert table.sentence == (
        "A data read at the guest-physical address that a linear address translates to; the EPT "
        "entries used allow no access at all (as when one is not present)."
    )
    values = {row.name: row.value for row in table.rows}
    assert [name for name, value in values.items() if value] == ["read", "gla_valid", "translated"]
    meanings = {row.name: row.meaning for row in table.rows}
    assert meanings["read"] == "access was a data read"
    assert meanings["write"] == "no: access was a data write"
    assert meanings["entry_writable"].startswith("not writable")
    assert [row.bits for row in table.rows] == [str(bit) for bit in range(17)]


def test_the_text_of_a_decoded_exit_reads_well() -> None:
    text = explain("IO_INSTRUCTION", qualification=0x03F8_0008).text()
    assert "Exit qualification for I/O instructions: 0x3f80008" in text
    assert "  IN of 1 byte, port 0x3f8, taken from DX." in text
    assert "    2:0  size           0  1 byte (size of the access)" in text
    assert "  31:16  port       0x3f8  port number" in text


def test_bits_that_should_be_clear_are_shown_when_set() -> None:
    table = only(explain("mwait", qualification=0x8001)).tables[0]
    assert [(row.bits, row.value) for row in table.rows] == [("0", 1), ("63:1", 0x4000)]
    assert table.rows[1].meaning == "always 0, yet set here"


@pytest.mark.parametrize(("qualification", "said"), [(0, "as it should be"), (5, "no part of it")])
def test_a_qualification_of_an_exit_that_has_none(qualification: int, said: str) -> None:
    table = only(explain("cpuid", qualification=qualification)).tables[0]
    assert table.rows == ()
    assert said in table.sentence


def test_an_exception_is_decoded_each_way_its_vector_may_choose() -> None:
    tables = only(explain(0, qualification=0x4000)).tables
    assert [table.title for table in tables] == [
        "Exit qualification for debug exceptions",
        "Exit qualification for page-fault exceptions",
        "Exit qualification for NMIs",
    ]
    assert "single step" in tables[0].sentence
    assert "0x4000" in tables[1].sentence


@pytest.mark.parametrize(
    "what", ["MSR_WRITE", "wrmsr", "EXIT_REASON_MSR_WRITE", "32", "0x20", "20h"]
)
def test_kvm_names_and_numbers_of_exits(what: str) -> None:
    article = only(explain(what, "exit"))
    assert article.number == 32
    assert "MSR_WRITE in KVM and perf" in article.facts["Names"]


def test_an_exit_says_which_fields_it_fills() -> None:
    facts = only(explain("ept_violation", "exit")).facts
    assert facts["Guest-physical address"] == "filled"
    assert facts["Guest-linear address"] == "filled in some cases only"
    assert facts["Interruption information"] == "not valid (bit 31 is 0)"
    assert "while another event" in facts["IDT-vectoring information"]
    assert only(explain("hlt", "exit")).facts["Qualification"] == "cleared to 0"
    assert (
        only(explain("vmread", "exit")).tables[1].title
        == "Instruction information for VMREAD and VMWRITE"
    )
    assert "only exit reason" in only(explain(33, "exit")).facts["Information"]


def test_a_number_means_everything_it_fits() -> None:
    assert kinds(explain(7)) == ["exit", "error"]
    assert kinds(explain("0x2")) == ["field", "exit", "error"]
    assert kinds(explain("0x681E")) == ["field"]
    assert kinds(explain("0x480")) == ["msr"]
    assert kinds(explain(0x8000_0021)) == ["exit"]
    assert kinds(explain("0x3A")) == ["exit", "msr"]


def test_a_qualification_makes_the_number_an_exit_reason() -> None:
    assert kinds(explain("2", qualification=0)) == ["exit"]


@pytest.mark.parametrize(
    ("query", "kind", "number"),
    [
        ("error 7", "error", 7),
        ("Error 13", "error", 13),
        ("exit 48", "exit", 48),
        ("exit reason 48", "exit", 48),
        ("reason cpuid", "exit", 10),
        ("field 0x2", "field", 2),
        ("msr 0x480", "msr", 0x480),
        ("control enable ept", "control", 2),
    ],
)
def test_a_leading_word_chooses_the_kind(query: str, kind: str, number: int) -> None:
    article = only(explain(query))
    assert (article.kind, article.number) == (kind, number)


@pytest.mark.parametrize(
    "query", ["exit reason", "exit qualification", "exception bitmap", "EXIT_REASON"]
)
def test_names_that_begin_with_the_name_of_a_kind_stay_names(query: str) -> None:
    assert kinds(explain(query)) == ["field"]


def test_one_name_in_several_groups_of_controls() -> None:
    names = [article.name for article in explain("conceal_vmx_from_pt").articles]
    assert names == [
        "proc2.conceal_vmx_from_pt",
        "exit1.conceal_vmx_from_pt",
        "entry.conceal_vmx_from_pt",
    ]


def test_a_field_tells_encoding_and_what_makes_it_exist() -> None:
    article = only(explain("guest_pdpte0"))
    assert article.number == 0x280A
    assert article.facts["Exists"] == "if the CPU allows proc2.enable_ept to be 1"
    assert article.facts["High half"] == "0x280b accesses bits 63:32"
    assert {row.name: row.value for row in article.tables[0].rows} == {
        "access": 0, "index": 5, "area": 2, "width": 1,
    }  # fmt: skip
    assert article.related == ("proc2.enable_ept",)
    assert only(explain("guest_rip")).facts["Exists"] == "on every CPU with VMX"
    assert "IA32_VMX_MISC[29]" in only(explain("exit_qualification")).summary


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            "guest_uinv",
            "if the CPU allows exit1.clear_uinv to be 1 or the CPU allows entry.load_uinv",
        ),
        ("injected_event_data", "if the CPU supports FRED"),
        ("cr3_target_value_2", "if the capability MSRs say misc.cr3_target_count > 2"),
    ],
)
def test_requirements_in_words(field: str, words: str) -> None:
    assert words in only(explain(field)).facts["Exists"]


def test_the_high_half_of_a_field() -> None:
    article = only(explain("0x2011"))
    assert article.name == "tsc_offset"
    assert "high half" in article.title
    assert article.tables[0].rows[0].meaning == "high half"


def test_information_fields_name_the_exits_that_fill_them() -> None:
    facts = only(explain("guest_physical_address")).facts
    assert facts["Filled by"] == "ept_violation, ept_misconfiguration, spp_related_event"
    assert "io_instruction" in only(explain("guest_linear_address")).facts["In some cases by"]
    assert "mov_dr" in only(explain("exit_qualification")).facts["Filled by"]
    assert "ept_violation" in only(explain("idt_vectoring_information")).facts["May be valid for"]
    assert "vmread" in only(explain("vm_exit_instruction_information")).facts["Filled by"]


def test_control_fields_list_their_controls_and_msrs() -> None:
    article = only(explain("pin_based_controls"))
    assert [row.bits for row in article.tables[1].rows] == ["0", "3", "5", "6", "7"]
    assert article.related == ("IA32_VMX_PINBASED_CTLS", "IA32_VMX_TRUE_PINBASED_CTLS")


def test_fields_with_a_layout_are_drawn() -> None:
    rows = only(explain("eptp")).tables[1].rows
    assert rows[0].meaning == "memory type for the EPT paging structures: 0 UC, 6 WB"
    assert only(explain("guest_cs_access_rights")).tables[1].title == "Segment access rights"


@pytest.mark.parametrize("info", [one for group in GROUPS.values() for one in group.controls])
def test_a_control_is_drawn_in_its_word(info: ControlInfo) -> None:
    (table,) = only(explain(f"control {info.key}")).tables
    assert (str(info.bit), info.name) in [(row.bits, row.name) for row in table.rows]
    assert len(table.rows) <= 3


def test_a_control_tells_capability_bit_dependencies_and_fields() -> None:
    facts = only(explain("unrestricted_guest")).facts
    assert facts["May be 1 if"] == "bit 39 of IA32_VMX_PROCBASED_CTLS2 is 1"
    assert facts["In force if"].startswith("proc1.activate_secondary_controls is 1")
    assert facts["VM entry needs"] == "proc2.enable_ept must be 1"
    assert (
        only(explain("enable_hlat"))
        .facts["May be 1 if"]
        .startswith("bit 1 of IA32_VMX_PROCBASED_CTLS3")
    )
    assert "default1" in only(explain("cr3_load_exiting")).facts["Must be 1"]
    assert "eptp_index" in only(explain("ept_violation_ve")).facts["Brings fields"]


def test_an_error_tells_who_reports_it_and_how() -> None:
    article = only(explain("error 13"))
    assert article.title == "VM-instruction error 13: VMWRITE to a read-only component"
    assert article.facts["Reported by"] == "VMWRITE"
    assert "13 is written to vm_instruction_error" in article.facts["Delivery"]


def test_a_capability_msr_lists_the_controls_it_permits() -> None:
    article = only(explain("IA32_VMX_PROCBASED_CTLS2"))
    rows = {row.name: row.bits for row in article.tables[1].rows}
    assert rows["enable_ept"] == "33"
    assert {r.name: r.bits for r in only(explain("procbased_ctls3")).tables[1].rows}[
        "enable_hlat"
    ] == "1"
    assert only(explain("cr0_fixed0")).summary.count("CR0") == 1
    assert "locked" in only(explain("IA32_FEATURE_CONTROL")).summary


@pytest.mark.parametrize(
    ("query", "suggestion"),
    [
        ("gest_rip", "guest_rip"),
        ("ept_violatoin", "ept_violation"),
        ("enable_etp", "enable_ept"),
        ("IA32_VMX_BASCI", "IA32_VMX_BASIC"),
        ("error vm_entry_with_invalid_control_feilds", "vm_entry_with_invalid_control_fields"),
    ],
)
def test_unknown_names_get_suggestions(query: str, suggestion: str) -> None:
    with pytest.raises(UnknownName, match="did you mean") as caught:
        explain(query)
    assert suggestion in caught.value.suggestions
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "query", ["", "  ", "zzz", 999_999, -1, "error 14", "exit 35", "field 3", "x y"]
)
def test_what_means_nothing_is_refused(query: str | int) -> None:
    with pytest.raises(UnknownName):
        explain(query)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean field"):
        explain("guest_rip", "fields")
    assert KINDS[:5] == ("field", "exit", "control", "error", "msr")
    assert KINDS[5:] == ("instruction", "event", "check", "ept")


@pytest.mark.parametrize(("kind", "qualification"), [("field", 1), (None, -1), (None, 1 << 64)])
def test_a_wrong_qualification_is_a_wrong_use(kind: str | None, qualification: int) -> None:
    with pytest.raises(UsageError) as caught:
        explain("48", kind, qualification)
    assert caught.value.exit_code == 2


@given(st.sampled_from(list(EXITS)), st.integers(0, (1 << 64) - 1))
def test_any_qualification_of_any_exit_can_be_told(reason: int, qualification: int) -> None:
    explanation = explain(int(reason), qualification=qualification)
    assert explanation.text()
    json.dumps(explanation.as_dict())


@given(st.text(max_size=40))
def test_any_text_is_explained_or_refused(text: str) -> None:
    try:
        assert explain(text).articles
    except UnknownName as unknown:
        assert str(unknown)


def test_the_package_offers_explain() -> None:
    assert vtx.explain is explain
    assert str(vtx.explain("hlt")) == explain("hlt").text()
    assert explain("hlt").as_dict()["articles"][0]["number"] == 12


def test_the_facts_and_explanations_need_no_third_party_package() -> None:
    code = (
        "import sys, vtx.explanation, vtx.facts.ept, vtx.sdm;"
        "print(sorted({'yaml', 'numpy', 'rich', 'cffi', 'vtx._core'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("query", ["GUEST_RIP", "ENABLE_EPT"])
def test_only_an_exit_reason_has_a_qualification(query):
    with pytest.raises(UsageError, match=f"(?i){query} .* has no qualification"):
        explain(query, qualification=5)


def test_every_check_has_an_article() -> None:
    related = set()
    for id in CHECK_IDS:
        article = only(explain(id, "check"))
        assert (article.kind, article.name) == ("check", id)
        assert article.summary.endswith(".")
        assert article.sections
        assert all(len(line) <= 88 for line in str(Explanation(id, (article,))).splitlines())
        related |= set(article.related)
    assert all(explain(name).articles for name in related)


def test_a_check_tells_rule_consequence_fields_and_cause() -> None:
    article = only(explain("guest.interruptibility.sti_needs_if"))
    assert article.summary == "If RFLAGS.IF of the guest is 0, there is no blocking by STI."
    assert article.facts["Otherwise"].startswith(
        "VM-entry failure, exit reason 33, exit qualification 0. The host state is loaded"
    )
    assert (
        article.facts["Looks at"] == "guest_interruptibility_state (bits 0); guest_rflags (bits 9)"
    )
    assert "SMI" in article.facts["Likely cause"]
    assert article.related[0] == "exit 33"
    assert "error 7" in only(explain("ctl.exec.x2apic_vs_apic_accesses")).related
    assert (
        "(activate_secondary_controls)"
        in (only(explain("ctl.exec.x2apic_vs_apic_accesses")).facts["Looks at"])
    )


def test_part_of_an_id_finds_one_check_or_lists_several() -> None:
    assert only(explain("sti_needs_if")).name == "guest.interruptibility.sti_needs_if"
    listed = only(explain("guest.rflags", "check"))
    assert set(listed.facts) == {id for id in CHECKS if id.startswith("guest.rflags.")}
    with pytest.raises(UnknownName, match=r"did you mean guest\.rflags\.reserved_1"):
        explain("guest.rflags.reserved_11")


def test_the_tables_of_what_exits_agree_with_the_rules() -> None:
    """The text of a row and the function that decides it name the same exit reason."""
    rules = exiting.UNCONDITIONAL | exiting.BY_CONTROL | exiting.BY_RULE
    for name, rule in rules.items():
        row = (UNCONDITIONAL | CONDITIONAL).get(name)
        if row is not None:
            assert row.reason == int(rule.reason), name
    assert set(UNCONDITIONAL) == set(exiting.UNCONDITIONAL)
    for name, rule in exiting.BY_CONTROL.items():
        row = CONDITIONAL.get(name)
        if row is not None:
            control = f"{rule.group}.{rule.control.name.lower()}"
            assert control in row.controls, name


def test_the_lists_of_the_manual_are_complete() -> None:
    assert [len(t) for t in (UNCONDITIONAL, CONDITIONAL, CHANGED, EVENTS)] == [16, 47, 9, 26]
    assert len(BOUNDARY_PRIORITY) == 12
    assert sum(len(row.conditions) for row in VMX_INSTRUCTIONS.values()) == 132
    for row in (UNCONDITIONAL | CONDITIONAL).values():
        assert row.reason in {int(reason) for reason in EXITS}
    for row in VMX_INSTRUCTIONS.values():
        outcomes = {step.outcome.split("(")[0] for step in row.conditions}
        assert all(o.startswith(("#", "VM", "SMM")) for o in outcomes), row.name
    errors = {int(info.error) for info in INSTRUCTION_ERRORS.values()}
    for row in VMX_INSTRUCTIONS.values():
        for step in row.conditions:
            head, _, number = step.outcome.rstrip(")").partition("(")
            if head in OUTCOMES and number.isdecimal():
                assert int(number) in errors


def test_an_instruction_tells_the_order_of_faults_and_exit() -> None:
    facts = only(explain("mov_dr", "instruction")).facts
    assert facts["In order"].startswith("#UD for LOCK, then the VM exit, then #GP(0) for CPL > 0")
    assert facts["Decided by"] == "proc1.mov_dr_exiting"
    assert "rdmsr" in only(explain("instruction rdmsr")).facts["In a trace"]
    assert {a.name for a in explain("MOV CR3").articles} == {"mov_to_cr3", "mov_from_cr3"}
    assert {a.name for a in explain("in", "instruction").articles} == {"in_out"}


def test_a_vmx_instruction_lists_its_conditions_in_order() -> None:
    facts = only(explain("instruction vmptrld")).facts
    steps = [facts[f"{n}."] for n in range(1, 11)]
    assert steps[0] == "Operand is a register: #UD."
    assert steps[7] == "Address equals the VMXON pointer: VMfail(10)."
    assert "11." not in facts
    assert facts["VMfail"].startswith("VMfailValid if there is a current VMCS")


def test_an_event_tells_its_priority() -> None:
    facts = only(explain("nmi window", "event")).facts
    assert facts["Priority"] == "Below preemption timer, above NMI."
    assert "8. NMI-window exit (8)" in facts["The order"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (
            "vm_exit_interruption_information 0x80000b0e",
            "Hardware exception, vector 14 (#PF), with an error code.",
        ),
        ("idt_vectoring_information 0x80000202", "NMI, vector 2, without an error code."),
        ("VM_EXIT_INTR_INFO 0x0000030d", "Not valid (bit 31 is 0)"),
        ("guest_cs_access_rights 0xa09b", "It is a 64-bit code segment with DPL 0."),
        ("guest_ss_access_rights 0x1c000", "unusable"),
        ("guest_ss_access_rights = 0xc0f3", "a writable data segment with DPL 3"),
        ("guest_tr_access_rights 0x8b", "a system segment of type 11 with DPL 0"),
        ("guest_activity_state 3", "in state wait-for-SIPI"),
        ("guest_interruptibility_state 9", "Set: blocking by sti and blocking by nmi."),
        ("ept_pointer 0x10105e", "A 4-level EPT whose root is at 0x101000, with accessed"),
        ("pin_based_controls 0x3f", "1: External-interrupt exiting, NMI exiting, Virtual NMIs."),
        ("guest_rip 0x1000", "0x1000 is 4096"),
    ],
)
def test_a_value_of_a_field_is_decoded(query: str, sentence: str) -> None:
    article = only(explain(query))
    assert sentence in article.tables[0].sentence
    assert article.tables[0].value == int(query.split()[-1], 0)


def test_a_value_where_words_name_several_fields() -> None:
    names = {a.name for a in explain("interruption information 0x80000b0e").articles}
    assert names == {"vm_entry_interruption_information", "vm_exit_interruption_information"}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("ept pte 0x80000037", "Allows reads, writes and instruction fetches and maps the page at"),
        ("ept pte 0x80000032", "Misconfigured: writable but not readable."),
        ("ept pte 0x13", "memory type 2 is reserved"),
        ("ept pte 0x80000030", "Not present"),
        ("ept pte 0x34", "Execute-only: misconfigured unless"),
        ("ept pml4e 0x100f", "reserved bits 7:3 are not 0"),
        ("ept pde 0x200000b7", "maps the page at 0x20000000 (WB)"),
        ("ept entry 0x1007", "references 0x1000"),
    ],
)
def test_an_ept_entry_is_decoded(query: str, sentence: str) -> None:
    assert any(sentence in table.sentence for table in only(explain(query)).tables)


def test_the_size_bit_chooses_the_format_of_an_ept_entry() -> None:
    titles = [table.title for table in only(explain("ept pde 0x200000b7")).tables]
    assert titles == ["EPT page-directory entry that maps a 2-MByte page"]
    assert len(only(explain("ept entry")).tables) == len(ENTRY_FORMATS) == 7


def test_words_that_name_nothing_are_searched_for() -> None:
    listed = only(explain("secondary controls"))
    assert listed.kind == "list"
    assert "field secondary_processor_based_controls" in listed.facts
    for words in listed.facts:
        assert explain(words).articles
    assert only(explain("hlat prefix size")).name == "hlat_prefix_size"
    assert search("posted interrupts")[0].name.endswith("posted_interrupts")
    assert search("no such thing") == search("") == []


def test_a_word_is_drawn_from_its_highest_bit_to_bit_0() -> None:
    lines = explain("vm_exit_interruption_information 0x80000b0e").text().splitlines()
    top = next(i for i, line in enumerate(lines) if line.strip().startswith("31 "))
    assert lines[top].split()[:3] == ["31", "30:14", "13"]
    assert lines[top + 2].split("|")[1].strip() == "valid"
    assert lines[top + 3].split("|")[1].strip() == "1"
    assert lines[top + 1] == lines[top + 4]


@given(st.sampled_from(list(FIELDS)), st.integers(0, (1 << 64) - 1))
def test_any_value_of_any_field_can_be_told(field: int, value: int) -> None:
    explanation = explain(FIELDS[field].name, value=value)
    assert explanation.articles[0].tables
    assert all(len(line) <= 88 for line in explanation.text().splitlines())


@given(st.sampled_from([*ENTRY_FORMATS, "entry"]), st.integers(0, (1 << 64) - 1))
def test_any_ept_entry_can_be_told(name: str, value: int) -> None:
    assert explain(name, "ept", value=value).text()


def test_a_value_that_is_none_is_a_wrong_use() -> None:
    for query, kind, value in (("eptp", None, -1), ("eptp", None, 1 << 64), ("48", "exit", 1)):
        with pytest.raises(UsageError):
            explain(query, kind, value=value)
