"""Writes the files of a deployment: all of them, or none."""

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from sensorium.cluster.errors import ClusterError


def write(directory: Path, files: Mapping[str, str], known: Collection[str]) -> None:
    """Make the directory hold exactly these files. Whoever looks sees the old ones or the new ones.

    Args:
        known: names that an earlier deployment may have left there; anything else there is not ours.

    Raises:
        ClusterError: the directory holds something else, or cannot be written.
    """
    try:
        strange = sorted(entry.name for entry in directory.iterdir() if entry.name not in known)
    except FileNotFoundError:
        strange = []
    except OSError as error:
        raise ClusterError(f"{directory} cannot be read: {error.strerror}") from error
    if strange:
        raise ClusterError(
            f"{directory} holds {strange[0]}, which no deployment has written; choose another --output"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            _fill(fresh, files)
            _exchange(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise ClusterError(f"{directory} cannot be written: {error.strerror}") from error


def _fill(directory: Path, files: Mapping[str, str]) -> None:
    directory.chmod(0o755)
    for name, text in files.items():
        with (directory / name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _exchange(fresh: Path, directory: Path) -> None:
    """Put `fresh` where `directory` is, and what was there where `fresh` was."""
    if not directory.exists():
        fresh.rename(directory)
        return
    old = fresh.with_name(f"{fresh.name}.old")
    directory.rename(old)
    try:
        fresh.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old)
