"""The extension that cffi builds from csrc/vtx_api.h; only vtx.machine.memory and .mmu use it."""

from typing import Any

ffi: Any
lib: Any
