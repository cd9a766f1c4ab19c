"""The study database: many may open it at once, the first time too."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.storage import open_storage

N_AT_ONCE = 8


def test_sweeps_that_start_at_once_in_a_new_home_all_open_the_study_database(
    tmp_path: Path,
) -> None:
    together = threading.Barrier(N_AT_ONCE)

    def open_it(url: str) -> int:
        together.wait()
        return len(open_storage(url).get_all_studies())

    with ThreadPoolExecutor(N_AT_ONCE) as threads:
        for i in range(3):
            url = f"sqlite:///{tmp_path}/{i}.db"
            assert list(threads.map(open_it, [url] * N_AT_ONCE)) == [0] * N_AT_ONCE
