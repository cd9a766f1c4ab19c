"""The report of a comparison is left when it ends, and why there is none is said."""

from __future__ import annotations

import json
from pathlib import Path

from registry.serving.about import describe_release
from registry.serving.comparing import SETTLE_S, Comparing
from registry.serving.follower import Accepted, Refusal, Unset
from registry.serving.shadow import Comparison
from registry.serving.state import Role, StateFolder

NOW = [0.0]


def accepted(version: int, role: Role = "champion") -> Accepted:
    return Accepted(role, "m", version, "run", Path(f"/r/{version}"), "00", f"sha{version}")


def saw(folder: StateFolder, champion: int, challenger: int, requests: int) -> None:
    pair = Comparison(champion, challenger, requests=requests, agreed=requests)
    folder.write_shadow(12, {"pairs": [pair.to_json()]})


def make(folder: StateFolder, said: list[str], is_on: bool = True) -> Comparing:
    return Comparing(folder, said.append, is_on=is_on, clock=lambda: NOW[0])


def test_a_challenger_that_is_promoted_leaves_its_report(folder: StateFolder) -> None:
    said: list[str] = []
    comparing = make(folder, said)
    comparing.challenger = accepted(8, "challenger")
    comparing.watch(accepted(7), accepted(8, "challenger"))
    saw(folder, 7, 8, 5)
    page = comparing.page()
    assert isinstance(page, dict) and page["requests"] == 5
    comparing.watch(accepted(8), None, is_same=True)
    assert "That of version 7 and challenger 8 ended; its report is being" in str(comparing.page())
    saw(folder, 7, 8, 6)  # what a worker writes down a moment later
    assert said == []
    NOW[0] += SETTLE_S
    comparing.watch(accepted(8), None, is_same=True)
    report = json.loads(folder.report.read_text())
    assert (report["champion"]["version"], report["challenger"]["version"]) == (7, 8)
    assert report["requests"] == 6
    (line,) = said
    assert "what the challenger did with 6 requests stands in" in line
    assert comparing.page() == (
        "nothing is compared: version 8 is champion and challenger. That of version 7 and "
        f"challenger 8 ended, and stands in {str(folder.report)!r}."
    )


def test_a_champion_that_is_replaced_ends_a_comparison_and_begins_another(
    folder: StateFolder,
) -> None:
    said: list[str] = []
    comparing = make(folder, said)
    saw(folder, 7, 8, 5)
    comparing.watch(accepted(7), accepted(8, "challenger"))
    comparing.watch(accepted(9), accepted(8, "challenger"))
    page = comparing.page()
    assert isinstance(page, dict) and (page["champion"]["version"], page["requests"]) == (9, 0)
    comparing.end()  # the server ends before the moment has passed
    assert json.loads(folder.report.read_text())["champion"]["version"] == 7
    assert len(said) == 1  # of the second nothing was seen


def test_why_there_is_no_report_is_said(folder: StateFolder) -> None:
    assert "started without --shadow" in str(make(folder, [], is_on=False).page())
    comparing = make(folder, [])
    assert "has not been looked up" in str(comparing.page())
    comparing.challenger = Unset("challenger")
    assert "no release holds the alias challenger" in str(comparing.page())
    comparing.challenger = Refusal("challenger", 8, "unverified", "does not verify: no key")
    assert "version 8, does not verify: no key." in str(comparing.page())
    comparing.challenger = accepted(8, "challenger")
    assert "version 8, is being loaded." in str(comparing.page())


def test_which_class_is_which_is_read_from_the_release(tmp_path: Path) -> None:
    spec = {
        "task": "classifier",
        "input": {"kind": "table", "shape": [2], "dtype": "float32", "columns": None, "low": 0.0},
        "class_names": ["cat", "dog"],
    }
    (tmp_path / "MLmodel").write_text(json.dumps({"metadata": {"podium": spec}}))
    held = Accepted("champion", "m", 7, "run", tmp_path, "00", "sha7")
    found = describe_release(held, "champion", None)
    assert found["class_names"] == ["cat", "dog"]
    assert found["input"] == {"kind": "table", "shape": [2], "dtype": "float32", "columns": None}
    (tmp_path / "MLmodel").unlink()
    assert describe_release(held, "champion", None)["class_names"] is None
