"""The command line as a shell sees it: exit codes and one line on stderr."""

import subprocess
import sys
from pathlib import Path

import pytest
from shell import sensorium


def test_version() -> None:
    command = Path(sys.executable).with_name("sensorium")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "sensorium 0.1.0\n")


def test_every_command_explains_itself() -> None:
    done = sensorium("--help")
    for command in ("up", "down", "status", "simulate", "replay", "deploy", "projections", "bench"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("status", "--data-dir", "/nowhere"), 1, "sensorium: no platform runs on /nowhere"),
        (("bench", "nothing"), 2, "sensorium: no benchmark 'nothing'"),
        (("simulate", "--speed", "60"), 2, "sensorium: --speed above 1 needs --duration"),
        (("simulate", "--mqtt-url", "http://u:hunter2@h"), 2, "sensorium: --mqtt-url: "),
        (("simulate", "--devices", "0"), 2, "Invalid value for '--devices'"),
        (("replay", __file__, "--device", "d"), 2, "sensorium: name the metric"),
        (
            ("replay", __file__, "--device", "d", "--metric", "m", "--delimiter", "xx"),
            2,
            "--delimiter is one",
        ),
        (("replay", __file__, "--device", "d", "--metric", "m"), 1, ":1: no column 'timestamp'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = sensorium(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
    assert done.stdout == ""


def test_a_bad_configuration_stops_up_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("mqtt:\n  prot: 1\n")
    done = sensorium("up", "--config", str(file), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert done.stderr == f"sensorium: {file}:2: mqtt.prot: unknown key; did you mean mqtt.port?\n"
    assert not (tmp_path / "data").exists()
    done = sensorium("up", "--data-dir", str(tmp_path / "data"), KAFKA_BROKERS="k:nine")
    assert done.returncode == 2
    assert done.stderr.startswith("sensorium: KAFKA_BROKERS: ")


def test_down_where_nothing_runs_is_fine(tmp_path: Path) -> None:
    done = sensorium("down", "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"no platform runs on {tmp_path}\n")
