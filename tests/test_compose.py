"""What docker-compose.yml promises, held against what compose makes of it. No engine is needed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import (
    ONCE,
    PROFILES,
    ROOT,
    TOOLS,
    example_settings,
    rendered,
    run_compose,
    services,
)

FILE = (ROOT / "docker-compose.yml").read_text()
each_service = pytest.mark.parametrize("name", sorted(services()))


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_each_profile_is_valid_with_the_example_of_settings_alone(profile: str | None) -> None:
    chosen = () if profile is None else ("--profile", profile)
    done = run_compose(*chosen, "config", "-q")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_valid_from_a_clean_clone(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    done = run_compose("--profile", "*", "config", "-q", env_file=tmp_path / ".env.example")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_setting_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("")
    done = run_compose("config", "-q", env_file=tmp_path / ".env")
    assert done.returncode != 0
    assert "see .env.example" in done.stderr


def test_every_setting_is_explained_and_used_and_has_its_value_in_one_place() -> None:
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", FILE))
    explained = example_settings()
    assert used == explained.keys()
    # Images explain themselves, but for our own.
    bare = {name for name, comment in explained.items() if not comment}
    assert bare <= {name for name in explained if name.endswith(("_IMAGE", "_TIMEOUT"))}
    assert not re.search(r"\$\{[A-Z_]+:?-", FILE)


@each_service
def test_each_service_is_locked_up(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged") and not service.get("cap_add")
    user, _, group = service["user"].partition(":")
    assert user.isdigit() and group.isdigit() and int(user) > 0
    assert service["restart"] == ("no" if name in (*ONCE, *TOOLS) else "unless-stopped")
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] > 0 and int(limits["memory"]) > 0 and limits["pids"] > 0
    assert service["logging"]["options"]["max-size"]


@each_service
def test_each_service_that_goes_on_is_asked_how_it_is(name: str) -> None:
    health = services()[name]["healthcheck"]
    if name in (*ONCE, *TOOLS):
        assert health == {"disable": True}
    else:
        assert health["test"][0] == "CMD" and len(health["test"]) > 1
        assert health["interval"] and health["timeout"] and health["start_period"]


@each_service
def test_each_image_has_a_full_tag(name: str) -> None:
    tag = services()[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+", tag), tag
    assert re.fullmatch(r"\$\{[A-Z]+(_GPU)?_IMAGE:\?see .env.example\}", _image_of(name))


def _image_of(name: str) -> str:
    image: str = yaml.safe_load(FILE)["services"][name]["image"]
    return image


@each_service
def test_only_the_door_publishes_ports(name: str) -> None:
    service = services()[name]
    assert bool(service.get("ports")) == (name == "door")
    assert service.get("network_mode") in (None, "none")


@each_service
def test_each_service_sees_its_own_secrets_and_may_not_change_them(name: str) -> None:
    mounts = [one for one in services()[name].get("volumes", []) if one["source"] == "secrets"]
    if name in ("secrets", "databases", "accounts", "admin"):  # who makes and gives them out
        assert [one["target"] for one in mounts if "volume" not in one or not one["volume"]] == [
            "/run/secrets"
        ]
        assert all(one.get("read_only") for one in mounts) == (name in ("databases", "accounts"))
        return
    role = {"serving-1": "server", "serving-2": "server", "worker": "trainer"}.get(name, name)
    role = "trainer" if name == "worker-gpu" else role
    for one in mounts:
        assert one["read_only"] is True and one["volume"]["nocopy"] is True
        subpath = one["volume"]["subpath"]
        assert subpath.partition("/")[0] in (role, "public")
        at_home = "/home/podium/.mlflow/credentials"
        expected = f"/run/secrets/{subpath}" if "/" not in subpath else at_home
        assert one["target"] == expected


def test_what_is_read_by_other_users_is_for_the_group_and_they_are_in_it() -> None:
    from mlops.team.secrets import FOR_GROUP

    for name in FOR_GROUP:
        assert services()[name]["group_add"] == ["10001"]
    assert "groupadd --gid 10001 podium" in (ROOT / "Dockerfile").read_text()


def test_no_secret_stands_in_the_file_or_in_the_settings() -> None:
    text = json.dumps(rendered())
    assert "password" not in (ROOT / ".env.example").read_text().lower()
    for name, service in services().items():
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"PASSW|SECRET|TOKEN|CREDENTIAL|KEY", key):
                assert str(value).startswith("/run/secrets"), (name, key)
    for scheme_and_login in re.findall(r"\w+://[^\s\"/]*@", text):
        assert ":" not in scheme_and_login.partition("://")[2], scheme_and_login
    for file in ("deploy/basic_auth.ini", "Dockerfile", "deploy/haproxy.cfg"):
        assert not re.search(
            r"(?im)^\s*\w*(password|secret)\w*\s*=\s*\S", (ROOT / file).read_text()
        )


def test_the_store_is_reached_through_its_s3_port_only() -> None:
    """The gRPC port beside it gives a login to whoever asks."""
    store = [name for name, one in services().items() if "store" in (one.get("networks") or {})]
    assert sorted(store) == ["s3", "seaweedfs"]
    command = services()["seaweedfs"]["command"]
    assert "-ip.bind=127.0.0.1" in command and "-master.telemetry=false" in command
    endpoints = {
        service["environment"]["AWS_ENDPOINT_URL"]
        for service in services().values()
        if "AWS_ENDPOINT_URL" in (service.get("environment") or {})
    }
    assert endpoints == {"http://s3:8333"}


def test_networks_lead_nowhere_but_for_the_doors() -> None:
    networks = rendered()["networks"]
    assert {name for name, one in networks.items() if not one.get("internal")} == {"front"}
    assert [name for name, one in services().items() if "front" in (one.get("networks") or {})] == [
        "door"
    ]
    near_workers = {
        name for name, one in services().items() if "training" in (one.get("networks") or {})
    }
    assert near_workers == {"scheduler", "worker", "worker-gpu", "trainer", "prometheus"}


def test_it_starts_in_the_order_that_the_parts_need() -> None:
    def needs(name: str) -> dict[str, str]:
        return {
            other: how["condition"] for other, how in services()[name].get("depends_on", {}).items()
        }

    done, healthy = "service_completed_successfully", "service_healthy"
    assert needs("secrets") == {}
    assert needs("postgres") == needs("seaweedfs") == {"secrets": done}
    assert needs("s3") == {"seaweedfs": healthy}
    assert needs("databases") == {"postgres": healthy, "s3": healthy}
    assert needs("mlflow") == {"databases": done, "s3": healthy}
    assert needs("accounts") == {"mlflow": healthy}
    assert needs("door") == needs("serving-1") == {"mlflow": healthy, "accounts": done}
    assert needs("worker") == {"databases": done, "scheduler": healthy}
    assert "mlflow" not in needs("admin")  # an upgrade is done while that is stopped


def test_public_keys_are_one_setting_wherever_releases_are_verified(tmp_path: Path) -> None:
    """Beside the stack's own key others may be named, as a laptop's."""
    keys = "/run/secrets/public/release.pem:/run/secrets/public/laptop.pem"
    example = (ROOT / ".env.example").read_text()
    assert "\nPUBLIC_KEYS=/run/secrets/public/release.pem\n" in example
    (tmp_path / ".env").write_text(f"{example}\nPUBLIC_KEYS={keys}\n")
    words = ("--profile", "*", "config", "--format", "json")
    found = json.loads(run_compose(*words, env_file=tmp_path / ".env").stdout)["services"]
    verifiers = ("admin", "promoter", "serving-1", "serving-2", "trainer")
    assert {
        name: one["environment"]["MLOPS_PUBLIC_KEYS"]
        for name, one in found.items()
        if "MLOPS_PUBLIC_KEYS" in (one.get("environment") or {})
    } == dict.fromkeys(verifiers, keys)
    for name in verifiers:
        targets = [mount["target"] for mount in found[name]["volumes"]]
        assert "/run/secrets/public" in targets or "/run/secrets" in targets


def test_who_makes_secrets_knows_the_name_of_the_door() -> None:
    for name in ("secrets", "admin"):
        assert services()[name]["environment"]["DOOR_HOST"] == "localhost"


def test_logins_leave_each_other_connections() -> None:
    from mlops.team.databases import SHARES
    from mlops.team.secrets import LOGINS, SUPERUSER

    assert set(SHARES) == set(LOGINS["admin"]) - {SUPERUSER}
    (said,) = [word for word in services()["postgres"]["command"] if "max_connections" in word]
    n_connections = int(said.partition("=")[2])
    # PostgreSQL keeps three for the superuser.
    assert sum(int(share * n_connections) for share in SHARES.values()) <= n_connections - 3 - 5


def test_an_image_knows_the_commit_that_it_was_built_from() -> None:
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert last.index("\nARG COMMIT=unknown") < last.index("PODIUM_COMMIT=${COMMIT}")


def test_sweeps_share_one_home_and_replicas_none() -> None:
    def homes(name: str) -> list[str]:
        mounts: list[dict[str, Any]] = services()[name]["volumes"]
        return [one["source"] for one in mounts if one["target"] == "/var/lib/podium"]

    for name in ("trainer", "scheduler", "worker", "worker-gpu", "admin"):
        assert homes(name) == ["home"]
    for name in ("serving-1", "serving-2", "promoter"):
        assert homes(name) == [name]


def test_a_gpu_is_reserved_in_the_profile_gpu_alone() -> None:
    reserved = {
        name: one["deploy"]["resources"]["reservations"]["devices"]
        for name, one in services().items()
        if one["deploy"]["resources"].get("reservations")
    }
    assert list(reserved) == ["worker-gpu"]
    assert reserved["worker-gpu"][0]["capabilities"] == ["gpu"]
    assert services()["worker-gpu"]["build"]["args"] == {"GPU": "1"}


def test_mlflow_answers_to_its_own_names_only() -> None:
    env = services()["mlflow"]["environment"]
    assert env["MLFLOW_SERVER_ALLOWED_HOSTS"] == "mlflow:5000,localhost:8443"
    assert env["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://localhost:8443"
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "--app-name=podium-accounts" in services()["mlflow"]["command"]


def test_what_is_mounted_from_the_clone_is_in_the_clone() -> None:
    for service in services().values():
        for one in service.get("volumes", []):
            if one["type"] == "bind":
                assert one["read_only"] is True
                if one["target"] != "/data":
                    assert Path(one["source"]).exists(), one
