"""Writing a deployment's files: all or none, and never over what is not ours."""

from pathlib import Path

import pytest

from sensorium.cluster.deploy.output import write
from sensorium.cluster.errors import ClusterError

KNOWN = frozenset({"a.yaml", "b.yaml"})


def content(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in directory.iterdir()}


def test_the_directory_holds_what_was_written_last(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write(out, {"a.yaml": "1", "b.yaml": "2"}, KNOWN)
    assert content(out) == {"a.yaml": "1", "b.yaml": "2"}
    write(out, {"a.yaml": "3"}, KNOWN)
    assert content(out) == {"a.yaml": "3"}
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ClusterError, match=r"holds thesis\.txt, which no deployment has written"):
        write(tmp_path, {"a.yaml": "1"}, KNOWN)
    assert content(tmp_path) == {"thesis.txt": "years"}


def test_a_write_that_fails_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(out, {"a.yaml": "1"}, KNOWN)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if target == out and not path.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ClusterError, match="cannot be written: No space left on device"):
        write(out, {"a.yaml": "2", "b.yaml": "2"}, KNOWN)
    assert content(out) == {"a.yaml": "1"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ClusterError, match="out cannot be read: Not a directory"):
        write(tmp_path / "out", {"a.yaml": "1"}, KNOWN)
