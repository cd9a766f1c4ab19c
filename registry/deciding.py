"""One decision on one candidate, from its bytes to the alias. `promote.py` says when."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlops.errors import MlopsError, StructureError, UsageError, refuse_model
from mlops.packaging import RELEASE_FILES, ModelSpec, check_model_folder
from registry.alias import Registry, move_alias
from registry.catalog import CHAMPION, REPRODUCED_TAG, Candidate, Release, Source
from registry.certificate import find_certified
from registry.failpoints import failpoint
from registry.gates import Decision, Gate, decide, refuse_answers, refuse_structure
from registry.ledger import Event
from registry.measuring import Findings, measure, read_commit
from registry.moves import count_decisions, present_holder
from registry.probe import ModelFailedError
from registry.publishing import Draft, publish
from registry.releases import Verified, fetch_release, hash_files
from registry.replayed import Replay, find_fault
from registry.signing import UnverifiedError
from registry.sizes import MOST_FILES, judge_size


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
        replay: What a server saw of the candidate beside the champion, if anybody says.
    """

    registry: Registry
    name: str
    alias: str
    propose: bool
    private: Path
    replay: Replay | None = None

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
        source = catalog.read_source(candidate)
        too_large = self._judge_size(candidate)
        if too_large is not None:
            return self._reject(candidate, holder, refuse_structure(too_large), notes), None
        folder = catalog.download(candidate, _new_folder(self.private / "candidate"))
        if holder is not None and self._holds(holder, candidate, folder):
            # Also what a crash between the alias and the note left behind.
            self._note(candidate, "promoted", notes, holder)
            reason = (
                f"candidate {candidate.version} holds {self.alias} already, as version "
                f"{holder.version}"
            )
            return replace(self._unchanged(holder, candidate, reason), notes=tuple(notes)), None
        return self._measure(candidate, source, folder, holder, notes)

    def _judge_size(self, candidate: Candidate) -> str | None:
        """Returns why a candidate is too large for anybody; None where it is not.

        Raises:
            MlopsError: it is too large for the disk here.
        """
        size, files = self.registry.catalog.find_size(candidate, MOST_FILES)
        reason = judge_size(size, files)
        free = shutil.disk_usage(self.private).free
        if reason is None and (reason := judge_size(size, files, free)) is not None:
            raise MlopsError(
                f"candidate {candidate.version} of {self.name} is not downloaded: {reason}. Free "
                "some space, or let TMPDIR name another disk."
            )
        return reason

    def _holds(self, holder: Release, candidate: Candidate, folder: Path) -> bool:
        """Tells whether an alias is the candidate's by all that knows: MLflow, ledger, bytes."""
        if present_holder(self.registry.ledger.events(self.name), self.alias) != holder.version:
            return False
        verified, _ = self._fetch(holder, "holder")
        if verified is None or verified.statement.candidate != candidate.reference:
            return False
        return verified.holds(hash_files(folder))

    def _unchanged(
        self, holder: Release | None, candidate: Candidate | None, reason: str
    ) -> Promotion:
        version = None if holder is None else holder.version
        decided = None if candidate is None else candidate.version
        return Promotion("unchanged", self.name, self.alias, version, decided, (), reason)

    def _fetch(self, release: Release, place: str) -> tuple[Verified | None, str]:
        """Returns a release if it verifies; else why it does not."""
        keys = self.registry.settings.public_keys
        try:
            folder = _new_folder(self.private / place)
            return fetch_release(self.registry.catalog, release, folder, keys), ""
        except UnverifiedError as err:
            return None, f"version {release.version} does not verify: {err}"

    def _measure(
        self,
        candidate: Candidate,
        source: Source,
        folder: Path,
        holder: Release | None,
        notes: list[str],
    ) -> tuple[Promotion, Event | None]:
        registry = self.registry
        champion = registry.catalog.find_alias(self.name, CHAMPION)
        try:
            spec = _check_candidate(folder)
            failpoint("checked")
            rival, fault = None, ""
            if champion is not None:
                rival, fault = self._fetch(champion, "champion")
            before = hash_files(folder)
            scratch = _new_folder(self.private / "datasets")
            found = measure(folder, spec, rival, candidate.metric, registry, scratch)
            if hash_files(folder) != before:
                refuse_model(str(candidate.reference), "was changed while it was asked")
        except StructureError as err:
            return self._reject(candidate, holder, refuse_structure(str(err)), notes), None
        except ModelFailedError as err:
            return self._reject(candidate, holder, refuse_answers(str(err)), notes), None
        failpoint("measured")
        n_decisions = count_decisions(registry.ledger.events(), spec.dataset_fingerprint)
        evidence = replace(
            found.evidence,
            n_decisions=n_decisions,
            champion_fault=fault or found.evidence.champion_fault,
            commit=read_commit(source.tags),
            reproduced=self._find_reproduced(source, before),
            alias=self.alias,
            replay=self.replay,
            replay_fault=self._find_replay_fault(candidate, before, rival),
        )
        decision = decide(evidence, registry.policy)
        findings = replace(found, evidence=evidence)
        if decision.outcome == "rejected":
            return self._reject(candidate, holder, decision, notes, findings), None
        previous = None if holder is None else holder.version
        now = None if champion is None else champion.version
        draft = Draft(candidate, source, folder, findings, decision, previous, now)
        return self._release(draft, notes)

    def _find_reproduced(self, source: Source, files: dict[str, str]) -> str | None:
        """Returns what is known of a reproduction: the run's tag, or what a signature vouches for.

        A trainer can write the tag.
        """
        rule = self.registry.policy.reproduced
        if rule.on_failure == "off" or not rule.signed:
            return source.tags.get(REPRODUCED_TAG)
        keys = self.registry.settings.public_keys
        return find_certified(self.registry.catalog, source.run_id, files, keys)

    def _find_replay_fault(
        self, candidate: Candidate, files: dict[str, str], champion: Verified | None
    ) -> str:
        """Returns why the report is not about the release that this candidate has, or would get."""
        if self.replay is None:
            return ""
        release = self.registry.catalog.find_release(candidate)
        if release is None:
            return find_fault(self.replay, None, champion)
        found, fault = self._fetch(release, "replayed")
        if found is not None and not found.holds(files):
            return f"version {release.version} holds other bytes than the candidate does now"
        return fault or find_fault(self.replay, found, champion)

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
            proposal = {
                "alias": self.alias,
                "previous": draft.previous,
                "champion": draft.champion,
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
    for name in (*RELEASE_FILES, "registered_model_meta"):
        if (folder / name).exists():
            refuse_model(name, "is not a file of a candidate")
    return check_model_folder(folder)


def _decided(candidate: Candidate, decision: Decision, found: Findings | None) -> dict[str, Any]:
    """What the ledger holds of a decision.

    The dataset is that of the model's own specification, whatever the candidate's tags say, and
    none where the model was not scored: then it did not use the test rows up.
    """
    spec = None if found is None else found.evidence.candidate.spec
    replay = None if found is None else found.evidence.replay
    return {
        **({} if replay is None else {"replayed": replay.to_json()}),
        "candidate": candidate.reference,
        "run_id": candidate.run_id,
        "dataset": None if spec is None else spec.dataset_fingerprint,
        "gates": [gate.to_json() for gate in decision.gates],
    }


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path
