"""Certificates of reproduction, in a real MLflow store, signed with real keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops.key_files import make_signing_key
from mlops.settings import Settings
from registry.alias import Registry
from registry.catalog import Catalog
from registry.certificate import (
    BOUND_FILES,
    Certificate,
    find_certificate_key,
    find_certified,
    write_certificate,
)
from registry.policy import Policy, Reproduction
from registry.promote import main, promote
from registry.releases import hash_files
from registry.signing import ensure_signing_key, sign_bytes
from tests.registry.sides import NAME, Sides

FILES = dict.fromkeys(BOUND_FILES, "a" * 64)
SIGNED = Policy(reproduced=Reproduction("refuse", signed=True))


def certificate(run_id: str, **fields: Any) -> Certificate:
    made = Certificate(
        target=run_id,
        run_id=run_id,
        verdict="identical",
        dataset_fingerprint="f" * 64,
        weights_recorded="1" * 64,
        weights_found="1" * 64,
        files=FILES,
        recorded={"CPU": "fast"},
        found={"CPU": "fast"},
        differences=(),
        seconds=1.5,
        created_at="2026-11-26T17:30:00Z",
        actor={"name": "ada", "known_by": "operating system"},
    )
    return dataclasses.replace(made, **fields)


@pytest.fixture
def run_id(client: Any) -> str:
    return str(client.create_run("0").info.run_id)


def test_a_certificate_is_read_as_it_was_written() -> None:
    one = certificate("r", verdict="differs", differences=("weights were 1, are 2",))
    assert Certificate.from_bytes(one.to_bytes()) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value | {"kind": "alias"},
        lambda value: value | {"format": 2},
        lambda value: value | {"verdict": "nearly"},
        lambda value: value | {"files": ["MLmodel"]},
        lambda value: value | {"more": 1},
        lambda value: {name: one for name, one in value.items() if name != "run_id"},
        lambda value: [value],
    ],
)
def test_anything_else_is_no_certificate(change: Callable[[Any], Any]) -> None:
    value = json.loads(certificate("r").to_bytes())
    with pytest.raises(ValueError, match="no certificate"):
        Certificate.from_bytes(json.dumps(change(value)).encode())
    with pytest.raises(ValueError, match="no certificate"):
        Certificate.from_bytes(certificate("r").to_bytes() + b" ")


def test_a_signed_certificate_counts_for_its_run_and_its_bytes_only(
    settings: Settings, client: Any, run_id: str
) -> None:
    catalog, keys = Catalog(client), settings.public_keys
    key = find_certificate_key(settings)
    assert key is not None
    assert find_certified(catalog, run_id, FILES, keys) == "not reproduced"
    path = write_certificate(catalog, certificate(run_id), key)
    assert path == "reproduction/20261126T173000Z.json"
    assert client.get_run(run_id).data.tags["mlops.reproduced"] == "identical"
    more = FILES | {"python_env.yaml": "b" * 64}
    assert find_certified(catalog, run_id, more, keys) == "identical"
    other = FILES | {"MLmodel": "b" * 64}
    assert find_certified(catalog, run_id, other, keys) == "a certificate of other bytes"

    another = str(client.create_run("0").info.run_id)
    for file in catalog.find_certificates(run_id, 1 << 20):
        catalog.write_certificate(another, file, catalog.read_certificate(run_id, file))
    assert find_certified(catalog, another, FILES, keys) == "a certificate of other bytes"


def test_a_certificate_that_no_key_of_ours_signed_counts_for_nothing(
    settings: Settings, client: Any, run_id: str, tmp_path: Path
) -> None:
    catalog, keys = Catalog(client), settings.public_keys
    ensure_signing_key(settings)
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(make_signing_key())
    none = "no certificate that verifies"
    write_certificate(catalog, certificate(run_id), None)
    assert find_certified(catalog, run_id, FILES, keys) == none
    write_certificate(catalog, certificate(run_id), stranger)
    assert find_certified(catalog, run_id, FILES, keys) == none
    # Signed by us, and no certificate.
    content = json.dumps({"name": "sides", "version": 1}).encode()
    catalog.write_certificate(run_id, "29990101T000000Z.json", content)
    signature = sign_bytes(content, settings.signing_key)
    catalog.write_certificate(run_id, "29990101T000000Z.sig", signature)
    assert find_certified(catalog, run_id, FILES, keys) == none


def test_of_several_certificates_the_newest_counts_and_none_is_written_over(
    settings: Settings, client: Any, run_id: str
) -> None:
    catalog, key = Catalog(client), ensure_signing_key(settings)
    first = write_certificate(catalog, certificate(run_id), key)
    second = write_certificate(catalog, certificate(run_id, verdict="differs"), key)
    assert (Path(first).stem, Path(second).stem) == ("20261126T173000Z", "20261126T173000Z-2")
    assert find_certified(catalog, run_id, FILES, settings.public_keys) == "differs"
    assert client.get_run(run_id).data.tags["mlops.reproduced"] == "differs"


def test_a_host_of_a_team_without_a_signing_key_signs_nothing_and_makes_none(
    tmp_path: Path,
) -> None:
    team = Settings.from_env(
        {
            "MLOPS_HOME": str(tmp_path),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            "MLOPS_SIGNING_KEY": str(tmp_path / "none.pem"),
        }
    )
    assert find_certificate_key(team) is None
    assert list(tmp_path.iterdir()) == []


def test_a_tag_does_for_a_policy_that_asks_for_no_signature(
    registry: Registry, sides: Sides
) -> None:
    sides.register(right=9.0, value=0.99, tags={"mlops.reproduced": "identical"})
    asked = dataclasses.replace(registry, policy=Policy(reproduced=Reproduction("refuse")))
    assert promote(asked, NAME).decision == "promoted"


def test_a_policy_that_asks_for_a_signature_takes_no_tag_for_one(
    registry: Registry, sides: Sides, client: Any, tmp_path: Path
) -> None:
    version = sides.register(right=9.0, value=0.99, tags={"mlops.reproduced": "identical"})
    asked = dataclasses.replace(registry, policy=SIGNED)
    refused = promote(asked, NAME)
    assert refused.decision == "rejected"
    assert refused.reason == "its run is not reproduced to the bit: not reproduced"

    candidate = client.get_model_version(f"{NAME}-candidates", str(version))
    folder = Path(client.download_artifacts(candidate.run_id, "model", str(tmp_path)))
    files = {name: hash_files(folder)[name] for name in BOUND_FILES}
    key = ensure_signing_key(registry.settings)
    write_certificate(registry.catalog, certificate(candidate.run_id, files=files), key)
    done = promote(asked, NAME, version)
    assert done.decision == "promoted"
    gate = next(one for one in done.gates if one.name == "reproduced")
    assert (gate.measured, gate.expected, gate.verdict) == (
        *("identical", "identical, signed"),
        "pass",
    )


def test_a_promotion_that_misses_the_gate_says_what_to_type(
    settings: Settings,
    sides: Sides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from registry import promote as program
    from tests.registry.sides import probe_sides

    sides.register(right=9.0, value=0.99)
    policy = tmp_path / "policy.toml"
    policy.write_text('[reproduced]\non_failure = "refuse"\nsigned = true\n')
    monkeypatch.setattr(program, "_probe_aloud", probe_sides)
    assert main([NAME, "--policy", str(policy)]) == 3
    said = capsys.readouterr().out
    assert f"python -m experiments.reproduce {NAME}-candidates/1" in said
    assert f"python -m registry.promote {NAME} --version 1 --policy {policy}" in said


def test_signed_is_true_or_false() -> None:
    from mlops.errors import UsageError

    with pytest.raises(UsageError, match="signed is 'yes'; expected true or false"):
        Reproduction(signed="yes")  # type: ignore[arg-type]
