"""VMCSs that somebody wrote down: YAML or JSON, one or several in a file.

::

    fields:
      guest_rip: 0x8000            # by name, the manual's or KVM's ...
      0x681c: 0x7000               # ... or by encoding
    unlisted: 0                    # other fields are 0; without this line they are unknown
    memory:
      0x1000: "04 00 00 00"        # physical memory, as far as a check looks at it
    profile: skylake_sp            # or maxphyaddr: and linear_bits:

Several stand one after the other, with ``---`` between them; a JSON file holds such an object, a
list of them, or one on each line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from vtx.errors import InputError
from vtx.facts.fields import ACCESS_HIGH, FIELDS, Field, find_encoding, mask
from vtx.facts.kernel_names import KERNEL_NAMES
from vtx.hypervisor.dumps.model import Dump, Verdict
from vtx.profiles.document import Item, parse_document

__all__ = ["looks_like_document", "read_document"]

_KEYS = (
    "schema", "name", "fields", "unlisted", "memory", "profile", "maxphyaddr", "linear_bits",
)  # fmt: skip
_YAML = re.compile(r"(?:\A|\n)(?:fields\s*:\s*(?:#[^\n]*)?(?:\n|\{|\Z)|- fields\s*:)")
_SEPARATOR = re.compile(r"^---[ \t]*(?:#.*)?$", re.MULTILINE)
_CONTENT = re.compile(r"^[ \t]*[^\s#]", re.MULTILINE)
#: A document that is nothing but fields with plain numbers needs no YAML reader.
_PLAIN_HEAD = re.compile(
    r"\A(?:\s*#[^\n]*\n|\s*\n)*(?:schema:\s*1\s*\n)?(?:name:\s*(?P<name>[\w .-]*?)\s*\n)?"
    r"fields:[ \t]*\n(?= )"
)
#: One field of such a document, and how many different ones are remembered.
_PLAIN_LINE = re.compile(r" +(\S+): +(\S+) *", re.ASCII)
_MOST_LINES = 1 << 16
_PLAIN_TAIL = "\nunlisted: 0\n"
_MOST_MEMORY = 1 << 20


def looks_like_document(text: str) -> bool:
    """Tell whether a text is a VMCS in YAML or JSON rather than a log."""
    if "fields" not in text:
        return False
    start = text.lstrip("\ufeff \t\r\n")[:1]
    return (start in ("{", "[") and '"fields"' in text) or bool(_YAML.search(text))


def read_document(text: str, file: str | None = None) -> list[Dump]:
    """Return the VMCSs of a YAML or JSON text, in order.

    Raises
    ------
    InputError
        It is malformed, or names what does not exist; with the line.
    """
    name = file or "<input>"
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        return [_from_item(item) for item in _json_items(text, name)]
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    dumps: list[Dump] = []
    for line, part in _documents(text):
        if (dump := _from_plain(part, line)) is not None:
            dumps.append(dump)
            continue
        item = parse_document("\n" * (line - 1) + part, name, "VMCS")
        entries = item.value if isinstance(item.value, list) else [item]
        dumps.extend(map(_from_item, entries))
    return dumps


def _documents(text: str) -> Iterator[tuple[int, str]]:
    """Return the documents of a YAML stream, each with the line it begins on."""
    start, line = 0, 1
    for match in [*_SEPARATOR.finditer(text), None]:
        end = match.start() if match else len(text)
        part = text[start:end]
        if _CONTENT.search(part):
            yield line, part if part.endswith("\n") else part + "\n"
        line += part.count("\n")
        start = match.end() if match else end


def _json_items(text: str, file: str) -> Iterator[Item]:
    """Return the objects of a JSON text: one, a list of them, or one a line."""
    rows: list[tuple[int, str]] = [(1, text)]
    try:
        values = [(1, json.loads(text))]
    except json.JSONDecodeError as whole:
        rows = [(n, row) for n, row in enumerate(text.split("\n"), 1) if row.strip()]
        values = []
        for number, row in rows:
            try:
                values.append((number, json.loads(row)))
            except json.JSONDecodeError as error:
                first = error if len(rows) > 1 and values else whole
                line = number if first is error else first.lineno
                message = f"not JSON: {first.msg}"
                raise InputError(message, file=file, line=line, column=first.colno) from None
    for number, value in values:
        for entry in value if isinstance(value, list) else [value]:
            yield _as_item(entry, file, number)


def _as_item(value: Any, file: str, line: int) -> Item:
    if isinstance(value, dict):
        value = {str(key): _as_item(entry, file, line) for key, entry in value.items()}
    elif isinstance(value, list):
        value = [_as_item(entry, file, line) for entry in value]
    return Item(value, file, line, 1)


@lru_cache(maxsize=1024)
def _field(name: str) -> tuple[Field, int]:
    """Return the field of a name or encoding, and the mask of its values."""
    known = KERNEL_NAMES.get(name.lower())
    encoding = find_encoding(name) if known is None else known
    if encoding & ACCESS_HIGH:
        raise InputError(f"{name} is half a field", hint="give the value of the whole field")
    return Field(encoding), mask(encoding)


class _Lines(dict[str, tuple[Field, int]]):
    """Field and value of lines ``  name: number``, which many alike VMCSs have in common.

    Asking for a line that is not one of those raises ValueError.
    """

    def __missing__(self, line: str) -> tuple[Field, int]:
        match = _PLAIN_LINE.fullmatch(line)
        if match is None:
            raise ValueError(line)
        try:
            field, most = _field(match[1])
        except InputError:
            raise ValueError(line) from None
        value = int(match[2], 0)
        if not 0 <= value <= most:
            raise ValueError(line)
        if len(self) >= _MOST_LINES:
            self.clear()
        self[line] = field, value
        return field, value


_lines = _Lines()


def _from_plain(text: str, line: int) -> Dump | None:
    """Return the dump of a document of plain numbers; None if it is another one, or wrong.

    What is wrong is read again, with places for the message.
    """
    head = _PLAIN_HEAD.match(text)
    if head is None or not text.isascii():
        return None
    zero = text.endswith(_PLAIN_TAIL)
    rows = text[head.end() : -len(_PLAIN_TAIL) if zero else -1].split("\n")
    try:
        values = dict(map(_lines.__getitem__, rows))
    except ValueError:
        return None
    if len(values) != len(rows):  # a field stands twice
        return None
    return _completed(Dump("yaml", head["name"] or "", line, line, values), zero)


def _number(item: Item, what: str, high: int) -> int:
    """Return a number, also if it is quoted: JSON has no hexadecimal ones."""
    if isinstance(item.value, str):
        try:
            item = Item(int(item.value, 0), item.file, item.line, item.column)
        except ValueError:
            raise item.error(f"{what} must be a number, not {item.value!r}") from None
    return item.integer(what, 0, high)


def _from_item(item: Item) -> Dump:
    """Return the dump that one mapping describes."""
    entries = item.mapping("the VMCS", _KEYS)
    if "fields" not in entries:
        raise item.error("a VMCS needs 'fields:'")
    dump = Dump("yaml", "", item.line, item.line)
    if "schema" in entries and entries["schema"].value != 1:
        raise entries["schema"].error("this vtx reads VMCSs of schema 1")
    if "name" in entries:
        dump.label = entries["name"].text("name")
    for name, value in entries["fields"].entries("fields").items():
        _set_field(dump, name, value)
    if "memory" in entries:
        _set_memory(dump, entries["memory"])
    _set_cpu(dump, entries)
    return _completed(dump, _unlisted_are_0(entries.get("unlisted")))


def _set_cpu(dump: Dump, entries: dict[str, Item]) -> None:
    """Take over what the document says of the CPU."""
    if "profile" in entries:
        dump.profile = entries["profile"].text("profile")
    if "maxphyaddr" in entries:
        dump.maxphyaddr = entries["maxphyaddr"].integer("maxphyaddr", 32, 52)
    if "linear_bits" in entries:
        bits = entries["linear_bits"]
        dump.linear_bits = bits.integer("linear_bits", 32, 57)
        if dump.linear_bits not in (32, 48, 57):
            raise bits.error("linear_bits is 48 or 57, or 32 without Intel 64")


def _unlisted_are_0(item: Item | None) -> bool:
    if item is None or item.value == "unknown":
        return False
    if isinstance(item.value, bool) or item.value != 0:
        raise item.error("unlisted is 0 or unknown")
    return True


def _set_field(dump: Dump, name: str, item: Item) -> None:
    try:
        field, values = _field(name)
    except InputError as error:
        raise error.at(item.file, item.line, item.column) from None
    if field in dump.values:
        raise item.error(f"{FIELDS[field].name} stands twice")
    dump.values[field] = _number(item, name, values)
    dump.lines[field] = item.line


def _set_memory(dump: Dump, item: Item) -> None:
    for name, content in item.entries("memory").items():
        try:
            address = int(name, 0)
            data = bytes.fromhex(content.text("memory"))
        except ValueError:
            raise content.error(
                "memory is given as address: bytes in hexadecimal", hint='0x1000: "04 00 00 00"'
            ) from None
        if not 0 <= address < 1 << 52 or len(data) > _MOST_MEMORY:
            raise content.error(f"there is no physical memory at {name}")
        dump.memory[address] = data


def _completed(dump: Dump, zero: bool) -> Dump:
    """Give a dump the fields that are 0 unless listed, and its verdict if it shows one."""
    reason = dump.values.get(Field.EXIT_REASON, 0)
    error = dump.values.get(Field.VM_INSTRUCTION_ERROR, 0)
    if reason >> 31:
        dump.verdict = Verdict.of_exit(reason, dump.values.get(Field.EXIT_QUALIFICATION))
    elif not reason and error:
        dump.verdict = Verdict("vmfail_valid", error)
    if zero:
        dump.values = dict.fromkeys(FIELDS, 0) | dump.values
    return dump
