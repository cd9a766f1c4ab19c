from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from experiments.built_in import BUILT_IN, architecture_path
from experiments.config import SweepConfig
from experiments.config_file import load_config, read_options, with_config_file, write_config
from mlops.errors import UsageError

PRIVATE = """
dp_epsilon = 8
dp_delta = 1e-6
dp_clip = 0.5
"""
"""It cannot be together with some of the others."""
FULL = """
dataset = "wine.csv"
kind = "sequence"
label = "quality"
categorical = ["year", "Vineyard"]
sequence_id = "bottle"
image_size = [8, 9]
data_dir = "archives"
split_seed = 3
architectures = ["cnn", "module:Own"]
objective = "macro_f1"
objectives = ["val_macro_f1"]
require = ["latency_ms<5"]
trials = 60
epochs = 5
sampler = "random"
pruner = "halving"
fix = ["batch_size=32"]
warm_start = "earlier"
seeds = 3
refit = true
timeout_s = 60
experiment = "wine"
study = "wine-1"
seed = 4
workers = 2
cluster = "tcp://scheduler:8786"
threads = 2
population = 4
trials_per_gpu = "auto"
budget_gpu_hours = 12
gpu_price = 2.5
precision = "bfloat16"
xla = "on"
plots = "all"
log_rows = true

[space.cnn]
filters = [16, 32]
learning_rate = {low = 1e-4, high = 0.1, log = true}

[space."module:Own"]
dropout = 0.5
"""


@dataclass(frozen=True)
class Options:
    """As the program's."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    config: Path | None = None
    """A TOML file."""
    debug: bool = False


def parse(*args: str) -> SweepConfig:
    config, rest = with_config_file(args)
    return tyro.cli(
        Options,
        args=rest,
        default=Options(sweep=config),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    ).sweep


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        with_config_file(["--config", str(path)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write(tmp_path / "full.toml", FULL)


def test_a_file_says_every_field(full: Path, tmp_path: Path) -> None:
    config, rest = with_config_file(["--json", "--config", str(full), "--trials", "3"])
    assert rest == ["--json", "--trials", "3"]
    assert config.image_size == (8, 9)
    assert config.categorical == ("year", "Vineyard")
    assert isinstance(config.timeout_s, float)
    assert config.space["cnn"]["filters"] == [16, 32]
    private = tmp_path / "private.toml"
    private.write_text(PRIVATE)
    other, _ = with_config_file(["--config", str(private)])
    defaults = SweepConfig()
    for one in dataclasses.fields(SweepConfig):
        said = other if one.name.startswith("dp_") else config
        assert getattr(said, one.name) != getattr(defaults, one.name), one.name
    assert parse("--config", str(private), "--dp-epsilon", "3", "--dp-clip", "2") == (
        dataclasses.replace(other, dp_epsilon=3.0, dp_clip=2.0)
    )


def test_no_file_means_the_defaults() -> None:
    assert with_config_file(["--trials", "3"]) == (SweepConfig(), ["--trials", "3"])


def test_the_flag_may_be_written_with_an_equals_sign(full: Path) -> None:
    assert with_config_file([f"--config={full}"])[0].dataset == "wine.csv"


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("--dataset d.npz", "dataset", "d.npz"),
        ("--kind image", "kind", "image"),
        ("--kind None", "kind", None),
        ("--label l", "label", "l"),
        ("--label None", "label", None),
        ("--categorical a b", "categorical", ("a", "b")),
        ("--categorical", "categorical", ()),
        ("--sequence-id s", "sequence_id", "s"),
        ("--image-size 4 5", "image_size", (4, 5)),
        ("--image-size None", "image_size", None),
        ("--data-dir d", "data_dir", "d"),
        ("--split-seed 9", "split_seed", 9),
        ("--architectures dnn rnn", "architectures", ("dnn", "rnn")),
        ("--objective accuracy", "objective", "accuracy"),
        ("--trials 3", "trials", 3),
        ("--population 8", "population", 8),
        ("--precision float32", "precision", "float32"),
        ("--xla off", "xla", "off"),
        ("--plots none", "plots", "none"),
        ("--no-log-rows", "log_rows", False),
        ("--population None", "population", None),
        ("--epochs 4", "epochs", 4),
        ("--sampler grid", "sampler", "grid"),
        ("--pruner none", "pruner", "none"),
        ("--fix a=1 --fix b=2", "fix", ("batch_size=32", "a=1", "b=2")),
        ("--warm-start w", "warm_start", "w"),
        ("--seeds 5", "seeds", 5),
        ("--seeds None", "seeds", None),
        ("--refit", "refit", True),
        ("--no-refit", "refit", False),
        ("--timeout-s 2.5", "timeout_s", 2.5),
        ("--experiment e", "experiment", "e"),
        ("--study s", "study", "s"),
        ("--seed 8", "seed", 8),
        ("--workers 1", "workers", 1),
        ("--cluster scheduler.json", "cluster", "scheduler.json"),
        ("--threads 1", "threads", 1),
        ("--trials-per-gpu 4", "trials_per_gpu", 4),
        ("--trials-per-gpu auto", "trials_per_gpu", "auto"),
        ("--trials-per-gpu None", "trials_per_gpu", None),
        ("--budget-gpu-hours 0.5", "budget_gpu_hours", 0.5),
        ("--gpu-price 3", "gpu_price", 3.0),
    ],
)
def test_a_flag_goes_before_the_file(full: Path, typed: str, name: str, value: Any) -> None:
    config = parse("--config", str(full), *typed.split())
    assert getattr(config, name) == value
    unchanged = read_options(load_config(full), "it")
    assert config == dataclasses.replace(unchanged, **{name: value})


def test_every_field_but_space_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for one in dataclasses.fields(SweepConfig):
        assert (f"--{one.name.replace('_', '-')} " in shown) == (one.name != "space"), one.name
    assert "--config" in shown


def test_a_switch_that_says_what_is_so_already_is_allowed(full: Path) -> None:
    assert parse("--no-refit").refit is False
    assert parse("--config", str(full), "--refit").refit is True


def test_help_reads_no_file() -> None:
    assert with_config_file(["--config", "nowhere.toml", "--help"]) == (SweepConfig(), ["--help"])


@pytest.mark.parametrize("typed", [["--config"], ["--config", "--json"], ["--config="]])
def test_the_flag_needs_a_file(typed: list[str]) -> None:
    with pytest.raises(UsageError, match="--config needs a file, as --config"):
        with_config_file(typed)


def test_the_flag_is_given_once(full: Path) -> None:
    with pytest.raises(UsageError, match="--config is given 2 times; expected one file"):
        with_config_file(["--config", str(full), f"--config={full}"])


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("trials = \n", "is not TOML: invalid value, line 1, column 10"),
        ("seed = 1\ntrials 3\n", "line 2, column 8"),
        ("trials = 1\n[space.cnn", "line 2, column 11"),
        ("trials = 1\nseed = 2\ntrials = 3\n", "gives 'trials' a second time, in line 3"),
        ("trials = 1\ntrials = 3", "gives 'trials' a second time, in line 2"),
        ("[space.cnn]\na=1\n[space.cnn]\nb=2", "gives '[space.cnn]' a second time, in line 3"),
        ("[space.cnn]\na = {low = 1, low = 2}", "a second time, in line 2"),
        (b"label = '\xff'\n", "is not UTF-8, in line 1. Save it as UTF-8."),
        (b"trials = 1\nlabel = '\xe4'\n", "is not UTF-8, in line 2"),
        ("a = " + "[" * 10_000, "nest too deep"),
        ("trials = 1" + "0" * 5000, "is not TOML: a number has too many digits."),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(
    tmp_path: Path, text: str | bytes, fragment: str
) -> None:
    message = refusal(write(tmp_path / "bad.toml", text))
    assert fragment in message
    assert "bad.toml" in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "there is no config file" in refusal(tmp_path / "nowhere.toml")
    assert "is a folder; expected a TOML file" in refusal(tmp_path)
    assert "cannot be read: Not a directory" in refusal(write(tmp_path / "a", "") / "b.toml")
    assert "cannot be read: embedded null byte" in refusal(Path("a\0b"))


def test_a_byte_order_mark_and_carriage_returns_are_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", b"\xef\xbb\xbftrials = 3\r\nseed = 1\r\n")
    assert with_config_file(["--config", str(path)])[0] == SweepConfig(trials=3, seed=1)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("trails = 3", "unknown key 'trails'; expected one of dataset, kind"),
        ("trails = 3", "did you mean 'trials'?"),
        ("timeout-s = 3", "did you mean 'timeout_s'?"),
        ("config = 'x'", "unknown key 'config'"),
        ("trials = 'ten'", "trials must be a whole number, got 'ten'"),
        ("trials = true", "trials must be a whole number, got True"),
        ("trials = 0", ": trials must be at least 1, got 0"),
        ("timeout_s = nan", ": timeout_s must be above 0 and finite, got nan"),
        ("categorical = 'year'", "categorical must be a list of texts"),
        ("categorical = [1]", "categorical must be a list of texts"),
        ("image_size = [8]", "image_size must be two whole numbers"),
        ("label = 2020-01-01", "label must be a text"),
        ("sampler = 'tp'", "sampler 'tp' is unknown; expected one of auto, tpe"),
        ("pruner = ['median']", "pruner ['median'] is unknown"),
        ("objective = 'f1'", "objective 'f1' is unknown; expected one of accuracy"),
        ("space = 3", "space must be tables by architecture"),
        ("[space]\ncnn = 3", "space must be tables by architecture"),
        ("[space.cn]\na = 1", "[space.cn]: unknown architecture 'cn'"),
        ("[space.cnn]\na = {lo = 1}", "[space.cnn] a: unknown key 'lo'; expected one of low, high"),
        ("[space.cnn]\na = {low = nan}", "[space.cnn] a: low must be finite, got nan"),
        ("[space.cnn]\na = {high = -inf}", "[space.cnn] a: high must be finite, got -inf"),
        ("[space.cnn]\na = 2020-01-01", "[space.cnn] a: must be numbers, texts, true or false"),
        ("fix = ['a']", ": fix 'a' is not of the form name=value"),
        ("fix = ['a=1', 'b=nan']", ": fix b: must be finite"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_as_it_is_written_there(
    tmp_path: Path, text: str, fragment: str
) -> None:
    assert fragment in refusal(write(tmp_path / "bad.toml", text))


def test_all_that_is_wrong_in_a_file_is_said_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.toml",
        "trails = 3\ntrials = 0\nepochs = 'x'\npruner = 'x'\nfix = ['a']\n"
        "[space.cnn]\nfilters = []\ndropout = {low = 1, high = 0, typo = 3}\n",
    )
    message = refusal(path)
    assert message.startswith(f"{str(path)!r}: ")
    for fragment in (
        "'trails'",
        "trials must be",
        "epochs must be",
        "pruner 'x'",
        "fix 'a'",
        "[space.cnn] filters: has no choices",
        "[space.cnn] dropout: unknown key 'typo'",
        "[space.cnn] dropout: low must be at most high",
    ):
        assert fragment in message


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\- ]*", fullmatch=True)
numbers = st.floats(1e-9, 1e9) | st.integers(1, 10**6)
ranges = st.fixed_dictionaries(
    {"low": st.integers(1, 5) | st.floats(1e-300, 1)},
    optional={"high": numbers.map(lambda number: number + 5), "log": st.booleans()},
)
choices = st.lists(numbers, min_size=1, unique=True) | st.lists(texts, min_size=1, unique=True)
tables = st.dictionaries(texts, ranges | choices | numbers | texts | st.booleans(), max_size=3)
fixes = st.tuples(
    st.sampled_from(["", "cnn.", "m:A."]),
    st.from_regex("[a-z_]+", fullmatch=True),
    st.sampled_from(["1", "0.5", "true", "gru", "1e-3", "'x'"]),
).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")


def lists(of: st.SearchStrategy[str], least: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(of, min_size=least, max_size=3, unique=True).map(tuple)


configs = st.builds(
    SweepConfig,
    dataset=texts,
    kind=st.sampled_from([None, "table", "sequence", "image"]),
    label=st.none() | texts,
    categorical=lists(texts),
    sequence_id=st.none() | texts,
    image_size=st.none() | st.tuples(st.integers(1), st.integers(1)),
    data_dir=st.none() | texts,
    split_seed=st.integers(0, 2**64 - 1),
    architectures=lists(st.sampled_from([*BUILT_IN, "m:A", "m.n:B"]), least=1),
    objective=st.sampled_from(["accuracy", "balanced_accuracy", "macro_f1"]),
    objectives=st.sampled_from([(), ("val_elbo",)]),
    trials=st.integers(1, 100),
    epochs=st.integers(1, 100),
    sampler=st.sampled_from(["auto", "tpe", "random", "grid", "cmaes"]),
    pruner=st.sampled_from(["auto", "median", "halving", "hyperband", "none"]),
    fix=st.lists(fixes.filter(lambda fix: "m:A" not in fix), max_size=3).map(tuple),
    space=st.dictionaries(st.sampled_from([*BUILT_IN]), tables, max_size=2),
    warm_start=st.none() | texts.map(lambda text: f"before {text}"),
    seeds=st.none() | st.integers(2, 9),
    refit=st.booleans(),
    timeout_s=st.none() | st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False),
    experiment=st.none() | names,
    study=st.none() | names.filter(lambda name: not name.startswith("before ")),
    seed=st.integers(0, 2**32 - 1),
    workers=st.none() | st.integers(1, 64),
    threads=st.integers(1, 8),
    trials_per_gpu=st.none() | st.just("auto") | st.integers(1, 64),
    budget_gpu_hours=st.none() | st.floats(0.1, 1e6),
    gpu_price=st.none() | st.floats(0.1, 1e6),
)


@given(config=configs)
def test_a_written_config_reads_as_an_equal_one_with_the_same_fingerprints(
    config: SweepConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config.check()
    path = tmp_path_factory.getbasetemp() / "sweep.toml"
    write_config(config, path)
    read, _ = with_config_file(["--config", str(path)])
    assert read == config.resolved()
    assert read.resolved() == read
    for name in config.architectures:
        one = architecture_path(name)
        assert read.fingerprint("d", one) == config.fingerprint("d", one)


def test_a_written_config_leaves_out_what_is_not_said(tmp_path: Path) -> None:
    write_config(SweepConfig(), tmp_path / "sweep.toml")
    text = (tmp_path / "sweep.toml").read_text()
    assert "label" not in text
    assert 'sampler = "tpe"' in text
    assert 'pruner = "median"' in text
