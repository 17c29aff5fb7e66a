"""Replaying corpora of verdicts: what another implementation did, and what this one does.

See ``docs/verify.md`` for what is compared and what is not. One module per format
(:mod:`~vtx.hypervisor.verify.entry` ...), one that reads (:mod:`~vtx.hypervisor.verify.corpus`),
one that names the known deviations (:mod:`~vtx.hypervisor.verify.deviations`).
"""

from vtx.hypervisor.verify.verification import Verification, verify

__all__ = ["Verification", "verify"]
