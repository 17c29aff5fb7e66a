"""One guest with one virtual processor through ``/dev/kvm``, in flat 32-bit protected mode.

Source of requests and structures: Linux, Documentation/virt/kvm/api.rst and
include/uapi/linux/kvm.h (x86).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import NamedTuple

from vtx.errors import NotSupported, VtxError

__all__ = ["ExitKind", "Kvm", "KvmExit"]

_API_VERSION = 12
_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
_CREATE_VCPU, _SET_TSS_ADDR, _CREATE_IRQCHIP = 0xAE41, 0xAE47, 0xAE60
_SET_USER_MEMORY_REGION, _RUN, _GET_TSC_KHZ = 0x4020AE46, 0xAE80, 0xAEA3
_SET_REGS, _GET_SREGS, _SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
_SREGS_BYTES, _SEGMENTS, _CR0_AT = 312, 8, 224
#: Three pages that a host without unrestricted guests needs, out of the guest's memory.
_TSS_ADDRESS = 0xFFFB_D000
_RFLAGS_FIXED, _CR0_PE_ET = 2, 0x11
#: struct kvm_run.
_EXIT_REASON_AT, _UNION_AT = 8, 32


class ExitKind:
    """``KVM_EXIT_...`` that this guest can have."""

    IO = 2
    MMIO = 6


class KvmExit(NamedTuple):
    """Why KVM_RUN has returned: the kind of exit, and the port of an I/O exit."""

    kind: int
    port: int


class Kvm:
    """A guest with memory from address 0, interrupts off, and KVM's own interrupt controllers.

    Parameters
    ----------
    memory_bytes : int
        Of guest memory; a multiple of 4096.
    path : str
        The device.

    Raises
    ------
    NotSupported
        The device is not there, may not be opened, or is of another version.
    """

    def __init__(self, memory_bytes: int, path: str = "/dev/kvm") -> None:
        self._files: list[int] = []
        self._maps: list[mmap.mmap] = []
        try:
            self._open(memory_bytes, path)
        except BaseException:
            self.close()
            raise

    def _open(self, memory_bytes: int, path: str) -> None:
        try:
            device = self._keep(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            why = f"there is no {path}: no KVM on this machine, or its module is not loaded"
            raise NotSupported(why) from None
        except OSError as error:
            why = f"{path} cannot be opened: {error.strerror} (may you use KVM?)"
            raise NotSupported(why) from None
        version = _ask(device, _GET_API_VERSION, what="ask for KVM's version")
        if version != _API_VERSION:
            raise NotSupported(f"{path} speaks version {version} of KVM's interface, not 12")
        self._vm = self._keep(_ask(device, _CREATE_VM, what="create a virtual machine"))
        _ask(self._vm, _SET_TSS_ADDR, _TSS_ADDRESS, what="place the task-state segment")
        _ask(self._vm, _CREATE_IRQCHIP, what="create interrupt controllers")
        self._memory = self._map(mmap.mmap(-1, memory_bytes))
        # Pages of 4 KBytes, all there: a first touch by the guest is KVM's business alone.
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, memory_bytes, 4096):
            self._memory[page] = 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        region = struct.pack("=IIQQQ", 0, 0, 0, memory_bytes, address)
        _ask(self._vm, _SET_USER_MEMORY_REGION, region, what="give the guest its memory")
        size = _ask(device, _GET_VCPU_MMAP_SIZE, what="ask for the size of kvm_run")
        self._vcpu = self._keep(_ask(self._vm, _CREATE_VCPU, what="create a virtual processor"))
        self._run = self._map(mmap.mmap(self._vcpu, size))

    def _keep(self, file: int) -> int:
        self._files.append(file)
        return file

    def _map(self, area: mmap.mmap) -> mmap.mmap:
        self._maps.append(area)
        return area

    @property
    def tsc_khz(self) -> int:
        """Frequency of the guest's time-stamp counter."""
        return _ask(self._vcpu, _GET_TSC_KHZ, what="ask for the frequency of the TSC")

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        self._memory[address : address + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        """Read guest memory."""
        return self._memory[address : address + size]

    def start(self, address: int) -> None:
        """Let the processor begin at `address` in flat 32-bit protected mode without paging."""
        sregs = bytearray(_SREGS_BYTES)
        _ask(self._vcpu, _GET_SREGS, sregs, what="read the processor's state")
        code = struct.pack("=QIH10B", 0, 0xFFFF_FFFF, 8, 11, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        data = struct.pack("=QIH10B", 0, 0xFFFF_FFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        size = len(code)
        sregs[: 6 * size] = code + 5 * data  # CS, then DS, ES, FS, GS and SS
        struct.pack_into("=Q", sregs, _CR0_AT, _CR0_PE_ET)
        _ask(self._vcpu, _SET_SREGS, bytes(sregs), what="set the processor's state")
        regs = struct.pack("=18Q", *[0] * 16, address, _RFLAGS_FIXED)
        _ask(self._vcpu, _SET_REGS, regs, what="set the processor's registers")

    def run(self) -> KvmExit:
        """Run the guest until KVM returns to user space."""
        while True:
            try:
                _ask(self._vcpu, _RUN, what="run the guest")
            except InterruptedError:
                continue
            (kind,) = struct.unpack_from("=I", self._run, _EXIT_REASON_AT)
            (port,) = struct.unpack_from("=H", self._run, _UNION_AT + 2)
            return KvmExit(kind, port)

    def close(self) -> None:
        """Give everything back; more than once does no harm."""
        for area in self._maps:
            area.close()
        for file in reversed(self._files):
            os.close(file)
        self._maps.clear()
        self._files.clear()


def _ask(file: int, request: int, argument: int | bytes | bytearray = 0, *, what: str) -> int:
    """Make one request, and say in words what failed."""
    import fcntl

    try:
        if isinstance(argument, bytearray):
            return int(fcntl.ioctl(file, request, argument, True))
        if isinstance(argument, bytes):
            fcntl.ioctl(file, request, argument)
            return 0
        # Python takes a C int; the kernel wants the same 32 bits.
        signed = argument - (1 << 32) if argument >> 31 else argument
        return int(fcntl.ioctl(file, request, signed))
    except InterruptedError:
        raise
    except OSError as error:
        raise VtxError(f"KVM cannot {what}: {error.strerror}") from None
