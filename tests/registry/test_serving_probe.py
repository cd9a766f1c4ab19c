"""One start of the real `mlflow models serve`, and one of a folder that it cannot serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.golden import golden_requests
from registry.probe import ModelFailedError
from registry.serving_probe import measure_serving
from tests.packaged_models import build, spec_of

BODY = json.dumps({"inputs": golden_requests(spec_of("mixed").input)[:1]}).encode()


def test_the_real_server_is_timed_and_weighed(tmp_path: Path) -> None:
    folder = build(tmp_path, "mixed").folder
    before = sorted(tmp_path.rglob("*"))
    serving = measure_serving(folder, BODY, n=50)
    assert serving.n_requests == 50
    assert 0.1 < serving.p50_ms <= serving.p95_ms < 5000
    assert 2e8 < serving.memory_bytes < 2e10
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_served_is_a_failure_with_what_the_server_said_last(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelFailedError, match=r"could not be served: exit status 1, .*MLmodel"):
        measure_serving(tmp_path, BODY)
