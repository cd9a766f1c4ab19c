from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.errors import UsageError
from registry.policy import (
    Hook,
    Latency,
    Memory,
    NotWorse,
    OwnGate,
    Policy,
    Quality,
    Rule,
    Size,
    read_policy,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.toml"


def read(text: str, folder: Path) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, "utf-8")
    return read_policy(path)


def test_the_example_is_the_default_policy() -> None:
    assert read_policy(EXAMPLE) == Policy.default() == Policy()


def test_the_example_names_every_key(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^# (?=\[|\w+ = )", "", EXAMPLE.read_text("utf-8"))
    policy = read(text, tmp_path)
    assert policy.hook == Hook(("python", "smoke.py"))
    given = tomllib.loads(text)
    assert set(given) == {one.name for one in fields(Policy)}
    for name, table in given.items():
        if name not in ("approvals", "own"):
            assert set(table) == {one.name for one in fields(getattr(policy, name))}, name
    assert set(given["own"][0]) == {one.name for one in fields(OwnGate)}


def test_a_key_that_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    policy = read('approvals = 2\n[quality]\nfloor = 1\n[hook]\ncommand = ["true"]', tmp_path)
    assert policy == replace(
        Policy(), approvals=2, quality=Quality(floor=1.0), hook=Hook(("true",), 3, 60.0)
    )
    assert read("", tmp_path) == Policy()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("approvals = 3", "approvals is 3; expected a whole number from 1 to 2."),
        ("approvals = true", "approvals is True; expected a whole number from 1 to 2."),
        ("[qality]\nfloor = 1", "unknown key 'qality'; expected one of better_than_chance, qual"),
        ("[qality]\nfloor = 1", "approvals; did you mean 'quality'?"),
        ("[quality]\nflor = 1", "[quality] unknown key 'flor'; expected one of on_failure, floor;"),
        ("[quality]\nfloor = 'high'", "[quality] floor is 'high'; expected a number."),
        ("[quality]\nfloor = true", "[quality] floor is True; expected a number."),
        ("[quality]\nfloor = nan", "[quality] floor is nan; expected a number."),
        ("[quality]\nfloor = inf", "[quality] floor is inf; expected a number."),
        (
            "[quality]\non_failure = 'wran'",
            "expected one of refuse, warn, off; did you mean 'warn'?",
        ),
        ("[quality]\non_failure = true", "[quality] on_failure is True; expected one of refuse"),
        ("quality = 0.9", "[quality] is 0.9; expected a table."),
        ("[not_worse_than_champion]\nconfidence = 95", "confidence is 95; expected a number from"),
        ("[largest_drop]\nlargest_drop = -0.1", "is -0.1; expected a number from 0 to 1."),
        ("[latency]\np95_ms = 0", "[latency] p95_ms is 0; expected a number from 0.001 up."),
        ("[size]\nsize_bytes = 1.5", "[size] size_bytes is 1.5; expected a whole number from 1"),
        ("[decisions_on_these_rows]\ndecisions = -1", "decisions is -1; expected a whole number"),
        ("[structure]\non_failure = 'off'", "[structure] cannot be changed: that gate always ref"),
        ("[hook]\nattempts = 2", "[hook] has no command. Add it."),
        ("[hook]\ncommand = []", "[hook] command is []; expected a program and its arguments, as"),
        ("[hook]\ncommand = 'true'", "[hook] command is 'true'; expected a program and its arg"),
        ("[hook]\ncommand = ['a']\nattempts = 0", "attempts is 0; expected a whole number from 1"),
        ("[hook]\ncommand = ['a']\ntimeout_s = 0", "timeout_s is 0; expected a number from 0.1"),
        ("[own]\nname = 'a'", "[own] is one table; expected [[own]], once for each gate."),
        ("[[own]]\nname = 'a'", "[[own]] has no function. Add it."),
        (
            "[[own]]\nname = 'a b'\nfunction = 'a:b'",
            "[[own]] name is 'a b'; expected small letters",
        ),
        ("[[own]]\nname = 'a'\nfunction = 'a.b'", "function is 'a.b'; expected module:function."),
        ("[[own]]\nname = 'size'\nfunction = 'a:b'", "is 'size', the name of another gate"),
        ("[[own]]\nname = 'structure'\nfunction = 'a:b'", "the name of another gate"),
        ("approvals = ", "is not TOML: invalid value, line 1, column 12."),
        ("approvals = 1" + "0" * 5000, "is not TOML"),
        ("[size]\nsize_bytes = 1" + "0" * 4000, "expected a whole number from 1"),
        ("a = " + "[" * 3000 + "]" * 3000, "nest too deep"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        read(text, tmp_path)
    message = str(refused.value)
    assert sentence in message
    assert message.count("\n") == 0 and len(message) < 600 and message[-1] in ".?"
    assert refused.value.exit_code == 2


def test_every_table_with_something_wrong_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read("approvals = 0\n[quality]\nfloor = ''\n[sise]\n[size]\nsize_bytes = 0", tmp_path)
    for part in ("approvals is 0", "[quality] floor is ''", "'sise'", "[size] size_bytes is 0"):
        assert part in str(refused.value)


def test_two_gates_of_the_users_own_do_not_share_a_name() -> None:
    with pytest.raises(UsageError, match="'spread', the name of another gate"):
        Policy(own=(OwnGate("spread", "a:b"), OwnGate("spread", "a:c")))


def test_a_policy_made_in_python_is_checked_too() -> None:
    with pytest.raises(UsageError, match="on_failure is 'never'"):
        Rule("never")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="confidence is None"):
        NotWorse(confidence=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["missing", "folder", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    if kind == "folder":
        path.mkdir()
    if kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"policy\.toml"):
        read_policy(path)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    numbers = st.floats(-1e6, 1e6, allow_nan=False)
    words = st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9),
        min_size=1,
        max_size=3,
    )
    verdicts = st.sampled_from(["refuse", "warn", "off"])
    return Policy(
        approvals=draw(st.integers(1, 2)),
        quality=Quality(draw(verdicts), draw(st.none() | numbers)),  # type: ignore[arg-type]
        size=Size(draw(verdicts), draw(st.integers(1, 2**60))),  # type: ignore[arg-type]
        isolation=Rule(draw(verdicts)),  # type: ignore[arg-type]
        hook=draw(st.none() | st.builds(Hook, words.map(tuple), st.integers(1, 100))),
        own=draw(st.sampled_from([(), (OwnGate("a", "m:f"), OwnGate("b", "m.n:f", "warn"))])),
    )


@given(policies())
def test_a_policy_that_is_written_down_reads_as_itself(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> None:
    again = read(policy.to_toml(), tmp_path_factory.getbasetemp())
    assert again == policy
    assert again.sha256 == policy.sha256
    assert json.loads(json.dumps(policy.to_json())) == policy.to_json()


def test_equal_policies_have_one_hash_and_others_another(tmp_path: Path) -> None:
    whole = read("[quality]\nfloor = 1", tmp_path)
    assert whole.sha256 == Policy(quality=Quality(floor=1.0)).sha256 != Policy().sha256
    assert re.fullmatch("[0-9a-f]{64}", whole.sha256)


def test_the_serving_gates_are_asked_only_where_they_have_a_limit() -> None:
    assert not Policy().needs_serving
    assert Policy(latency=Latency(p95_ms=5.0)).needs_serving
    assert Policy(memory=Memory("warn", 2**30)).needs_serving
    assert not Policy(latency=Latency("off", 5.0)).needs_serving
