"""The file of keys for DTLS: what it may say, and that it is read again."""

import importlib.util
import os
from pathlib import Path

import pytest

from sensorium.ingest.dtls_keys import DeviceKeys, check_dtls
from sensorium.ingest.errors import InvalidContext

KEY, OTHER = bytes(range(16)), bytes(range(32))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_keys_by_device(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", "# ours", "", f"d1:{KEY.hex()}", f"urn:dev:2:{OTHER.hex().upper()}")
    keys = DeviceKeys(path)
    assert dict(keys) == {"d1": KEY, "urn:dev:2": OTHER}
    assert "d1" in keys
    assert "d2" not in keys
    with pytest.raises(KeyError):
        keys["d2"]
    assert keys.asked == "d2"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("d1", "device id, a colon"),
        (f"a/b:{KEY.hex()}", "device id, a colon"),
        (f":{KEY.hex()}", "device id, a colon"),
        ("d1:secret", "not in hex"),
        (f"d1:{KEY[:8].hex()}", "8 bytes"),
        (f"d1:{(OTHER + KEY).hex()}", "48 bytes"),
        (f"d1:{KEY.hex()}\nd1:{OTHER.hex()}", "has a key already"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InvalidContext, match=says) as raised:
        DeviceKeys(write(tmp_path / "keys", f"d0:{KEY.hex()}", line))
    assert "line 2" in str(raised.value) or "line 3" in str(raised.value)
    assert KEY.hex() not in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidContext, match="No such file"):
        DeviceKeys(tmp_path / "keys")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidContext, match="UTF-8"):
        DeviceKeys(tmp_path / "binary")


def test_it_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", f"same:{KEY.hex()}", f"other:{KEY.hex()}", f"gone:{KEY.hex()}")
    keys = DeviceKeys(path)
    assert keys.refresh() == set()
    write(path, f"same:{KEY.hex()}", f"other:{OTHER.hex()}", f"new:{KEY.hex()}")
    os.utime(path, ns=(1, 1))
    assert keys.refresh() == {"other", "gone"}
    assert list(keys) == ["same", "other", "new"]
    path.unlink()
    with pytest.raises(InvalidContext):
        keys.refresh()
    assert len(keys) == 3


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "keys", f"d1:{KEY.hex()}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidContext, match=r"pip install 'sensorium\[dtls\]'"):
        check_dtls(path)
