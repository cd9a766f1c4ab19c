"""Certificates of reproduction: that a run was trained again, and what came of it.

Beside the run, among its artifacts, lie

    reproduction/<UTC time>.json   the certificate, canonical JSON
    reproduction/<UTC time>.sig    the signature over those bytes, by a release's signing key

`python -m experiments.reproduce` writes them, the signature where the host has such a key. Whoever
may sweep can write files and tags of a run, but not that signature. The certificate names the run
and the files of the model that were compared, so it vouches for no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from registry.signing import ensure_signing_key, get_signing_key, sign_bytes, verify_bytes

if TYPE_CHECKING:
    from mlops.settings import Settings
    from registry.catalog import Catalog

Verdict = Literal["identical", "differs"]

KIND: Final = "podium-reproduction"
"""Stands in each certificate, so that nothing else that a key signed passes for one."""
CERTIFICATE_FORMAT: Final = 1
BOUND_FILES: Final = ("MLmodel", "data/model.keras")
"""What decides the answers of a model folder; the structural check judges the rest."""

_MOST_BYTES: Final = 1 << 20
"""One takes about 3 KB; recorded tags may be long."""
_MOST_TRIES: Final = 100
_FILE: Final = re.compile(r"(\d{8}T\d{6}Z(?:-\d{1,3})?)\.json")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a reproduction found.

    Attributes:
        target: What the user named.
        run_id: The run that was trained again.
        dataset_fingerprint: Of the rows that both trained on.
        weights_recorded: SHA-256 of the weights as the run says; "" where it does not.
        weights_found: Of those that came out now.
        files: SHA-256 of each of `BOUND_FILES` of the run's model; empty where it has none.
        recorded: Recipe and environment of the run, by name.
        found: The same of the reproduction.
        differences: What differs in the result, a sentence each; none where it is identical.
        seconds: On the clock, of the whole reproduction.
        created_at: ISO 8601, UTC.
        actor: Who reproduced it, and who vouches for that name.
    """

    target: str
    run_id: str
    verdict: Verdict
    dataset_fingerprint: str
    weights_recorded: str
    weights_found: str
    files: dict[str, str]
    recorded: dict[str, str]
    found: dict[str, str]
    differences: tuple[str, ...]
    seconds: float
    created_at: str
    actor: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        written = {"kind": KIND, "format": CERTIFICATE_FORMAT}
        return {**written, **asdict(self), "differences": list(self.differences)}

    def to_bytes(self) -> bytes:
        """Returns canonical JSON: sorted keys, no spaces, ASCII. These bytes are signed."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Certificate:
        """Reads what `to_bytes` gave.

        Raises:
            ValueError: it is anything else.
        """
        try:
            value = json.loads(content)
            written = (value.pop("kind"), value.pop("format"))
            value["differences"] = tuple(value["differences"])
            certificate = cls(**value)
            is_same = certificate.to_bytes() == content
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
            raise ValueError("it is no certificate of a reproduction") from err
        sound = certificate.verdict in get_args(Verdict) and isinstance(certificate.files, dict)
        if written != (KIND, CERTIFICATE_FORMAT) or not is_same or not sound:
            raise ValueError("it is no certificate of a reproduction")
        return certificate


def find_certificate_key(settings: Settings) -> Path | None:
    """Returns the key that certificates are signed with; None where this host has none.

    An embedded home that has no key pair yet gets one, as by its first promotion.

    Raises:
        UsageError: there is one, and what it signs would not verify here.
    """
    private = settings.signing_key
    if private.is_file():
        return get_signing_key(settings)
    folder = settings.home / "keys"
    is_first = private == folder / "signing.pem" and not (folder / "public.pem").is_file()
    return ensure_signing_key(settings) if settings.embedded and is_first else None


def write_certificate(catalog: Catalog, certificate: Certificate, key: Path | None) -> str:
    """Lays a certificate beside its run and notes its verdict there; returns the file's path.

    The signature comes first: killed in between, this leaves one that signs nothing.

    Raises:
        MlopsError: it could not be written.
    """
    run_id = certificate.run_id
    taken = catalog.find_certificates(run_id, _MOST_BYTES)
    stem = _free_name(re.sub("[-:]", "", certificate.created_at), taken)
    content = certificate.to_bytes()
    if key is not None:
        catalog.write_certificate(run_id, f"{stem}.sig", sign_bytes(content, key))
    catalog.write_certificate(run_id, f"{stem}.json", content)
    catalog.note_reproduction(run_id, certificate.verdict)
    return f"reproduction/{stem}.json"


def _free_name(stem: str, taken: set[str]) -> str:
    stems = {Path(name).stem for name in taken}
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(name for name in names if name not in stems)


def find_certified(
    catalog: Catalog, run_id: str, files: Mapping[str, str], keys: Sequence[Path]
) -> str:
    """Returns the verdict of the newest certificate that verifies, or what there is instead.

    Args:
        run_id: Of the run that made a candidate.
        files: SHA-256 of each file of that candidate, as `hash_files` gives them.
        keys: Public keys; any of them will do.

    Raises:
        UsageError: a public key is missing.
        MlopsError: the registry does not answer, which says nothing of certificates.
    """
    names = catalog.find_certificates(run_id, _MOST_BYTES)
    stems = sorted((found[1] for name in names if (found := _FILE.fullmatch(name))), reverse=True)
    if not stems:
        return "not reproduced"
    bound = {name: files.get(name) for name in BOUND_FILES}
    others = "no certificate that verifies"
    for stem in (one for one in stems[:_MOST_TRIES] if f"{one}.sig" in names):
        content = catalog.read_certificate(run_id, f"{stem}.json")
        if not verify_bytes(content, catalog.read_certificate(run_id, f"{stem}.sig"), keys):
            continue
        try:
            certificate = Certificate.from_bytes(content)
        except ValueError:
            continue
        if (certificate.run_id, certificate.files) == (run_id, bound):
            return certificate.verdict
        others = "a certificate of other bytes"
    return others
