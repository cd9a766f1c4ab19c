"""One decision on one candidate, from its bytes to the alias. `promote.py` says when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlops.errors import MlopsError, StructureError, UsageError, refuse_model
from mlops.packaging import RELEASE_FILES, ModelSpec, check_model_folder
from registry.alias import Registry, move_alias
from registry.catalog import CHAMPION, Candidate, Release
from registry.failpoints import failpoint
from registry.gates import Decision, Gate, decide, refuse_answers, refuse_structure
from registry.ledger import Event
from registry.measuring import Findings, measure, read_commit
from registry.moves import count_decisions
from registry.probe import ModelFailedError
from registry.publishing import Draft, publish
from registry.releases import Verified, fetch_release
from registry.signing import UnverifiedError


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did.

    Attributes:
        version: Of `name`: the release that was promoted or proposed; else the one that holds the
            alias, None if none does.
        candidate_version: The candidate it decided on; None if there was nothing to decide.
        reason: Why, in one sentence without a full stop.
        notes: What a person must know besides; a sentence each.
    """

    decision: Literal["promoted", "rejected", "unchanged", "proposed"]
    name: str
    alias: str
    version: int | None
    candidate_version: int | None
    gates: tuple[Gate, ...]
    reason: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "decision": self.decision,
            "name": self.name,
            "alias": self.alias,
            "version": self.version,
            "candidate_version": self.candidate_version,
            "gates": [gate.to_json() for gate in self.gates],
            "reason": self.reason,
            "notes": list(self.notes),
        }


def choose_candidate(candidates: list[Candidate], version: int | None) -> Candidate | None:
    """Picks the candidate to decide on; None when nothing is left to decide.

    Args:
        candidates: Newest first.
        version: The one the user named, if any.

    Raises:
        UsageError: there is no such version.
    """
    if version is not None:
        for one in candidates:
            if one.version == version:
                return one
        versions = ", ".join(str(one.version) for one in candidates[:20])
        raise UsageError(
            f"{candidates[0].name}-candidates has no version {version}; expected one of {versions}."
        )
    newest = (candidates[0].dataset_fingerprint, candidates[0].objective)
    same = [one for one in candidates if (one.dataset_fingerprint, one.objective) == newest]
    to_beat = max((one.value for one in same if one.decision == "promoted"), default=None)
    open_ones = [
        one for one in same if one.decision is None and (to_beat is None or one.value > to_beat)
    ]
    return max(open_ones, key=lambda one: (one.value, -one.version), default=None)


@dataclass(frozen=True, slots=True)
class Deciding:
    """One decision on one candidate, while the lease of its name is held.

    Attributes:
        private: A folder of this process's own.
    """

    registry: Registry
    name: str
    alias: str
    propose: bool
    private: Path

    def decide_on(self, candidate: Candidate | None) -> tuple[Promotion, Event | None]:
        """Returns what was done, and the move if the alias moved."""
        catalog = self.registry.catalog
        holder = catalog.find_alias(self.name, self.alias)
        if candidate is None:
            reason = (
                "no candidate of the newest dataset and objective is better in validation than "
                "what was decided on"
            )
            return self._unchanged(holder, None, reason), None
        notes: list[str] = []
        is_its = holder is not None and holder.candidate == candidate.reference
        if holder is not None and is_its and self._fetch(holder, "holder", notes) is not None:
            # Also what a crash between the alias and the note left behind.
            self._note(candidate, "promoted", notes, holder)
            reason = f"candidate {candidate.version} holds {self.alias} already"
            return replace(self._unchanged(holder, candidate, reason), notes=tuple(notes)), None
        return self._measure(candidate, holder, notes)

    def _unchanged(
        self, holder: Release | None, candidate: Candidate | None, reason: str
    ) -> Promotion:
        version = None if holder is None else holder.version
        decided = None if candidate is None else candidate.version
        return Promotion("unchanged", self.name, self.alias, version, decided, (), reason)

    def _fetch(self, release: Release, place: str, notes: list[str]) -> Verified | None:
        """Returns a release if it verifies; else notes that it does not."""
        try:
            return fetch_release(
                self.registry.catalog,
                release,
                _new_folder(self.private / place),
                self.registry.settings.public_keys,
            )
        except UnverifiedError as err:
            notes.append(
                f"{self.name} version {release.version} does not verify, and is not compared "
                f"with: {err}."
            )
            return None

    def _measure(
        self, candidate: Candidate, holder: Release | None, notes: list[str]
    ) -> tuple[Promotion, Event | None]:

        registry = self.registry
        source = registry.catalog.read_source(candidate)
        folder = registry.catalog.download(candidate, _new_folder(self.private / "candidate"))
        try:
            spec = _check_candidate(folder)
        except StructureError as err:
            return self._reject(candidate, holder, refuse_structure(str(err)), notes), None
        failpoint("checked")
        champion = registry.catalog.find_alias(self.name, CHAMPION)
        rival = None if champion is None else self._fetch(champion, "champion", notes)
        try:
            found = measure(folder, spec, rival, candidate.metric, registry)
        except ModelFailedError as err:
            return self._reject(candidate, holder, refuse_answers(str(err)), notes), None
        failpoint("measured")
        n_decisions = count_decisions(registry.ledger.events(), spec.dataset_fingerprint)
        evidence = replace(
            found.evidence,
            n_decisions=n_decisions,
            commit=read_commit(source.tags),
            reproduced=source.tags.get("mlops.reproduced"),
        )
        decision = decide(evidence, registry.policy)
        notes.extend(found.notes)
        if decision.outcome == "rejected":
            return self._reject(candidate, holder, decision, notes, found), None
        previous = None if holder is None else holder.version
        findings = replace(found, evidence=evidence)
        draft = Draft(candidate, source, folder, findings, decision, previous)
        return self._release(draft, notes)

    def _reject(
        self,
        candidate: Candidate,
        holder: Release | None,
        decision: Decision,
        notes: list[str],
        found: Findings | None = None,
    ) -> Promotion:
        self.registry.ledger.append(
            "rejected",
            self.name,
            None,
            self.registry.actor,
            _decided(candidate, decision, found),
        )
        self._note(candidate, "rejected", notes)
        version = None if holder is None else holder.version
        return Promotion(
            "rejected",
            self.name,
            self.alias,
            version,
            candidate.version,
            decision.gates,
            decision.reason,
            tuple(notes),
        )

    def _release(self, draft: Draft, notes: list[str]) -> tuple[Promotion, Event | None]:

        registry, candidate = self.registry, draft.candidate
        verified = publish(registry, draft)
        release = registry.catalog.get_release(self.name, verified.statement.version)
        evidence = {
            **_decided(candidate, draft.decision, draft.findings),
            "statement_sha256": verified.statement_sha256,
            "key": verified.key,
            "policy_sha256": registry.policy.sha256,
        }
        score = draft.findings.evidence.candidate.score
        done = Promotion(
            "promoted",
            self.name,
            self.alias,
            release.version,
            candidate.version,
            draft.decision.gates,
            f"{score.metric} {score.value:.4f} on {score.n_rows} test rows "
            f"({candidate.architecture})",
        )
        if self.propose or registry.policy.approvals > 1:
            champion = draft.findings.evidence.champion
            proposal = {
                "alias": self.alias,
                "previous": draft.previous,
                "champion": None if champion is None else champion.version,
                "approvals": registry.policy.approvals,
                **evidence,
            }
            registry.ledger.append("proposed", self.name, release.version, registry.actor, proposal)
            failpoint("proposed")
            self._note(candidate, "proposed", notes, release)
            return replace(done, decision="proposed", notes=tuple(notes)), None
        moved = move_alias(registry, release, self.alias, "promote", evidence)
        self._note(candidate, "promoted", notes, release)
        failpoint("noted")
        return replace(done, notes=tuple(notes)), moved

    def _note(
        self, candidate: Candidate, decision: str, notes: list[str], release: Release | None = None
    ) -> None:
        """Notes it on the candidate, whose model may be one that this account may not write to."""
        try:
            self.registry.catalog.note_decision(candidate, decision, release)
        except MlopsError as err:
            notes.append(f"{candidate.reference} was not marked as {decision}: {err}")


def _check_candidate(folder: Path) -> ModelSpec:
    """Checks a candidate's folder, which holds nothing that makes a release."""
    for name in RELEASE_FILES:
        if (folder / name).exists():
            refuse_model(name, "is not a file of a candidate")
    return check_model_folder(folder)


def _decided(candidate: Candidate, decision: Decision, found: Findings | None) -> dict[str, Any]:
    """What the ledger holds of a decision.

    The dataset is that of the model's own specification, whatever the candidate's tags say, and
    none where the model was not scored: then it did not use the test rows up.
    """
    spec = None if found is None else found.evidence.candidate.spec
    return {
        "candidate": candidate.reference,
        "run_id": candidate.run_id,
        "dataset": None if spec is None else spec.dataset_fingerprint,
        "gates": [gate.to_json() for gate in decision.gates],
    }


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path
