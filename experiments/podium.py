"""podium PROGRAM ...: one command for all programs. Their options are their own."""

from __future__ import annotations

import importlib
import sys

from mlops.errors import choose
from mlops.program import answer, say

PROGRAMS = {
    "sweep": ("experiments.sweep", "search each architecture's hyperparameters on a dataset"),
    "status": ("experiments.status", "show the sweeps going on and done, and stop one"),
    "report": ("experiments.report", "make one page of a sweep, or of several side by side"),
    "reproduce": ("experiments.reproduce", "train a run again, and say whether it is identical"),
    "promote": ("registry.promote", "make the best candidate the champion, if every gate passes"),
    "approve": ("registry.approve", "complete a promotion that waits for approval"),
    "rollback": ("registry.rollback", "put an alias back to an earlier release that verifies"),
    "history": ("registry.history", "list what was decided, and say what held an alias when"),
    "models": ("registry.status", "show what is champion of each model, and how its servers stand"),
    "serve": ("registry.serve", "serve whatever release holds an alias, and follow it"),
    "verify": ("registry.verify", "tell whether a release is what was signed"),
    "server": ("mlops.server", "run the embedded tracking server and its UI"),
    "doctor": ("mlops.doctor", "say what is wrong here, and the command that mends it"),
    "sync": ("mlops.sync", "deliver what dead processes left in the journal"),
    "init": ("mlops.init", "make what a team's stack needs: secrets, databases, accounts"),
    "backup": ("mlops.backup", "copy all that is kept here to a folder, while it is used"),
    "restore": ("mlops.restore", "bring a backup to where the settings name"),
    "upgrade": ("mlops.upgrade", "bring the databases to the schema of this version, or make them"),
    "clean": ("mlops.clean", "take out what is old, not among the best, and needed by no release"),
    "erase": ("mlops.erase", "show all that came from a dataset, and erase it for good"),
}


def main(args: list[str] | None = None) -> int:
    """Runs a program by its short name; imports nothing of the others."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<11}{what}" for name, (_, what) in PROGRAMS.items()]
        answer(
            "\n".join(
                [
                    "usage: podium PROGRAM [options]",
                    "",
                    *lines,
                    "",
                    "podium PROGRAM --help tells a program's options.",
                ]
            )
        )
        return 0
    if args[0] not in PROGRAMS:
        say(f"podium: unknown program {args[0]!r}; {choose(args[0], PROGRAMS)}")
        return 2
    module = importlib.import_module(PROGRAMS[args[0]][0])
    return int(module.main(args[1:]))


if __name__ == "__main__":
    sys.exit(main())
