"""What stands around a dump: quotation marks, time stamps, log prefixes, the marks of mail.

A dump reaches us through dmesg, ``xl dmesg``, journald, ftrace, mail and web pages. Each puts
something in front of a line; none of it belongs to the VMCS. What is kept of it is what helps to
tell two dumps apart that are printed at the same time: the task that printed, and the time.
"""

from __future__ import annotations

import html
import quopri
import re
from typing import NamedTuple

__all__ = ["Line", "clean", "streams"]

_QUOTE = r"(?:[>|]\s?)+"
_SECONDS = r"\[\s*(?P<seconds>\d+\.\d+)(?:\s*,\s*\d+)?\]"
_TASK = r"\[\s*(?P<task>[TC]\d+)\]"
_ISO = (
    r"\d{4}-\d\d-\d\d[T ](?P<clock_iso>\d\d:\d\d:\d\d)(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?:?(?=\s|\Z)"
)
_SYSLOG = r"\w{3}\s+\d{1,2}\s+(?:\d{4}\s+)?(?P<clock_log>\d\d:\d\d:\d\d)(?:\.\d+)?(?=\s|\Z)"
_PROGRAM = r"(?:\S+\s+)?(?:kernel|xen|QEMU|qemu-\S+?|kvm|libvirtd)(?:\[\d+\])?:(?=\s|\Z)"
_XEN_STAMP = r"\[\d{4}-\d\d-\d\d[ T](?P<clock_xen>\d\d:\d\d:\d\d)(?:\.\d+)?\]"
_MODULE = r"kvm(?:_intel)?:(?=\s|\Z)"
# Prefixes, outermost first; they are taken off as long as one matches.
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        _QUOTE,
        r"<\d{1,3}>",  # priority of a raw kernel message
        r"(?:kern|user|daemon)\s*:\s*\w+\s*:\s*",  # dmesg -x
        _SECONDS,  # since boot
        _TASK,  # caller: task or CPU
        r"\[\w{3}\s+\w{3}\s+\d+\s+(?P<clock>\d\d:\d\d:\d\d)\s+\d{4}\]",  # dmesg -T
        r"\[(?:\w{3}\s?\d+\s+\d\d:\d\d|\s*\+\d+\.\d+)\]",  # dmesg -H
        _XEN_STAMP,  # console_timestamps
        r"\[[0-9a-fA-F]{8,16}(?::[0-9a-fA-F]+)?\]",  # Xen console_timestamps=raw
        r"\(XEN\)",
        _ISO,  # journalctl -o short-iso, dmesg --time-format iso
        _SYSLOG,
        _PROGRAM,  # host and program after such a time: "testhost kernel:", "host QEMU[2997]:"
        _MODULE,
        # ftrace: "CPU 0/KVM-251862 [019] 6384.132436: bprint:   dump_vmcs: "
        r"\S.{0,40}-\d+\s+\[\d+\]\s+(?:[\w.]{4,6}\s+)?(?P<ftrace>\d+\.\d+):\s+\w+:",
        r"(?:dump_vmcs|vmx_dump_\w+)(?:\.\w+)*:",
    )
)
#: The usual order of the usual ones, to be tried first: it nearly always takes off everything.
_USUAL = re.compile(
    rf"\s*(?P<quote>{_QUOTE})?\s*(?P<log>(?:(?:{_ISO}|{_SYSLOG})\s+{_PROGRAM}\s*)?(?:{_SECONDS}\s*)?"
    rf"(?:{_TASK}\s*)?(?:\(XEN\)\s*(?:{_XEN_STAMP}\s*)?)?(?:{_MODULE}\s*)?)"
)
_BLANK = " \t\u00a0\u2007\u202f\u3000"
_STAMPS = ("seconds", "ftrace")
_CLOCKS = ("clock", "clock_xen", "clock_iso", "clock_log")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SOFT_BREAK = re.compile(r"=[ \t]*\r?\n")


class Line(NamedTuple):
    """One line without its prefixes.

    Attributes
    ----------
    number : int
        Where it stood in the input, from 1.
    text : str
        What is left of it.
    bare : bool
        It had no prefix but quotation marks: it may continue the line before.
    source : str or None
        Who printed it, as far as the prefixes say: the task (``T123``) or CPU (``C4``), and the
        kind of time stamp; lines of two sources do not make up one dump.
    time : float or None
        Seconds, on the clock of that source.
    """

    number: int
    text: str
    bare: bool
    source: str | None
    time: float | None


def _decoded(text: str) -> str:
    """Undo what mail and web pages do to the characters of a dump."""
    if "=3D" in text and (_SOFT_BREAK.search(text) or "actual=3D" in text):
        raw = text.encode("utf-8", "surrogateescape")
        text = quopri.decodestring(raw).decode("utf-8", "replace")
    if "&gt;" in text or "&lt;" in text or "&nbsp;" in text:
        text = html.unescape(text)
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")


def _stamp(found: dict[str, str | None]) -> tuple[str, float] | None:
    """Return the kind of time stamp in a prefix and its time in seconds, if there is one."""
    for name in _STAMPS:
        if value := found.get(name):
            return name, float(value)
    for name in _CLOCKS:
        if value := found.get(name):
            hours, minutes, seconds = value.split(":")
            return name, int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return None


def _stripped(number: int, line: str) -> Line:
    """Take the prefixes off one line."""
    usual = _USUAL.match(line)
    assert usual is not None, "every part of the pattern is optional"
    bare = not usual["log"]
    task: str | None = None
    stamp: tuple[str, float] | None = None
    if not bare:
        seconds = usual["seconds"]
        stamp = ("seconds", float(seconds)) if seconds else _stamp(usual.groupdict())
        task = usual["task"]
    rest = line[usual.end() :]
    while rest and not _PLAIN.match(rest):
        match = next(filter(None, (prefix.match(rest) for prefix in _PREFIXES)), None)
        if match is None:
            break
        rest = rest[match.end() :].lstrip(_BLANK)
        bare = bare and match.re is _PREFIXES[0]
        found = match.groupdict()
        task = found.get("task") or task
        # The kernel's own stamp says more than that of the log it was copied to.
        stamp = _stamp(found) or stamp
    if bare:
        return Line(number, rest.strip(), True, None, None)
    kind, time = stamp or ("", None)
    return Line(number, rest.strip(), False, f"{task or ''}/{kind}", time)


#: What nothing but the text of a dump begins with.
_PLAIN = re.compile(
    r"\s*(?:[A-Za-z][\w -]*\(?\w*\)?\s*=|[A-Z]{2,4}\d?:\s"
    r"|\*\*\*|VM(?:Entry|Exit|CS)|IDTV|SVI\||MSR )"
)


def clean(text: str) -> list[Line]:
    """Split a text into lines without prefixes, in order; empty lines are left out."""
    lines: list[Line] = []
    prefix, like = "", None
    for number, line in enumerate(_decoded(text).split("\n"), 1):
        if not line:
            continue
        # Lines printed within one second often have the very same prefix.
        if like is not None and line.startswith(prefix) and _PLAIN.match(line, len(prefix)):
            rest = line[len(prefix) :].strip()
            lines.append(Line(number, rest, like.bare, like.source, like.time))
            continue
        like = _stripped(number, line)
        prefix = line[: line.find(like.text)]
        lines.append(like)
    return lines


def streams(lines: list[Line]) -> list[list[Line]]:
    """Separate lines by who printed them.

    Where dumps have prefixes, a line without one is the rest of the line before; where they have
    none, a line with a prefix is something else that was printed between theirs.
    """
    prefixed = [not line.text or _PLAIN.match(line.text) for line in lines if not line.bare]
    continues = 2 * sum(map(bool, prefixed)) >= len(prefixed)
    by_source: dict[str | None, list[Line]] = {}
    source: str | None = None
    for line in lines:
        source = line.source or (source if continues else None)
        by_source.setdefault(source, []).append(line)
    return list(by_source.values())
