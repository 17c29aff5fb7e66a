"""How the documentation site is built: ``sphinx-build -W docs build/site``.

Pages that are made of vtx's own tables, and pictures that vtx draws, are written into
``docs/generated`` before the build; nothing there is kept under version control.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vtx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "tools"))

import generate  # noqa: E402 - beside this file

generate.write_all(HERE / "generated")

project = "vtx"
author = "the vtx authors"
copyright = "the vtx authors, Apache-2.0"
release = vtx.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["course/solutions", "course/*/exercise.py", "tools", "schemas"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks are run by the build; a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
html_theme = "furo"
html_title = "vtx: the VT-x machine"
html_extra_path = ["schemas"]
# Code in pages is coloured where a lexer knows it; trace listings and tables have none.
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]
