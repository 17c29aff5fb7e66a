"""``vtx walk``: one address of a trace's guest, in every format."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vtx.cli import main
from vtx.errors import InputError
from vtx.hypervisor.walks import walk_address

TRACES = Path(__file__).parents[2] / "traces"
TRACE = TRACES / "02-ept-violation.yaml"


def vtx(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_walk_as_a_table(capsys):
    code, out, err = vtx(capsys, "walk", TRACE, "--gva", "0x7000")
    assert (code, err) == (0, "")
    # The guest maps its memory with 2-MByte pages, EPT with 4-KByte ones: (3+1)(4+1)-1.
    assert "19 references. load at 0x7000: host-physical address 0x40007000" in out
    rows = [line for line in out.splitlines() if line.rstrip().endswith("memory")]
    assert len(rows) == 19
    assert rows[0].split()[:3] == ["1", "ept", "guest"]


def test_json(capsys):
    code, out, _ = vtx(
        capsys, "walk", TRACE, "--gva", "0x8000", "--access", "write", "--format", "json"
    )
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "vtx.walk/1"
    assert document["status"] == "ept_violation"
    assert document["guest_physical_address"] == "0x8000"
    assert document["references"] == sum(s["kind"] == "read" for s in document["steps"]) == 19
    assert "EPT Violations" in document["manual"]


def test_pictures(capsys, tmp_path):
    _, out, _ = vtx(capsys, "walk", TRACE, "--gva", "0x7000", "--format", "svg")
    assert len(ET.fromstring(out).findall("{http://www.w3.org/2000/svg}g")) == 19
    page = tmp_path / "walk.html"
    assert vtx(capsys, "walk", TRACE, "--gva", 0x7000, "--format", "html", "-o", page)[0] == 0
    assert "ept-violation on skylake_sp" in page.read_text()
    assert vtx(capsys, "walk", TRACE, "--gva", 0x7000, "--format", "html", "-o", page)[0] == 2


def test_the_caches_as_the_trace_left_them(capsys):
    _, out, _ = vtx(capsys, "walk", TRACE, "--gva", "0x7000", "--cached")
    assert "0 references" in out
    assert "from a first-level TLB" in out


@pytest.mark.parametrize(
    ("at", "mapped"),
    [(0, False), (1, True), (2, True), (3, True), (101, True), (102, True), (None, True)],
)
def test_how_far_the_trace_runs(at, mapped):
    assert walk_address(TRACE, 0x7000, at=at).ok == mapped
    # The store to 0x9000 is step 103: load, store, a hundred rounds, store.
    assert walk_address(TRACE, 0x9000, at=at).ok == (at is None)


def test_the_step_after_a_loop():
    assert walk_address(TRACE, 0x9000, at=103).ok
    assert not walk_address(TRACE, 0xA000, at=103).ok
    assert walk_address(TRACE, 0xA000, at=104).ok


def test_a_stream_runs_so_many_references():
    trace = TRACES / "sqlite.yaml"
    from vtx.streams import open_stream, unpack

    addresses = unpack(open_stream(TRACES / "sqlite.u64.xz").array()).addresses
    first = int(addresses[0])
    # The first step is a call of the kernel that stands before the stream.
    assert not walk_address(trace, first, 0, at=1).ok
    assert walk_address(trace, first, 0, at=2).ok
    pages = [int(address) >> 12 for address in addresses[:3000]]
    late = next(at for at in range(1000, 3000) if pages[at] not in pages[:at])
    assert not walk_address(trace, pages[late] << 12, at=late + 1).ok
    assert walk_address(trace, pages[late] << 12, at=late + 2).ok


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["{t}"], 2, "required"),
        (["{t}", "--gva", "x"], 2, "wants a number"),
        (["{t}", "--gva", "0x10000000000000000"], 2, "64 bits"),
        (["{t}", "--gva", "7", "--at", "-1"], 2, "--at"),
        (["{t}", "--gva", "7", "--at", "0x"], 2, "wants a number"),
        (["{t}", "--gva", "7", "--profile", "none"], 3, "none"),
        (["{t}.no", "--gva", "7"], 3, "No such file"),
    ],
)
def test_what_can_go_wrong(capsys, args, code, says):
    got, out, err = vtx(capsys, "walk", *(arg.format(t=TRACE) for arg in args))
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_no_linear_address_has_more_than_64_bits():
    with pytest.raises(InputError, match="64 bits"):
        walk_address(TRACE, 1 << 64)
    with pytest.raises(InputError, match="no step -1"):
        walk_address(TRACE, 5, at=-1)
