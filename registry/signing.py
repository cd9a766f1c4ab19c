"""Keys, signatures, and what they bind.

A release's folder is signed with OpenSSF model-signing: SHA-256 of every file, in a DSSE envelope
signed by an ECDSA key on the curve P-256. The signature leaves out itself and
`registered_model_meta`, which MLflow writes into a folder that it downloads, and nothing else.

In embedded mode the key pair is made on the first promotion. A team mounts its own: the private
key where promotions run, the public keys wherever releases are verified. They are a list, so that
a new key begins to sign while releases of the old one still verify.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mlops.errors import MlopsError, UsageError
from mlops.key_files import make_signing_key, write_whole
from mlops.machine_lock import machine_lock
from mlops.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

SIGNATURE: Final = "model.sig"
UNSIGNED: Final = (SIGNATURE, "registered_model_meta")
_KEY_WAIT_S: Final = 10.0
_MAX_SIGNATURE: Final = 1 << 20  # bytes; ours take about 2,000


class UnverifiedError(MlopsError):
    """A release is not what was signed, and is not loaded; exit code 3."""

    exit_code: ClassVar[int] = 3


def ensure_signing_key(settings: Settings) -> Path:
    """Returns the private key that signs; in embedded mode makes the pair when there is none.

    Killed in between, this leaves a private key without its public half, which the next call
    derives from it.

    Raises:
        MlopsError: the key is gone and its public half is not.
        UsageError: there is no key and none may be made, or what it signs would not verify with
            the public keys of the settings.
    """
    return _checked(_find_private(settings), settings)


def get_signing_key(settings: Settings) -> Path:
    """Returns the private key that signs; makes none.

    Raises:
        UsageError: there is none here, or what it signs would not verify with the public keys of
            the settings.
    """
    private = settings.signing_key
    if not private.is_file():
        raise UsageError(
            f"there is no signing key at {str(private)!r}: who moves an alias signs the move, and "
            "a server goes back to an older release only on such a signature. Set "
            "MLOPS_SIGNING_KEY to yours."
        )
    return _checked(private, settings)


def _checked(private: Path, settings: Settings) -> Path:
    if public_half(private) not in map(_read_public, settings.public_keys):
        raise UsageError(
            f"the public half of the signing key {str(private)!r} is none of MLOPS_PUBLIC_KEYS: "
            "what it signs would not verify here. Add it to them."
        )
    return private


def _find_private(settings: Settings) -> Path:
    private = settings.signing_key
    public = settings.home / "keys" / "public.pem"
    is_own = settings.embedded and private == settings.home / "keys" / "signing.pem"
    if not is_own:
        if not private.is_file():
            raise UsageError(
                f"there is no signing key at {str(private)!r}; expected an EC P-256 private key in "
                "PEM. Set MLOPS_SIGNING_KEY to yours."
            )
        return private
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with machine_lock(f"keys of {private}", wait_s=_KEY_WAIT_S):
        if not private.is_file():
            if public.is_file():
                raise MlopsError(
                    f"the signing key {str(private)!r} is gone, and its public half is there: a "
                    f"new pair would leave the releases that it signed unverified. Put the key "
                    f"back, or move {str(public)!r} away and name both public keys in "
                    "MLOPS_PUBLIC_KEYS."
                )
            write_whole(private, make_signing_key(), 0o600)
        if not public.is_file():
            write_whole(public, public_half(private), 0o644)
    return private


def public_half(private: Path) -> bytes:
    """Returns the public key of a private one, in PEM.

    Raises:
        UsageError: the file is no EC P-256 private key without a password.
    """
    return _public_pem(_read_private(private).public_key())


def _read_private(private: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key: Any = serialization.load_pem_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as err:
        key = err
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
        raise UsageError(
            f"the signing key {str(private)!r} cannot be used; expected an EC P-256 private key in "
            "PEM, without a password. Set MLOPS_SIGNING_KEY to one."
        )
    return key


def _public_pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(public_pem: bytes) -> str:
    """Returns the 16 hex digits that name a public key: of the SHA-256 of its PEM."""
    return hashlib.sha256(public_pem.strip()).hexdigest()[:16]


def sign(folder: Path, private: Path) -> None:
    """Writes `model.sig` into a folder; every file that is there by then is bound by it.

    Raises:
        UsageError: the key cannot be used.
    """
    public_half(private)
    from model_signing import signing

    config = signing.Config().use_elliptic_key_signer(private_key=private)
    config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)


def sign_bytes(content: bytes, private: Path) -> bytes:
    """Returns a detached signature: ECDSA on P-256 over SHA-256, and the key's id, as JSON.

    Raises:
        UsageError: the key cannot be used.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _read_private(private)
    signature = base64.b64encode(key.sign(content, ec.ECDSA(hashes.SHA256()))).decode()
    named = {"key": key_id(_public_pem(key.public_key())), "signature": signature}
    return json.dumps(named, sort_keys=True).encode()


def verify_bytes(content: bytes, signature: bytes, keys: Sequence[Path]) -> bool:
    """Tells whether any of the public keys made a signature of `sign_bytes` over the content.

    Raises:
        UsageError: a key file is missing or holds no key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    known = {key_id(pem): pem for pem in map(_read_public, keys)}
    try:
        named = json.loads(signature)
        key: Any = serialization.load_pem_public_key(known[named["key"]])
        der = base64.b64decode(named["signature"], validate=True)
        key.verify(der, content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def verify(folder: Path, keys: Sequence[Path]) -> str:
    """Verifies a folder's signature with any of the public keys; returns the id of the one.

    Raises:
        UnverifiedError: it was signed by none of them, or a file was changed, added or removed.
        UsageError: a key file is missing or holds no key.
    """
    from model_signing import verifying

    signature = folder / SIGNATURE
    if not signature.is_file():
        raise UnverifiedError("it is not signed: model.sig is missing")
    if signature.stat().st_size > _MAX_SIGNATURE:
        raise UnverifiedError(f"model.sig is larger than {_MAX_SIGNATURE} bytes")
    wrong = ""
    for path in keys:
        pem = _read_public(path)
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=path)
            config.set_hashing_config(_hashing()).verify(folder, signature)
        except Exception as err:  # whatever the library meets in bytes of a stranger's
            wrong = wrong or _difference(str(err))
        else:
            return key_id(pem)
    if wrong:
        raise UnverifiedError(wrong)
    known = "the public key" if len(keys) == 1 else f"any of the {len(keys)} public keys"
    raise UnverifiedError(f"its signature is not valid under {known}")


def _difference(message: str) -> str:
    """Returns which files differ from what was signed; "" where it is the signature itself."""
    if not message.startswith("Signature mismatch"):
        return ""
    message = message.replace("\\", "")
    changed = re.findall(r"Hash mismatch for '([^']*)'", message)
    extra = re.findall(r"Extra files found in model '[^']*': ([^\"\]]*)", message)
    missing = re.findall(r"Missing files in model '[^']*': ([^\"\]]*)", message)
    parts = [
        *(f"{name} was changed" for name in changed),
        *(f"{names} was added" for names in extra),
        *(f"{names} is missing" for names in missing),
    ]
    return ("; ".join(parts) or "its files are not those that were signed") + " after it was signed"


def _read_public(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key: Any = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError as err:
        raise UsageError(
            f"there is no public key at {str(path)!r}. Nothing was promoted here yet, or "
            "MLOPS_PUBLIC_KEYS does not name where it lies."
        ) from err
    except (OSError, ValueError) as err:
        key = err
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(
            f"the public key {str(path)!r} cannot be used; expected an EC public key in PEM."
        )
    return _public_pem(key)


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)
