"""The certificate that a node makes for itself."""

import socket
import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from deploy_orders import authority

from sensorium.cluster.deploy import certificate, node
from sensorium.cluster.errors import ConfigError

MAKERS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def issued(folder: Path, key, *, ca: bool = True, days: int = 1) -> Path:
    """An authority of this key, in `folder`."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    folder.mkdir()
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    (folder / "ca.key").write_bytes(private)
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_it_names_the_machine_and_its_authority_vouches_for_it(tmp_path: Path, kind: str) -> None:
    source, made = issued(tmp_path / "a", MAKERS[kind]()), tmp_path / "tls"
    certificate.make(source, made, ["10.1.2.3", "head.plant"])
    found = x509.load_pem_x509_certificate((made / "tls.crt").read_bytes())
    found.verify_directly_issued_by(x509.load_pem_x509_certificate((made / "ca.crt").read_bytes()))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {ip_address("127.0.0.1"), ip_address("10.1.2.3")} <= set(names.get_values_for_type(x509.IPAddress))
    assert {"localhost", socket.gethostname(), "head.plant"} <= set(names.get_values_for_type(x509.DNSName))
    assert stat.S_IMODE((made / "tls.key").stat().st_mode) == 0o600
    ssl.create_default_context().load_cert_chain(made / "tls.crt", made / "tls.key")


def test_a_start_makes_it_anew(tmp_path: Path) -> None:
    source, made = issued(tmp_path / "a", MAKERS["P-256"]()), tmp_path / "tls"
    certificate.make(source, made)
    before = (made / "tls.crt").read_bytes()
    certificate.make(source, made)
    assert sorted(file.name for file in made.iterdir()) == sorted(certificate.FILES)
    assert (made / "tls.crt").read_bytes() != before


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("no certificate", "ca.crt: is no certificate in PEM"),
        ("no key", "ca.key: is no private key in PEM without a password"),
        ("another key", "ca.key: is not the key of "),
        ("no authority", "ca.crt: is the certificate of no authority"),
        ("over", "ca.crt: was valid until 20"),
        ("missing", "ca.key: is no private key"),
    ],
)
def test_an_authority_that_cannot_be_used_is_told(tmp_path: Path, spoilt: str, said: str) -> None:
    key = MAKERS["P-256"]()
    source = issued(tmp_path / "a", key, ca=spoilt != "no authority", days=-1 if spoilt == "over" else 1)
    if spoilt == "no certificate":
        (source / "ca.crt").write_text("no")
    elif spoilt == "no key":
        (source / "ca.key").write_text("no")
    elif spoilt == "another key":
        other = issued(tmp_path / "b", MAKERS["P-256"]())
        (other / "ca.key").rename(source / "ca.key")
    elif spoilt == "missing":
        (source / "ca.key").unlink()
    with pytest.raises(ConfigError) as caught:
        certificate.make(source, tmp_path / "tls")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tls").exists()
    with pytest.raises(SystemExit, match="sensorium: "):
        node.main(
            ["--name", "t", "--authority", str(source), "--certificate", str(tmp_path / "tls"), "--", "true"]
        )


def test_what_the_page_has_made_can_be_used(tmp_path: Path) -> None:
    certificate.authority(*authority(tmp_path))
