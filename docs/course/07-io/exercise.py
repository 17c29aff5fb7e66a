"""Lesson 07: a serial port. Complete the class, then: vtx lab run 07 THIS_FILE."""

import vtx


class Serial:
    """A 16550 that sends in no time and receives nothing."""

    def __init__(self, cpu: vtx.Cpu, base: int) -> None:
        self.base = base
        self.console = bytearray()
        # Which ports exit? How many are they, and which is the last?

    def handle(self, cpu: vtx.Cpu, exit: vtx.Exit) -> None:
        """Do the guest's I/O instruction for it."""
        register = exit.io.port - self.base
        # IN or OUT? A string instruction, with REP?
        # Which bits of RAX belong to an access of one byte?
        # What do RSI and RCX hold after REP OUTSB?
