"""``--plot``, data frames, and what notebooks show."""

from __future__ import annotations

import struct
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import vtx
from tests.report.pages import EVIL
from tests.report.test_exits_page import recording
from vtx import cli
from vtx.facts.fields import Field
from vtx.hypervisor.importers.analysis import read_report
from vtx.hypervisor.replay import compare
from vtx.lab.exit_compare import compare_exits
from vtx.lab.ledger import price, reason_name
from vtx.lab.profile import load_profile
from vtx.lab.table import Column, Table
from vtx.machine.vmcs import Vmcs

TRACES = Path(__file__).parents[2] / "traces"
DATA = Path(__file__).parents[1] / "data" / "kvm"


# ---- Pictures ------------------------------------------------------------------------------------


def pictures(tmp_path: Path, name: str) -> list[list[str]]:
    trace = str(TRACES / "03-cr-msr-io.yaml")
    recorded = tmp_path / "$x_{evil}$.txt"
    recording(recorded, 50)
    return [
        ["replay", trace, "--plot", str(tmp_path / f"1{name}")],
        [
            "compare",
            trace,
            "--profiles",
            "haswell,ice_lake_sp",
            "--plot",
            str(tmp_path / f"2{name}"),
        ],
        ["exits", str(recorded), "--plot", str(tmp_path / f"3{name}")],
        ["compare", str(recorded), "--plot", str(tmp_path / f"4{name}")],
    ]


def test_pictures_as_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in pictures(tmp_path, ".png")[::2]:
        assert cli.main(words) == 0
        data = Path(words[-1]).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600
        assert height > 250
    assert "exit reason" in capsys.readouterr().out


def test_pictures_as_svg_name_what_they_show(tmp_path: Path) -> None:
    texts = []
    for words in pictures(tmp_path, ".svg"):
        assert cli.main(words) == 0
        root = ElementTree.fromstring(Path(words[-1]).read_text())
        texts.append(
            "\n".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
        )
    assert "CR_ACCESS" in texts[0]
    assert "entry transition" in texts[0]
    assert "haswell" in texts[1]
    assert "estimated" in texts[1]
    assert "EPT_VIOLATION" in texts[2]
    assert "$x_{evil}$.txt" in texts[2]
    assert "software, as measured in the trace" in texts[3]


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = str(TRACES / "01-cpuid.yaml")
    for name in ("picture", "picture.gif", "picture.png.txt"):
        assert cli.main(["replay", trace, "--plot", str(tmp_path / name)]) == 2
        assert "ends in .png or .svg" in capsys.readouterr().err
    picture = tmp_path / "p.png"
    picture.write_text("mine")
    assert cli.main(["replay", trace, "--plot", str(picture)]) == 2
    assert picture.read_text() == "mine"
    assert cli.main(["replay", trace, "--plot", str(picture), "--force"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    stat = str(DATA / "17_perf_kvm_stat.txt")
    assert cli.main(["exits", stat, "--plot", str(tmp_path / "q.png")]) == 2
    assert "no single exits" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["replay", trace, "--plot", str(tmp_path / "r.png")]) == 2
    assert "pip install 'vtx[plot]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


# ---- Data frames ---------------------------------------------------------------------------------


def test_frames_say_what_json_says(monkeypatch: pytest.MonkeyPatch) -> None:
    run = vtx.replay(TRACES / "03-cr-msr-io.yaml", "skylake_sp")
    exits = run.to_pandas()
    assert list(exits["guest_rip"]) == [one.guest_rip for one in run.events.exits]
    assert exits["name"].value_counts().to_dict() == {
        reason_name(reason): count for reason, count in run.exits.items()
    }
    ledger = price(run, load_profile("skylake_sp"))
    assert ledger.to_pandas()["samples"].sum() == run.total_exits
    comparison = compare(run, ["skylake_sp", "haswell"])
    profiles = comparison.to_pandas("haswell").set_index("id")
    assert profiles.loc["haswell", "relative_time"] == 1
    assert profiles.loc["skylake_sp", "ns"] == float(comparison.outcomes[0].ledger.ns)
    report = read_report(str(DATA / "01.txt"))
    rows = report.to_pandas()
    assert list(rows["samples"]) == [row.samples for row in report.rows]
    priced = compare_exits(report, [load_profile("haswell")]).to_pandas()
    assert priced["total_ns.low"][0] <= priced["total_ns.value"][0] <= priced["total_ns.high"][0]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(vtx.VtxError, match=r"vtx\[pandas\]"):
        run.to_pandas()


# ---- Notebooks -----------------------------------------------------------------------------------


class _Cells(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_notebooks_show_tables(tmp_path: Path) -> None:
    trace = tmp_path / "trace.yaml"
    evil = EVIL.replace("'", "''")
    trace.write_text(f"schema: 1\nname: '{evil}'\nsteps: |\n  cpuid leaf=1\n  hlt\n")
    run = vtx.replay(trace, "haswell")
    shown = _Cells(run._repr_html_())
    assert EVIL in shown.text
    assert "CPUID" in shown.text
    ledger = _Cells(price(run, load_profile("haswell"))._repr_html_())
    assert "page walks, EPT dimension" in ledger.text
    comparison = _Cells(compare(run, ["haswell"])._repr_html_())
    assert EVIL in comparison.text
    report = read_report(str(DATA / "01.txt"))
    tables = _Cells(
        report._repr_html_() + compare_exits(report, [load_profile("haswell")])._repr_html_()
    )
    assert "IO_INSTRUCTION" in tables.text
    for one in (shown, ledger, comparison, tables):
        assert one.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    evil_table = Table(EVIL, [Column(EVIL)], [[EVIL]], [EVIL])
    assert _Cells(evil_table._repr_html_()).text.count(EVIL) == 4


def test_notebooks_show_a_vmcs_and_an_exit() -> None:
    vmcs = Vmcs.for_64bit_guest()
    vmcs[Field.GUEST_RIP] = 0x123456
    shown = _Cells(vmcs._repr_html_())
    assert "Guest RIP" in shown.text
    assert "0x123456" in shown.text
    seen: list[str] = []

    class Looker:
        def exit(self, cpu: vtx.Cpu, exit: Any) -> None:
            before = [list(row) for row in cpu.events.counts.values()]
            seen.append(_Cells(exit._repr_html_()).text)
            assert [list(row) for row in cpu.events.counts.values()] == before

        def entry(self, cpu: vtx.Cpu) -> None: ...

        def finished(self, cpu: vtx.Cpu) -> None: ...

    vtx.replay(TRACES / "03-cr-msr-io.yaml", observer=Looker())
    assert any("MOV from CR" in text and "0x113" in text for text in seen)
