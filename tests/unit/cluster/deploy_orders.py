"""Specifications to deploy from: the examples, with the files that they name beside them."""

import shutil
import subprocess
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"
BESIDE = {
    "requirements.lock": "",
    "requirements-aws.lock": "",
    "dist/sensorium-0.1.0-py3-none-any.whl": "",
    "auth_token": "0" * 64,
    "secrets.env": "# of the platform\nDEVICE_DB_URL=postgresql://u:p@db/log\nMQTT_BROKER_URL=mqtt://u:p@b\n",
}


def authority(folder: Path, name: str = "ca") -> tuple[Path, Path]:
    """A certificate authority in `folder`, as docs/deploy.md has it made: its certificate and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, "-nodes", "-subj", f"/CN={name}", *files],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return certificate, key


def example(folder: Path, name: str) -> Path:
    """The example in `folder/examples`, with what it needs around it."""
    (folder / "examples").mkdir(exist_ok=True)
    for file, text in BESIDE.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    return Path(shutil.copy(EXAMPLES / name, folder / "examples"))
