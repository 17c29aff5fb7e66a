"""Replay: a trace runs as a guest under a VMM, on a CPU of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.errors import EmulationStopped, EndOfTrace, InputError, VMfail, VMfailValid, VtxError
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.hypervisor.expectations import check_expectations
from vtx.hypervisor.handlers import Vmm
from vtx.hypervisor.kernel import DemandPaging
from vtx.hypervisor.options import Expectation
from vtx.hypervisor.run import Run
from vtx.hypervisor.setup import check_support, make_guest, make_machine
from vtx.hypervisor.trace import Trace, load_trace
from vtx.machine.program import Instruction
from vtx.machine.shape import Shape
from vtx.nonroot.kernel import _MAX_SAME_FAULTS

if TYPE_CHECKING:
    from vtx.cpu import Cpu, Machine
    from vtx.hypervisor.vmm import Observer, VmmLoop
    from vtx.lab.compare import Comparison
    from vtx.lab.profile import Profile

__all__ = ["DEFAULT_PROFILE", "compare", "replay"]

#: The CPU on which a trace runs if neither the caller nor the trace names one.
DEFAULT_PROFILE = "skylake_sp"
#: Told how much is done, and how much there is.
Progress = Callable[[int, int], Any]

#: Outcomes that are errors unless the trace expects them.
_FAILURES = frozenset({"shutdown", "entry_failure", "vmfail"})
_PAGE_FAULT = 14
#: The guest's memory is mapped in the lower half of the linear-address space.
_USER_TOP = 1 << 47
_IN_VMCS = {
    "rip": Field.GUEST_RIP,
    "rsp": Field.GUEST_RSP,
    "rflags": Field.GUEST_RFLAGS,
    "cr0": Field.GUEST_CR0,
    "cr3": Field.GUEST_CR3,
    "cr4": Field.GUEST_CR4,
}


def replay(
    trace: str | Path | Trace,
    profile: str | Shape | Profile | None = None,
    *,
    vmm: VmmLoop | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
) -> Run:
    """Run a trace as a guest.

    Parameters
    ----------
    trace : str, Path or Trace
        The trace, or its file.
    profile : str, Shape or Profile, optional
        The CPU; by default the one that the trace names, or else ``skylake_sp``.
    vmm : VmmLoop, optional
        The VMM that handles the exits; :class:`vtx.Vmm` by default.
    progress : callable, optional
        Called now and then with the steps that are done and the steps there are.
    observer : Observer, optional
        Told of every VM exit and of the end.

    Returns
    -------
    Run
        What happened.

    Raises
    ------
    InputError
        The trace or the profile is wrong, or the guest leaves its memory.
    NotSupported
        The CPU does not have what the trace needs.
    EmulationStopped
        The guest could not go on, and the trace does not expect that.

    Examples
    --------
    >>> import vtx
    >>> run = vtx.replay("traces/01-cpuid.yaml", profile="haswell")
    >>> run.exits[vtx.ExitReason.CPUID]
    20
    """
    if not isinstance(trace, Trace):
        trace = load_trace(trace)
    shape = _shape(profile if profile is not None else trace.header.profile or DEFAULT_PROFILE)
    check_support(trace.header, shape, trace.name)
    segments = trace.segments
    with make_machine(trace.header, shape) as machine:
        player = _Player(trace, machine, vmm if vmm is not None else Vmm(), progress)
        player.vmm.observer = observer
        try:
            player.play()
        finally:
            player.vmm.observer = None
        assert segments
        run = player.run(vmm)
        if observer is not None:
            observer.finished(machine.cpus[0])
        return run


def _shape(profile: str | Shape | Profile) -> Shape:
    if isinstance(profile, str):
        return Shape.of(profile)
    return profile if isinstance(profile, Shape) else profile.shape


class _Player:
    """One run: the machine, its VMM, and how it ended."""

    def __init__(
        self, trace: Trace, machine: Machine, vmm: VmmLoop, progress: Progress | None
    ) -> None:
        self.trace = trace
        self.machine = machine
        self.vmm = vmm
        self.failure: VMfail | None = None
        self.check = ""
        #: Line of the step at which the guest failed; none if it never executed one.
        self.line: int | None = None
        vmm.begin(make_guest(trace.header, machine, trace.name, trace.entry_points))
        if progress is not None:
            vmm.watch = self._watcher(progress)

    def _watcher(self, progress: Progress) -> Callable[[], None]:
        total = self.trace.steps

        def watch() -> None:
            progress(min(self._steps(), total), total)

        return watch

    def _steps(self) -> int:
        return sum(cpu.steps for cpu in self.machine.cpus)

    def play(self) -> None:
        """Run the segments of the trace, each on its processor."""
        pager = self._pager()
        launched: set[int] = set()
        for segment in self.trace.segments:
            cpu = self.machine.cpus[segment.processor]
            program = replace(segment.program, demand_paging=pager)
            try:
                first = cpu.number not in launched
                launched.add(cpu.number)
                exit = cpu.vmlaunch(program) if first else cpu.proceed(program)
                self.vmm.loop(cpu, exit)
            except EndOfTrace:
                self.vmm.outcome = "halted" if self.vmm.vcpu(cpu).halted else "end"
                continue
            except VMfail as failure:
                self._failed(failure)
            except InputError as error:
                raise error.at(self.trace.file, self._line(cpu)) from None
            except EmulationStopped as stop:
                raise self._stopped(cpu, stop) from None
            self.line = self._line(cpu) if cpu.steps else None
            return

    def _pager(self) -> DemandPaging | None:
        guest = self.trace.header.guest
        if not guest.demand or self.machine.guest is None:
            return None
        return DemandPaging(self.machine.guest, large_pages=guest.pages == "2M")

    def _failed(self, failure: VMfail) -> None:
        """Remember a VM entry that ended in VMfail."""
        self.failure = failure
        self.vmm.stop("vmfail", str(failure))
        if isinstance(failure, VMfailValid):
            self.check = failure.check or ""

    def _stopped(self, cpu: Cpu, stop: EmulationStopped) -> VtxError:
        """Return the error for a guest that cannot go on, with its place in the trace."""
        file, line = self.trace.file, self._line(cpu)
        guest, (fault, times) = self.machine.guest, cpu.same_fault
        if guest is None or times < _MAX_SAME_FAULTS or not isinstance(fault, tuple):
            return stop.at(file, line)
        vector, _, address = fault[:3]
        if vector != _PAGE_FAULT or not guest.size_bytes <= address < _USER_TOP:
            return stop.at(file, line)
        return InputError(
            f"the step touches linear address {address:#x}, beyond the guest's memory of "
            f"{guest.size_bytes:#x} bytes",
            file=file,
            line=line,
            hint="give it more memory, correct the address, or page on demand: "
            "guest: {map: demand}",
        )

    def _line(self, cpu: Cpu) -> int | None:
        """Return the line of the step that a processor stands at."""
        for cursor in reversed(cpu.cursors):
            step = cursor.current()
            if isinstance(step, Instruction) and step.line is not None:
                return step.line
        return None

    def run(self, vmm: VmmLoop | None) -> Run:
        """Return what happened.

        Raises
        ------
        EmulationStopped, VMfail
            The guest failed, and the trace does not expect that.
        """
        trace, machine = self.trace, self.machine
        outcome = self.vmm.outcome
        if outcome in _FAILURES and not self._expected(outcome):
            raise (self.failure or EmulationStopped(self.vmm.message)).at(trace.file, self.line)
        cpu = machine.cpus[0]
        assert cpu.vmcs is not None
        translation: dict[str, int] = {}
        for each in machine.cpus:
            for name, count in each.mmu.counters().items():
                translation[name] = translation.get(name, 0) + count
        run = Run(
            trace=trace,
            shape=machine.shape,
            outcome=outcome,
            message=self.vmm.message,
            check=self.check or self.vmm.check,
            events=machine.events,
            translation=translation,
            registers=_registers(cpu),
            vmcs=dict(cpu.vmcs.fields()),
            console=self.vmm.guest.console.decode("latin-1"),
            steps=self._steps(),
            references=trace.references,
            vmm=vmm,
        )
        return replace(run, results=self._results(run))

    def _expected(self, outcome: str) -> bool:
        return any(
            expected.kind is Expectation.OUTCOME and expected.value == outcome
            for expected in self.trace.header.expectations
        )

    def _results(self, run: Run) -> Any:
        guest = self.machine.guest
        assert guest is not None

        def read_u64(offset: int) -> int:
            return self.machine.memory.read_u64(guest.host_physical(guest.guest_base + offset))

        return check_expectations(self.trace.header.expectations, run, read_u64)


def _registers(cpu: Cpu) -> dict[str, int]:
    """Return the guest's registers, wherever they are now."""
    regs, vmcs = cpu.regs, cpu.vmcs
    assert vmcs is not None
    names = (*GENERAL_REGISTERS, "rip", "rflags", "cr0", "cr2", "cr3", "cr4")
    values: dict[str, int] = {name: getattr(regs, name) for name in names}
    if not cpu.non_root:
        values |= {name: vmcs[field] for name, field in _IN_VMCS.items()}
    return values


def compare(
    run: Run | Trace | str | Path,
    profiles: Iterable[Profile | str] | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Price a trace on several CPUs.

    Parameters
    ----------
    run : Run, Trace, str or Path
        A run, which is used for all CPUs of its shape, or a trace that has not been run yet.
    profiles : iterable of Profile or str, optional
        The CPUs; all that come with vtx by default.
    progress : callable, optional
        Told the profile, how many are done and how many there are.

    Returns
    -------
    Comparison
        One outcome for each profile; a CPU that lacks what the trace needs is "not supported".
    """
    from vtx.lab.compare import compare as compare_profiles
    from vtx.profiles import names

    trace = run.trace if isinstance(run, Run) else run
    if not isinstance(trace, Trace):
        trace = load_trace(trace)
    done = run if isinstance(run, Run) else None

    def execute(profile: Profile) -> Run:
        if done is not None and _alike(done.shape, profile.shape):
            return done
        return replay(trace, profile.shape, vmm=done.vmm if done is not None else None)

    chosen = list(names() if profiles is None else profiles)
    title = f"{trace.name} on {len(chosen)} CPU profile{'s' * (len(chosen) != 1)}"
    return compare_profiles(chosen, execute, title=title, progress=progress)


def _alike(one: Shape, other: Shape) -> bool:
    """Tell whether a guest runs alike on both: names do not matter."""
    return replace(one, name="") == replace(other, name="")
