"""Which instructions are sensitive, which trap, and which do the first without the second."""

from vtx.course.trials import State, bench

INSTRUCTIONS = (
    "nop", "push rax", "rdtsc",
    "hlt", "cli", "lgdt [0x7000]", "mov cr3, rax value=0x300008", "mov rax, cr0",
    "sgdt [0x7000]", "sidt [0x7000]", "sldt rax", "str rax", "smsw rax",
    "pushf", "popf",
)  # fmt: skip
#: Two machines that differ in everything which an operating system sets up.
ONE = State()
OTHER = State(
    interrupts=False, gdt_limit=0x7FF, idt_limit=0x7FF, ldt=0x40, task=0x38, task_switched=True
)


def sensitive(instruction: str) -> str:
    """Say whether an instruction shows or changes the machine's state at CPL 0."""
    one = bench(instruction, ONE, cpl=0)
    other = bench(instruction, OTHER, cpl=0)
    if one.changed or other.changed or one.exit:
        return "changes"
    return "shows" if one.seen != other.seen else ""


print("instruction                   at CPL 3  sensitive  verdict")
for instruction in INSTRUCTIONS:
    traps = bench(instruction, cpl=3).trapped
    kind = sensitive(instruction)
    verdict = ("fine" if traps else "A HOLE") if kind else "innocuous"
    print(f"{instruction:<29} {'traps' if traps else 'runs':<9} {kind:<10} {verdict}")

print("\nPOPF that clears RFLAGS.IF: does it?")
for cpl in (0, 3):
    trial = bench("popf", cpl=cpl)
    print(
        f"  at CPL {cpl}: {'IF is 0' if trial.changed else 'nothing happens, and nobody is told'}"
    )

print("\nThe same at CPL 3 with CR4.UMIP, and at CPL 0 under VT-x with the VMM watching")
for instruction in ("sgdt [0x7000]", "sidt [0x7000]", "sldt rax", "str rax", "smsw rax", "pushf"):
    prevented = bench(instruction, cpl=3, umip=True).trapped
    watched = bench(instruction, OTHER, cpl=0, watch=True)
    shadow = instruction == "smsw rax" and watched.seen == bench(instruction, cpl=0).seen
    seen = watched.exit or ("the read shadow" if shadow else "its own flags")
    print(f"  {instruction:<15} {'traps' if prevented else 'runs':<6} {seen}")
