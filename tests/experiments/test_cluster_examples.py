"""examples/clusters: what can be tried without Slurm, Kubernetes and a GPU.

Plain workers run as a person starts them. Of Slurm the job is read by bash and by Dask's own
command line, and jobs run where a stand-in for `sbatch` puts them. Of Kubernetes the resources are
held against the image and docker-compose.yml; `tests/custom_resource.py` compares them with the
operator's own definition. Of dask-cuda the words are read by the command line of `dask worker`,
which shares all of them but one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Security
from distributed.cli.dask_scheduler import main as scheduler_command
from distributed.cli.dask_worker import main as worker_command

from experiments.sweep import main
from experiments.trial import keep_own_gpu
from experiments.workers.remote_cluster import open_remote_cluster
from mlops.errors import MlopsError
from mlops.settings import Settings
from tests.compose import ROOT, services
from tests.custom_resource import find_wrong, read_examples
from tests.e2e.serving import free_port
from tests.experiments.bare_trials import bare_config, leave_as_it_is
from tests.experiments.test_cluster import Processes, settings, wait_for  # noqa: F401
from tests.registry.test_ledger import postgresql  # noqa: F401

CLUSTERS = ROOT / "examples" / "clusters"
BIN = Path(sys.executable).parent
SBATCH = """#!/bin/sh
copy=$(mktemp "$JOBS/job-XXXXXX")
cp "$1" "$copy"
setsid bash "$copy" > "$copy.log" 2>&1 < /dev/null &
echo $! > "$copy.pid"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -TERM -- "-$1"
"""


def read_options(command: Any, words: list[str]) -> dict[str, Any]:
    """Reads a command line as Dask does; fails with what it would say."""
    options = command.make_context("dask", words).params
    return {name: value for name, value in options.items() if value is not None}


def assert_trains(options: Mapping[str, Any]) -> None:
    """What a worker must be started with, wherever it is."""
    assert options["nthreads"] == 1
    assert options["memory_limit"] == "0"
    assert options["preload"] == ("experiments.trial",)
    assert options["nanny"] and options["dashboard"] is False


# -- The scripts of plain hosts.


@pytest.fixture
def record(tmp_path: Path) -> Any:
    """Runs a script with a stand-in for `dask`; returns its words and its environment."""
    dask = tmp_path / "dask"
    dask.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    dask.chmod(0o755)

    def run(*words: str) -> tuple[list[str], dict[str, str]]:
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/home/ada"}
        command = [str(CLUSTERS / words[0]), *words[1:]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        args, found = json.loads(done.stdout)
        return args, found

    return run


def test_workers_are_started_as_the_stack_starts_them(record: Any) -> None:
    (kind, *words), env = record("worker.sh", "tcp://scheduler:8786", "3")
    options = read_options(worker_command, words)
    assert_trains(options)
    assert (kind, options["scheduler"], options["n_workers"]) == (
        "worker",
        "tcp://scheduler:8786",
        "3",
    )
    said = services()["worker"]
    assert_trains(read_options(worker_command, said["command"][2:]))
    for name, value in said["environment"].items():
        if name.startswith("DASK_") and "SCHEDULER" not in name:
            assert env[name] == value


def test_dask_cuda_gets_the_words_of_a_worker_and_no_memory_of_its_own(record: Any) -> None:
    (cuda, kind, *words), env = record("gpu-worker.sh", "tcp://scheduler:8786")
    assert (cuda, kind) == ("cuda", "worker")
    at = words.index("--device-memory-limit")  # the one word that is dask-cuda's alone
    assert words[at + 1] == "0"
    assert_trains(read_options(worker_command, words[:at] + words[at + 2 :]))
    assert not any(word.startswith("--rmm") for word in words)
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_the_scheduler_leaves_it_to_the_sweep_to_try_again(record: Any) -> None:
    (kind, *words), env = record("scheduler.sh", "8799")
    assert kind == "scheduler"
    assert read_options(scheduler_command, words)["port"] == "8799"
    assert env["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] == "0"


def test_a_script_without_its_scheduler_says_what_to_type() -> None:
    for name in ("worker.sh", "gpu-worker.sh"):
        done = subprocess.run(
            [str(CLUSTERS / name)], capture_output=True, text=True, env={"HOME": "/", **os.environ}
        )
        assert done.returncode and f"{name} tcp://SCHEDULER:8786" in done.stderr


def test_settings_are_those_that_podium_reads() -> None:
    text = (CLUSTERS / "settings.sh").read_text()
    known = set(re.findall(r'"(MLOPS_\w+|MLFLOW_\w+)"', (ROOT / "mlops/settings.py").read_text()))
    named = set(re.findall(r"export (\w+)=", text))
    assert {name for name in named if name.startswith("MLOPS_")} <= known
    assert {"MLOPS_HOME", "MLOPS_STUDY_URL", "MLFLOW_TRACKING_URI", "MLOPS_DATASETS_URL"} <= named
    in_a_stack = services()["trainer"]["environment"]
    assert {name for name in named if name.startswith(("AWS_", "PG"))} <= set(in_a_stack)
    # With every line that is a choice taken, it is still one that a shell can read.
    every = re.sub(r"(?m)^#(?=export|for|  export|done)", "", text)
    shown = subprocess.run(
        ["bash", "-euc", every + "\nenv"], capture_output=True, text=True, check=True
    ).stdout
    assert "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT=" in shown


def test_a_worker_of_dask_cuda_keeps_to_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown, kept in (("1,2,0", "1"), ("GPU-5,GPU-7", "GPU-5"), ("3", "3"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        keep_own_gpu()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == kept
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    keep_own_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# -- Kubernetes.


def containers() -> dict[str, dict[str, Any]]:
    found = read_examples()
    cluster, job = found["DaskCluster"]["spec"], found["Job"]["spec"]["template"]["spec"]
    pods = [cluster["scheduler"]["spec"], cluster["worker"]["spec"], job]
    return {one["name"]: one for pod in pods for one in pod["containers"]}


def env_of(container: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def test_pods_run_the_image_of_the_stack_with_its_words() -> None:
    stack, pods = services(), containers()
    assert {one["image"] for one in pods.values()} == {stack["worker"]["image"]}
    assert pods["scheduler"]["args"] == stack["scheduler"]["command"]
    said = [word for word in stack["worker"]["command"] if "scheduler" not in word]
    args = pods["worker"]["args"]
    # The operator sets the variables of its name and of the scheduler's address.
    assert [word for word in args if not word.startswith("--name=")] == said
    read_options(worker_command, args[2:])
    assert "ENTRYPOINT" not in (ROOT / "Dockerfile").read_text()  # args alone are the command


def test_pods_have_the_environment_of_the_stack() -> None:
    stack, pods = services(), containers()
    assert env_of(pods["scheduler"]).items() <= stack["scheduler"]["environment"].items()
    of_home = {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLOPS_DATASETS_URL"}
    worker, sweep = env_of(pods["worker"]), env_of(pods["sweep"])
    assert worker.keys() - of_home == stack["worker"]["environment"].keys() - {"PYTHONPATH"}
    elsewhere = {"AWS_ENDPOINT_URL", *of_home}
    for name in worker.keys() - elsewhere:
        assert worker[name] == stack["worker"]["environment"][name], name
    assert sweep.keys() - of_home <= stack["trainer"]["environment"].keys()
    for name in elsewhere:
        assert worker[name] == sweep[name], name
    assert sweep["MLOPS_STUDY_URL"].startswith("postgresql+psycopg://")


def test_pods_are_locked_up_as_the_stack_is_and_see_secrets_as_files() -> None:
    found = read_examples()
    cluster, job = found["DaskCluster"]["spec"], found["Job"]["spec"]["template"]["spec"]
    for pod in (cluster["scheduler"]["spec"], cluster["worker"]["spec"], job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001  # the Dockerfile's
        assert pod["automountServiceAccountToken"] is False
        volumes = {one["name"] for one in pod["volumes"]}
        for one in [*pod.get("initContainers", []), *pod["containers"]]:
            context = one["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert one["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
    for name in ("worker", "sweep"):
        mounts = {one["mountPath"]: one for one in containers()[name]["volumeMounts"]}
        assert {"/tmp", "/var/lib/podium", "/run/secrets/trainer"} <= mounts.keys()
        credentials = mounts["/home/podium/.mlflow/credentials"]
        assert credentials["subPath"] == "mlflow_credentials"
        files = [v for v in env_of(containers()[name]).values() if v.startswith("/run/secrets/")]
        told = (CLUSTERS / "kubernetes/cluster.yaml").read_text()
        for path in files:
            assert f"--from-file={Path(path).name}" in told
    text = "".join(path.read_text() for path in CLUSTERS.rglob("*.yaml"))
    assert not re.search(r"(?i)password\w*\W*[:=]|access_key|://\w+:\w+@", text)


def test_the_sweep_finds_the_scheduler_and_only_sweeps_do() -> None:
    found = read_examples()
    cluster = found["DaskCluster"]
    service = cluster["spec"]["scheduler"]["service"]
    # The operator names the service so, and finds its ports by these names.
    name = f"{cluster['metadata']['name']}-scheduler"
    ports = {one["name"]: one["port"] for one in service["ports"]}
    assert ports == {"tcp-comm": 8786, "http-dashboard": 8787}
    assert f"--cluster=tcp://{name}:{ports['tcp-comm']}" in containers()["sweep"]["args"]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"dask.org/cluster-name": "podium"}
    (rule,) = policy["ingress"]
    allowed = [one["podSelector"]["matchLabels"] for one in rule["from"] if "podSelector" in one]
    assert found["Job"]["spec"]["template"]["metadata"]["labels"] in allowed
    claim = found["PersistentVolumeClaim"]["metadata"]["name"]
    assert claim in json.dumps(found["Job"])


def test_the_words_of_the_sweep_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    words = containers()["sweep"]["args"]
    assert words[:3] == ["python", "-m", "experiments.sweep"]
    assert main(words[3:]) == 2  # all is understood; what lacks here is the database
    assert "expected MLOPS_STUDY_URL as postgresql+psycopg://" in capsys.readouterr().err


def test_a_resource_is_compared_with_its_definition() -> None:
    schema = {
        "type": "object",
        "required": ["replicas"],
        "properties": {
            "replicas": {"type": "integer"},
            "port": {"x-kubernetes-int-or-string": True},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"type": "array", "items": {"type": "boolean"}},
            "any": {"type": "object"},
        },
    }
    good = {"replicas": 1, "port": "http", "kind": "a", "labels": {"x": "y"}, "list": [True]}
    assert list(find_wrong({**good, "any": {"x": 1}}, schema)) == []
    bad = {"port": 1.5, "kind": "c", "labels": {"x": 1}, "list": [1], "other": 0, "any": True}
    assert sorted(find_wrong(bad, schema, "it")) == [
        "it.any: expected object, got True",
        "it.kind: expected one of ['a', 'b'], got 'c'",
        "it.labels.x: expected string, got 1",
        "it.list[0]: expected boolean, got 1",
        "it.other is not known",
        "it.port: expected a number or a string, got 1.5",
        "it.replicas is missing",
    ]


# -- Slurm.


def run_slurm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CLUSTERS / "slurm.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_a_job_of_slurm_is_a_script_that_starts_one_worker(tmp_path: Path) -> None:
    done = run_slurm("--script", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script = done.stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    directives = re.findall(r"(?m)^#SBATCH (.+)$", script)
    assert {"-n 1", "--cpus-per-task=1", "--mem=4G", "-t 08:00:00", "-p batch"} <= set(directives)
    assert script.splitlines()[0] == "#!/usr/bin/env bash"
    assert f". '{CLUSTERS / 'settings.sh'}'" in script
    (command,) = re.findall(r"(?m)^.* -m distributed\.cli\.dask_worker (.+)$", script)
    assert_trains(read_options(worker_command, shlex.split(command)))
    assert not (tmp_path / "scheduler.json").exists()


def test_what_slurm_py_does_not_know_is_answered_with_what_it_does(tmp_path: Path) -> None:
    for words in ([], ["many"]):
        done = run_slurm(*words, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr == "python slurm.py NUMBER | --script\n"


# -- Real ones, with workers that train.


@dataclass
class Started:
    """A copy of the folder with settings for this machine, and what was started there."""

    folder: Path
    env: dict[str, str]
    processes: list[psutil.Popen] = field(default_factory=list)

    def start(self, *words: str) -> psutil.Popen:
        with (self.folder / "log").open("a") as log:
            process = psutil.Popen(words, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in reversed(self.processes):
            family = [process, *process.children(recursive=True)] if process.is_running() else []
            for one in family:
                one.kill()
            process.wait()


@pytest.fixture
def started(
    tmp_path: Path,
    settings: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Started]:
    folder = tmp_path / "clusters"
    shutil.copytree(CLUSTERS, folder)
    (folder / "settings.sh").write_text(
        f"export MLOPS_HOME='{settings.home}' PYTHONPATH='{ROOT}'\n"
    )
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    monkeypatch.setenv("MLOPS_STUDY_URL", settings.study_url)
    path = os.pathsep.join([str(tmp_path / "bin"), str(BIN), os.environ["PATH"]])
    own = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    one = Started(folder, {**os.environ, "PATH": path, "PYTHONPATH": own})
    yield one
    one.end()


@pytest.fixture
def certified(tmp_path: Path) -> dict[str, str]:
    """The environment of settings.sh with its lines of TLS taken, and certificates for them."""
    made = Security.temporary()
    folder = tmp_path / ".podium"
    folder.mkdir()
    (folder / "dask-ca.pem").write_text(made.tls_ca_file)
    (folder / "dask.pem").write_text(made.tls_client_cert)
    (folder / "dask.key").write_text(made.tls_client_key)
    text = (CLUSTERS / "settings.sh").read_text()
    lines = text[text.index("#export DASK_") : text.index("\n# Own architectures")]
    shown = subprocess.run(
        ["bash", "-euc", re.sub("(?m)^#", "", lines) + "\nenv"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {k: v for k, _, v in (line.partition("=") for line in shown.splitlines()) if "DASK" in k}


def test_with_certificates_nobody_without_one_is_talked_to(
    certified: dict[str, str],
    settings: Settings,  # noqa: F811
    tmp_path: Path,
) -> None:
    own = Processes(tmp_path)
    address = f"tls://127.0.0.1:{free_port()}"
    config = bare_config(address, "certified")
    assert len(certified) == 8
    try:
        port = address.rpartition(":")[2]
        own.start("scheduler", "--host", "127.0.0.1", "--port", port, env=certified)
        own.start(
            *("worker", address, "--nthreads", "1", "--memory-limit", "0"),
            *("--local-directory", str(tmp_path)),
            env=certified,
        )
        with (
            dask.config.set(
                dask.config.merge(dask.config.config, dask.config.collect_env(certified))
            ),
            open_remote_cluster(config, settings, print, leave_as_it_is) as cluster,
        ):
            assert cluster.tell_workers() == [f"1 worker(s) of {address} can train."]
        without = dataclasses.replace(config, cluster=address.replace("tls", "tcp"))
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            pytest.raises(MlopsError, match="no Dask scheduler answers at tcp://"),
            open_remote_cluster(without, settings, print, leave_as_it_is),
        ):
            pass
    finally:
        own.end()


REHEARSE = ["--architectures", "dnn", "--trials", "2", "--dry-run", "--cluster"]


def test_plain_workers_that_a_person_starts_can_train(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    started.start("./scheduler.sh", address.rpartition(":")[2])
    started.start("./worker.sh", address, "1")
    assert main([*REHEARSE, address]) == 0
    assert f"1 worker(s) of {address} can train." in capsys.readouterr().out


@pytest.mark.long
def test_jobs_of_slurm_can_train_and_one_that_ends_is_submitted_anew(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tmp_path / "jobs"
    file = tmp_path / "scheduler.json"
    for folder in (jobs, tmp_path / "bin"):
        folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    program = started.folder / "slurm.py"
    program.write_text(program.read_text().replace("LOOK_S = 30.0", "LOOK_S = 1.0"))
    started.env |= {
        "JOBS": str(jobs),
        "SCHEDULER_FILE": str(file),
        "INTERFACE": "lo",
        "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s",
    }

    def pids() -> list[int]:
        return [int(one.read_text()) for one in jobs.glob("*.pid")]

    slurm = started.start(sys.executable, "slurm.py", "1")
    wait_for(file.exists)
    assert main([*REHEARSE, str(file)]) == 0
    assert f"1 worker(s) of {file} can train." in capsys.readouterr().out
    (first,) = pids()
    os.killpg(first, signal.SIGKILL)  # its walltime is over
    wait_for(lambda: len(pids()) == 2)
    slurm.send_signal(signal.SIGINT)
    assert slurm.wait(60) == 0
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids()))
    assert not file.exists()
