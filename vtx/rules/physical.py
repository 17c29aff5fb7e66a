"""Reads of physical memory as the processor itself makes them while it checks a VM entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import AddressError

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["read_u8", "read_u32", "read_u64"]


def _read(processor: Processor, address: int, size: int) -> int:
    """Return little-endian memory; where no memory answers, all bits read 1."""
    try:
        return int.from_bytes(processor.memory.read(address, size), "little")
    except AddressError:
        return (1 << 8 * size) - 1


def read_u8(processor: Processor, address: int) -> int:
    """Return the byte at a physical address."""
    return _read(processor, address, 1)


def read_u32(processor: Processor, address: int) -> int:
    """Return the 4 bytes at a physical address."""
    return _read(processor, address, 4)


def read_u64(processor: Processor, address: int) -> int:
    """Return the 8 bytes at a physical address."""
    return _read(processor, address, 8)
