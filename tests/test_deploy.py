"""The files in deploy/ and the Dockerfile: what they name is there, and they agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import distributed
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.compose import ROOT, services

DEPLOY = ROOT / "deploy"
DOOR = (DEPLOY / "haproxy.cfg").read_text()


# -- The door's measure of nesting.


def shallow(levels: int) -> str:
    """The pattern by the rule that stands above it."""
    end = r"(?![\s\S])"
    plain = r'[^][{}"]++|"(?:[^"\\]++|\\[\s\S])*+(?:"|\\?+' + end + ")"
    inner = ""
    for _ in range(levels):
        inner = "|[[{](?:" + plain + inner + ")*+(?:[]}]|" + end + ")"
    return "^(?:" + plain + "|[]}]" + inner + ")*+" + end


def depth_of(text: str) -> int:
    depth = deepest = 0
    in_string = is_escaped = False
    for letter in text:
        if is_escaped:
            is_escaped = False
        elif in_string:
            is_escaped = letter == "\\"
            in_string = letter != '"'
        elif letter == '"':
            in_string = True
        elif letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]}":
            depth = max(0, depth - 1)
    return deepest


def test_the_pattern_is_made_by_its_rule() -> None:
    lines = (DEPLOY / "shallow.reg").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [shallow(16)]


# Python warns of "[[", which PCRE takes as it is meant.
THREE = re.compile(shallow(3).replace("[[{]", r"[\[{]"))


@given(st.text(st.sampled_from('[{}]"\\,1'), max_size=40))
def test_the_pattern_takes_what_is_nested_so_deep_and_no_deeper(text: str) -> None:
    assert bool(THREE.match(text)) == (depth_of(text) <= 3)


# -- What the watchers ask for.


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/podium.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    return [target["expr"] for target in targets] + [rule["expr"] for rule in rules]


def names(prefix: str) -> set[str]:
    found = re.findall(rf"\b{prefix}_\w+", " ".join(expressions()))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def test_every_metric_of_podium_that_is_shown_is_one_that_replicas_have() -> None:
    source = (ROOT / "registry/serving/metrics.py").read_text()
    had = set(re.findall(r'"(podium_\w+)"', source))
    assert names("podium") and names("podium") <= had


def test_every_metric_of_dask_that_is_shown_is_one_that_dask_has() -> None:
    had = set()
    for part in ("scheduler", "worker"):
        source = Path(distributed.__file__).parent / f"http/{part}/prometheus/core.py"
        had |= {
            f"dask_{part}_{name}" for name in re.findall(r'build_name\("(\w+)"', source.read_text())
        }
    assert names("dask") and {name.removesuffix("_total") for name in names("dask")} <= {
        name.removesuffix("_total") for name in had
    }


def test_what_is_asked_for_metrics_is_a_service_and_a_port_of_it() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = {
        target
        for job in config["scrape_configs"]
        for one in job.get("static_configs", [])
        for target in one["targets"]
    }
    assert targets == {
        "door:8404",
        "serving-1:5002",
        "serving-2:5002",
        "scheduler:8787",
        "localhost:9090",
    }
    (asked,) = [
        job["dns_sd_configs"][0] for job in config["scrape_configs"] if "dns_sd_configs" in job
    ]
    assert asked["names"] == ["worker", "worker-gpu"]
    assert f"--dashboard-address=:{asked['port']}" in services()["worker"]["command"]
    assert "--metrics-port=5002" in services()["serving-1"]["command"]
    assert services()["door"]["environment"]["DOOR_STATS_PORT"] == "8404"


def test_grafana_finds_its_data_and_its_dashboard() -> None:
    def load(name: str) -> Any:
        return yaml.safe_load((DEPLOY / "grafana/provisioning" / name).read_text())

    (source,) = load("datasources/prometheus.yml")["datasources"]
    dashboard = (DEPLOY / "grafana/dashboards/podium.json").read_text()
    assert set(re.findall(r'"type": "prometheus",\s*"uid": "(\w+)"', dashboard)) == {source["uid"]}
    (provider,) = load("dashboards/podium.yml")["providers"]
    (mounted,) = [one for one in services()["grafana"]["volumes"] if one["type"] == "bind"]
    assert provider["options"]["path"] == f"{mounted['target']}/dashboards"
    env = services()["grafana"]["environment"]
    assert env["GF_PATHS_PROVISIONING"] == f"{mounted['target']}/provisioning"


# -- The door, the image.


def test_every_setting_of_the_door_has_a_default_and_is_set_by_compose() -> None:
    had = set(re.findall(r"presetenv (\w+) ", DOOR))
    assert set(re.findall(r"\$\{(\w+)\}", DOOR)) == had
    assert services()["door"]["environment"].keys() - {"GLIBC_TUNABLES"} == had


def test_the_defaults_of_the_door_are_those_of_the_example_of_settings() -> None:
    env = services()["door"]["environment"]
    for name, value in re.findall(r"presetenv (\w+) (\S+)", DOOR):
        assert env[name] == value, name


def test_the_door_knows_the_content_types_of_the_replicas() -> None:
    from registry.serving import invocations

    for sort in (invocations.JSON, invocations.CSV, invocations.PARQUET):
        assert sort in DOOR and sort.replace(".", r"\.") in DOOR


def test_every_error_of_the_door_is_of_the_form_of_the_house() -> None:
    said = re.findall(r"string '(\{.+?\})'", DOOR) + [
        re.sub(r"'\s+\.\. '", "", found)
        for found in re.findall(
            r"local BODY = '(.+?)'\n\n", (DEPLOY / "drain.lua").read_text(), re.S
        )
    ]
    errors = [json.loads(one) for one in said if one != "{}"]
    assert len(errors) > 20
    for error in errors:
        assert error.keys() == {"code", "message", "field"}
        assert error["message"].endswith(".")


def test_the_image_is_built_from_the_lock_file_and_runs_as_nobody_in_particular() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "pip install --require-hashes --no-deps -r /tmp/requirements-team.lock" in text
    assert re.search(r"ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-bookworm$", text, re.M)
    last = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last and "pip install" not in last
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert {name for line in copied for name in line.split()} == set(allowed)


def test_what_is_installed_has_every_file_of_the_three_packages(tmp_path: Path) -> None:
    names = ("mlops", "experiments", "registry")
    source = tmp_path / "source"  # building leaves files beside it
    for name in names:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(names)}
    files = [path for name in names for path in (source / name).rglob("*") if path.is_file()]
    assert installed == {path.relative_to(source).as_posix() for path in files}
