"""Describe the extension ``vtx._core`` to cffi (run by ``cffi-gen-src exec-python``).

The header is read verbatim, so that the compiler and Python see one declaration of every
structure: it therefore holds no preprocessor conditionals, includes or attributes.
"""

from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).with_name("vtx_api.h")

ffibuilder = FFI()
ffibuilder.cdef(HEADER.read_text(encoding="utf-8"))
ffibuilder.set_source("vtx._core", '#include "core.h"', py_limited_api=True)
