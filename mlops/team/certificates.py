"""The certificates of the door: an authority of the team's own, and what it signs.

Both keys are EC P-256. The authority's certificate is what clients are given to trust; its key
stays where the secrets are made. What is signed is of the form that Python's strict checks (3.13)
and browsers ask for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from mlops.errors import UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS: Final = 3650
DOOR_DAYS: Final = 825
"""Longer ones are refused by some clients."""
SOON: Final = timedelta(days=30)
_EARLIER: Final = timedelta(hours=1)
"""By so much a client's clock may be behind."""


def make_authority() -> bytes:
    """Returns key and certificate of a new authority, in PEM, the key first."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Podium")])
    built = (
        _begin(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _pem(key, _sign(built, key))


def make_certificate(authority: bytes, hosts: Sequence[str], days: int = DOOR_DAYS) -> bytes:
    """Returns key and certificate of a server, in PEM, the certificate first, as HAProxy reads it.

    Args:
        authority: What `make_authority` gave.
        hosts: The names and addresses that clients reach it by; at least one.

    Raises:
        UsageError: a host is neither a name nor an address.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    signer = serialization.load_pem_private_key(authority, password=None)
    issuer = x509.load_pem_x509_certificate(authority)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Podium's door")])
    built = (
        _begin(name, issuer.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    signed = _sign(built, signer)
    return signed.public_bytes(serialization.Encoding.PEM) + _key_pem(key)


def certificate_of(pem: bytes) -> bytes:
    """Returns the certificate that stands beside a key, alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.PEM)


def why_renew(pem: bytes, hosts: Sequence[str]) -> str | None:
    """Returns why a server's certificate will not do any more; None where it will.

    Args:
        pem: What `make_certificate` gave.
        hosts: What clients reach the server by.
    """
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
    except ValueError:
        return "its file holds no certificate in PEM"
    ends_at = certificate.not_valid_after_utc
    if ends_at < datetime.now(UTC) + SOON:
        return f"it ends on {ends_at:%Y-%m-%d}"
    try:
        named = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "it names no host, since it has no subjectAltName"
    missing = [host for host in hosts if not _is_named(host, named)]
    return f"it does not name {', '.join(missing)}" if missing else None


def is_of_another(pem: bytes, authority: bytes) -> bool:
    """Tells whether a certificate is of an authority of ours, and not of this one.

    One of somebody else's authority is not, nor is what cannot be read.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except InvalidSignature:
        return True
    except (ValueError, TypeError):  # also where the issuer is called otherwise
        return False
    return False


def _is_named(host: str, named: x509.SubjectAlternativeName) -> bool:
    """Tells whether clients take a certificate for a host's (RFC 6125, 6.4)."""
    from cryptography import x509

    wanted = _host(host)
    if not isinstance(wanted, x509.DNSName):
        return wanted in list(named)
    names = {name.lower() for name in named.get_values_for_type(x509.DNSName)}
    parent = host.lower().partition(".")[2]  # a wildcard stands for one label, the left-most
    return bool({host.lower(), f"*.{parent}"} & names)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        if not host or "/" in host or ":" in host:
            raise ValueError(host)
        return x509.DNSName(host)
    except ValueError as err:
        raise UsageError(
            f"the door cannot be reached by {host!r}; expected a name as podium.example.org, or an "
            "address, without https:// and port."
        ) from err


def _sign(built: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return built.sign(key, hashes.SHA256())


def _pem(key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
