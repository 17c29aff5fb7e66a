"""``vtx profile measure``: the guest's code, KVM's requests, the profile, and every refusal."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import struct
from pathlib import Path

import pytest

from tests.host.fake import FakeGuest
from vtx import cli
from vtx.errors import InputError, NotSupported, VtxError
from vtx.host import kvm as kvm_module
from vtx.host import profile as host_profile
from vtx.host.guest import KINDS, measure, program
from vtx.host.kvm import Kvm, KvmExit
from vtx.host.profile import Host, Measurement, measure_host, profile_text
from vtx.lab.ledger import price
from vtx.lab.profile import Status, load_profile

COSTS = {"cpuid": 1000, "out 0x21": 1500, "out 0xf4": 4000, "touch": 2500, "mmio": 6000}
INTEL = Host("h1", "GenuineIntel", "Xeon Test @ 2.00GHz", "Linux 6.1", "2026-01-02")


def measurement(host: Host = INTEL, **costs: int) -> Measurement:
    return Measurement(host, 2_000_000, measure(FakeGuest({**COSTS, **costs}), 20))


def test_every_kind_is_timed_without_the_timing_itself() -> None:
    figures = measure(FakeGuest(COSTS), 20)
    assert list(figures) == [kind.name for kind in KINDS]
    # The code between the RDTSCs beside the exit: one tick an instruction.
    expected = {"cpuid": 1003, "io_kernel": 1502, "io_userspace": 4001, "memory": 2502}
    for name, ticks in {**expected, "mmio_userspace": 6001}.items():
        figure = figures[name]
        assert (figure.least, figure.middle, figure.p90, figure.most) == (ticks,) * 4, name
        assert figure.repetitions == 20


def test_every_first_write_meets_a_fresh_page_and_the_pages_end() -> None:
    guest = FakeGuest(COSTS)
    figures = measure(guest, 600)
    assert figures["memory"].least == figures["memory"].most
    assert figures["memory"].repetitions == 488 < figures["cpuid"].repetitions == 600
    assert max(guest.touched) << 12 < 32 << 20


def test_the_code_is_what_its_comments_say() -> None:
    guest = FakeGuest(COSTS)
    guest.write(0x1000, program(KINDS[1], 1))
    guest.start(0x1000)
    assert guest.run() == (2, 0xF5)
    assert guest.executed == [
        *("mov", "mov", "mov", "lfence", "rdtsc", "mov", "xor", "xor", "cpuid"),
        *("lfence", "rdtsc", "sub", "mov", "add", "dec", "jne", "out"),
    ]


def test_a_guest_that_goes_astray_is_told() -> None:
    guest = FakeGuest(COSTS)
    guest.run = lambda: KvmExit(2, 0xF4)
    with pytest.raises(VtxError, match="does not end"):
        measure(guest, 10)
    guest.run = lambda: KvmExit(8, 0)
    with pytest.raises(VtxError, match="ended with KVM exit 8"):
        measure(guest, 10)


# ---- The profile ------------------------------------------------------------------------------


def test_the_profile_is_measured_and_says_where_when_and_how(tmp_path: Path) -> None:
    path = tmp_path / "h1.yaml"
    path.write_text(profile_text(measurement(), "haswell", "h1"))
    profile = load_profile(str(path))
    trip = profile.prices["round_trip"]
    assert (trip.cycles, trip.status, trip.bounds) == (1003, Status.MEASURED, (1003, 1003))
    for word in ("h1", "GenuineIntel", "2026-01-02", "vtx profile measure", "CPUID"):
        assert word in trip.source
    assert profile.prices["entry"].cycles == 602
    assert profile.prices["fault_exit_extra"].cycles == 2502 - 1003
    assert profile.prices["handler"].cycles == profile.prices["vmread"].cycles == 0
    assert profile.nominal_ghz == 2.0
    assert profile.shape.msrs == load_profile("haswell").shape.msrs
    assert "Warning" not in path.read_text()


def test_its_exits_cost_what_was_measured(tmp_path: Path) -> None:
    import vtx

    path = tmp_path / "h1.yaml"
    path.write_text(profile_text(measurement(), "skylake_sp", "h1"))
    run = vtx.replay(Path(__file__).parents[2] / "traces" / "01-cpuid.yaml", str(path))
    ledger = price(run, load_profile(str(path)))
    assert next(row for row in ledger.rows if row.name == "CPUID").cycles == 20 * 1003
    assert ledger.unpriced_software == ["guest_instruction"]


def test_another_vendor_is_named_everywhere() -> None:
    amd = Host("h2", "AuthenticAMD", "EPYC Test", "Linux 6.1", "2026-01-02")
    text = profile_text(measurement(amd), "skylake_sp", "h2")
    assert text.startswith("# Warning: the CPU is of AuthenticAMD, without VT-x")
    assert "name: EPYC Test (AuthenticAMD), measured under KVM" in text
    assert text.count("AuthenticAMD") > 8


def test_an_rdtsc_that_exits_is_noticed() -> None:
    figures = dict(measurement().figures)
    nothing = figures["nothing"]
    figures["nothing"] = type(nothing)(nothing.kind, 20, 9000, 9000, 9000, 9000)
    found = Measurement(INTEL, 2_000_000, figures)
    assert "RDTSC itself seems to cause VM exits" in found.warnings[0]
    assert "doubtful" in profile_text(found, "haswell", "h1")


def test_exits_that_take_no_time_are_no_profile() -> None:
    with pytest.raises(InputError, match="causes no VM exit"):
        profile_text(measurement(cpuid=-3), "haswell", "h1")


# ---- KVM's requests ---------------------------------------------------------------------------


class FakeKernel:
    """Answers ioctl as KVM would, over files that can be mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.given = folder, [], {}
        self.answers = {0xAE00: 12, 0xAE04: 4096, 0xAEA3: 2_500_000}
        self.interruptions = 1

    def file(self, name: str) -> int:
        path = self.folder / name
        path.write_bytes(bytes(4096))
        return os.open(path, os.O_RDWR)

    def ioctl(self, file: int, request: int, argument=0, mutate: bool = False) -> int:
        assert mutate is isinstance(argument, bytearray)
        self.asked.append(request)
        self.given[request] = argument
        if request in (0xAE01, 0xAE41):
            made = self.file(f"{request:x}")
            if request == 0xAE41:
                self.vcpu = made
            return made
        if request == 0xAE80:
            if self.interruptions:
                self.interruptions -= 1
                raise InterruptedError(4, "Interrupted system call")
            run = struct.pack("<8xI20xBBHIQ", 2, 1, 1, 0xF5, 1, 0)
            os.pwrite(self.vcpu, run, 0)
        return self.answers.get(request, 0)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel(tmp_path)
    os.close(fake.file("kvm"))
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    return fake


def test_the_virtual_machine_is_made_and_run(kernel: FakeKernel, tmp_path: Path) -> None:
    kvm = Kvm(1 << 20, str(tmp_path / "kvm"))
    kvm.write(0x1000, b"code")
    assert kvm.read(0x1000, 4) == b"code"
    assert kvm.tsc_khz == 2_500_000
    kvm.start(0x1000)
    assert kvm.run() == (2, 0xF5)
    assert kernel.asked[:6] == [0xAE00, 0xAE01, 0xAE47, 0xAE60, 0x4020AE46, 0xAE04]
    assert kernel.asked[-2:] == [0xAE80, 0xAE80], "a signal interrupts KVM_RUN, which goes on"
    slot, flags, start, size, _ = struct.unpack("=IIQQQ", kernel.given[0x4020AE46])
    assert (slot, flags, start, size) == (0, 0, 0, 1 << 20)
    regs = struct.unpack("=18Q", kernel.given[0x4090AE82])
    assert regs[16:] == (0x1000, 2)
    sregs = kernel.given[0x4138AE84]
    assert len(sregs) == 312
    assert struct.unpack_from("=QIH10B", sregs) == (0, MASK32, 8, 11, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    assert struct.unpack_from("=QIH10B", sregs, 120)[2:4] == (16, 3)
    assert struct.unpack_from("=Q", sregs, 224) == (0x11,)
    kvm.close()
    kvm.close()


MASK32 = 0xFFFF_FFFF


def test_another_version_is_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.answers[0xAE00] = 11
    with pytest.raises(NotSupported, match="version 11"):
        Kvm(1 << 20, str(tmp_path / "kvm"))


# ---- Where it cannot be done ------------------------------------------------------------------


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="no KVM on this machine"):
        measure_host(10, str(tmp_path / "kvm"))


def test_a_device_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kvm_module.os, "open", refuse)
    with pytest.raises(NotSupported, match="cannot be opened: Permission denied"):
        measure_host(10, str(tmp_path / "kvm"))


def test_a_file_that_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_bytes(b"")
    with pytest.raises(VtxError, match="KVM cannot ask for KVM's version"):
        measure_host(10, str(tmp_path / "kvm"))


@pytest.mark.parametrize(("name", "said"), [("aarch64", "aarch64 machine, not x86")])
def test_another_architecture(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: name)
    with pytest.raises(NotSupported, match=said):
        measure_host(10)


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(NotSupported, match="Darwin has no KVM"):
        measure_host(10)


def test_the_host_is_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    path = tmp_path / "cpuinfo"
    path.write_text("vendor_id\t: AuthenticAMD\nmodel name\t: EPYC: 9\n\nvendor_id\t: other\n")
    host = Host.this(path)
    assert (host.vendor, host.brand) == ("AuthenticAMD", "EPYC: 9")
    assert Host.this(tmp_path / "absent").brand == "unknown CPU"


# ---- The command ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["profile", "profiles"])
def test_the_command_writes_a_profile(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_profile, "measure_host", lambda repetitions: measurement())
    out = tmp_path / "mine.yaml"
    assert cli.main([command, "measure", "-o", str(out), "--inherits", "ivy_bridge_ep"]) == 0
    profile = load_profile(str(out))
    assert profile.id == "mine"
    assert profile.prices["stlb_hit"] == load_profile("ivy_bridge_ep").prices["stlb_hit"]


def test_the_command_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_profile, "measure_host", lambda repetitions: measurement())
    assert cli.main(["profile", "measure", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["host"]) == ("vtx.measure/1", "h1")
    assert data["figures"]["cpuid"]["median"] == 1003


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "--format", "csv"], "not CSV"),
        (["measure", "--repetitions", "3"], "not a number from 10 to 100000"),
        (["measure", "--inherits", "haswel"], "haswell"),
        (["haswell", "--repetitions", "20"], "are for 'vtx profile measure'"),
    ],
)
def test_wrong_use(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", *arguments]) in (2, 3)
    assert said in capsys.readouterr().err
