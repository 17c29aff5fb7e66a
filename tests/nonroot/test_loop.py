"""The run loop: RIP and the program, handlers, events in a listing, blocking, traps."""

from __future__ import annotations

import pytest

from tests.nonroot.guests import CODE, GuestCpu, capable_shape, guest, listing
from vtx.errors import EmulationStopped, EndOfTrace, InputError
from vtx.facts.controls import Exit1, Pin, Proc1, Proc2
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.machine.events import Event
from vtx.machine.exit import Exit
from vtx.machine.program import Instruction, Loop, Program
from vtx.machine.registers import Activity, Interruptibility

GUEST = 1 << 30


def reasons(cpu: GuestCpu, exit: Exit, count: int) -> list[tuple[Why, int]]:
    """Skip instruction after instruction; return each exit's reason and RIP."""
    found = [(exit.reason, exit.rip)]
    for _ in range(count - 1):
        exit = cpu.resume(exit)
        found.append((exit.reason, exit.rip))
    return found


# RIP and the program.


def test_steps_execute_in_order_and_time_passes() -> None:
    with guest() as cpu:
        exit = cpu.enter("nop\nmov rax, 5\nstore 0x7000 value=9\nload rcx, 0x7000\ncpuid leaf=1")
        assert (exit.reason, exit.rip) == (Why.CPUID, CODE + 1 + 5 + 8 + 8)
        assert cpu.regs.rax == 1
        assert cpu.regs.rcx == 9
        assert (cpu.tsc, cpu.steps) == (4, 4)
        assert cpu.events.total(Event.GUEST_INSTRUCTION) == 4


def test_skipping_goes_on_and_not_skipping_executes_again() -> None:
    with guest() as cpu:
        exit = cpu.enter("cpuid leaf=1\nvmcall number=7\nxsetbv")
        assert (exit.rip, cpu.regs.rax) == (CODE, 1)
        cpu.regs.rax = 99
        exit = cpu.resume()
        # The step executes again, but it does not load its registers again.
        assert (exit.reason, exit.rip, cpu.regs.rax) == (Why.CPUID, CODE, 99)
        exit = cpu.resume(exit)
        assert (exit.reason, exit.rip, cpu.regs.rax) == (Why.VMCALL, CODE + 2, 7)


def test_a_vmm_may_send_the_guest_to_any_step() -> None:
    with guest() as cpu:
        cpu.enter("cpuid\nvmcall\ninvd")
        cpu.vmwrite(F.GUEST_RIP, CODE + 5)
        assert cpu.resume().reason == Why.INVD
        cpu.vmwrite(F.GUEST_RIP, CODE)
        assert cpu.resume().reason == Why.CPUID
        cpu.vmwrite(F.GUEST_RIP, CODE + 1)
        with pytest.raises(EmulationStopped, match="no step at RIP 0x200001"):
            cpu.resume()


def test_loops_and_their_back_edges() -> None:
    with guest() as cpu:
        steps = listing("nop\ncpuid\nvmcall")
        exit = cpu.vmlaunch(Program((*steps[:2], Loop(0, 3), steps[2])))
        found = reasons(cpu, exit, 4)
        assert found == [(Why.CPUID, CODE + 1)] * 3 + [(Why.VMCALL, CODE + 3)]


def test_jumps_go_to_steps() -> None:
    with guest() as cpu:
        exit = cpu.enter(f"jmp {CODE + 7}\ninvd\nvmcall")
        assert exit.reason == Why.VMCALL
    with guest() as cpu, pytest.raises(EmulationStopped, match="no step"):
        cpu.enter("jmp 0x1234")


def test_programs_with_addresses_of_their_own() -> None:
    with guest() as cpu:
        step = Instruction("cpuid", rip=0x30_0000)
        with pytest.raises(EmulationStopped, match="0x200000"):
            cpu.vmlaunch(Program((step,)))
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RIP, 0x30_0000)
        assert cpu.vmlaunch(Program((step,))).rip == 0x30_0000


def test_the_end_of_the_program() -> None:
    with guest() as cpu:
        with pytest.raises(EndOfTrace, match="no further step"):
            cpu.enter("nop\nnop")
        assert cpu.non_root
        assert cpu.regs.rip == CODE + 2
        exit = cpu.proceed(Program(listing("cpuid")))
        assert (exit.reason, exit.rip) == (Why.CPUID, CODE + 2)


def test_a_guest_without_a_program() -> None:
    with guest() as cpu, pytest.raises(EndOfTrace, match="no program"):
        cpu.vmlaunch()


# Fetches.


def test_every_step_is_fetched() -> None:
    with guest(mapped=False) as cpu:
        exit, mapped = cpu.enter("nop\ncpuid"), []
        while exit.reason == Why.EPT_VIOLATION:
            mapped.append(exit.guest_physical_address)
            cpu.ept.map(exit.guest_physical_address, size="4K")
            exit = cpu.resume()
        assert exit.reason == Why.CPUID
        assert mapped[-1] == CODE
        assert exit.rip == CODE + 1


def test_an_instruction_that_crosses_a_page() -> None:
    with guest() as cpu:
        cpu.ept.unmap(0x40_0000)
        cpu.mmu.flush_all()
        cpu.vmwrite(F.GUEST_RIP, 0x40_0000 - 1)
        exit = cpu.vmlaunch(Program(listing("cpuid")))
        assert exit.reason == Why.EPT_VIOLATION
        assert exit.qualification & 7 == 4
        assert (exit.rip, exit.guest_linear_address) == (0x40_0000 - 1, 0x40_0000)


# Handlers.


def test_a_handler_runs_and_returns() -> None:
    with guest() as cpu:
        exit = cpu.enter("nop\nint 0x80\nvmcall", vector_128="mov rdx, 7\ncpuid\niret")
        assert exit.reason == Why.CPUID
        assert cpu.regs.rdx == 7
        assert exit.rip != CODE
        exit = cpu.resume(exit)
        assert (exit.reason, exit.rip) == (Why.VMCALL, CODE + 3)
        assert cpu.events.total(Event.DELIVERY) == 1
        assert len(cpu.cursors) == 1


def test_a_handler_without_steps_is_an_iret() -> None:
    with guest() as cpu:
        rsp = cpu.vmread(F.GUEST_RSP)
        text = "int 0x80\nexception vector=13 error_code=5\nvmcall"
        exit = cpu.enter(text)
        assert (exit.reason, exit.rip) == (Why.VMCALL, CODE + 2)
        assert exit.read(F.GUEST_RSP) == rsp  # the error code is gone from the stack, too
        assert cpu.events.total(Event.DELIVERY) == 2


def test_faults_and_jumps_without_end() -> None:
    with guest() as cpu, pytest.raises(EmulationStopped, match="again and again"):
        cpu.enter("nop\nud2")
    with guest() as cpu, pytest.raises(EmulationStopped, match="for ever"):
        cpu.enter(f"nop\njmp {CODE}")


def test_faults_return_to_the_faulting_step() -> None:
    with guest() as cpu:
        exit = cpu.enter(
            "exception vector=13 error_code=0x18\nvmcall", vector_13="mov rbx, 1\niret"
        )
        assert (exit.reason, exit.rip, cpu.regs.rbx) == (Why.VMCALL, CODE, 1)
        assert exit.read(F.GUEST_RSP) == cpu.vmread(F.GUEST_RSP)


def test_the_guests_own_steps_at_the_handlers_address() -> None:
    with guest() as cpu:
        vector = 0x81
        address = cpu.machine.guest.handler_address(vector)  # type: ignore[union-attr]
        text = f"int {vector}\nvmcall\nmov rcx, 3 rip={address}\niret"
        exit = cpu.enter(text)
        assert (exit.reason, cpu.regs.rcx) == (Why.VMCALL, 3)


def test_a_handler_must_return() -> None:
    with guest() as cpu, pytest.raises(EmulationStopped, match="without iret"):
        cpu.enter("int 0x80\nvmcall", vector_128="nop")


def test_handlers_that_never_end() -> None:
    with guest() as cpu, pytest.raises(EmulationStopped, match="no progress"):
        cpu.enter("int 0x80", vector_128="int 0x80")


def test_an_exit_in_a_handler_resumes_there() -> None:
    with guest() as cpu:
        exit = cpu.enter("int 0x80\nvmcall", vector_128="invd\ncpuid\niret")
        first = exit.rip
        exit = cpu.resume()
        assert (exit.reason, exit.rip) == (Why.INVD, first)
        exit = cpu.resume(exit)
        assert (exit.reason, exit.rip) == (Why.CPUID, first + 2)
        assert cpu.resume(exit).reason == Why.VMCALL


def test_page_faults_are_handled_by_a_function() -> None:
    """Demand paging: the step executes again once the kernel has mapped its page."""
    calls = []

    def handle(processor: GuestCpu, address: int, error_code: int) -> bool:
        calls.append((address, error_code))
        image = processor.machine.guest
        assert image is not None
        table = image.cr3
        for shift in (39, 30, 21):
            slot = image.host_physical(table) + 8 * (address >> shift & 511)
            if shift == 21:
                processor.memory.write_u64(slot, 0x80_0000 | 0x87)
                break
            entry = processor.memory.read_u64(slot)
            if not entry & 1:
                entry = image.allocate_frame() | 7
                processor.memory.write_u64(slot, entry)
            table = entry & 0xF_FFFF_FFFF_F000
        return True

    with guest() as cpu:
        program = Program(
            listing("store 0x7fff00001000 value=5\ncpuid"),
            demand_paging=handle,  # type: ignore[arg-type]
        )
        exit = cpu.vmlaunch(program)
        assert exit.reason == Why.CPUID
        assert calls == [(0x7FFF_0000_1000, 2)]
        assert cpu.regs.cr2 == 0x7FFF_0000_1000
        assert cpu.memory.read_u64(GUEST + 0x80_1000) == 5


def test_a_kernel_that_refuses_a_page_fault() -> None:
    with guest() as cpu, pytest.raises(EmulationStopped, match="refuses"):
        program = Program(listing("load 0x7fff00001000"), demand_paging=lambda *_: False)
        cpu.vmlaunch(program)


# Events in a listing.


def test_an_interrupt_goes_to_the_guest_or_exits() -> None:
    text = "nop\nexternal_interrupt vector=0x33\nnop\nvmcall"
    with guest() as cpu:
        exit = cpu.enter(text, vector_51="mov rbx, 1\niret")
        assert (exit.reason, cpu.regs.rbx) == (Why.VMCALL, 1)
    with guest() as cpu:
        cpu.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING)
        cpu.set("exit1", Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        exit = cpu.enter(text)
        assert (exit.reason, exit.rip) == (Why.EXTERNAL_INTERRUPT, CODE + 1)
        assert cpu.vmread(F.VM_EXIT_INTERRUPTION_INFORMATION) == 1 << 31 | 0x33
        assert cpu.resume().reason == Why.VMCALL


def test_an_interrupt_waits_for_if_and_for_the_instruction_after_sti() -> None:
    with guest() as cpu:
        text = "cli\nexternal_interrupt vector=0x33\nnop\nsti\nmov rcx, 1\nmov rcx, 2\nvmcall"
        exit = cpu.enter(text, vector_51="mov rbx, rcx\niret")
        assert (exit.reason, cpu.regs.rbx, cpu.regs.rcx) == (Why.VMCALL, 1, 2)


def test_events_that_arrive_together_come_by_priority() -> None:
    with guest() as cpu:
        cpu.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING, Pin.NMI_EXITING)
        exit = cpu.enter("external_interrupt vector=0x33\nnmi\ninit\nsipi vector=5\nsmi\nvmcall")
        found = [exit.reason]
        for _ in range(3):
            exit = cpu.resume()
            found.append(exit.reason)
        assert found == [
            Why.INIT_SIGNAL, Why.EXCEPTION_OR_NMI, Why.EXTERNAL_INTERRUPT, Why.VMCALL,
        ]  # fmt: skip


def test_exceptions_that_a_listing_raises() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.EXCEPTION_BITMAP, 1 << 14)
        exit = cpu.enter("nop\nexception vector=14 error_code=6 address=0x1234\nvmcall")
        assert (exit.reason, exit.rip, exit.qualification) == (
            Why.EXCEPTION_OR_NMI,
            CODE + 1,
            0x1234,
        )
        assert cpu.vmread(F.VM_EXIT_INTERRUPTION_INFORMATION) == 0x8000_0B0E
        assert cpu.vmread(F.VM_EXIT_INTERRUPTION_ERROR_CODE) == 6
        assert cpu.resume().reason == Why.VMCALL
    for text in ("exception vector=3", "exception vector=2", "exception vector=32", "exception",
                 "external_interrupt vector=3", "external_interrupt"):  # fmt: skip
        with guest() as cpu, pytest.raises(InputError):
            cpu.enter(f"{text}\nnop")


def test_bus_locks_and_timeouts() -> None:
    text = "nop\nbus_lock\nnop\ninstruction_timeout context_invalid=1\nvmcall"
    with guest() as cpu:
        assert cpu.enter(text).reason == Why.VMCALL
    with guest(capable_shape()) as cpu:
        cpu.set("proc2", Proc2.VMM_BUS_LOCK_DETECTION, Proc2.INSTRUCTION_TIMEOUT)
        exit = cpu.enter(text)
        assert cpu.vmread(F.EXIT_REASON) == Why.BUS_LOCK | 1 << 26
        assert exit.rip == CODE + 1
        exit = cpu.resume()
        assert (exit.reason, exit.qualification) == (Why.INSTRUCTION_TIMEOUT, 1)
        assert cpu.resume().reason == Why.VMCALL


# Waiting.


def test_a_halted_guest_is_woken() -> None:
    with guest() as cpu:
        text = "sti\nhlt\nexternal_interrupt vector=0x33\nvmcall"
        exit = cpu.enter(text, vector_51="mov rbx, 1\niret")
        assert (exit.reason, cpu.regs.rbx) == (Why.VMCALL, 1)
        assert exit.read(F.GUEST_ACTIVITY_STATE) == Activity.ACTIVE


def test_a_halted_guest_exits_as_halted() -> None:
    with guest() as cpu:
        cpu.set("pin", Pin.NMI_EXITING)
        exit = cpu.enter("hlt\nnmi\nvmcall")
        assert exit.reason == Why.EXCEPTION_OR_NMI
        assert (exit.rip, exit.read(F.GUEST_ACTIVITY_STATE)) == (CODE + 1, Activity.HLT)


def test_a_halted_guest_that_nothing_wakes() -> None:
    with guest() as cpu, pytest.raises(EmulationStopped, match="HLT state"):
        cpu.enter("hlt\nnop")
    with guest() as cpu, pytest.raises(EndOfTrace, match="HLT state"):
        cpu.enter("hlt")


def test_the_preemption_timer_wakes_a_halted_guest() -> None:
    with guest() as cpu:
        cpu.set("pin", Pin.ACTIVATE_VMX_PREEMPTION_TIMER)
        cpu.vmwrite(F.VMX_PREEMPTION_TIMER_VALUE, 3)
        exit = cpu.enter("nop\nhlt\nnop")
        assert (exit.reason, exit.rip) == (Why.VMX_PREEMPTION_TIMER_EXPIRED, CODE + 2)
        assert cpu.tsc == 3 << (cpu.shape.msr(0x485) & 0x1F)


def test_the_preemption_timer_between_instructions() -> None:
    with guest() as cpu:
        cpu.set("pin", Pin.ACTIVATE_VMX_PREEMPTION_TIMER)
        cpu.vmwrite(F.VMX_PREEMPTION_TIMER_VALUE, 1)
        ticks = 1 << (cpu.shape.msr(0x485) & 0x1F)
        steps = listing("nop\nvmcall")
        exit = cpu.vmlaunch(Program((steps[0], Loop(0, 10 * ticks), steps[1])))
        assert exit.reason == Why.VMX_PREEMPTION_TIMER_EXPIRED
        assert cpu.steps == ticks
        cpu.vmwrite(F.VMX_PREEMPTION_TIMER_VALUE, 0)
        exit = cpu.resume()
        assert exit.reason == Why.VMX_PREEMPTION_TIMER_EXPIRED
        assert cpu.steps == ticks


# Traps.


def test_single_stepping() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RFLAGS, 0x302)
        cpu.vmwrite(F.EXCEPTION_BITMAP, 2)
        exit = cpu.enter("nop\nnop\nvmcall")
        assert (exit.reason, exit.rip, exit.qualification) == (
            Why.EXCEPTION_OR_NMI,
            CODE + 1,
            1 << 14,
        )
        exit = cpu.resume()
        assert exit.rip == CODE + 2
        assert cpu.resume().reason == Why.VMCALL


def test_single_stepping_after_mov_ss_comes_one_later() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RFLAGS, 0x302)
        cpu.vmwrite(F.EXCEPTION_BITMAP, 2)
        exit = cpu.enter("mov ss, ax value=0x10\nnop\nvmcall")
        assert (exit.reason, exit.rip) == (Why.EXCEPTION_OR_NMI, CODE + 3)


def test_the_monitor_trap_flag() -> None:
    with guest() as cpu:
        cpu.set("proc1", Proc1.MONITOR_TRAP_FLAG)
        exit = cpu.enter("nop\nint 0x80\nvmcall", vector_128="nop\niret")
        found = [(exit.reason, exit.rip)]
        for _ in range(4):
            exit = cpu.resume()
            found.append((exit.reason, exit.rip))
        handler = found[1][1]
        assert found == [
            (Why.MONITOR_TRAP_FLAG, CODE + 1),
            (Why.MONITOR_TRAP_FLAG, handler),
            (Why.MONITOR_TRAP_FLAG, handler + 1),
            (Why.MONITOR_TRAP_FLAG, CODE + 3),
            (Why.VMCALL, CODE + 3),
        ]


def test_an_exit_cancels_a_pending_monitor_trap() -> None:
    with guest() as cpu:
        cpu.set("proc1", Proc1.MONITOR_TRAP_FLAG)
        exit = cpu.enter("cpuid\nnop\nvmcall")
        assert exit.reason == Why.CPUID
        exit = cpu.resume(exit)
        assert (exit.reason, exit.rip) == (Why.MONITOR_TRAP_FLAG, CODE + 3)


def test_blocking_lasts_for_one_instruction() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RFLAGS, 2)
        exit = cpu.enter("sti\nvmcall\nnop\ninvd")
        assert exit.read(F.GUEST_INTERRUPTIBILITY_STATE) == Interruptibility.STI
        exit = cpu.resume()
        assert exit.reason == Why.VMCALL
        exit = cpu.resume(exit)
        assert exit.read(F.GUEST_INTERRUPTIBILITY_STATE) == 0


def test_the_interrupt_window() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RFLAGS, 2)
        cpu.set("proc1", Proc1.INTERRUPT_WINDOW_EXITING)
        exit = cpu.enter("nop\nsti\nnop\nvmcall")
        assert (exit.reason, exit.rip) == (Why.INTERRUPT_WINDOW, CODE + 3)


def test_injection_and_its_handler() -> None:
    with guest() as cpu:
        exit = cpu.enter("cpuid\nvmcall", vector_64="mov rbx, 5\niret")
        cpu.inject(64)
        exit = cpu.resume(exit)
        assert (exit.reason, exit.rip, cpu.regs.rbx) == (Why.VMCALL, CODE + 2, 5)


def test_an_exit_during_delivery_is_injected_again() -> None:
    """What a VMM does: it removes the cause, and injects what the vectoring information holds."""
    with guest() as cpu:
        exit = cpu.enter("nop\nint 0x80\nvmcall", vector_128="mov rbx, 5\niret")
        assert (exit.reason, cpu.regs.rbx) == (Why.VMCALL, 5)
    with guest(mapped=False) as cpu:
        exit = cpu.enter("nop\nint 0x80\nvmcall", vector_128="mov rbx, 5\niret")
        vectored = 0
        while exit.reason == Why.EPT_VIOLATION:
            information = exit.read(F.IDT_VECTORING_INFORMATION)
            cpu.ept.map(exit.guest_physical_address, size="4K")
            if information >> 31:
                vectored += 1
                assert information == 1 << 31 | 4 << 8 | 0x80
                length = cpu.vmread(F.VM_EXIT_INSTRUCTION_LENGTH)
                cpu.inject(0x80, type=4, instruction_length=length)
            exit = cpu.resume()
        assert vectored
        assert (exit.reason, exit.rip, cpu.regs.rbx) == (Why.VMCALL, CODE + 3, 5)


def test_pause_loops_are_forgotten_at_vm_entry() -> None:
    with guest() as cpu:
        cpu.set("proc2", Proc2.PAUSE_LOOP_EXITING)
        cpu.vmwrite(F.PLE_GAP, 5)
        cpu.vmwrite(F.PLE_WINDOW, 20)
        pause, call = listing("pause\nvmcall")
        exit = cpu.vmlaunch(Program((pause, Loop(0, 100), call)))
        assert (exit.reason, cpu.tsc) == (Why.PAUSE, 21)
        exit = cpu.resume(exit)
        assert (exit.reason, cpu.tsc) == (Why.PAUSE, 42)
