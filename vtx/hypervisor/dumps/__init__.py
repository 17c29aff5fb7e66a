"""Reading VMCS dumps: what KVM, Xen and QEMU print, and VMCSs written in YAML."""

from __future__ import annotations

from vtx.errors import InputError
from vtx.hypervisor.dumps.model import Dump, MsrEntry, Unreadable, Verdict
from vtx.hypervisor.dumps.text import read_text

__all__ = ["Dump", "MsrEntry", "Unreadable", "Verdict", "read_dumps"]


def read_dumps(text: str, file: str | None = None) -> list[Dump]:
    """Return every VMCS in a text, in order.

    Parameters
    ----------
    text : str
        A log, a mail, or whatever else holds what ``dump_vmcs`` of KVM or ``vmcs_dump_vcpu`` of Xen
        printed; or one or more VMCSs in YAML or JSON.
    file : str, optional
        Where it comes from, for messages.

    Raises
    ------
    InputError
        There is no VMCS in it; or it is YAML, and wrong.
    """
    from vtx.hypervisor.dumps.document import looks_like_document, read_document

    if looks_like_document(text):
        return read_document(text, file)
    dumps, seen = read_text(text)
    if not dumps:
        raise InputError(
            "there is no VMCS in it",
            file=file,
            hint=(seen or "looked for")
            + " the lines of a KVM or Xen VMCS dump ('*** Guest State ***', 'CR0: actual=0x...', "
            "'VMEntry: intr_info=...'), and for YAML with 'fields:'",
        )
    return dumps
