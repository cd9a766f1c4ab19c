from __future__ import annotations

import pytest

from experiments.runs import is_dirty, read_built_commit


@pytest.mark.parametrize(
    ("status", "dirty"),
    [
        ("", False),
        ("?? penguins.csv\n?? photographs/0/a.png", False),
        ('?? "with blank.csv"', False),
        ("?? own_architecture.py", True),
        ('?? "my own.py"', True),
        ("M README.md", True),
        ("?? penguins.csv\n M experiments/sweep.py", True),
    ],
)
def test_files_of_data_that_git_does_not_know_make_no_commit_dirty(
    status: str, dirty: bool
) -> None:
    assert is_dirty(status) is dirty


def test_the_commit_of_an_image_is_read_as_it_was_built() -> None:
    commit = "0123456789" * 4
    clean = {"mlflow.source.git.commit": commit, "mlops.git_dirty": "false"}
    assert read_built_commit(commit) == clean
    assert read_built_commit(f"{commit}-dirty") == clean | {"mlops.git_dirty": "true"}
    for unknown in ("", "unknown", "${COMMIT}", commit[:7]):
        assert read_built_commit(unknown) == {}
