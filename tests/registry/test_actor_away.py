"""What is said where the tracking server that knows the actor does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.settings import Settings
from registry.actor import find_actor
from registry.ledger import open_ledger
from tests.e2e.serving import free_port


def test_a_server_that_is_down_is_told_in_whole_sentences(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings.from_env({"MLFLOW_TRACKING_URI": url})
    with (
        open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger,
        pytest.raises(MlopsError) as caught,
    ):
        find_actor(settings, ledger)
    assert str(caught.value) == (
        f"the tracking server at {url} does not say who is asking: Connection refused. Try again "
        "when it answers."
    )
