"""The package as a whole: its public names, its version, its import time budget by modules."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import vtx


def test_every_public_name_loads_and_is_declared_for_type_checkers():
    tree = ast.parse(Path(vtx.__file__).read_text(encoding="utf-8"))
    declared = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {(home, name) for home, names in vtx._HOMES.items() for name in names}
    assert declared == homes
    for name in vtx.__all__:
        assert getattr(vtx, name) is not None
    assert set(vtx.__all__) <= set(dir(vtx))


def test_an_unknown_name_is_an_attribute_error():
    try:
        vtx.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("vtx.no_such_name exists")


def test_version_is_the_distribution_s():
    assert vtx.__version__ == version("vtx")


def test_import_vtx_loads_no_heavy_library():
    script = (
        "import sys, vtx; "
        "heavy = {'numpy', 'yaml', 'rich', 'matplotlib', 'cffi', 'vtx._core'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_only_the_lower_rooms_touch_the_c_core():
    root = Path(vtx.__file__).parent
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(_imports_core(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }
    assert users
    rooms = ("machine/", "streams/", "tlb/", "bench/")
    assert all(user.startswith(rooms) for user in users), users


def _imports_core(node):
    if isinstance(node, ast.Import):
        return any(alias.name == "vtx._core" for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module == "vtx._core" or (
            node.module == "vtx" and any(alias.name == "_core" for alias in node.names)
        )
    return False
