"""EPT paging-structure entries, bit by bit, and the levels of the walk.

Source: SDM, "EPT Translation Mechanism", "EPT Misconfigurations", "EPT Violations".
"""

from typing import Final, NamedTuple

from vtx.facts.layout import BitRange, Layout, flag, table

__all__ = [
    "ENTRY_FORMATS",
    "LEVELS",
    "MEMORY_TYPE",
    "MISCONFIGURATIONS",
    "VIOLATIONS",
    "Level",
]

#: Memory types by number; an entry with another number is misconfigured.
MEMORY_TYPE: Final = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}


class Level(NamedTuple):
    """One level of the EPT walk.

    Attributes
    ----------
    number : int
        5 (root of 5-level EPT) down to 1.
    name : str
        Name of an entry of this level.
    high, low : int
        Bits of the guest-physical address that index the table.
    can_be_leaf : bool
        Whether an entry of this level may map a page.
    """

    number: int
    name: str
    high: int
    low: int
    can_be_leaf: bool

    @property
    def page_bytes(self) -> int:
        """Bytes of guest-physical address space that one entry of this level covers."""
        return 1 << self.low


#: The levels from the root down; level 5 is used by 5-level EPT only.
LEVELS: Final = (
    Level(5, "PML5E", 56, 48, False),
    Level(4, "PML4E", 47, 39, False),
    Level(3, "PDPTE", 38, 30, True),
    Level(2, "PDE", 29, 21, True),
    Level(1, "PTE", 20, 12, True),
)

#: The seven formats of an entry, by name: where the walk reads it and what it references.
ENTRY_FORMATS: dict[str, Layout] = table(
    Layout(
        "pml5e",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(7, 3, "reserved", "must be 0"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1; else ignored"),
            flag(9, "ignored", "ignored"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(51, 12, "address", "next table; bits at or above MAXPHYADDR must be 0"),
            BitRange(63, 52, "ignored", "ignored"),
        ),
        "EPT PML5 entry",
        'SDM, "EPT Translation Mechanism"',
    ),
    Layout(
        "pml4e",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(7, 3, "reserved", "must be 0"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1; else ignored"),
            flag(9, "ignored", "ignored"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(51, 12, "address", "next table; bits at or above MAXPHYADDR must be 0"),
            BitRange(63, 52, "ignored", "ignored"),
        ),
        "EPT PML4 entry",
        'SDM, "EPT Translation Mechanism"',
    ),
    Layout(
        "pdpte_table",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(6, 3, "reserved", "must be 0"),
            flag(7, "page_size", "must be 0 here"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1; else ignored"),
            flag(9, "ignored", "ignored"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(51, 12, "address", "next table; bits at or above MAXPHYADDR must be 0"),
            BitRange(63, 52, "ignored", "ignored"),
        ),
        "EPT PDPT entry that references a page directory",
        'SDM, "EPT Translation Mechanism"',
        notes=(
            (
                "the manual draws bits 7:3 of this entry as one reserved range; bit 7 is 0 by "
                "definition"
            ),
        ),
    ),
    Layout(
        "pde_table",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(6, 3, "reserved", "must be 0"),
            flag(7, "page_size", "must be 0 here"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1; else ignored"),
            flag(9, "ignored", "ignored"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(51, 12, "address", "next table; bits at or above MAXPHYADDR must be 0"),
            BitRange(63, 52, "ignored", "ignored"),
        ),
        "EPT page-directory entry that references a page table",
        'SDM, "EPT Translation Mechanism"',
    ),
    Layout(
        "pdpte_1gb",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(5, 3, "memory_type", "memory type of the page", MEMORY_TYPE),
            flag(6, "ignore_pat", "PAT memory type is ignored"),
            flag(7, "page_size", "must be 1 (leaf)"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1"),
            flag(9, "dirty", "dirty, if EPTP[6] is 1"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(29, 12, "reserved", "must be 0"),
            BitRange(51, 30, "address", "page frame; bits at or above MAXPHYADDR must be 0"),
            BitRange(56, 52, "ignored", "ignored"),
            flag(57, "verify_guest_paging", "used with guest_paging_verification"),
            flag(58, "paging_write", "used with ept_paging_write_control"),
            flag(59, "ignored", "ignored"),
            flag(60, "supervisor_shadow_stack", "used if EPTP[7]"),
            BitRange(62, 61, "ignored", "ignored"),
            flag(63, "suppress_ve", "used with ept_violation_ve"),
        ),
        "EPT PDPT entry that maps a 1-GByte page",
        'SDM, "EPT Translation Mechanism"',
    ),
    Layout(
        "pde_2mb",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(5, 3, "memory_type", "memory type of the page", MEMORY_TYPE),
            flag(6, "ignore_pat", "PAT memory type is ignored"),
            flag(7, "page_size", "must be 1 (leaf)"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1"),
            flag(9, "dirty", "dirty, if EPTP[6] is 1"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(20, 12, "reserved", "must be 0"),
            BitRange(51, 21, "address", "page frame; bits at or above MAXPHYADDR must be 0"),
            BitRange(56, 52, "ignored", "ignored"),
            flag(57, "verify_guest_paging", "used with guest_paging_verification"),
            flag(58, "paging_write", "used with ept_paging_write_control"),
            flag(59, "ignored", "ignored"),
            flag(60, "supervisor_shadow_stack", "used if EPTP[7]"),
            BitRange(62, 61, "ignored", "ignored"),
            flag(63, "suppress_ve", "used with ept_violation_ve"),
        ),
        "EPT page-directory entry that maps a 2-MByte page",
        'SDM, "EPT Translation Mechanism"',
    ),
    Layout(
        "pte",
        64,
        (
            flag(0, "read", "read allowed"),
            flag(1, "write", "write allowed"),
            flag(
                2, "execute", "execute allowed (by supervisor-mode linear addresses only, with MBE)"
            ),
            BitRange(5, 3, "memory_type", "memory type of the page", MEMORY_TYPE),
            flag(6, "ignore_pat", "PAT memory type is ignored"),
            flag(7, "ignored", "ignored in a PTE"),
            flag(8, "accessed", "accessed, if EPTP[6] is 1"),
            flag(9, "dirty", "dirty, if EPTP[6] is 1"),
            flag(10, "user_execute", "user-mode execute with MBE, else ignored"),
            flag(11, "ignored", "ignored"),
            BitRange(51, 12, "address", "page frame; bits at or above MAXPHYADDR must be 0"),
            BitRange(56, 52, "ignored", "ignored"),
            flag(57, "verify_guest_paging", "used with guest_paging_verification"),
            flag(58, "paging_write", "used with ept_paging_write_control"),
            flag(59, "ignored", "ignored"),
            flag(60, "supervisor_shadow_stack", "used if EPTP[7]"),
            flag(61, "sub_page_write", "used with sub_page_write_permissions_for_ept"),
            flag(62, "ignored", "ignored"),
            flag(63, "suppress_ve", "used with ept_violation_ve"),
        ),
        "EPT page-table entry that maps a 4-KByte page",
        'SDM, "EPT Translation Mechanism"',
    ),
)

#: What makes a present entry misconfigured (SDM, "EPT Misconfigurations").
MISCONFIGURATIONS: Final = (
    "bit 0 = 0 and bit 1 = 1",
    "bit 0 = 0 and bit 2 = 1 without execute-only support (IA32_VMX_EPT_VPID_CAP[0])",
    "bit 0 = 0, MBE on, bit 10 = 1 without execute-only support",
    "leaf with bit 0 = 0 and bit 58 = 1 when ept_paging_write_control is 1",
    (
        "any reserved bit set (page-size bit without 2 MB / 1 GB support counts, as do address "
        "bits at or above MAXPHYADDR)"
    ),
    "leaf memory type 2, 3 or 7",
)

#: What makes an access violate EPT (SDM, "EPT Violations").
VIOLATIONS: Final = (
    "not-present entry",
    "4-level EPT and GPA bits 51:48 nonzero",
    "data read: bit 0 clear in any entry used (guest paging-structure reads are data reads)",
    (
        "data write: bit 1 clear in any entry used, unless paging write with leaf bit 58, or "
        "sub-page permission"
    ),
    (
        "fetch: bit 2 clear (MBE: bit 2 for supervisor-mode, bit 10 for user-mode linear "
        "addresses) in any entry used"
    ),
    (
        "EPTP[7]: supervisor shadow-stack access needs bit 0 in all, bit 1 in all non-leaf, bit 60 "
        "in the leaf"
    ),
    (
        "guest-paging verification (bit 57 in the EPT leaf of the guest leaf entry GPA): bit 58 "
        "must be set in the EPT leaf of every guest paging entry used"
    ),
)
