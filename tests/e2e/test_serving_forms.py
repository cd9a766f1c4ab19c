"""Every input form through stock `mlflow models serve`, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mlops.client import PredictionError, predict
from mlops.scoring import STATUS
from tests.e2e.serving import Scorer, free_port, serve
from tests.packaged_models import Packaged, bad_bodies, build, features_of, http_forms

# The scoring server's code runs for every kind in tests/mlops/test_scoring.py; here the two
# that differ most go through the real process.
SERVED = ("mixed", "vae")


@dataclass(frozen=True, slots=True)
class Served(Scorer):
    """A scoring server, and the model folder that it serves."""

    packaged: Packaged


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    root = tmp_path_factory.mktemp("served")
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    models = {kind: build(root, kind) for kind in SERVED}

    def start(kind: str) -> contextlib.AbstractContextManager[Scorer]:
        folder, port = models[kind].folder, free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["-m", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        return serve(command, port, env, root, folder.with_suffix(".log"))

    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        # Both start at the same time; each takes 20 seconds until it answers.
        servers = [start(kind) for kind in SERVED]
        scorers = threads.map(lambda server: server.__enter__(), servers)
        for server in servers:
            stack.push(server)
        yield {
            kind: Served(scorer.url, models[kind])
            for kind, scorer in zip(SERVED, scorers, strict=True)
        }


@pytest.mark.parametrize(
    ("kind", "form"), [(kind, form) for kind in SERVED for form in http_forms(kind)]
)
def test_every_form_over_http_gives_the_same_answer(
    served: dict[str, Served], kind: str, form: str
) -> None:
    server = served[kind]
    content_type, body = http_forms(kind)[form](server.packaged.rows, server.packaged.spec)
    status, text = server.post(body, content_type)
    assert status == 200, text
    answer = json.loads(text)["predictions"]
    if kind == "vae":
        x, logits, mean, log_var = (np.asarray(o, np.float64) for o in server.packaged.outputs)
        error = (np.logaddexp(0, logits) - x * logits).sum(axis=(1, 2, 3))
        kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(axis=1)
        expected = {"reconstruction_error": error, "kl": kl, "anomaly_score": error + kl}
        for name, values in expected.items():
            assert [row[name] for row in answer] == pytest.approx(values.tolist(), rel=1e-5)
    else:
        np.testing.assert_allclose(answer, server.packaged.outputs[0], atol=1e-6)


def test_labels_over_http(served: dict[str, Served]) -> None:
    packaged = served["mixed"].packaged
    body = {"inputs": packaged.rows, "params": {"labels": True}}
    _, text = served["mixed"].post(body)
    best = packaged.outputs[0].argmax(axis=1)
    labels = [row["label"] for row in json.loads(text)["predictions"]]
    assert labels == [packaged.spec.class_names[i] for i in best]


def test_explanations_over_http(served: dict[str, Served]) -> None:
    for kind, server in served.items():
        rows = server.packaged.rows
        body = {"inputs": rows if kind == "mixed" else rows.tolist(), "params": {"explain": True}}
        status, text = server.post(body)
        assert status == 200, text
        answers = json.loads(text)["predictions"]
        attributions = [answer["attributions"] for answer in answers]
        if kind == "vae":
            assert np.shape(attributions) == rows.shape
        else:
            assert all(list(row) == ["weight", "age", "colour", "island"] for row in attributions)


def test_the_client_gets_arrays_and_refusals(served: dict[str, Served]) -> None:
    mixed, vae = served["mixed"], served["vae"]
    answer = predict(mixed.url, features_of("mixed"))
    np.testing.assert_allclose(answer, mixed.packaged.outputs[0], atol=1e-6)
    labels = predict(mixed.url, features_of("mixed"), labels=True, explain=True)
    assert {"label", "probabilities", "attributions"} <= set(labels[0])
    scores = predict(vae.url + "/invocations", vae.packaged.rows)
    assert [list(row) for row in scores] == [["reconstruction_error", "kl", "anomaly_score"]] * 4
    with pytest.raises(PredictionError) as caught:
        predict(vae.url, np.zeros((1, 3), np.float32))
    found = caught.value
    assert (found.status, found.code, found.field) == (400, "wrong_shape", "rows[0]")
    assert "row 0 decodes to 12 bytes; expected 64" in str(found)


@pytest.mark.parametrize("kind", SERVED)
def test_bad_input_over_http_is_a_400_without_data_or_trace(
    served: dict[str, Served], kind: str
) -> None:
    for name, (body, piece) in bad_bodies(kind).items():
        status, text = served[kind].post(body)
        assert status == 400, (name, text)
        error = json.loads(text)
        assert piece in error["message"], (name, text)
        if name not in ("null", "a dictionary"):  # these MLflow answers itself
            assert error["code"] in STATUS and "field" in error, (name, text)
        assert "Traceback" not in text and "71234567" not in text, (name, text)


def test_serving_leaves_the_folder_as_it_was(served: dict[str, Served]) -> None:
    for server in served.values():
        assert not list(server.packaged.folder.rglob("__pycache__"))
