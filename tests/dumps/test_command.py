"""``vtx check`` as users run it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .printers import dmesg, kvm
from .samples import POSTS, valid, yaml

STI = POSTS / "kvm_sti_shadow_in_smm.txt"
INTERRUPT = POSTS / "kvm_interrupt_with_if_clear.txt"


def run(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "vtx", "check", *map(str, arguments)],
        capture_output=True,
        input=data,
        timeout=120,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(yaml(valid()))
    return path


def test_text_says_what_is_broken_and_why() -> None:
    done = run(STI)
    assert (done.returncode, done.stderr) == (1, "")
    for words in (
        "lines 3-50: VMCS 000000006afb1754, last entered on CPU 12, KVM dump with 110 fields",
        "VM-entry failure, exit reason 33",
        "system-management mode",
        "Broken rule: guest.interruptibility.sti_needs_if",
        "If RFLAGS.IF of the guest is 0, there is no blocking by STI.",
        "guest_interruptibility_state  0x00000009 (line 25)  blocking_by_sti 1",
        "guest_rflags                  0x0000000000000002 (line 10)  IF 0",
        '"Checks on Guest\n  Non-Register State" (29.3.1.5 in revision 092)',
        "Likely cause: RFLAGS.IF was cleared",
        "vmcs_link_pointer: guest.link_pointer.align",
        "the processor has gone past them",
        "Assumed: MAXPHYADDR 46, linear addresses of 48 bits",
    ):
        assert words in done.stdout
    # The title carries the file's path, however deep the file lies.
    assert all(len(line.replace(str(STI), "")) <= 140 for line in done.stdout.splitlines())


def test_json() -> None:
    done = run(STI, "--format", "json")
    data = json.loads(done.stdout)
    assert done.returncode == 1
    assert data["schema"] == "vtx.check/1"
    assert data["verdict"] == {
        "kind": "entry_failure",
        "error": None,
        "exit_reason": 0x8000_0021,
        "qualification": 0,
        "source": "dump",
    }
    [failure] = data["failures"]
    assert failure["id"] == "guest.interruptibility.sti_needs_if"
    assert failure["exit_reason"] == 33
    assert failure["fields"][1] == {
        "name": "guest_rflags",
        "value": "0x0000000000000002",
        "bits": "IF 0",
        "line": 10,
    }
    open_ = {rule["id"]: rule["needs"] for rule in data["undecidable"]}
    assert open_["guest.link_pointer.align"] == ["vmcs_link_pointer"]
    assert data["assumed"]["maxphyaddr"] == 46


def test_several_dumps_are_a_list() -> None:
    done = run(STI, INTERRUPT, "--format", "json")
    data = json.loads(done.stdout)
    assert [Path(dump["file"]) for dump in data["dumps"]] == [STI, INTERRUPT]
    assert data["schema"] == "vtx.check/1"
    alone = json.loads(run(STI, "--format", "json").stdout)
    del alone["schema"]
    assert data["dumps"][0] == alone
    assert [dump["failures"][0]["id"] for dump in data["dumps"]] == [
        "guest.interruptibility.sti_needs_if",
        "guest.rflags.if.external_interrupt",
    ]


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(run(STI, "--format", "csv").stdout)))
    assert rows[0]["check"] == "guest.interruptibility.sti_needs_if"
    assert rows[0]["finding"] == "broken"
    assert "guest_rflags=0x0000000000000002" in rows[0]["fields"]
    assert {row["finding"] for row in rows[1:]} == {"undecidable"}


def test_a_valid_vmcs_is_fine(good: Path) -> None:
    done = run(good, "--profile", "skylake_sp")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No broken rule found." in done.stdout
    assert "MAXPHYADDR" not in done.stdout


def test_the_cpu_can_be_described(good: Path, tmp_path: Path) -> None:
    text = good.read_text().replace("ept_pointer: 0x11aa2d01e", "ept_pointer: 0x80000000001e")
    good.write_text(text)
    broken = run(good)
    assert broken.returncode == 1
    assert "This hangs on an assumption: with MAXPHYADDR 52 the rule holds." in broken.stdout
    assert run(good, "--maxphyaddr", 48).returncode == 0
    good.write_text(text.replace("host_fs_base: 0x0", "host_fs_base: 0x1000000000000"))
    assert run(good, "--maxphyaddr", 52, "--linear-bits", 57).returncode == 0
    assert run(good, "--maxphyaddr", 52).returncode == 1


def test_standard_input_and_output_file(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run("-", "--format", "json", "-o", out, data=INTERRUPT.read_bytes())
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(out.read_text())["file"] == "-"
    assert run("-", "-o", out, data=INTERRUPT.read_bytes()).returncode == 2
    assert run("-", "-", data=b"").returncode == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_encodings(encoding: str) -> None:
    text = "é\n" + dmesg(kvm(valid())[0]).replace("RFLAGS=0x00000002", "RFLAGS=0x00000000")
    done = run("-", data=text.encode(encoding))
    assert "guest.rflags.reserved_1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "data", "code", "words"),
    [
        (["-"], b"nothing here\n", 3, "<stdin>: there is no VMCS in it (looked for"),
        (["-"], b"\x00\x01\xff\xfe", 3, "there is no VMCS"),
        (["/nonexistent"], b"", 3, "/nonexistent: cannot read it: No such file"),
        (["/"], b"", 3, "/: cannot read it"),
        (["-"], b"fields:\n  guest_ripp: 1\n", 3, "<stdin>:2:15: unknown VMCS field 'guest_ripp'"),
        ([STI, "--profile", "skylake"], b"", 3, "did you mean skylake_sp"),
        ([STI, "--maxphyaddr", "99"], b"", 2, "--maxphyaddr wants 32 to 52 bits, not 99"),
        ([STI, "--linear-bits", "50"], b"", 2, "invalid choice: 50"),
        ([], b"", 2, "FILE"),
    ],
)
def test_errors_are_one_sentence(arguments: list[str], data: bytes, code: int, words: str) -> None:
    done = run(*arguments, data=data)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_says_how_to_get_a_dump() -> None:
    text = run("--help").stdout
    assert "kvm_intel.dump_invalid_vmcs=1" in text
    assert "xl dmesg" in text
    assert "--maxphyaddr" in text


def test_control_characters_of_a_log_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.txt"
    path.write_text("RFLAGS=0x\x1b]0;x\x07000\n" + dmesg(kvm(valid())[0]))
    assert "\x1b" not in run(path).stdout
