"""A measured host as a profile: what the figures say, and what they do not."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vtx.errors import InputError, NotSupported
from vtx.host.guest import MEMORY_BYTES, Figure, measure

__all__ = ["Host", "Measurement", "measure_host", "profile_text"]

_VT_X_VENDORS = ("GenuineIntel", "CentaurHauls", "  Shanghai  ")
#: Two RDTSCs in a row take some tens of ticks; more means that each of them exits.
_MOST_OVERHEAD = 500
_ENTRY_SHARE = 0.6


@dataclass(frozen=True)
class Host:
    """The machine: its name, the CPU's vendor and brand string, the kernel, the date."""

    name: str
    vendor: str
    brand: str
    kernel: str
    date: str

    @classmethod
    def this(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
        """Return this machine.

        Raises
        ------
        NotSupported
            It is no x86 machine.
        """
        if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
            raise NotSupported(f"this is a {platform.machine()} machine, not x86: nothing to time")
        try:
            text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        pairs = [line.partition(":") for line in text.splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
        return cls(
            name=platform.node() or "unnamed",
            vendor=facts.get("vendor_id", "unknown vendor"),
            brand=facts.get("model name", "unknown CPU"),
            kernel=f"{platform.system()} {platform.release()}",
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
        )


@dataclass(frozen=True)
class Measurement:
    """What was measured where."""

    host: Host
    tsc_khz: int
    figures: Mapping[str, Figure]

    @property
    def warnings(self) -> list[str]:
        """What spoils the figures, one sentence each."""
        found = []
        overhead = self.figures["nothing"].middle
        if overhead > _MOST_OVERHEAD:
            found.append(
                f"two RDTSCs alone take {overhead:,} ticks: RDTSC itself seems to cause VM exits "
                "(KVM within a virtual machine?), so the figures are not those of the CPU"
            )
        if self.host.vendor not in _VT_X_VENDORS:
            found.append(
                f"the CPU is of {self.host.vendor}, without VT-x: the figures are those of its own "
                "virtualization (AMD-V, say), and the shape is that of a CPU with VT-x"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and for the profile."""
        host = self.host
        return {
            "host": host.name,
            "cpu": host.brand,
            "vendor": host.vendor,
            "kernel": host.kernel,
            "date": host.date,
            "method": (
                "vtx profile measure: a 32-bit guest under KVM, RDTSC before and after one "
                "instruction, ticks of the TSC"
            ),
            "figures": {
                name: {
                    "what": figure.kind.what,
                    "repetitions": figure.repetitions,
                    "min": figure.least,
                    "median": figure.middle,
                    "p90": figure.p90,
                    "max": figure.most,
                }
                for name, figure in self.figures.items()
            },
            "warnings": self.warnings,
        }


def measure_host(repetitions: int, device: str = "/dev/kvm") -> Measurement:
    """Time VM exits on this machine.

    Raises
    ------
    NotSupported
        It cannot be done here; the message says why.
    """
    from contextlib import closing

    host = Host.this()
    if platform.system() != "Linux":
        raise NotSupported(f"{platform.system()} has no KVM; nothing can be timed here")
    from vtx.host.kvm import Kvm

    with closing(Kvm(MEMORY_BYTES, device)) as kvm:
        return Measurement(host, kvm.tsc_khz, measure(kvm, repetitions))


def profile_text(measurement: Measurement, parent: str, name: str) -> str:
    """Return the profile as YAML.

    The guest sees hardware and KVM together, and so do the prices: the round trip is that of a
    CPUID that KVM answers, and what lies within it is not charged again.

    Parameters
    ----------
    measurement : Measurement
        Of the host.
    parent : str
        Profile whose shape, TLB and walk prices are inherited.
    name : str
        The profile's id.

    Raises
    ------
    InputError
        The figures cannot be a profile.
    """
    import yaml

    host = measurement.host
    where = f"vtx profile measure on {host.name} ({host.vendor}), {host.date}, {host.kernel}"
    if measurement.warnings:
        where += "; doubtful: see the warnings under measurements"
    document = {
        "schema": 1,
        "inherits": parent,
        "id": name,
        "name": f"{host.brand} ({host.vendor}), measured under KVM",
        "microarchitecture": f"{host.brand}; shape of {parent}",
        "nominal_ghz": {
            "value": round(measurement.tsc_khz / 1e6, 6),
            "status": "measured",
            "source": f"frequency of the TSC as KVM tells it; {where}",
        },
        "measurements": measurement.as_dict(),
        "prices": _prices(measurement.figures, where),
    }
    head = "".join(f"# Warning: {warning}.\n" for warning in measurement.warnings)
    return head + yaml.safe_dump(document, sort_keys=False, width=96, allow_unicode=True)


def _prices(figures: Mapping[str, Figure], where: str) -> dict[str, dict[str, Any]]:
    cpuid, memory = figures["cpuid"], figures["memory"]
    both = cpuid.middle
    if both < 2:
        raise InputError("a CPUID takes no longer than nothing here: it causes no VM exit")
    entry = round(both * _ENTRY_SHARE)
    inside = {"cycles": 0, "status": "derived", "source": f"within the round trip; {where}"}
    extra = memory.middle - both
    return {
        "round_trip": {
            "cycles": both,
            "low": cpuid.least,
            "high": cpuid.p90,
            "status": "measured",
            "source": f"CPUID answered by KVM, hardware and KVM together, median of "
            f"{cpuid.repetitions}, TSC ticks (low: least, high: 90 % are below); {where}",
        },
        "entry": {
            "cycles": entry,
            "status": "estimated",
            "source": "60 % of the round trip, as on the CPUs where both were measured",
        },
        "exit": {
            "cycles": both - entry,
            "status": "estimated",
            "source": "round trip less entry",
        },
        "vmread": dict(inside),
        "vmwrite": dict(inside),
        "handler": dict(inside),
        "fault_exit_extra": {
            "cycles": max(0, extra),
            "status": "derived",
            "source": f"first write to a page ({memory.middle}) less CPUID ({both}), KVM's mapping "
            f"of the page included{'' if extra >= 0 else '; not below 0'}; {where}",
        },
    }
