"""Tables: plain, aligned, and honest about estimates."""

from dataclasses import dataclass, field

from vtx.facts.exits import ExitReason
from vtx.lab.ledger import price
from vtx.lab.profile import load_profile, load_profiles
from vtx.lab.profile_tables import prices_table, profiles_table, shape_table, tlb_table
from vtx.lab.report import exit_table
from vtx.lab.table import Column, Table
from vtx.machine.events import Event, EventLog, ExitRecord


@dataclass
class Run:
    events: EventLog = field(default_factory=EventLog)
    translation: dict[str, int] = field(default_factory=dict)


def run() -> Run:
    translation = {"walks": 3, "guest_references_level4": 12}
    result = Run(translation=translation)
    for number in range(4):
        record = ExitRecord(number, 0, 0, ExitReason.CPUID, 0, 0, 0, 0)
        result.events.vm_exit(record, fault=False)
        result.events.count(Event.VMREAD)
        result.events.count(Event.VM_ENTRY)
    result.events.count(Event.INJECTION)
    return result


def test_a_table_is_aligned_and_ends_no_line_in_blanks() -> None:
    table = Table("t", (Column("name"), Column("n", True)), [["a", "1"], ["bcd", "22"]], ["end"])
    assert str(table) == "t\n\nname   n\n----  --\na      1\nbcd   22\n\nend"


def test_exits_of_a_run() -> None:
    table = exit_table(price(run(), load_profile("skylake_sp")), "a trace")
    cells = {row[0]: list(row) for row in table.rows}
    # 4 x 636 measured, 4 x 21 estimated
    # and within 4 x (512 to 636) and 4 x (10.5 to 31.5)
    expected = ["CPUID", "4", "100.00%", "~2,628", "~1.14", "0.91", "1.16", "97/0/3", "90.59%"]
    assert cells["CPUID"] == [*expected, "~657", "2,544", "~84", "-", "no data"]
    assert cells["(guest translation)"][3] == "~273"
    assert cells["total"][3] == "~2,901"
    text = str(table)
    assert "88% measured, 0% derived, 12% estimated" in text
    assert "1 event injections (no published figure is known)" in text
    assert "software of exit handlers" in text


def test_figures_that_rest_on_measurements_alone_carry_no_mark() -> None:
    table = exit_table(price(run(), load_profile("prescott_p4_672")), "a trace")
    cpuid = next(row for row in table.rows if row[0] == "CPUID")
    assert cpuid[3] == f"{4 * (3963 + 178):,}"


def test_a_profile_without_prices_shows_counts_alone() -> None:
    table = exit_table(price(run(), load_profile("gracemont_n305")), "a trace")
    assert list(table.rows[0]) == ["CPUID", "4", "100.00%", "no data", "4"]
    assert "no measurement found" in str(table)


def test_the_list_of_profiles_marks_estimates() -> None:
    table = profiles_table(load_profiles())
    rows = {row[0]: row for row in table.rows}
    assert rows["skylake_sp"][5:8] == ["636", "~382", "~254"]
    assert rows["prescott_p4_672"][3:7] == ["no", "no", "3,963", "2,409"]
    assert set(rows["gracemont_n305"][5:]) == {"no data"}


def test_one_profile_shows_the_source_of_everything() -> None:
    profile = load_profile("skylake_sp")
    for table in (prices_table(profile), shape_table(profile), tlb_table(profile)):
        for row in table.rows:
            assert row[-1]
            if row[-1].startswith("["):
                assert any(remark.startswith(row[-1]) for remark in table.remarks)
            status = row[-2]
            assert status in ("reported", "measured", "derived", "estimated", "-")
    assert "store" in str(tlb_table(load_profile("ice_lake_sp")))
