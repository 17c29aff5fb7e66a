"""What KVM and Xen print is read back whole, from wherever it was found."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vtx.errors import InputError
from vtx.facts.fields import Field as F
from vtx.hypervisor.dumps import Dump, read_dumps

from .printers import KVM_ERAS, XEN_ERAS, dmesg, journal, kvm, quoted, wrapped, xen, xl_dmesg
from .samples import random_fields, valid

PLACES: dict[str, Callable[[list[str]], str]] = {
    "bare": lambda lines: "\n".join(lines) + "\n",
    "no final newline": lambda lines: "\n".join(lines) + "\n ",
    "dmesg": dmesg,
    "dmesg with task and module": lambda lines: dmesg(lines, task="T4711", module="kvm_intel: "),
    "journal": journal,
    "journal with kernel's stamps": lambda lines: "".join(
        f"Jun 24 17:25:51 host kernel: {row}\n" for row in dmesg(lines).splitlines()
    ),
    "iso": lambda lines: "".join(f"2022-06-24T17:25:51+0200 host kernel: {x}\n" for x in lines),
    "dmesg -T": lambda lines: "".join(f"[Fri Jun 24 17:25:51 2022] {x}\n" for x in lines),
    "dmesg -x": lambda lines: "".join(f"kern  :err   : [  100.123456] {x}\n" for x in lines),
    "raw kernel messages": lambda lines: "".join(f"<3>[  100.123456] {x}\n" for x in lines),
    "ftrace": lambda lines: "".join(
        f"      CPU 0/KVM-251862 [019]  6384.132436: bprint:       dump_vmcs: {x}\n" for x in lines
    ),
    "quoted": lambda lines: quoted(dmesg(lines)),
    "quoted thrice": lambda lines: quoted(quoted(journal(lines)), 2),
    "wrapped": lambda lines: wrapped(dmesg(lines, module="kvm_intel: ")),
    "wrapped and quoted": lambda lines: quoted(wrapped(dmesg(lines)), 2),
    "quoted and wrapped": lambda lines: wrapped(quoted(journal(lines)), 60, "> > "),
    "refilled": lambda lines: wrapped(" ".join(lines), 70),
    "carriage returns": lambda lines: "\r\n".join(lines) + "\r\n",
    "colours": lambda lines: "".join(f"\x1b[31m{line}\x1b[0m\n" for line in lines),
    "web page": lambda lines: quoted(dmesg(lines)).replace(">", "&gt;"),
    "quoted-printable": lambda lines: dmesg(lines).replace("=", "=3D"),
    "indented": lambda lines: "".join(f"    {row}\n" for row in dmesg(lines).splitlines()),
}
XEN_PLACES: dict[str, Callable[[list[str]], str]] = {
    "xl dmesg": xl_dmesg,
    "stamped": lambda lines: xl_dmesg(lines, stamp=True),
    "quoted": lambda lines: quoted(xl_dmesg(lines)),
    "wrapped": lambda lines: quoted(wrapped(xl_dmesg(lines, stamp=True)), 4),
    "seconds": lambda lines: "".join(f"(XEN) [  100.123456] {line}\n" for line in lines),
    "no-break spaces": lambda lines: xl_dmesg(lines).replace("  ", "\u00a0 "),
}


def only(text: str) -> Dump:
    [dump] = read_dumps(text)
    return dump


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("era", KVM_ERAS)
def test_kvm(era: str, place: str) -> None:
    rng = random.Random(f"{era} {place}")
    for values in (valid(), random_fields(rng), random_fields(rng)):
        lines, shown = kvm(values, era)
        dump = only(PLACES[place](lines))
        assert dump.values == shown
        assert (dump.form, dump.unreadable, dump.tangled) == ("kvm", [], False)


@pytest.mark.parametrize("place", XEN_PLACES)
@pytest.mark.parametrize("era", XEN_ERAS)
def test_xen(era: str, place: str) -> None:
    rng = random.Random(f"{era} {place}")
    for values in (valid(), random_fields(rng), random_fields(rng)):
        lines, shown = xen(values, era)
        dump = only(XEN_PLACES[place](lines))
        assert dump.values == shown
        assert (dump.form, dump.label) == ("xen", "d2v0")
        assert (dump.unreadable, dump.tangled) == ([], False)
        assert (dump.verdict.kind, dump.verdict.error) == ("vmfail_valid", 7)


def test_lines_are_those_of_the_input() -> None:
    lines, _ = kvm(valid(), "6.2")
    text = "one\ntwo\n" + dmesg(lines)
    dump = only(text)
    rows = text.splitlines()
    assert dump.first_line == 4  # the line above names the VMCS
    assert dump.last_line == len(rows)
    assert "CR3 = " in rows[dump.lines[F.GUEST_CR3] - 1]
    assert "intr_info" in rows[dump.lines[F.VM_ENTRY_INTERRUPTION_INFORMATION] - 1]
    assert dump.label == "VMCS 00000000a1b2c3d4, last entered on CPU 7"


def test_efer_that_is_not_the_field() -> None:
    values = valid()
    values[F.VM_ENTRY_CONTROLS] &= ~(1 << 15)
    lines, shown = kvm(values, "6.2")
    assert F.GUEST_IA32_EFER not in shown
    whole = only("\n".join(lines) + "\n")
    cut = only("\n".join(lines).replace(" (effective)", "") + "\n")
    for dump in (whole, cut):
        assert dump.effective_efer == 0xD01
        assert F.GUEST_IA32_EFER not in dump.values


def test_older_cet_lines_stand_apart() -> None:
    values = valid()
    values[F.VM_ENTRY_CONTROLS] |= 1 << 20
    values |= {F.GUEST_IA32_S_CET: 3, F.GUEST_SSP: 0x1000, F.HOST_IA32_S_CET: 5}
    lines, _ = kvm(values, "6.2")
    at = lines.index("*** Host State ***")
    lines[at:at] = [
        "S_CET = 0x0000000000000003",
        "SSP = 0x0000000000001000",
        "INTR SSP TABLE = 0x0000000000002000",
    ]
    lines += ["S_CET = 0x0000000000000005", "SSP = 0x0000000000000008"]
    dump = only(dmesg(lines))
    assert dump.values[F.GUEST_IA32_S_CET] == 3
    assert dump.values[F.GUEST_SSP] == 0x1000
    assert dump.values[F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR] == 0x2000
    assert dump.values[F.HOST_IA32_S_CET] == 5
    assert dump.values[F.HOST_SSP] == 8


def test_msr_areas() -> None:
    lines, _ = kvm(valid(), "6.2")
    at = lines.index("*** Host State ***")
    guest = ["MSR guest autoload:", "   0: msr=0x00000600 value=0x0000000000001000"]
    store = ["MSR guest autostore:", "   0: msr=0x00000010 value=0x0000000000000001"]
    host = ["MSR host autoload:", "   0: msr=0x00000600 value=0xfffffe5926da0000"]
    control = lines.index("*** Control State ***")
    text = dmesg([*lines[:at], *guest, *store, *lines[at:control], *host, *lines[control:]])
    assert only(text).msr_load == [(0, 0x600, 0x1000)]


def test_the_line_that_qemu_prints_belongs_to_the_dump_above() -> None:
    lines, _ = kvm(valid(), "6.2")
    qemu = (
        "KVM: entry failed, hardware error 0x7\n"
        "EAX=00001e30 EBX=4e364180 ECX=00000001 EDX=00000000\n"
        "EIP=00008000 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=1 HLT=0\n"
        "CS =c200 7ffc2000 ffffffff 00809300\n"
        "CR0=00050032 CR2=826c6000 CR3=3cbf4002 CR4=00000000\n"
        "DR6=00000000ffff0ff0 DR7=0000000000000400\nEFER=0000000000000000\n"
    )
    dump = only(dmesg(lines) + qemu)
    assert dump.values == kvm(valid(), "6.2")[1]
    assert (dump.verdict.kind, dump.verdict.error) == ("vmfail_valid", 7)
    assert "system-management mode" in dump.remarks[0]
    assert dump.unreadable == []


@pytest.mark.parametrize(
    ("line", "kind", "reason", "qualification"),
    [
        ("d1v3 vmentry failure (reason 0x80000021): Invalid guest state (4)", 33, 33, 4),
        ("d1v3 vmentry failure (reason 0x80000029): MCE", 41, 41, None),
        ("Failed vm entry (exit reason 0x80000021) caused by invalid guest state (2).", 33, 33, 2),
    ],
)
def test_what_xen_prints_above(
    line: str, kind: int, reason: int, qualification: int | None
) -> None:
    values = valid()
    lines, _ = xen(values, above=line)
    verdict = only(xl_dmesg(lines)).verdict
    assert verdict.kind == "entry_failure"
    assert (verdict.basic_reason, verdict.qualification) == (reason, qualification)


def test_key_v_of_xen_names_domain_and_vcpu() -> None:
    first, _ = xen(valid(), above="VCPU 0")
    second, _ = xen(valid(), above="VCPU 1")
    dumps = read_dumps(xl_dmesg([">>> Domain 3 <<<", *first, *second]))
    assert [dump.label for dump in dumps] == ["Domain 3 VCPU 0", "VCPU 1"]


def test_several_dumps() -> None:
    rng = random.Random(5)
    printed = [kvm(random_fields(rng), era) for era in KVM_ERAS]
    logs = (dmesg(lines, seconds=100 + 50 * n) for n, (lines, _) in enumerate(printed))
    text = "noise\n".join(logs)
    assert [dump.values for dump in read_dumps(text)] == [shown for _, shown in printed]


def test_two_tasks_that_print_at_once_are_told_apart() -> None:
    rng = random.Random(6)
    (a, shown_a), (b, shown_b) = (kvm(random_fields(rng), "6.2") for _ in range(2))
    rows = [
        row
        for pair in zip(
            dmesg(a, task="T1").splitlines(), dmesg(b, task="T2").splitlines(), strict=False
        )
        for row in pair
    ]
    count = min(len(a), len(b))
    first, second = read_dumps("\n".join(rows) + "\n")
    assert first.values.items() <= shown_a.items()
    assert second.values.items() <= shown_b.items()
    assert len(first.values) >= len(shown_a) - 3 * (len(a) - count)
    assert not (first.tangled or second.tangled)


def test_words_about_a_dump_are_no_dump() -> None:
    lines, shown = kvm(valid(), "6.2")
    said = (
        "So Interruptibility = 00000000 and VMEntry:\nintr_info=00000000 (nothing)\n"
        "but I expected Interruptibility = 00000001 there.\n"
    )
    dump = only(dmesg(lines) + said)
    assert dump.values == shown
    assert not dump.tangled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no VMCS in it"),
        ("hello\nCR0=80050033 CR2=0 CR3=0 CR4=0\n", r"looked for .*\*\*\* Guest State"),
        ("KVM: entry failed, hardware error 0x80000021\n", "says 0x80000021, but the VMCS was not"),
        ("set kvm_intel.dump_invalid_vmcs=1 to dump internal KVM state.\n", "was not told to dump"),
    ],
)
def test_text_without_a_dump(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_dumps(text, "file")
