"""Whole runs: the traces that come with vtx, counted a second way; refusals, failures, ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vtx
from vtx import ExitReason as Why
from vtx.errors import (
    EmulationStopped,
    InputError,
    NotSupported,
    UnknownName,
    VMfailInvalid,
    VMfailValid,
)
from vtx.facts.fields import Field
from vtx.hypervisor.replay import compare, replay
from vtx.hypervisor.trace import Trace, load_trace, parse_trace
from vtx.lab.compare import State
from vtx.machine import image
from vtx.machine.events import GUEST, Event
from vtx.machine.shape import Shape
from vtx.profiles import names

TRACES = Path(__file__).parents[2] / "traces"
TEACHING = (
    "01-cpuid",
    "02-ept-violation",
    "03-cr-msr-io",
    "04-two-processors",
    "09-vmlatency",
)
OTHER_MODES = ("05-protected", "06-real-mode", "07-virtual-8086", "08-pae")
WITHOUT_EPT = ("prescott_p4_672", "merom_core2", "penryn_core2")


def trace(text: str) -> Trace:
    return parse_trace(f"schema: 1\n{text}", "t.yaml", TRACES)


# ---- The traces that come with vtx --------------------------------------------------------------


@pytest.mark.parametrize("profile", names())
@pytest.mark.parametrize("name", TEACHING)
def test_teaching_traces_hold_on_every_cpu(name, profile):
    source = load_trace(TRACES / f"{name}.yaml")
    if source.header.ept.enabled and profile in WITHOUT_EPT:
        with pytest.raises(NotSupported, match=f"{profile} has no EPT; the trace '{source.name}'"):
            replay(source, profile)
        return
    run = replay(source, profile)
    assert run.results
    assert run.holds, [str(result) for result in run.results if not result.holds]


@pytest.mark.parametrize("profile", ["nehalem", "skylake_sp", "granite_rapids", "gracemont_n305"])
def test_sqlite_holds_on_every_generation(profile):
    run = replay(TRACES / "sqlite.yaml", profile)
    assert run.holds, [str(result) for result in run.results if not result.holds]
    assert run.references == 500_000


def test_bfs_holds():
    run = replay(TRACES / "bfs.yaml")
    assert run.holds, [str(result) for result in run.results if not result.holds]


def test_every_shipped_trace_is_here_and_says_what_it_is():
    found = sorted(path.stem for path in TRACES.glob("*.yaml"))
    assert found == sorted([*TEACHING, *OTHER_MODES, "sqlite", "bfs"])
    for name in found:
        header = load_trace(TRACES / f"{name}.yaml").header
        assert header.name
        assert header.description
        assert header.expectations
        assert header.stream is None or header.source


@pytest.mark.parametrize("profile", WITHOUT_EPT)
def test_real_traces_are_refused_without_ept(profile):
    with pytest.raises(NotSupported) as caught:
        replay(TRACES / "sqlite.yaml", profile)
    assert str(caught.value) == f"{profile} has no EPT; the trace 'sqlite' needs it"


# ---- EPT violations, counted a second way -------------------------------------------------------


def touched(records: np.ndarray, code: set[int], vectors: set[int]) -> set[int]:
    """Frames of guest memory that a run of these references touches, from the references alone.

    The guest hands out its frames in order, so which frame a page gets does not matter: so many
    pages and tables, so many frames from the first free one on.
    """
    first = records & np.uint64((1 << 48) - 1)
    size = (records >> np.uint64(48)) & np.uint64((1 << 14) - 1)
    last = first + np.maximum(size, np.uint64(1)) - np.uint64(1)
    shift = np.uint64(12)
    pages = set(np.concatenate([first >> shift, last >> shift]).tolist()) | code
    tables = sum(len({page >> bits for page in pages}) for bits in (9, 18, 27))
    frames = {(image.FREE >> 12) + index for index in range(len(pages) + tables)}
    kernel = {image.PAGE_TABLES, image.PAGE_TABLES + 0x1000, image.PAGE_TABLES + 0x2000}
    kernel |= {image.GDT, image.IDT, image.TSS, image.STACKS + image.KERNEL_STACK_TOP - 1}
    kernel |= {image.HANDLER_STUBS + vector * image.HANDLER_STRIDE for vector in vectors}
    return frames | {address >> 12 for address in kernel}


@pytest.mark.parametrize(
    ("name", "vectors"),
    [("sqlite", {14, 0xEC, 0x80, 0x81, 0x82}), ("bfs", {14, 0xEC, 0x80, 0x81, 0x82})],
)
def test_a_page_of_guest_memory_costs_one_ept_violation(name, vectors):
    source = load_trace(TRACES / f"{name}.yaml")
    code = {image.USER_TEXT >> 12, (image.USER_TEXT >> 12) + 8}
    assert source.records is not None
    expected = touched(source.records, code, vectors)
    run = replay(source)
    violations = [x for x in run.events.exits if x.reason == Why.EPT_VIOLATION]
    assert {x.guest_physical_address >> 12 for x in violations} == expected
    assert len(violations) == len(expected) == run.exits[Why.EPT_VIOLATION]


@pytest.mark.parametrize(("pages", "shift"), [("4K", 12), ("2M", 21), ("1G", 30)])
def test_larger_ept_pages_cost_fewer(pages, shift):
    source = trace(f"stream: {{file: sqlite.u64.xz, stop: 20000}}\nept: {{pages: {pages}}}")
    assert source.records is not None
    frames = touched(source.records[:20000], set(), {14})
    run = replay(source)
    assert run.exits[Why.EPT_VIOLATION] == len({frame >> (shift - 12) for frame in frames})
    assert run.total_exits == run.exits[Why.EPT_VIOLATION]


def test_guest_pages_of_2_mib_are_cleared_by_the_kernel():
    source = trace("stream: {file: sqlite.u64.xz, stop: 2000}\nguest: {pages: 2M}")
    assert source.records is not None
    window = source.records[:2000] & np.uint64((1 << 48) - 1)
    large = len(set((window >> np.uint64(21)).tolist()))
    tables = sum(len(set((window >> np.uint64(bits)).tolist())) for bits in (30, 39))
    kernel = 3 + 4 + 1  # direct map; GDT, IDT, TSS, stack; the #PF handler
    run = replay(source)
    assert run.exits[Why.EPT_VIOLATION] == 512 * large + tables + kernel


def test_everything_mapped_before_leaves_no_ept_violation():
    run = replay(trace("stream: {file: sqlite.u64.xz, stop: 5000}\nept: {pages: 2M, map: all}"))
    assert run.exits == {}
    assert run.events.counts[GUEST][Event.DELIVERY] > 0, "page faults of the guest remain"


def test_a_stream_without_ept_runs_on_every_cpu():
    source = trace("stream: {file: sqlite.u64.xz, stop: 5000}\nept: off")
    runs = [replay(source, profile) for profile in ("prescott_p4_672", "skylake_sp")]
    assert all(run.exits == {} for run in runs)
    assert runs[0].steps == runs[1].steps


def test_windows_of_a_stream_run_like_the_whole():
    whole = replay(trace("stream: {file: sqlite.u64.xz, stop: 6000}"))
    halves = replay(
        trace(
            "stream: {file: sqlite.u64.xz, stop: 6000}\n"
            "steps: |\n  stream 0 3000\n  stream 3000 6000"
        )
    )
    assert whole.exits == halves.exits
    assert whole.steps == halves.steps
    assert whole.translation == halves.translation


# ---- Runs repeat, and are told apart ------------------------------------------------------------


def test_a_run_repeats_exactly():
    source = load_trace(TRACES / "sqlite.yaml")
    one, two = replay(source), replay(source)
    assert one.events.counts == two.events.counts
    assert list(one.events.exits) == list(two.events.exits)
    assert one.translation == two.translation
    assert one.registers == two.registers
    assert repr(one) == "<Run of sqlite on skylake_sp: halted, 549 exits>"


def test_the_profile_comes_from_the_caller_then_from_the_trace():
    source = trace("profile: haswell\nept: off\nsteps: cpuid")
    assert replay(source).shape.name == "haswell"
    assert replay(source, "nehalem").shape.name == "nehalem"
    assert replay(source, Shape.of("westmere")).shape.name == "westmere"
    assert replay(source, vtx.load_profile("westmere")).shape.name == "westmere"
    assert replay(trace("steps: cpuid")).shape.name == "skylake_sp"
    with pytest.raises(UnknownName, match="did you mean haswell"):
        replay(source, "hasswell")
    with pytest.raises(UnknownName, match=r"t\.yaml:2:10: unknown profile 'z80'"):
        trace("profile: z80\nsteps: cpuid")


@pytest.mark.parametrize(
    ("header", "profile", "says"),
    [
        ("ept: {pages: 1G}", "nehalem", "nehalem has no 1G pages in EPT; the trace 't' needs it"),
        ("ept: off\nvpid: 5", "penryn_core2", "penryn_core2 has no VPID"),
        (
            "controls: [unrestricted_guest]",
            "nehalem",
            "nehalem does not allow the control 'Unrestricted guest' to be 1; the trace 't' needs",
        ),
        (
            "ept: off\nexits: {cr3: none}",
            "prescott_p4_672",
            "prescott_p4_672 does not allow the control 'CR3-load exiting' to be 0",
        ),
        ("ept: off\ncontrols: [enable_ept]", "merom_core2", "merom_core2 does not allow"),
    ],
)
def test_what_a_cpu_does_not_have_is_said_in_one_sentence(header, profile, says):
    with pytest.raises(NotSupported) as caught:
        replay(trace(f"{header}\nsteps: cpuid"), profile)
    assert says in str(caught.value)


def test_controls_of_secondary_groups_activate_their_group():
    run = replay(trace("ept: off\ncontrols: [wbinvd_exiting]\nsteps: wbinvd"), "skylake_sp")
    assert run.exits == {Why.WBINVD_OR_WBNOINVD: 1}
    assert run.vmcs[Field.PRIMARY_PROCESSOR_BASED_CONTROLS] >> 31 & 1


def test_registers_and_fields_of_the_start():
    run = replay(
        trace(
            "ept: off\nguest: {entry: 0x9000, registers: {rbx: 7, rsp: 0x8000, rflags: 0x2}}\n"
            "vmcs: {guest_fs_base: 0x1234}\nsteps: |\n  nop\n  cpuid leaf=0x99"
        )
    )
    assert run.vmcs[Field.GUEST_FS_BASE] == 0x1234
    assert run.registers["rsp"] == 0x8000
    assert run.registers["rip"] == 0x9003
    assert run.registers["rflags"] == 2


def test_user_code_in_the_low_map():
    text = (
        "ept: off\nguest: {privilege: user}\nhandlers: {0x80: iret}\nsteps: |\n  int 0x80\n  cpuid"
    )
    run = replay(trace(text))
    assert run.exits == {Why.CPUID: 1}
    with pytest.raises(EmulationStopped, match=r"raises #GP\(0\)"):
        replay(trace("ept: off\nguest: {privilege: user}\nsteps: hlt"))
    with pytest.raises(EmulationStopped, match=r"raises #GP\("):
        replay(trace("ept: off\nguest: {privilege: user}\nsteps: int 0x20"))


# ---- Failed entries -----------------------------------------------------------------------------


def test_a_failed_entry_can_be_what_is_expected():
    text = (
        "ept: off\nvmcs: {guest_rflags: 0}\nsteps: cpuid\n"
        "expect:\n  outcome: entry_failure\n  check: guest.rflags.reserved_1\n"
        "  exits: {ENTRY_FAILURE_GUEST_STATE: 1}\n  vmcs: {exit_reason: 0x80000021}\n"
    )
    run = replay(trace(text))
    assert run.outcome == "entry_failure"
    assert run.holds, [str(result) for result in run.results if not result.holds]
    assert run.events.total(Event.ENTRY_FAILURE) == 1
    with pytest.raises(EmulationStopped, match="VM entry failed with exit reason 33"):
        replay(trace("ept: off\nvmcs: {guest_rflags: 0}\nsteps: cpuid"))


@pytest.mark.parametrize(("field", "error"), [("pin_based_controls", 7), ("host_cr0", 8)])
def test_vmfail_can_be_what_is_expected(field, error):
    text = f"ept: off\nvmcs: {{{field}: 0}}\nsteps: cpuid\n"
    expect = f"expect: {{outcome: vmfail, vmcs: {{vm_instruction_error: {error}}}}}"
    run = replay(trace(text + expect))
    assert run.holds, run.results
    assert run.check
    assert run.check in run.message
    assert run.total_exits == 0
    with pytest.raises(VMfailValid) as caught:
        replay(trace(text))
    assert caught.value.error == error


def test_an_outcome_that_is_expected_and_does_not_come():
    run = replay(trace("ept: off\nsteps: cpuid\nexpect: {outcome: shutdown, total_exits: 2}"))
    assert not run.holds
    assert [str(result) for result in run.results] == [
        "outcome: expected 'shutdown', got 'end'",
        "exits in all: expected 2, got 1",
    ]
    assert [result.line for result in run.results] == [4, 4]


# ---- Several logical processors -----------------------------------------------------------------


def test_steps_of_processors_run_in_the_order_of_the_file():
    order = []

    class Watch(vtx.Vmm):
        def cpuid(self, cpu, exit):
            order.append((cpu.number, cpu.regs.rax))
            super().cpuid(cpu, exit)

    text = (
        "processors: 3\nept: off\nsteps: |\n  cpuid leaf=1\n  @2 cpuid leaf=2\n"
        "  repeat 2\n    @1 cpuid leaf=3\n    cpuid leaf=4\n  end\n  @2 cpuid leaf=5\n"
    )
    run = replay(trace(text), vmm=Watch())
    assert order == [(0, 1), (2, 2), (1, 3), (0, 4), (1, 3), (0, 4), (2, 5)]
    assert run.exits == {Why.CPUID: 7}


def test_a_stream_may_run_on_any_processor_and_begin_with_an_interrupt():
    text = (
        "processors: 2\nstream: {file: sqlite.u64.xz, stop: 40000}\n"
        "interrupts: {vector: 32, every: 10000}\n"
        "steps: |\n  @1 stream 0 20000\n  stream 20000 40000\n"
    )
    run = replay(trace(text))
    assert run.exits[Why.EXTERNAL_INTERRUPT] == 3
    assert {record.processor for record in run.events.exits} == {0, 1}


def test_processors_share_memory_and_have_a_vpid_each():
    text = (
        "processors: 2\nsteps: |\n  store 0x7000 value=5\n  @1 load rbx, 0x7000\n"
        "  @1 store 0x7008 value=6\n  load rcx, 0x7008\n"
        "expect: {memory: {0x7000: 5, 0x7008: 6}, registers: {rcx: 6}}\n"
    )
    run = replay(trace(text))
    assert run.holds, run.results
    assert run.vmcs[Field.VPID] == 1


def test_a_program_for_several_processors_needs_replay():
    source = trace("processors: 2\nsteps: |\n  cpuid\n  @1 cpuid\n")
    with pytest.raises(InputError, match=r"run it with vtx.replay"):
        assert source.program
    with vtx.Cpu() as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        with pytest.raises(InputError):
            cpu.vmlaunch(source)


# ---- Watching and interrupting ------------------------------------------------------------------


def test_progress_goes_from_nothing_to_everything():
    told = []
    run = replay(TRACES / "bfs.yaml", progress=lambda done, total: told.append((done, total)))
    assert len(told) > 10
    assert told == sorted(told)
    assert {total for _, total in told} == {load_trace(TRACES / "bfs.yaml").steps}
    assert told[-1][0] <= run.steps


def test_an_interrupted_run_leaves_nothing_behind():
    class Impatient(vtx.Vmm):
        count = 0

        def ept_violation(self, cpu, exit):
            self.count += 1
            if self.count == 100:
                raise KeyboardInterrupt
            super().ept_violation(cpu, exit)

    source = load_trace(TRACES / "sqlite.yaml")
    vmm = Impatient()
    with pytest.raises(KeyboardInterrupt):
        replay(source, vmm=vmm)
    assert replay(source, vmm=vmm).holds


# ---- The design's loop, and comparing -----------------------------------------------------------


def test_the_loop_of_a_vmm_in_ten_lines():
    with vtx.Cpu(profile="skylake_sp") as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        exit = cpu.vmlaunch(vtx.load_trace(TRACES / "01-cpuid.yaml"))
        reasons = []
        while exit.reason is not Why.HLT:
            reasons.append(exit.reason)
            match exit.reason:
                case Why.CPUID:
                    cpu.regs.rax = 0x16
                    cpu.skip(exit)
                case Why.EPT_VIOLATION:
                    cpu.ept.map(exit.ept.gpa, size="4K")
                case _:
                    raise vtx.UnhandledExit(exit)
            exit = cpu.vmresume()
    assert reasons.count(Why.CPUID) == 20
    assert reasons.count(Why.EPT_VIOLATION) == 4, "three tables, and the code"


def test_a_vmm_runs_a_program_on_a_cpu_of_ones_own():
    with vtx.Cpu() as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        vmm = vtx.Vmm()
        assert vmm.run(cpu, load_trace(TRACES / "01-cpuid.yaml")) == "halted"
        assert vmm.vcpu(cpu).halted
    vmm.stop("end", "a handler says so")
    with vtx.Cpu() as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        assert vmm.run(cpu, load_trace(TRACES / "01-cpuid.yaml")) == "halted", "a stop ends one run"
    with vtx.Cpu() as cpu:
        cpu.vmxon()
        with pytest.raises(VMfailInvalid):
            vtx.Vmm().run(cpu)


def test_compare_runs_once_a_shape_and_refuses_old_cpus():
    run = replay(TRACES / "02-ept-violation.yaml", "skylake_sp")
    comparison = compare(run, ["penryn_core2", "skylake_sp", "haswell"])
    assert [outcome.state for outcome in comparison.outcomes] == [
        State.NOT_SUPPORTED,
        State.PRICED,
        State.PRICED,
    ]
    assert comparison.outcomes[1].counted is run
    assert "has no EPT" in comparison.outcomes[0].why
    assert "02" not in comparison.title


def test_compare_takes_a_trace_or_its_file():
    for source in (TRACES / "01-cpuid.yaml", str(TRACES / "01-cpuid.yaml")):
        comparison = compare(source, ["nehalem"])
        assert len(comparison.priced) == 1
    assert len(compare(load_trace(TRACES / "01-cpuid.yaml")).outcomes) == len(names())


# ---- Where a guest failed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "place"),
    [
        ("steps: |\n  nop\n  load 0x40000000\n", InputError, r"^t\.yaml:4: .* 0x40000000, beyond"),
        ("steps: |\n  store 0x7ffffffffff\n", InputError, r"^t\.yaml:3: .* 0x7ffffffffff, beyond"),
        ("guest: {entry: 0x40000000}\nsteps: |\n  nop\n", InputError, r"^t\.yaml:4: .* beyond"),
        ("ept: off\nsteps: |\n  load 0x40000000\n", InputError, r"^t\.yaml:4: .* beyond"),
        ("steps: |\n  nop\n  load 0x3ffffffc size=8\n", InputError, r"^t\.yaml:4: .* beyond"),
        ("steps: |\n  cpuid\n  ud2\n", EmulationStopped, r"^t\.yaml:4: ud2 .* #UD again"),
        ("steps: |\n  cpuid\n  jmp 0x5000\n", EmulationStopped, r"^t\.yaml:4: .* no step at RIP"),
        (
            "steps: |\n  nop\n  load 0x800000000000\n",
            EmulationStopped,
            r"^t\.yaml:4: .* #GP\(0\) again",
        ),
        (
            "steps: |\n  nop\nexpect:\n  memory: {0x7ffffffffff: 0}\n",
            InputError,
            r"^t\.yaml:5: .* 0x7ffffffffff is beyond",
        ),
        (
            "vmcs: {guest_rflags: 0}\nsteps: |\n  nop\n",
            EmulationStopped,
            r"^t\.yaml: .*guest\.rflags",
        ),
    ],
)
def test_a_failure_names_file_and_line(text, error, place):
    with pytest.raises(error, match=place):
        replay(trace(text))


def test_an_expected_check_must_exist():
    with pytest.raises(
        UnknownName, match=r"^t\.yaml:5:10: .* 'guest\.rflags\.reserved1'"
    ) as caught:
        trace("steps: |\n  nop\nexpect:\n  check: guest.rflags.reserved1\n")
    assert "guest.rflags.reserved_1" in caught.value.suggestions


@pytest.mark.parametrize(("address", "pages"), [(0x500000, 1), (0x500001, 2), (0x500FFF, 2)])
def test_a_load_touches_every_page_that_it_covers(address, pages):
    none = replay(trace("steps: |\n  nop\n"))
    run = replay(trace(f"steps: |\n  load {address:#x} size=4096\n"))
    # One more violation is that of the page table's entry for this part of memory.
    assert run.exits[Why.EPT_VIOLATION] - none.exits[Why.EPT_VIOLATION] == pages
