"""What translation depends on: the registers and VMX controls of the moment, laid out for C."""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from vtx._core import ffi, lib
from vtx.errors import InputError
from vtx.facts.members import plain_members

__all__ = ["Access", "Context", "Member"]


@plain_members
class Access(IntEnum):
    """What an access is; the values are the kind bits of a packed record."""

    FETCH = 0
    LOAD = 1
    STORE = 2
    MODIFY = 3
    #: Flag, to be added to a kind: an access by the processor itself to a system structure, which
    #: is a supervisor-mode access at any CPL.
    IMPLICIT_SUPERVISOR = 4
    IMPLICIT_LOAD = 5
    IMPLICIT_STORE = 6
    IMPLICIT_MODIFY = 7

    __hash__ = int.__hash__


class Member(property):
    """One member of the C structure that an object wraps, as an int attribute."""

    def __set_name__(self, owner: type, name: str) -> None:
        # A property whose getter is made of C functions alone: walks are read a lot.
        super().__init__(attrgetter(f"_c.{name}"), partial(_set_member, name=name))

    if TYPE_CHECKING:

        def __get__(  # type: ignore[override]  # it is an int
            self, instance: Any, owner: type | None = None, /
        ) -> int: ...


def _set_member(instance: Any, value: int, *, name: str) -> None:
    try:
        setattr(instance._c, name, value)
    except OverflowError:
        raise InputError(f"{name}: {value:#x} does not fit the register") from None


class Context:
    """What the processor translates under: control registers and VMX controls, laid out flat.

    VM entry fills one of these; changing an attribute is all that a change of register takes, the
    next translation sees it. Cached translations are a different matter: see the invalidations of
    :class:`Mmu`.

    Parameters
    ----------
    cr0, cr3, cr4, efer, rflags : int
        Registers; of `rflags` only AC matters.
    cpl : int
        Current privilege level.
    eptp : int or None
        EPT pointer; None while "enable EPT" is 0.
    vpid : int
        Current VPID; 0 in root operation and while "enable VPID" is 0.
    mode_based_execute : bool
        "Mode-based execute control for EPT".
    pdptes : sequence of four ints
        PDPTE registers (PAE paging).
    pml_address : int or None
        PML address; None while "enable PML" is 0.
    pml_index : int
        PML index, 0 to 511; the walker decrements it.
    pkru, pkrs : int
        Protection-key rights, for user-mode and for supervisor-mode addresses.
    apic_access : int or None
        Host-physical address of the APIC-access page whose references stop a run.
    sub_page_table : int or None
        Sub-page-permission-table pointer; None while "sub-page write permissions for EPT" is 0.
    paging_write, verify_guest_paging : bool
        "EPT paging-write control" and "guest-paging verification".
    hlat_pointer : int or None
        Hypervisor-managed linear-address translation pointer; None while "enable HLAT" is 0.
    hlat_prefix_size : int
        HLAT paging is for linear addresses whose so many high bits are all 1; 0: for all.
    """

    __slots__ = ("_c",)

    cr0 = Member()
    cr3 = Member()
    cr4 = Member()
    efer = Member()
    rflags = Member()
    cpl = Member()
    vpid = Member()
    pkru = Member()
    pkrs = Member()
    pml_index = Member()
    hlat_prefix_size = Member()

    def __init__(
        self,
        *,
        cr0: int = 0,
        cr3: int = 0,
        cr4: int = 0,
        efer: int = 0,
        rflags: int = 2,
        cpl: int = 0,
        eptp: int | None = None,
        vpid: int = 0,
        mode_based_execute: bool = False,
        pdptes: tuple[int, ...] | list[int] = (0, 0, 0, 0),
        pml_address: int | None = None,
        pml_index: int = 511,
        pkru: int = 0,
        pkrs: int = 0,
        apic_access: int | None = None,
        sub_page_table: int | None = None,
        paging_write: bool = False,
        verify_guest_paging: bool = False,
        hlat_pointer: int | None = None,
        hlat_prefix_size: int = 0,
    ) -> None:
        self._c: Any = ffi.new("vtx_context *")
        members = {"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer, "rflags": rflags, "cpl": cpl}
        members |= {"vpid": vpid, "pkru": pkru, "pkrs": pkrs, "pml_index": pml_index}
        members["hlat_prefix_size"] = hlat_prefix_size
        for name, value in members.items():
            setattr(self, name, value)
        self.eptp = eptp
        self.mode_based_execute = mode_based_execute
        self.pdptes = tuple(pdptes)
        self.pml_address = pml_address
        self.apic_access = apic_access
        self.sub_page_table = sub_page_table
        self.paging_write = paging_write
        self.verify_guest_paging = verify_guest_paging
        self.hlat_pointer = hlat_pointer

    def copy(self) -> Context:
        """Return a context of its own with the same content, to ask for something else in."""
        twin = Context.__new__(Context)
        twin._c = ffi.new("vtx_context *", self._c[0])
        return twin

    def set_privilege(self, cpl: int, rflags: int) -> None:
        """Set what events and returns change: the privilege level, and RFLAGS for its AC flag."""
        structure = self._c
        structure.cpl = cpl
        structure.rflags = rflags

    def _control(self, mask: int, on: bool) -> None:
        self._c.controls = self._c.controls | mask if on else self._c.controls & ~mask

    @property
    def eptp(self) -> int | None:
        """EPT pointer; None while EPT is off."""
        return self._c.eptp if self._c.controls & lib.VTX_ENABLE_EPT else None

    @eptp.setter
    def eptp(self, value: int | None) -> None:
        self._c.eptp = value or 0
        self._control(lib.VTX_ENABLE_EPT, value is not None)

    @property
    def mode_based_execute(self) -> bool:
        """Mode-based execute control for EPT."""
        return bool(self._c.controls & lib.VTX_MODE_BASED_EXECUTE)

    @mode_based_execute.setter
    def mode_based_execute(self, value: bool) -> None:
        self._control(lib.VTX_MODE_BASED_EXECUTE, value)

    @property
    def pml_address(self) -> int | None:
        """Address of the page-modification log; None while PML is off."""
        return self._c.pml_address if self._c.controls & lib.VTX_ENABLE_PML else None

    @pml_address.setter
    def pml_address(self, value: int | None) -> None:
        self._c.pml_address = value or 0
        self._control(lib.VTX_ENABLE_PML, value is not None)

    @property
    def apic_access(self) -> int | None:
        """APIC-access page whose references stop a run; None while it is a page like any other."""
        return self._c.apic_access & ~0xFFF if self._c.apic_access else None

    @apic_access.setter
    def apic_access(self, value: int | None) -> None:
        self._c.apic_access = 0 if value is None else value & ~0xFFF | 1

    @property
    def sub_page_table(self) -> int | None:
        """Sub-page-permission-table pointer; None while sub-page write permissions are off."""
        return self._c.spptp if self._c.controls & lib.VTX_SUB_PAGE_WRITE else None

    @sub_page_table.setter
    def sub_page_table(self, value: int | None) -> None:
        self._c.spptp = value or 0
        self._control(lib.VTX_SUB_PAGE_WRITE, value is not None)

    @property
    def paging_write(self) -> bool:
        """EPT paging-write control."""
        return bool(self._c.controls & lib.VTX_PAGING_WRITE)

    @paging_write.setter
    def paging_write(self, value: bool) -> None:
        self._control(lib.VTX_PAGING_WRITE, value)

    @property
    def verify_guest_paging(self) -> bool:
        """Guest-paging verification."""
        return bool(self._c.controls & lib.VTX_VERIFY_GUEST_PAGING)

    @verify_guest_paging.setter
    def verify_guest_paging(self, value: bool) -> None:
        self._control(lib.VTX_VERIFY_GUEST_PAGING, value)

    @property
    def hlat_pointer(self) -> int | None:
        """Pointer to the HLAT paging structures; None while HLAT is off."""
        return self._c.hlatp if self._c.controls & lib.VTX_ENABLE_HLAT else None

    @hlat_pointer.setter
    def hlat_pointer(self, value: int | None) -> None:
        self._c.hlatp = value or 0
        self._control(lib.VTX_ENABLE_HLAT, value is not None)

    @property
    def pdptes(self) -> tuple[int, ...]:
        """The four PDPTE registers."""
        return tuple(self._c.pdptes)

    @pdptes.setter
    def pdptes(self, values: tuple[int, ...] | list[int]) -> None:
        if len(values) != 4:
            raise InputError(f"there are four PDPTE registers, not {len(values)}")
        for index, value in enumerate(values):
            self._c.pdptes[index] = value

    def __repr__(self) -> str:
        eptp = "off" if self.eptp is None else f"{self.eptp:#x}"
        return (
            f"<Context cr0={self.cr0:#x} cr3={self.cr3:#x} cr4={self.cr4:#x} "
            f"efer={self.efer:#x} cpl={self.cpl} eptp={eptp} vpid={self.vpid:#x}>"
        )
