from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.data import PARTS, Dataset, load_dataset
from mlops.errors import DataError
from mlops.scoring import encode_table
from tests.mlops.table_files import (
    MIXED,
    MIXED_COLUMNS,
    N,
    csv_file,
    csv_of,
    lines_of_sequences,
    refusal,
)


def load_mixed(path: Path, text: str = MIXED) -> Dataset:
    return load_dataset(csv_file(path, text), label="answer")


def features_of(dataset: Dataset) -> list[str]:
    assert dataset.input.columns is not None
    return [feature for column in dataset.input.columns for feature in column.features]


def feature(dataset: Dataset, name: str) -> int:
    return features_of(dataset).index(name)


def assert_served_as_trained(dataset: Dataset) -> None:
    assert dataset.input.columns is not None
    columns = [asdict(column) for column in dataset.input.columns]
    for part in PARTS:
        x, y = dataset.part(part)
        assert (x.dtype, x.shape) == (np.float32, (len(y), *dataset.input.shape))
        requests = dataset.requests(part)
        assert list(requests.columns) == [column["name"] for column in columns]
        np.testing.assert_array_equal(x, encode_table(requests[requests.columns[::-1]], columns))


def test_a_network_sees_of_a_mixed_table_what_serving_makes_of_its_requests(
    tmp_path: Path,
) -> None:
    dataset = load_mixed(tmp_path / "a.csv")
    assert_served_as_trained(dataset)
    assert features_of(dataset) == [
        "weight",
        "size",
        "size is missing",
        "ripe",
        "colour=blue",
        "colour=green",
        "colour=red",
        "colour=Ünder",
        "shape=round",
        "shape=square",
        "shape is missing",
    ]


colours = st.none() | st.text("ab é", min_size=1, max_size=2)
lines = st.lists(
    st.tuples(st.none() | st.floats(width=32, allow_infinity=False), colours),
    min_size=40,
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(lines=lines)
def test_any_table_is_encoded_as_its_requests_are_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[float | None, str | None]]
) -> None:
    cells = [("" if size is None else repr(size), colour or "") for size, colour in lines]
    text = csv_of(
        "size,colour,answer", lambda i: f'{cells[i][0]},"{cells[i][1]}",{"xy"[i % 2]}', len(lines)
    )
    try:
        dataset = load_mixed(tmp_path_factory.mktemp("rows") / "a.csv", text)
    except DataError as err:
        assert "\n" not in str(err)
    else:
        assert_served_as_trained(dataset)


def test_a_table_of_numbers_is_seen_as_it_came(tmp_path: Path) -> None:
    dataset = load_mixed(tmp_path / "a.csv", csv_of("a,b,answer", lambda i: f"{i},{-i},{i % 2}"))
    assert features_of(dataset) == ["a", "b"]
    np.testing.assert_array_equal(dataset.part("val")[0], dataset.x[dataset.split == 1])
    assert dataset.requests("val").to_numpy().tolist() == dataset.part("val")[0].tolist()


def test_requests_hold_names_and_missing_values_as_clients_send_them(tmp_path: Path) -> None:
    dataset = load_mixed(tmp_path / "a.csv")
    row = int(np.flatnonzero(np.isnan(dataset.x[:, 4]) & (dataset.split == 0))[0])
    sent = dataset.requests("train").iloc[int((dataset.split[:row] == 0).sum())]
    cells = MIXED.splitlines()[row + 1].split(",")
    assert (str(sent["weight"]), sent["colour"]) == (cells[0], cells[3])
    assert np.isnan(sent["shape"])
    assert cells[4] == ""


def test_a_missing_number_becomes_the_mean_of_the_training_rows(tmp_path: Path) -> None:
    dataset = load_mixed(tmp_path / "a.csv")
    assert dataset.input.columns is not None
    train = dataset.x[dataset.split == 0, 1].astype(np.float64)
    size = dataset.input.columns[1]
    assert (size.missing, size.fill) == ("flagged", np.nanmean(train))
    x = dataset.part("train")[0]
    lacks = np.isnan(train)
    assert lacks.any()
    at = feature(dataset, "size")
    np.testing.assert_array_equal(x[lacks, at], np.float32(size.fill))
    np.testing.assert_array_equal(x[:, at + 1], lacks.astype("f4"))


def test_a_category_that_no_training_row_has_is_all_zeros(tmp_path: Path) -> None:
    # The split goes by content, so a new category is given to rows that go where it is wanted.
    plain = load_mixed(tmp_path / "a.csv")
    tries = [f"{i}.5,1.0,True,violet,round,no" for i in range(40)]
    added = load_mixed(tmp_path / "b.csv", MIXED + "\n".join(tries))
    tests = [line for line, code in zip(tries, added.split[N:], strict=True) if code != 0]
    dataset = load_mixed(tmp_path / "c.csv", MIXED + "\n".join(tests))
    assert dataset.categories is not None
    assert "violet" in (dataset.categories[3] or ())
    assert features_of(dataset) == features_of(plain)
    start = feature(dataset, "colour=blue")
    violet = (dataset.requests("test")["colour"] == "violet").to_numpy()
    colours = dataset.part("test")[0][:, start : start + 4]
    assert violet.any()
    np.testing.assert_array_equal(colours.sum(axis=1), 1.0 - violet)
    assert_served_as_trained(dataset)


def test_a_value_that_only_other_rows_lack_is_filled_without_a_flag(tmp_path: Path) -> None:
    tries = [f",1.0,{i % 2 == 0},red,round,no" for i in range(2)]
    tries += [f",{i}.5,{i % 2 == 0},blue,square,ja" for i in range(40)]
    added = load_mixed(tmp_path / "a.csv", MIXED + "\n".join(tries))
    kept = [line for line, code in zip(tries, added.split[N:], strict=True) if code != 0]
    dataset = load_mixed(tmp_path / "b.csv", MIXED + "\n".join(kept))
    assert dataset.input.columns is not None
    weight = dataset.input.columns[0]
    assert (weight.missing, weight.features) == ("filled", ("weight",))
    assert weight.fill == dataset.x[dataset.split == 0, 0].astype(np.float64).mean()
    test = dataset.part("test")[0][:, 0]
    lacks = np.isnan(dataset.x[dataset.split == 2, 0])
    np.testing.assert_array_equal(test[lacks], np.float32(weight.fill))
    assert lacks.any()


@pytest.mark.parametrize("column", [0, 3])
def test_a_column_that_every_training_row_lacks_is_refused(tmp_path: Path, column: int) -> None:
    # A row moves when its cell goes: of each row with and without it, the one that serves is taken.
    rows = []
    for line in MIXED.splitlines()[1:]:
        cells = line.split(",")
        rows += [line, ",".join([*cells[:column], "", *cells[column + 1 :]])]
    both = load_mixed(tmp_path / "a.csv", "\n".join([MIXED_COLUMNS, *rows]))
    whole = [row for row, code in zip(rows[::2], both.split[::2], strict=True) if code != 0]
    without = [row for row, code in zip(rows[1::2], both.split[1::2], strict=True) if code == 0]
    text = "\n".join([MIXED_COLUMNS, *whole, *without])
    message = refusal(DataError, lambda: load_mixed(tmp_path / "b.csv", text))
    name = MIXED_COLUMNS.split(",")[column]
    assert f"column {name!r} is missing in every training row. Leave it out" in message


def test_what_says_that_something_is_there_is_scaled_by_nothing(tmp_path: Path) -> None:
    dataset = load_mixed(tmp_path / "a.csv")
    train = dataset.part("train")[0].astype(np.float64)
    values = [feature(dataset, name) for name in ("weight", "size", "ripe")]
    np.testing.assert_allclose(np.array(dataset.input.mean)[values], train[:, values].mean(axis=0))
    np.testing.assert_allclose(
        np.array(dataset.input.variance)[values], train[:, values].var(axis=0)
    )
    flags = [i for i in range(11) if i not in values]
    assert {dataset.input.mean[i] for i in flags} == {0.0}
    assert {dataset.input.variance[i] for i in flags} == {1.0}


# Sequences of unequal length


def load_sequences(path: Path) -> Dataset:
    text = lines_of_sequences([3 + i % 5 for i in range(60)])
    return load_dataset(csv_file(path, text), label="answer", sequence_id="recording")


def test_requests_for_sequences_are_as_long_as_they_were(tmp_path: Path) -> None:
    dataset = load_sequences(tmp_path / "a.csv")
    found = np.flatnonzero(dataset.split == 0)
    requests = dataset.requests("train")
    assert [row.shape for row in requests] == [(3 + i % 5, 3) for i in found.tolist()]
    first = [line.split(",")[1:4] for line in lines_of_sequences([3]).splitlines()[1:]]
    np.testing.assert_array_equal(dataset.x[0, :3, :3], np.array(first, "f4"))


def test_sequences_are_padded_so_that_nothing_is_left_of_padding_when_scaled(
    tmp_path: Path,
) -> None:
    dataset = load_sequences(tmp_path / "a.csv")
    assert (dataset.input.ragged, dataset.input.shape) == (True, (7, 4))
    mean, variance = (
        np.array(values, "f4") for values in (dataset.input.mean, dataset.input.variance)
    )
    for part in PARTS:
        x = dataset.part(part)[0]
        scaled = (x - mean) / np.sqrt(variance)
        is_step = x[..., -1] == 1.0
        np.testing.assert_array_equal(scaled[~is_step], 0.0)
        np.testing.assert_array_equal(scaled[is_step][:, -1], 1.0)
        stored = dataset.x[dataset.split == PARTS.index(part)]
        np.testing.assert_array_equal(x[is_step], stored[is_step])


def test_the_statistics_of_sequences_are_over_true_steps_only(tmp_path: Path) -> None:
    dataset = load_sequences(tmp_path / "a.csv")
    steps = np.concatenate(dataset.requests("train")).astype(np.float64)
    np.testing.assert_allclose(dataset.input.mean, [*steps.mean(axis=0), 0.0], rtol=1e-12)
    np.testing.assert_allclose(dataset.input.variance, [*steps.var(axis=0), 1.0], rtol=1e-12)
