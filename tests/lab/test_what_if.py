"""Recorded exits on other CPUs: each figure is worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtx.cli import main
from vtx.lab.bounds import price_ns
from vtx.lab.profile import load_profile

LINES = """\
vm-1 [000] 1.000000: kvm_exit: reason MSR_WRITE rip 0x10 info 0 0
vm-1 [000] 1.000001: kvm_msr: msr_write 6e0 = 0x1
vm-1 [000] 1.000005: kvm_entry: vcpu 0
vm-1 [000] 1.000010: kvm_exit: reason MSR_WRITE rip 0x20 info 0 0
vm-1 [000] 1.000011: kvm_msr: msr_write 80b = 0x0
vm-1 [000] 1.000013: kvm_entry: vcpu 0
vm-1 [000] 1.000020: kvm_exit: reason EPT_VIOLATION rip 0x30 info 181 0
vm-1 [000] 1.000021: kvm_page_fault: address 1000 error_code 181
vm-1 [000] 1.000030: kvm_entry: vcpu 0
vm-1 [000] 1.000040: kvm_exit: reason EPT_VIOLATION rip 0x34 info 181 0
vm-1 [000] 1.000041: kvm_page_fault: address 2000 error_code 181
vm-1 [000] 1.000050: kvm_entry: vcpu 0
vm-1 [000] 1.000060: kvm_exit: reason HLT rip 0x40 info 0 0
vm-1 [000] 1.500060: kvm_entry: vcpu 0
vm-1 [000] 1.500070: kvm_exit: reason CPUID rip 0x50 info 0 0
vm-1 [000] 1.500070: kvm_entry: vcpu 0
"""
#: Exit reason, RIP and the two of "info".
READS = 4


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.txt"
    path.write_text(LINES)
    return str(path)


def compared(trace: str, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    assert main(["compare", trace, "--format", "json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_split(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--profiles", "skylake_sp,haswell", "--recorded-on", "skylake_sp")
    document = compared(trace, capsys, *options)
    assert document["schema"] == "vtx.exit-compare/1"
    assert document["vmreads_per_exit"] == READS
    assert document["samples"] == 6
    assert document["samples_clamped"] == 1  # CPUID read 0
    assert document["idle_ns"] == 500_000_000
    source = load_profile("skylake_sp")
    read = price_ns(source, "vmread")
    assert read is not None
    software = 5000 + 3000 + 10_000 + 10_000 - 4 * READS * read.value
    for entry in document["profiles"]:
        profile = load_profile(entry["id"])
        assert entry["software_ns"]["value"] == pytest.approx(software)
        prices = [price_ns(profile, name) for name in ("round_trip", "vmread", "fault_exit_extra")]
        assert all(prices)
        trip, reads, fault = prices
        hardware = 6 * (trip.value + READS * reads.value) + 2 * fault.value
        assert entry["hardware_ns"]["value"] == pytest.approx(hardware)
        assert entry["total_ns"]["value"] == pytest.approx(hardware + software)
        assert entry["total_ns"]["low"] < entry["total_ns"]["value"] < entry["total_ns"]["high"]
    assert document["baseline"] == "skylake_sp"


def test_unknown_recording_has_wider_bounds(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    spans = []
    for more in ([], ["--recorded-on", "skylake_sp"]):
        document = compared(trace, capsys, "--profiles", "haswell,skylake_sp", *more)
        software = document["profiles"][-1]["software_ns"]
        spans.append(software["high"] - software["low"])
    assert spans[0] > spans[1]


def what_if(trace: str, capsys: pytest.CaptureFixture[str], option: str, cpu: str) -> tuple:
    options = ("--profiles", cpu, "--recorded-on", "skylake_sp", "--what-if", option)
    document = compared(trace, capsys, *options)
    (entry,) = document["profiles"]
    return entry["total_ns"], entry["what_if"][0], document["what_if"][0]


def test_no_exit(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, claim = what_if(trace, capsys, "no-exit:MSR_WRITE", "skylake_sp")
    profile = load_profile("skylake_sp")
    trip, read = price_ns(profile, "round_trip"), price_ns(profile, "vmread")
    # What the VMREADs took is part of the measured time, and back in the hardware part.
    saved = 8000 - 2 * READS * read.value + 2 * (trip.value + READS * read.value)
    assert before["value"] - after["total_ns"]["value"] == pytest.approx(saved)
    assert claim["exits_saved"] == {"value": 2, "low": 2, "high": 2}


def test_no_exit_by_one_msr(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, claim = what_if(trace, capsys, "no-exit:WRMSR:0x80b", "skylake_sp")
    assert claim["exits_saved"]["value"] == 1


def test_large_ept_pages(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, after, claim = what_if(trace, capsys, "ept-pages=2M", "skylake_sp")
    assert claim["exits_saved"] == {"value": 1, "low": 0, "high": 1}
    total = after["total_ns"]
    assert total["low"] < total["value"] < total["high"]


def test_repeated_violations_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = LINES.split("\n")[6:9]
    path = tmp_path / "storm.txt"
    path.write_text("\n".join(one * 8) + "\n")
    _, _, claim = what_if(str(path), capsys, "ept-pages=2M", "skylake_sp")
    assert claim["exits_saved"]["high"] == 0


def test_posted_interrupts(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, claim = what_if(trace, capsys, "posted-interrupts=on", "skylake_sp")
    assert claim["exits_saved"]["value"] == 1  # EOI
    _, after, _ = what_if(trace, capsys, "posted-interrupts=on", "haswell")
    assert after["total_ns"] is None and "haswell has no" in after["why"]


def test_without_vpid_there_is_an_upper_bound(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, _ = what_if(trace, capsys, "vpid=off", "skylake_sp")
    assert after["total_ns"]["value"] == before["value"]
    assert after["total_ns"]["high"] > 2 * before["high"]


@pytest.mark.parametrize(
    ("option", "code", "says"),
    [
        ("vpid=on", 2, "does not tell whether VPIDs were in use"),
        ("no-exit:HLT", 2, "the guest's rest"),
        ("no-exit:EXTERNAL_INTERRUPT", 2, "comes from outside the guest"),
        ("no-exit:MSR_WRITE:0x10", 3, "no exit of MSR_WRITE is about '0x10'"),
        ("no-exit:VMCALL", 3, "the trace has no such exit"),
        ("no-exit:NOTHING", 3, "NOTHING"),
        ("vmcs-shadowing=on", 3, "no exit by VMREAD or VMWRITE"),
        ("vmcs-shadowing=off", 2, "cannot be claimed"),
        ("ept-pages=4K", 2, "2M or 1G"),
        ("tlb=big", 2, "no memory references"),
        ("faster=yes", 2, "is none of no-exit:"),
        ("no-exit", 2, "is none of no-exit:"),
    ],
)
def test_claims_that_are_refused(
    trace: str, capsys: pytest.CaptureFixture[str], option: str, code: int, says: str
) -> None:
    assert main(["compare", trace, "--profiles", "skylake_sp", "--what-if", option]) == code
    streams = capsys.readouterr()
    assert says in streams.err and not streams.out


def test_table_and_csv(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["compare", trace, "--what-if", "no-exit:CPUID", "--what-if", "ept-pages=1G"]
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "What if ept-pages=1G" in text and "on a CPU that is not known" in text
    assert main([*options, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count(",") for line in lines if '"' not in line}) == 1


def test_only_recordings_have_what_ifs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "traces" / "01-cpuid.yaml"
    assert main(["compare", str(path), "--what-if", "vpid=off"]) == 2
    assert "--what-if is for recordings" in capsys.readouterr().err
