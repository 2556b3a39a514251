"""The C modules are where they should be, and can be done without. Twins are compared in their rooms."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("*/_*.c"))
MODULES = [f"sensorium.{source.parent.name}.{source.stem}" for source in SOURCES]


def can_compile() -> bool:
    return (
        any(map(shutil.which, ("cc", "gcc", "clang")))
        and Path(sysconfig.get_path("include"), "Python.h").exists()
    )


def is_installed_from_here() -> bool:
    """Whether `make install` installed this checkout, and not another one that only lends its packages."""
    try:
        origin = distribution("sensorium").read_text("direct_url.json")
    except PackageNotFoundError:
        return False
    return origin is not None and json.loads(origin)["url"] == ROOT.as_uri()


def run(code: str, pure: str) -> str:
    environment = os.environ | {"SENSORIUM_PURE": pure}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_there_are_c_modules() -> None:
    assert MODULES


@pytest.mark.parametrize("module", MODULES)
def test_make_install_compiled_it(module: str) -> None:
    if not is_installed_from_here() or not can_compile():
        pytest.skip("not installed from this checkout, or no compiler")
    assert run(f"import {module} as m; print(m.__file__)", pure="").endswith(".so"), "make install"


@pytest.mark.parametrize("module", MODULES)
def test_it_can_be_switched_off(module: str) -> None:
    code = f"try: import {module}\nexcept ImportError: print('off')"
    assert run(code, pure="1") == "off"


@pytest.mark.parametrize("module", MODULES)
def test_its_twin_has_the_same_names(module: str) -> None:
    native = pytest.importorskip(module, exc_type=ImportError)
    twin = importlib.import_module(f"{module}_py")
    for name in (name for name in vars(native) if not name.startswith("_")):
        assert hasattr(twin, name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_types_are_those_of_the_twin(source: Path) -> None:
    lines = source.with_suffix(".pyi").read_text().splitlines()
    room, name = source.parent.name, source.stem
    assert lines
    assert all(line.startswith(f"from sensorium.{room}.{name}_py import ") for line in lines)
