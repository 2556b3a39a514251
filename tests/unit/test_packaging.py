"""What is shipped: one top-level name, all rooms behind their links, and the public names."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import sensorium

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "storage", "ingest", "serve", "cluster", "edge")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built with the build requirements that are installed: no network."""
    out = tmp_path_factory.mktemp("wheel")
    # From a copy of what git would ship, so that a build leaves no trace in the checkout.
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(bytes.decode, files)):
        original, copy = ROOT / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            copy.symlink_to(original.readlink())
        elif original.is_file():
            copy.write_bytes(original.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sensorium"}


def test_the_wheel_holds_every_module_and_what_goes_with_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for room in ROOMS:
        modules = {f"sensorium/{p.relative_to(ROOT)}" for p in (ROOT / room).rglob("*.py")}
        assert modules <= names, sorted(modules - names)
    migrations = {f"sensorium/{p.relative_to(ROOT)}" for p in ROOT.glob("storage/migrations/*.sql")}
    assert migrations
    assert migrations <= names
    assert "sensorium/serve/explorer.html" in names
    assert "sensorium/py.typed" in names
    assert not [name for name in names if "test_" in name or name.endswith(".pyc")]


def test_the_wheel_holds_the_compiled_modules(wheel: zipfile.ZipFile) -> None:
    if shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no compiler")
    names = set(wheel.namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sources = list(ROOT.glob("*/_*.c"))
    assert sources
    for source in sources:
        assert f"sensorium/{source.parent.name}/{source.stem}{suffix}" in names


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "sensorium = sensorium.cluster.cli:main" in wheel.read(entry).decode()


def test_rooms_are_linked_not_copied() -> None:
    for room in ROOMS:
        assert (ROOT / "src" / "sensorium" / room).readlink() == Path("../..") / room


def test_the_public_names() -> None:
    assert sensorium.__all__ == ["Fleet", "connect"]
    with pytest.raises(AttributeError, match="'Manager'"):
        sensorium.Manager  # type: ignore[attr-defined]  # noqa: B018


def test_the_core_is_importable_without_ray() -> None:
    # In a process of its own: other tests may have imported Ray here.
    code = "import sys, sensorium.actors.device; sys.exit(bool({'ray', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_lock_pins_by_hash_and_names_no_address() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pinned)
