"""The extension that cffi builds from csrc/vtx_api.h.

vtx.machine, vtx.tlb and vtx.streams use it, and nothing else.
"""

from typing import Any

ffi: Any
lib: Any
