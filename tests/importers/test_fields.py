# ruff: noqa: E501 - a line of a trace is one line here too
"""Events as fields: tools without a plugin for KVM, acrntrace and the old kvmtrace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtx.cli import main
from vtx.lab.exit_reasons import printed_name

from .scanning import Scan

FRAME = " qemu-kvm-100 [003] 10.0000%02d: "


def recorded(*payloads: str) -> str:
    return "".join(f"{FRAME % index}{payload}\n" for index, payload in enumerate(payloads))


def test_fields_in_decimal_and_hexadecimal() -> None:
    scan = Scan(
        recorded(
            "kvm_exit: exit_reason=48 guest_rip=0xffffffff81000000 isa=1 info1=386 info2=0 intr_info=2147483884 error_code=0 vcpu_id=2",
            "kvm_page_fault: vcpu_id=2 guest_rip=0x1000 fault_address=4276092928 error_code=0x14",
            "kvm_entry: vcpu_id=2 rip=0xffffffff81000000",
            "kvm_exit: exit_reason=0x1e, guest_rip=ffffffff81000002, info1=0x3f80000",
            "kvm_pio: rw=1 port=1016 size=1 count=1 val=65",
            "kvm_exit: exit_reason=32 guest_rip=0x10",
            "kvm_msr: write=1 ecx=1760 data=5 exception=1",
            "kvm_entry: vcpu_id=2",
        )
    )
    violation, port, msr = scan.exits
    assert scan.counts["used"] == 8
    assert [exit["reason"] for exit in scan.exits] == ["48", "0x1e", "32"]
    assert (violation["rip"], violation["info1"]) == (0xFFFFFFFF81000000, 386)
    assert (violation["intr_info"], violation["vcpu"]) == (0x800000EC, 2)
    assert (violation["detail"], violation["duration_ns"]) == (0xFEE00000, 2000)
    assert (port["rip"], port["info1"], port["detail"]) == (0xFFFFFFFF81000002, 0x3F80000, 1016)
    assert (port["duration_ns"], msr["detail"], msr["value"]) == (None, 0x6E0, 5)


def test_acrntrace() -> None:
    scan = Scan(
        "CPU0 0x0000000000000010 100 vmexit [exit reason = 0x00000030, rIP = 0xffffffff81000000]\n"
        "CPU1 0x0000000000000010 105 vmexit [exit reason = 0x0000000c, rIP = 0x1000]\n"
        "CPU0 0x0000000000000011 110 vmenter\n"
    )
    violation, hlt = sorted(scan.exits, key=lambda found: found["line"])
    assert (violation["reason"], violation["rip"], violation["cpu"]) == (
        "0x00000030", 0xFFFFFFFF81000000, 0,
    )  # fmt: skip
    assert (hlt["reason"], hlt["cpu"], hlt["time_ns"], hlt["duration_ns"]) == (
        "0x0000000c", 1, None, None,
    )  # fmt: skip
    assert (scan.counts["used"], scan.counts["ticks"]) == (3, 3)


def test_kvmtrace_and_its_address_in_two_halves() -> None:
    scan = Scan(
        "100 (+  500)  VMEXIT   vcpu = 0x00000001  pid = 0x00001234 [ exitcode = 0x00000030, rip = 0xffffffff 81000000 ]\n"
        "101 (+    1)  PAGE_FAULT   vcpu = 0x00000001  pid = 0x00001234 [ errorcode = 0x2, virt = 0x1000 ]\n"
        "102 (+    1)  VMENTRY  vcpu = 0x00000001  pid = 0x00001234\n"
    )
    (exit,) = scan.exits
    assert (exit["reason"], exit["rip"], exit["vcpu"]) == ("0x00000030", 0xFFFFFFFF81000000, 1)
    assert (scan.counts["joined"], scan.counts["used"], exit["duration_ns"]) == (0, 2, None)


def test_prose_behind_fields_is_not_of_the_event() -> None:
    scan = Scan(
        recorded("kvm_exit: exit_reason=48 guest_rip=0x1000 vcpu_id=0") + "And then it hangs\n"
    )
    assert (scan.counts["joined"], scan.skipped) == (0, {"no_event": 1})


@pytest.mark.parametrize("text", ["3 sigma VMEXIT of x", "CPU0 says vmexit is slow", "1 VMENTRY"])
def test_prose_is_no_tracer(text: str) -> None:
    assert Scan(text + "\n").skipped == {"no_event": 1}


def test_a_number_counts_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "raw.txt"
    trace.write_text(
        recorded(
            "kvm_exit: exit_reason=48 guest_rip=0x1000 isa=1",
            "kvm_exit: reason 48 rip 0x1000 info 181 0",
            "kvm_exit: reason EPT_VIOLATION rip 0x1000 info 181 0",
        )
    )
    assert main(["exits", str(trace), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["reason"], row["number"], row["samples"]) == ("EPT_VIOLATION", 48, 3)


def test_names_of_numbers() -> None:
    assert [printed_name(name) for name in ("32", "0x1e", "9999", "UNKNOWN (48)", "HLT")] == [
        "MSR_WRITE", "IO_INSTRUCTION", "9999", "UNKNOWN (48)", "HLT",
    ]  # fmt: skip


def test_fields_of_an_amd_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "amd.txt"
    trace.write_text(recorded("kvm_exit: exit_reason=1024 guest_rip=0x1 isa=2 info1=1 info2=2"))
    assert main(["exits", str(trace)]) == 3
    assert "AMD host" in capsys.readouterr().err
