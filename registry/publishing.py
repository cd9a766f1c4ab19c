"""Makes a release of a candidate: version, statement, signature, bytes, card.

The version is there before its bytes, since the statement names it. Killed at any step, the version
has no alias, nobody serves it, and the same promotion finds it by the candidate's name and goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlops.packaging import RELEASE_FILES
from mlops.program import say
from registry.alias import Registry
from registry.card import CardFacts, model_card
from registry.catalog import Candidate, Release, Source
from registry.failpoints import failpoint
from registry.gates import Decision
from registry.golden import write_golden
from registry.measuring import Findings
from registry.reference import write_reference
from registry.releases import (
    Statement,
    Verified,
    fetch_release,
    hash_files,
    write_statement,
)
from registry.signing import UnverifiedError, sign

TAG_CHARACTERS = 500


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What is to become a release.

    Attributes:
        source: The run that made it.
        folder: The candidate's private copy; what a release holds besides is written into it.
        previous: The version that holds the alias now; None if none does.
        champion: The version that is champion now, whether or not it could be compared with.
    """

    candidate: Candidate
    source: Source
    folder: Path
    findings: Findings
    decision: Decision
    previous: int | None
    champion: int | None


def publish(registry: Registry, draft: Draft, n_tries: int = 3) -> Verified:
    """Returns the draft's release, published, and verified as whoever serves it will do it.

    What was published is never written again. Where what lies in the store does not verify, or
    holds other bytes than the draft that was measured, the release is given up, and the candidate
    gets another.

    Args:
        n_tries: Releases that are made before this gives up itself.

    Raises:
        UnverifiedError: what was published did not verify, each time.
    """
    spec = draft.findings.evidence.candidate.spec
    dataset = (spec.dataset_name, spec.dataset_fingerprint)
    release = registry.catalog.open_release(draft.candidate, dataset, _tags(draft.decision))
    failpoint("release-version")
    measured = hash_files(draft.folder)
    if not registry.catalog.is_published(release):
        _sign(registry, release, draft)
        registry.catalog.publish(release, draft.folder)
        failpoint("published")
    try:
        verified = _fetch_again(registry, release, draft.folder)
        if not verified.holds(measured):
            raise UnverifiedError("it holds other bytes than its candidate does now")
    except UnverifiedError as err:
        registry.catalog.give_up(release)
        if n_tries < 2:
            raise
        say(f"{release.name} version {release.version} is given up: {err}.")
        for name in RELEASE_FILES:
            (draft.folder / name).unlink(missing_ok=True)
        return publish(registry, draft, n_tries - 1)
    _describe(registry, release, draft)
    failpoint("described")
    return verified


def _fetch_again(registry: Registry, release: Release, beside: Path) -> Verified:
    place = beside.with_name(f"published-{release.version}")
    place.mkdir()
    return fetch_release(registry.catalog, release, place, registry.settings.public_keys)


def _sign(registry: Registry, release: Release, draft: Draft) -> None:
    write_golden(draft.folder, draft.findings.golden)
    measured = draft.findings.evidence.candidate
    if measured.spec.task == "vae":
        write_reference(draft.folder, -measured.answers)
    write_statement(draft.folder, _statement(registry, release, draft))
    failpoint("statement")
    sign(draft.folder, registry.settings.signing_key)
    failpoint("signed")


def _statement(registry: Registry, release: Release, draft: Draft) -> Statement:
    evidence = draft.findings.evidence
    spec = evidence.candidate.spec
    return Statement(
        name=release.name,
        version=release.version,
        run_id=release.run_id,
        candidate=release.candidate,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        actor=asdict(registry.actor),
        dataset={"name": spec.dataset_name, "fingerprint": spec.dataset_fingerprint},
        gates=tuple(gate.to_json() for gate in draft.decision.gates),
        policy_sha256=registry.policy.sha256,
        commit=evidence.commit.sha,
        previous=draft.previous,
        ledger_head=registry.ledger.head(),
        files=hash_files(draft.folder),
    )


def _describe(registry: Registry, release: Release, draft: Draft) -> None:
    """Shows in MLflow what was measured: a card, and a metric for each score."""
    evidence = draft.findings.evidence
    facts = CardFacts(
        name=release.name,
        version=release.version,
        candidate_version=draft.candidate.version,
        experiment_id=draft.source.experiment_id,
        run_id=draft.source.run_id,
        previous=draft.previous,
        n_rows=draft.findings.n_rows,
    )
    scores = evidence.candidate.score.values
    registry.catalog.describe(
        release,
        model_card(evidence, draft.decision, facts),
        {f"test_{name}": value for name, value in scores.items()},
    )


def _tags(decision: Decision) -> dict[str, str]:
    return {
        f"mlops.gate.{gate.name}": f"{gate.verdict}: {gate.measured}"[:TAG_CHARACTERS]
        for gate in decision.gates
    }
