"""The rows: what is done to a sweep, by a name that can be typed."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults import journal_rows, network_rows, sweep_rows
from tests.faults.check import Outcome
from tests.faults.stage import Stage

ROWS: dict[str, Callable[[Stage], Outcome]] = {
    "worker-killed": sweep_rows.worker_killed,
    "driver-killed": sweep_rows.driver_killed,
    "sigterm": sweep_rows.driver_told_to_end(signal.SIGTERM),
    "ctrl-c": sweep_rows.driver_told_to_end(signal.SIGINT),
    "ctrl-c-twice": sweep_rows.driver_told_to_end(signal.SIGINT, signal.SIGINT),
    "drain-killed": network_rows.drain_killed,
    "synced-while-dying": network_rows.synced_while_dying,
    "server-absent": network_rows.server_absent,
    "server-restarted": network_rows.server_restarted,
    "server-stopped": network_rows.server_stopped,
    "answer-lost-runs-create": network_rows.answer_lost("runs/create"),
    "answer-lost-log-batch": network_rows.answer_lost("runs/log-batch"),
    "answer-lost-version-create": network_rows.answer_lost("model-versions/create"),
    "errors-500-503-429": network_rows.errors,
    "slow-link": network_rows.slow_link,
    "tracking-disk-full": network_rows.tracking_disk_full,
    "database-held-8-writers": network_rows.database_held,
    "clock-set-back": network_rows.clock_set_back,
    "journal-disk-full": journal_rows.journal_disk_full,
    "fsync-error": journal_rows.fsync_error,
    "journal-torn": journal_rows.torn,
    "journal-flipped": journal_rows.flipped,
}
