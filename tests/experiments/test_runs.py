from __future__ import annotations

import pytest

from experiments.runs import is_dirty


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
