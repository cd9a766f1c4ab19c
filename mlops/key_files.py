"""Files that hold a secret, and the keys that sign releases: EC P-256, in PEM, without a password.

`registry.signing` signs and verifies with them; here they are only made, for a home and for a team.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_signing_key() -> bytes:
    """Returns a new private key, in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(private: bytes) -> bytes:
    """Returns the public half of a private key, both in PEM.

    Raises:
        ValueError: it is no private key without a password.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(private, password=None)
    except TypeError as err:  # it has a password
        raise ValueError("it is no private key without a password") from err
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def write_whole(path: Path, content: bytes, mode: int, *, replace: bool = True) -> bool:
    """Writes a file that is there whole or not at all, and never readable by more than `mode`.

    Args:
        replace: Whether one that is there already is replaced.

    Returns:
        Whether it was written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        partial.rename(path)
        return True
    try:
        path.hardlink_to(partial)  # unlike a rename, this takes no other's place
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True
