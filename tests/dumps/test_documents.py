"""VMCSs in YAML and JSON."""

from __future__ import annotations

import json

import pytest

from vtx.errors import InputError
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.facts.kernel_names import KERNEL_NAMES
from vtx.hypervisor.check import judge
from vtx.hypervisor.dumps import Dump, read_dumps

from .samples import valid, yaml


def only(text: str) -> Dump:
    [dump] = read_dumps(text, "vmcs.yaml")
    return dump


def test_fields_by_name_alias_and_encoding() -> None:
    text = """# a comment
schema: 1
name: my guest
fields:
  guest_rip: 0x8000   # where it starts
  eptp: 0x101e
  0x681c: 28672
  Guest CR0: 0x80000021
  "0x4012": "0x11ff"
"""
    dump = only(text)
    assert dump.values == {
        F.GUEST_RIP: 0x8000,
        F.EPT_POINTER: 0x101E,
        F.GUEST_RSP: 0x7000,
        F.GUEST_CR0: 0x8000_0021,
        F.VM_ENTRY_CONTROLS: 0x11FF,
    }
    assert (dump.form, dump.label) == ("yaml", "my guest")
    assert dump.lines[F.EPT_POINTER] == 6


def test_names_of_the_kernels() -> None:
    text = "fields:\n  GUEST_CS_AR_BYTES: 0xa09b\n  cpu_based_vm_exec_control: 5\n"
    expected = {F.GUEST_CS_ACCESS_RIGHTS: 0xA09B, F.PRIMARY_PROCESSOR_BASED_CONTROLS: 5}
    assert only(text).values == only(text + "# no longer plain\n").values == expected
    assert not {name for name in KERNEL_NAMES if name in {info.name for info in FIELDS.values()}}


def test_what_is_not_listed_is_unknown_or_zero() -> None:
    text = "fields:\n  guest_rip: 1\n"
    assert only(text).values == {F.GUEST_RIP: 1}
    assert only(text + "unlisted: unknown\n").values == {F.GUEST_RIP: 1}
    for zero in (text + "unlisted: 0\n", "unlisted: 0  # all\n" + text):
        values = only(zero).values
        assert len(values) == len(FIELDS)
        assert values[F.GUEST_RIP] == 1
        assert values[F.GUEST_RSP] == 0


def test_plain_and_annotated_documents_are_read_alike() -> None:
    plain = yaml(valid())
    annotated = plain.replace("\n", "  # ...\n")
    assert only(plain).values == only(annotated).values == valid()


def test_several_documents() -> None:
    text = "---\nname: one\nfields:\n  vpid: 1\n---\n# two\nfields: {vpid: 2}\n--- # three\n" + (
        "- fields: {vpid: 3}\n- fields: {vpid: 4}\n"
    )
    dumps = read_dumps(text)
    assert [dump.values for dump in dumps] == [{F.VPID: n} for n in (1, 2, 3, 4)]
    assert [dump.label for dump in dumps] == ["one", "", "", ""]
    assert dumps[1].lines[F.VPID] == 7


def test_json() -> None:
    one = {"fields": {"guest_rip": "0x8000", "0x681c": 5}}
    expected = {F.GUEST_RIP: 0x8000, F.GUEST_RSP: 5}
    assert only(json.dumps(one)).values == expected
    assert only(json.dumps(one, indent=1)).values == expected
    assert [d.values for d in read_dumps(json.dumps([one, one]))] == [expected] * 2
    lines = f"{json.dumps(one)}\n{json.dumps(one)}\n"
    assert [d.values for d in read_dumps(lines)] == [expected] * 2


def test_memory_is_looked_at() -> None:
    values = valid() | {F.VM_ENTRY_MSR_LOAD_COUNT: 2, F.VM_ENTRY_MSR_LOAD_ADDRESS: 0x5000}
    entry = (0xC000_0080).to_bytes(8, "little") + (0xD01).to_bytes(8, "little")
    bad = (0xC000_0100).to_bytes(8, "little") + bytes(8)
    text = yaml(values) + f"memory:\n  0x5000: {(entry + bad).hex(' ')!r}\n"
    [rule] = judge(only(text)).failures
    assert rule.check.id == "msrload.fs_base"
    open_ = {r.check.id: r.needs for r in judge(only(yaml(values))).undecidable}
    assert open_["msrload.fs_base"] == ("memory at 0x5000",)


def test_the_cpu_can_be_named() -> None:
    dump = only(yaml(valid()) + "profile: skylake_sp\n")
    judgement = judge(dump)
    assert judgement.profile == "skylake_sp"
    assert not any(rule.on_some_cpus for rule in judgement.undecidable)


def test_the_verdict_it_shows() -> None:
    assert only("fields: {exit_reason: 0x80000021}").verdict.kind == "entry_failure"
    assert only("fields: {vm_instruction_error: 8}").verdict.error == 8
    assert only("fields: {exit_reason: 0x30, vm_instruction_error: 8}").verdict.kind == "none"
    assert only("fields: {vpid: 1}").verdict.kind == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fields:\n  guest_ripp: 1\n", r"vmcs.yaml:2:\d+: unknown VMCS field .*guest_rip"),
        ("fields:\n  vpid: 1\n  vpid: 2\n", "vmcs.yaml:3:.*twice"),
        ("fields:\n  vpid: 1\n  0x0: 2\n", "vmcs.yaml:3:.*vpid stands twice"),
        ("fields:\n  vpid: 0x10000\n", "vmcs.yaml:2:.*not in 0-65535"),
        ("fields:\n  vpid: -1\n", "vmcs.yaml:2:.*not in 0-65535"),
        ("fields:\n  vpid: yes\n", "must be an integer"),
        ("fields:\n  tsc_offset_high: 1\n", "half a field"),
        ("fields:\n  vpid: 1\nfoo: 2\n", "unknown key of the VMCS 'foo'"),
        ("fields:\n  vpid: [1\n", "not YAML"),
        ("fields: {vpid: 1}\nschema: 2\n", "schema 1"),
        ("fields: {vpid: 1}\nunlisted: 1\n", "unlisted is 0 or unknown"),
        ("fields: {vpid: 1}\nmemory: {0x1000: zz}\n", "bytes in hexadecimal"),
        ("fields: {vpid: 1}\nmemory: {foo: 00}\n", "bytes in hexadecimal"),
        ('fields: {vpid: 1}\nmemory: {0xfffffffffffff000: "00"}\n', "no physical memory"),
        ("fields: {vpid: 1}\nmaxphyaddr: 99\n", "not in 32-52"),
        ("fields: {vpid: 1}\nlinear_bits: 50\n", "48 or 57"),
        ('{"fields": {"vpid": 1}', "vmcs.yaml:1:.*not JSON"),
        ('{"fields": {"vpid": 1}}\n{"fields": {"vpid": "x"}}', "vmcs.yaml:2:.*must be a number"),
        ('{"fields": {"vpid": 1}}\n{"fields": ', "vmcs.yaml:2:.*not JSON"),
        ('{"fields": 3}', "must be a mapping"),
        ('[{"other": 3}, {"fields": {}}]', "unknown key"),
    ],
)
def test_errors_name_place_and_reason(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_dumps(text, "vmcs.yaml")
