"""VPID and INVVPID: forget what the guest's instruction would have forgotten, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtx.facts.controls import Proc1
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.image import GUEST_BASE
from vtx.machine.mmu import Access, Context, Source
from vtx.machine.paging import FrameAllocator, GuestPageTables

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu

__all__ = ["check"]

_LARGE = 1 << 21
_FRAMES = 0x40_0000
_OLD, _NEW = 0x100_0000, 0x100_1000


class _Bench:
    """A guest with page tables of its own, and beside it cached translations of another one."""

    def __init__(self, lab: Lab, handle: Callable[..., Any]) -> None:
        self.lab = lab
        self.handle = handle
        random = lab.random
        self.cpu = lab.guest()
        self.vpid = random.randrange(2, 1 << 16)
        self.cpu.vmwrite(Field.VPID, self.vpid)
        self.switch_exits_on()
        self.data = random.randrange(2, 200) << 39 | random.randrange(1 << 9) << 21
        self.neighbour, self.shared = self.data + 0x1000, self.data + 0x2000
        self.old, self.new = random.sample(range(1, 1 << 30), 2)
        memory = self.cpu.memory
        memory.write_u64(GUEST_BASE + _OLD, self.old)
        memory.write_u64(GUEST_BASE + _NEW, self.new)
        self.frames = FrameAllocator(_FRAMES, _FRAMES + _LARGE)
        self.tables = self.new_tables(_OLD)
        self.cpu.guest.cr3 = self.tables.cr3
        self.context = Context()

    def switch_exits_on(self) -> None:
        """Let INVLPG and MOV to CR3 exit."""
        field = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
        exiting = Proc1.INVLPG_EXITING | Proc1.CR3_LOAD_EXITING
        self.cpu.vmwrite(field, self.cpu.vmread(field) | exiting)

    def new_tables(self, frame: int) -> GuestPageTables:
        """Return page tables that map the data to a frame, and a global page."""
        tables = GuestPageTables(self.cpu.memory, self.frames, lambda gpa: GUEST_BASE + gpa)
        tables.map(_LARGE, _LARGE, "2M")
        tables.map(_FRAMES, _FRAMES, "2M")
        tables.map(self.data, frame)
        tables.map(self.neighbour, _OLD)
        tables.map(self.shared, _OLD, is_global=True)
        return tables

    def run(self, steps: str) -> None:
        """Run the guest; what is cached is looked at before and after each of its exits."""
        self.lab.run(self.cpu, f"{steps}\nhlt", self.handle)

    def remembers(self, gva: int, *, vpid: int | None = None) -> bool:
        """Tell whether a translation is cached."""
        return self._ask(gva, vpid).source is not Source.WALK

    def remember(self, gva: int, *, vpid: int | None = None) -> None:
        """Let a translation be cached, as if the guest had used it."""
        self._ask(gva, vpid)

    def _ask(self, gva: int, vpid: int | None) -> Any:
        context: Context = self.context.copy()
        if vpid is not None:
            context.vpid = vpid
        return self.cpu.mmu.translate(context, gva, Access.LOAD)

    @property
    def other(self) -> int:
        """VPID of another guest."""
        return self.vpid ^ 1


def check(lab: Lab) -> None:
    """Let a guest change a page table and say INVLPG, then let it load CR3."""
    handle = lab.function("handle", "the handler: handle(cpu, exit)")
    _invlpg(lab, handle)
    _mov_to_cr3(lab, handle)


def _keep(bench: _Bench) -> Callable[..., Any]:
    """Return a handler that fills the TLB before the student's runs, and looks after it."""
    student = bench.handle

    def watched(cpu: Cpu, exit: Any) -> None:
        if exit.information.reason in (ExitReason.INVLPG, ExitReason.CONTROL_REGISTER_ACCESS):
            bench.context = cpu.context.copy()
            for gva in (bench.neighbour, bench.shared, bench.data):
                bench.remember(gva)
            bench.remember(bench.data, vpid=bench.other)
        student(cpu, exit)

    return watched


def _invlpg(lab: Lab, handle: Callable[..., Any]) -> None:
    bench = _Bench(lab, handle)
    bench.handle = _keep(bench)
    entry = bench.tables.entry_address(bench.data) - GUEST_BASE
    steps = (
        f"load rax, [rdi] rdi={bench.data:#x}\n"
        f"mov rax, {_NEW | 0x67:#x}\nstore {entry:#x}, rax\n"
        f"invlpg [rdi]\nload rbx, [rdi]"
    )
    bench.run(steps)
    _same(
        bench,
        "after the guest's INVLPG it reads the page that its page table names",
        "it has read the old page: is the translation forgotten for *this* address and the VPID of "
        "*this* guest (VMCS field VPID), by INVVPID type 0?",
    )
    lab.expect(
        bench.remembers(bench.neighbour) and bench.remembers(bench.shared),
        "INVLPG forgets one page and no other of this guest",
        "type 0 of INVVPID is for one linear address, in bits 127:64 of the descriptor",
    )
    _others(bench)


def _mov_to_cr3(lab: Lab, handle: Callable[..., Any]) -> None:
    bench = _Bench(lab, handle)
    bench.handle = _keep(bench)
    other = bench.new_tables(_NEW)
    register = lab.random.choice(["rcx", "rsi", "r9", "r14"])
    steps = (
        f"load rax, [rdi] rdi={bench.data:#x}\n"
        f"mov cr3, {register} value={other.cr3:#x}\nload rbx, [rdi]"
    )
    bench.run(steps)
    vmcs = bench.cpu.vmcs
    assert vmcs is not None
    found = vmcs[Field.GUEST_CR3]
    if not lab.equal(
        found,
        other.cr3,
        "after MOV to CR3 the guest's CR3 is what it wanted",
        "MOV to CR3 has exited and done nothing: the handler writes cpu.guest.cr3, with the value "
        "of the register that exit.cr.register names",
    ):
        return
    _same(
        bench,
        "after MOV to CR3 it reads through its new page tables",
        "it has read through the old ones: writing the field GUEST_CR3 forgets nothing; INVVPID "
        "with the VPID of this guest does",
    )
    lab.expect(
        bench.remembers(bench.shared),
        "MOV to CR3 keeps global pages",
        "there is a type of INVVPID that retains them: a processor's MOV to CR3 does so as well",
    )
    _others(bench)


def _same(bench: _Bench, what: str, hint: str) -> None:
    """Remark on what the guest read after its instruction."""
    bench.lab.expect(bench.cpu.regs.rbx == bench.new, what, hint)


def _others(bench: _Bench) -> None:
    """Remark on the translations of other guests."""
    bench.lab.expect(
        bench.remembers(bench.data, vpid=bench.other),
        "translations of other VPIDs stay",
        "INVVPID type 2 is for all guests, and INVEPT for all that share the EPT",
    )
