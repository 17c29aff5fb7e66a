"""EPT for the usual guest: all of its memory is one slot of host memory."""

from __future__ import annotations

from typing import Any

from vtx.errors import InputError
from vtx.machine import image
from vtx.machine.paging import Ept
from vtx.machine.tables import page_shift

__all__ = ["GuestEpt"]


class GuestEpt(Ept):
    """The EPT of a guest whose memory is one slot of host memory.

    :meth:`map` needs no host-physical address: guest-physical 0 is host-physical `GUEST_BASE`.
    """

    def map(self, gpa: int, hpa: int | None = None, size: str = "4K", **rights: Any) -> None:
        """Map the page that `gpa` lies in; parameters beyond are those of `Ept.map`.

        Parameters
        ----------
        gpa : int
            Any guest-physical address in the page.
        hpa : int, optional
            Host-physical address of the page; by default the guest's own memory.
        size : str
            ``"4K"``, ``"2M"`` or ``"1G"``.
        **rights
            ``read``, ``write``, ``execute``, ``memory_type`` ...

        Raises
        ------
        InputError
            As `Ept.map`; or the size stands where the host-physical address belongs.
        """
        if isinstance(hpa, str):
            raise InputError(
                f"{hpa!r} is no host-physical address",
                hint=f'name the size: cpu.ept.map({gpa:#x}, size="{hpa}")',
            )
        page = gpa >> page_shift(size) << page_shift(size)
        super().map(page, image.GUEST_BASE + page if hpa is None else hpa, size, **rights)
