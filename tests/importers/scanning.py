"""The scanner as tests call it: text in, exits as dictionaries out."""

from __future__ import annotations

from typing import Any

import numpy as np

from vtx.machine.exit_scanner import ExitFlag, ExitScanner, exit_dtype

FIELDS = ("rip", "info1", "info2", "intr_info", "error_code", "tid", "vcpu", "cpu", "line")


def as_dict(record: Any, names: list[str]) -> dict[str, Any]:
    flags = int(record["flags"])
    found: dict[str, Any] = {key: int(record[key]) for key in FIELDS}
    for key in ("rip", "info1", "info2", "intr_info", "error_code"):
        if not flags & ExitFlag[key.upper()]:
            found[key] = None
    found["reason"] = names[int(record["reason"])]
    found["time_ns"] = int(record["time_ns"]) if flags & ExitFlag.TIME else None
    found["duration_ns"] = int(record["duration_ns"]) if flags & ExitFlag.DURATION else None
    found["detail"] = int(record["detail"]) if record["detail_kind"] else None
    found["value"] = int(record["value"])
    found["detail_size"] = int(record["detail_size"])
    found["vector"] = int(record["vector"]) if flags & ExitFlag.INJECTED else None
    userspace = int(record["userspace"])
    found["userspace"] = names[userspace - 1] if userspace else None
    found["repeats"] = int(record["repeats"])
    found["flags"] = flags
    return found


class Scan:
    """The outcome of scanning a text, given in pieces of some size."""

    def __init__(self, text: str | bytes, piece: int | None = None, room: int = 1000) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.scanner = ExitScanner()
        self.exits: list[dict[str, Any]] = []
        records = np.zeros(room, exit_dtype())
        pieces = [data[i : i + piece] for i in range(0, len(data), piece)] if piece else [data]
        rest = b""
        for index, part in enumerate([*pieces, b""]):
            final = index == len(pieces)
            buffer = bytearray(rest + part)
            while True:
                done, count = self.scanner.scan(buffer, len(buffer), records, final=final)
                self._take(records[:count])
                del buffer[:done]
                if not buffer or count < room:
                    break
            assert not (final and buffer)
            rest = bytes(buffer)
        while count := self.scanner.close(records):
            self._take(records[:count])
        self.counts = self.scanner.counts()
        self.skipped = self.scanner.skipped()
        self.events = self.scanner.events()
        assert self.counts["read"] == self.counts["used"] + sum(self.skipped.values())

    def _take(self, records: Any) -> None:
        self.exits += [as_dict(record, self.scanner.names) for record in records]
