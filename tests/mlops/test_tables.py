from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.data import load_dataset
from mlops.errors import DataError, UsageError
from mlops.inputs import Column
from mlops.rows import Rows
from mlops.scoring import category_name
from mlops.sources import read_rows
from mlops.sources.reading import Reading
from tests.mlops.table_files import (
    COLOURS,
    MIXED,
    PLAIN,
    N,
    csv_file,
    csv_of,
    except_at,
    lines_of_sequences,
    plain,
    refusal,
)


def read(path: Path | str, label: str = "answer", **options: Any) -> Rows:
    return read_rows(str(path), Reading(label, **options))


def cells(rows: Rows, column: str) -> list[Any]:
    """A column with its categories by name, and None where a cell is missing."""
    assert rows.columns is not None
    i = rows.columns.index(column)
    names = None if rows.categories is None else rows.categories[i]
    return [
        None if np.isnan(value) else value if names is None else names[int(value)]
        for value in rows.x[:, i].tolist()
    ]


def column_of(values: list[str], path: Path, **options: Any) -> tuple[list[Any], bool]:
    """Reads one column of a CSV file: its cells, and whether it holds categories."""
    text = csv_of("v,width,answer", lambda i: f"{values[i % len(values)]},{i},{i % 2}")
    rows = read(csv_file(path, text), **options)
    n = len(values)
    return cells(rows, "v")[:n], rows.categories is not None and rows.categories[0] is not None


# What a column holds


def test_a_csv_is_a_table_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "Größe 2.csv"
    path.write_text(PLAIN, encoding="utf-8-sig")
    dataset = load_dataset(str(path), label="answer")
    assert dataset.input.kind == "table"
    assert dataset.input.columns == (Column("width"), Column("height"), Column("round"))
    assert dataset.categories is None
    assert dataset.class_names == ("ja", "nein")
    assert dataset.x[9].tolist() == [1.125, 2.0, 1.0]
    assert (dataset.name, dataset.source) == ("Gr-e-2", "Größe 2.csv")


def test_a_mixed_table_has_numbers_categories_and_missing_cells(tmp_path: Path) -> None:
    rows = read(csv_file(tmp_path / "a.csv", MIXED))
    assert rows.columns == ("weight", "size", "ripe", "colour", "shape")
    assert rows.categories == (None, None, None, tuple(sorted(COLOURS)), ("round", "square"))
    lines = [line.split(",") for line in MIXED.splitlines()[1:]]
    assert cells(rows, "colour") == [line[3] for line in lines]
    assert cells(rows, "shape") == [line[4] or None for line in lines]
    assert cells(rows, "size") == [float(line[1]) if line[1] else None for line in lines]
    assert cells(rows, "ripe") == [float(line[2] == "True") for line in lines]
    assert rows.x.dtype == np.dtype("<f4")
    missing = rows.x.view("<u4")[np.isnan(rows.x)]
    assert set(missing.tolist()) == {0x7FC00000}


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        (["1", "0.5", "1e3"], [1.0, 0.5, 1000.0]),
        (["1", "", "3"], [1.0, None, 3.0]),
        (["1", "NA", "null", "NaN", "4"], [1.0, None, None, None, 4.0]),
        (["True", "False", ""], [1.0, 0.0, None]),
        (["true", "FALSE"], [1.0, 0.0]),
        (["-0.0", "1"], [0.0, 1.0]),
        (["01", "02"], [1.0, 2.0]),
        ([str(2**63), "0", str(10**30)], [2.0**63, 0.0, float(np.float32(1e30))]),
    ],
)
def test_numbers_and_bools_are_numbers(
    tmp_path: Path, values: list[str], read_as: list[float | None]
) -> None:
    assert column_of(values, tmp_path / "a.csv") == (read_as, False)
    rows = read(tmp_path / "a.csv")
    assert (rows.categories is None) == (None not in read_as)
    assert not np.signbit(rows.x).any()


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        (["b", "a", "", "Ä"], ["b", "a", None, "Ä"]),
        (["1", "2", "x", "y"], ["1", "2", "x", "y"]),  # half of it numbers: still text
        (["yes", "True"], ["yes", "True"]),
        ([" a", "a"], [" a", "a"]),
        (["12:30", "2026-01-01"], ["12:30", "2026-01-01"]),
    ],
)
def test_other_text_is_categories(
    tmp_path: Path, values: list[str], read_as: list[str | None]
) -> None:
    assert column_of(values, tmp_path / "a.csv") == (read_as, True)


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        (["1", "2", ""], ["1", "2", None]),
        (["1.0", "2.50"], ["1", "2.5"]),
        (["True", "False", ""], ["True", "False", None]),
        (["10", "9", "x", ""], ["10", "9", "x", None]),
        (["01234", "99999", ""], ["01234", "99999", None]),
        (["2026-01-01", "2026-02-01"], ["2026-01-01", "2026-02-01"]),
        (["inf", "1"], ["inf", "1"]),
    ],
)
def test_a_column_named_as_categorical_is_categories_by_name(
    tmp_path: Path, values: list[str], read_as: list[str | None]
) -> None:
    assert column_of(values, tmp_path / "a.csv", categorical=("v",)) == (read_as, True)


def test_codes_that_keep_their_zeros_are_noted(tmp_path: Path) -> None:
    text = csv_of("zip,width,answer", lambda i: f"0{i % 3},{i},{i % 2}")
    dataset = load_dataset(csv_file(tmp_path / "a.csv", text), label="answer", categorical=("zip",))
    assert dataset.notes == ("Column 'zip' keeps its leading zeros; send it as text.",)


def test_a_label_may_stand_anywhere_and_be_numbers_or_bools(tmp_path: Path) -> None:
    text = csv_of("code,width,flag", lambda i: f"{10 - i % 2},{i},{i % 3 == 0}")
    path = csv_file(tmp_path / "a.csv", text)
    numbers = load_dataset(path, label="code")
    assert numbers.class_names == ("9", "10")
    assert numbers.input.columns == (Column("width"), Column("flag"))
    bools = load_dataset(path, label="flag")
    assert bools.class_names == ("False", "True")
    assert bools.input.columns == (Column("code"), Column("width"))


def test_a_column_has_one_type_from_its_first_row_to_its_last(tmp_path: Path) -> None:
    # pandas guesses types anew every 2**20 cells: here about 4096 rows.
    header = ",".join(f"v{i}" for i in range(128)) + ",y"
    labels = [f"0{i % 2}" for i in range(4_900)] + ["a"] * 100
    text = csv_of(header, lambda i: f"{i}" + f",{i % 2}" * 127 + f",{labels[i]}", 5_000)
    dataset = load_dataset(csv_file(tmp_path / "a.csv", text), label="y")
    assert dataset.class_names == ("00", "01", "a")


def test_a_csv_read_as_sequences_has_no_columns(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", PLAIN)
    dataset = load_dataset(path, label="answer", kind="sequence")
    assert (dataset.input.shape, dataset.input.columns) == ((3, 1), None)


def test_a_table_with_categories_is_read_as_nothing_else(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", MIXED)
    message = refusal(DataError, lambda: load_dataset(path, label="answer", kind="sequence"))
    assert "has categories or missing values; expected --kind table, got sequence" in message


def test_a_thousand_categories_are_not_too_many(tmp_path: Path) -> None:
    text = csv_of("width,name,answer", lambda i: f"{i},n{i},{i % 2}", n=1_000)
    rows = read(csv_file(tmp_path / "a.csv", text))
    assert rows.categories is not None
    assert len(rows.categories[1] or ()) == 1_000
    assert cells(rows, "name") == [f"n{i}" for i in range(1_000)]


# Real data


def penguins(folder: Path) -> Path:
    path = folder / "penguins.csv"
    path.write_bytes((resources.files("palmerpenguins") / "data" / "penguins.csv").read_bytes())
    return path


def test_the_penguins_are_a_mixed_table(tmp_path: Path) -> None:
    dataset = load_dataset(str(penguins(tmp_path)), label="species")
    assert (dataset.name, dataset.x.shape) == ("penguins", (344, 7))
    assert dataset.class_names == ("Adelie", "Chinstrap", "Gentoo")
    assert dataset.input.columns is not None
    columns = {column.name: column for column in dataset.input.columns}
    assert columns["island"] == Column("island", ("Biscoe", "Dream", "Torgersen"))
    assert columns["sex"] == Column("sex", ("female", "male"), "flagged")
    assert columns["year"] == Column("year")
    measures = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")
    assert {columns[name].missing for name in measures} == {"flagged"}
    assert np.isnan(dataset.x).sum(axis=0).tolist() == [0, 2, 2, 2, 2, 11, 0]
    assert dataset.counts() == {"train": 221, "val": 63, "test": 60}


def test_the_years_of_the_penguins_may_be_categories(tmp_path: Path) -> None:
    path = str(penguins(tmp_path))
    dataset = load_dataset(path, label="species", categorical=("year",))
    assert dataset.input.columns is not None
    assert dataset.input.columns[-1] == Column("year", ("2007", "2008", "2009"))


def test_a_table_is_the_same_dataset_from_csv_and_from_parquet(tmp_path: Path) -> None:
    csv = penguins(tmp_path)
    pd.read_csv(csv).to_parquet(tmp_path / "penguins.parquet")
    one, other = (
        load_dataset(str(path), label="species", categorical=("year",))
        for path in (csv, tmp_path / "penguins.parquet")
    )
    assert (one.fingerprint, one.input) == (other.fingerprint, other.input)


# Parquet


def parquet(path: Path, **columns: Any) -> str:
    """Writes columns of twelve values each, and a label."""
    pq.write_table(pa.table(columns | {"answer": list("ab" * 6)}), path)
    return str(path)


def dictionary(values: list[Any]) -> pa.Array:
    return pa.array(values).dictionary_encode()


@pytest.mark.parametrize(
    ("array", "read_as"),
    [
        (pa.array([1, None, 3] * 4), [1.0, None, 3.0]),
        (pa.array([1, 2, 3] * 4, pa.uint8()), [1.0, 2.0, 3.0]),
        (pa.array([1.5, float("nan"), None] * 3 + [2.0] * 3), [1.5, None, None]),
        (pa.array([1.5, 2.5, 3.5] * 4, pa.float16()), [1.5, 2.5, 3.5]),
        (pa.array([True, False, None] * 4), [1.0, 0.0, None]),
        (pa.array(["1.5", "2", None] * 4), [1.5, 2.0, None]),
        (pa.array(["1.5", "2", ""] * 4), [1.5, 2.0, None]),
        (pa.array(["b", "", "NA"] * 4), ["b", None, "NA"]),
        (pa.array(["b", None, "a"] * 4, pa.large_string()), ["b", None, "a"]),
        (dictionary(["b", None, "a"] * 4), ["b", None, "a"]),
    ],
    ids=str,
)
def test_a_parquet_file_holds_numbers_bools_text_and_dictionaries(
    tmp_path: Path, array: pa.Array, read_as: list[Any]
) -> None:
    rows = read(parquet(tmp_path / "a.Parquet", v=array))
    assert cells(rows, "v")[:3] == read_as
    assert (rows.columns, rows.source) == (("v",), "a.Parquet")
    assert rows.labels.tolist() == list("ab" * 6)


def test_text_of_digits_named_as_categorical_stays_as_it_is_written(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", v=["01", "2.0", "2"] * 4)
    assert cells(read(path, categorical=("v",)), "v")[:3] == ["01", "2.0", "2"]


def test_categories_of_pandas_are_categories(tmp_path: Path) -> None:
    columns = {"v": pd.Categorical([7, None, 10] * 4), "w": pd.Categorical([0.5, 1.0, 2.5] * 4)}
    pd.DataFrame({**columns, "answer": list("ab" * 6)}).to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert rows.categories == (("10", "7"), ("0.5", "1", "2.5"))
    assert cells(rows, "v")[:3] == ["7", None, "10"]


def test_the_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"v": np.arange(12.0), "answer": list("ab" * 6)})
    frame.index = pd.Index(range(5, 17), name="line")
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").columns == ("v",)


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (pa.array([9, 10] * 6), ("9", "10")),
        (pa.array([True, False] * 6), ("False", "True")),
        (dictionary(["x", "y"] * 6), ("x", "y")),
    ],
    ids=str,
)
def test_a_label_in_parquet_is_integers_bools_or_text(
    tmp_path: Path, label: pa.Array, names: tuple[str, ...]
) -> None:
    path = parquet(tmp_path / "a.parquet", v=range(12), kind=label)
    assert sorted({str(value) for value in read(path, "kind").labels}, key=names.index) == list(
        names
    )


OTHERS: dict[str, tuple[pa.Array, str]] = {
    "times": (pa.array([pd.Timestamp(2026, 1, 1)] * 12), "is of type timestamp["),
    "dates": (pa.array([pd.Timestamp(2026, 1, 1)] * 12, pa.date32()), "is of type date32[day]"),
    "lists": (pa.array([[1, 2]] * 12), "is of type list<"),
    "structs": (pa.array([{"a": 1}] * 12), "is of type struct<"),
    "bytes": (pa.array([b"a"] * 12), "is of type binary"),
    "decimals": (pa.array([1] * 12).cast(pa.decimal128(30, 2)), "is of type decimal128(30, 2)"),
    "dates in a dictionary": (
        dictionary([pd.Timestamp(2026, 1, 1)] * 12),
        "is of type timestamp[",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_column_of_another_type_is_refused_by_name(tmp_path: Path, case: str) -> None:
    array, fragment = OTHERS[case]
    path = parquet(tmp_path / "a.parquet", v=range(12), odd=array)
    message = refusal(DataError, lambda: read(path))
    assert f"{path!r}: column 'odd' {fragment}" in message
    assert "expected numbers, bools or text. Save it as numbers, or not at all." in message


@pytest.mark.parametrize(
    ("columns", "fragment"),
    [
        ({"v": pa.nulls(12)}, "column 'v' is missing in every row. Leave it out of the file."),
        ({"v": pa.array([None] * 12, pa.string())}, "column 'v' is missing in every row"),
        ({"v": [""] * 12}, "column 'v' is missing in every row"),
        ({"v": ["1"] * 8 + ["x"] * 4}, "has text where a number should be: 4 of 12, the first in"),
        ({"v": [1.0] * 11 + [float("inf")]}, "column 'v' has infinite values"),
        ({"v": ["1"] * 11 + ["inf"]}, "column 'v' has infinite values"),
        ({"v": ["x"] * 12}, "column 'v' has one value only"),
        ({"": range(12)}, "has a column without a name, column 0"),
        ({}, "has no column beside the label 'answer'."),
    ],
)
def test_a_parquet_file_that_cannot_be_used_is_refused(
    tmp_path: Path, columns: dict[str, Any], fragment: str
) -> None:
    path = parquet(tmp_path / "a.parquet", **columns)
    assert fragment in refusal(DataError, lambda: read(path))


def test_two_columns_of_one_name_are_refused_in_parquet_too(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(range(4))] * 2, names=["v", "v"])
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(DataError, lambda: read(tmp_path / "a.parquet"))
    assert "has columns of the same name: 'v'. Rename them." in message


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": pa.array([], "f4"), "answer": []}), tmp_path / "a.parquet")
    assert "has zero rows" in refusal(DataError, lambda: read(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("harm", "fragment"),
    [
        (lambda whole: b"", "is empty; expected a Parquet file"),
        (lambda whole: PLAIN.encode(), "is not a Parquet file. Save it with to_parquet."),
        (lambda whole: whole[: len(whole) // 2], "is truncated or damaged ("),
        (lambda whole: whole[:4], "is truncated or damaged ("),
        (lambda whole: whole[:-12] + bytes(12), "is truncated or damaged ("),
    ],
)
def test_a_file_that_is_no_whole_parquet_file_is_refused_by_name(
    tmp_path: Path, harm: Callable[[bytes], bytes], fragment: str
) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"v": range(N), "answer": list("ab" * 60)}).to_parquet(path)
    path.write_bytes(harm(path.read_bytes()))
    message = refusal(DataError, lambda: read(path))
    assert message.startswith(repr(str(path)))
    assert fragment in message


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    frame = pd.DataFrame({"v": range(N), "c": list("xyz" * 40), "answer": list("ab" * 60)})
    frame.to_parquet(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        read(path)
    except (DataError, UsageError) as err:
        assert "\n" not in str(err)


def test_a_missing_table_is_said_as_such(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        message = refusal(DataError, lambda name=name: read(tmp_path / name))
        assert message == f"there is no file {str(tmp_path / name)!r}."


# Sequences


SEQUENCES = {"sequence_id": "recording"}


def test_lines_of_one_identifier_are_one_sequence(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", lines_of_sequences([2, 4, 1, 3]))
    rows = read(path, **SEQUENCES)
    assert (rows.ragged, rows.columns, rows.categories) == (True, None, None)
    assert rows.x.shape == (4, 4, 4)
    assert rows.x[..., -1].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    assert (rows.x[rows.x[..., -1] == 0] == 0).all()
    assert rows.labels.tolist() == ["a", "b", "a", "b"]
    assert rows.notes == ("4 sequences of 1 to 4 steps, padded to 4 at their end.",)
    frame = pd.read_csv(path)
    steps = frame.loc[frame["recording"] == "s3", ["u", "v", "w"]].to_numpy("f4")
    np.testing.assert_array_equal(rows.x[3, :3, :3], steps)


def test_sequences_of_one_length_need_no_padding(tmp_path: Path) -> None:
    rows = read(csv_file(tmp_path / "a.csv", lines_of_sequences([3] * 4)), **SEQUENCES)
    assert (rows.ragged, rows.x.shape, rows.notes) == (False, (4, 3, 3), ())


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=9), seed=st.integers(0, 999))
def test_lines_of_sequences_may_interleave(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    frame = pd.read_csv(csv_file(path, lines_of_sequences([*lengths, 2])))
    rows = read(path, **SEQUENCES)
    mixed = frame.sample(frac=1, random_state=seed)
    mixed.sort_values("u", kind="stable").to_csv(path, index=False)
    other = read(path, **SEQUENCES)
    for name, lines in mixed.sort_values("u", kind="stable").groupby("recording"):
        i = list(dict.fromkeys(mixed.sort_values("u", kind="stable")["recording"])).index(name)
        np.testing.assert_array_equal(
            other.x[i, : len(lines), :3], lines[["u", "v", "w"]].to_numpy("f4")
        )
    assert (other.ragged, other.x.shape) == (rows.ragged, rows.x.shape)


def test_sequences_come_from_parquet_with_numbers_as_identifiers(tmp_path: Path) -> None:
    ids = [5, 5, 5, 2, 2, 7, 7, 7, 7, 1, 1, 1]
    table = pa.table({"t": range(12), "id": ids, "answer": list("aaabbaaaabbb")})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", sequence_id="id")
    assert rows.labels.tolist() == ["a", "b", "a", "b"]
    assert rows.x[..., 0].tolist() == [[0, 1, 2, 0], [3, 4, 0, 0], [5, 6, 7, 8], [9, 10, 11, 0]]


def test_categories_of_pandas_are_no_steps_of_a_sequence(tmp_path: Path) -> None:
    frame = pd.read_csv(csv_file(tmp_path / "a.csv", STEPS)).astype({"v": "category"})
    frame.to_parquet(tmp_path / "a.parquet")
    message = refusal(DataError, lambda: read(tmp_path / "a.parquet", **SEQUENCES))
    assert "column 'v' has text or categories in the steps of a sequence: 10 of 10" in message


STEPS = lines_of_sequences([2, 4, 1, 3])


def step_at(row: int, text: str) -> str:
    lines = STEPS.splitlines()
    lines[row + 1] = text
    return "\n".join(lines)


SEQUENCE_REFUSALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "two labels": (
        step_at(5, "s1,1,2,3,a"),
        (
            "column 'answer' changes within a sequence: in 1 of 4 sequences, the first of which ",
            "begins in row 2 (counting from 0, without the header); expected one label a sequence",
        ),
    ),
    "missing identifier": (
        step_at(5, ",1,2,3,b"),
        ("column 'recording' has missing values: 1 of 10, the first in row 5 (",),
    ),
    "missing step": (
        step_at(5, "s1,1,,3,b"),
        (
            "column 'v' has missing values in the steps of a sequence: 1 of 10, the first in row 5",
            "Drop or fill these rows.",
        ),
    ),
    "text in one step": (
        step_at(5, "s1,1,high,3,b"),
        (
            "column 'v' has text or categories in the steps of a sequence: 1 of 10, the first in ",
            "Save it as numbers, or not at all.",
        ),
    ),
    "bools and a missing step": (
        csv_of(
            "recording,v,answer", lambda i: f"{i // 2},{'' if i == 3 else i % 3 > 1},{i // 2 % 2}"
        ),
        ("'v' has missing values in the steps of a sequence: 1 of 120, the first in row 3 (",),
    ),
    "text and a missing step": (
        step_at(5, "s1,x,,3,b"),
        (
            "column 'u' has text or categories in the steps of a sequence: 1 of 10, the first in ",
            "; column 'v' has missing values in the steps of a sequence: 1 of 10, the first in row",
            "Save 'u' as numbers, or not at all. Drop or fill these rows.",
        ),
    ),
    "infinite step": (step_at(5, "s1,1,inf,3,b"), ("column 'v' has infinite values",)),
    "one step each": (
        lines_of_sequences([1] * 6),
        ("column 'recording' is another in every line", "Leave out --sequence-id, or name the"),
    ),
    "one class": (
        STEPS.replace(",b", ",a"),
        ("column 'answer' has one class only, 'a'",),
    ),
    "identifier and label only": (
        "recording,answer\ns1,a\ns1,a\n",
        ("has no column beside the label 'answer' and 'recording'.",),
    ),
}


@pytest.mark.parametrize("case", SEQUENCE_REFUSALS)
def test_lines_that_are_no_sequences_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    text, fragments = SEQUENCE_REFUSALS[case]
    path = csv_file(tmp_path / "a.csv", text)
    message = refusal(DataError, lambda: read(path, **SEQUENCES))
    assert repr(path) in message
    for fragment in fragments:
        assert fragment in message


# Refusals


@pytest.mark.parametrize(
    ("text", "options", "fragments"),
    [
        (PLAIN, {"label": None}, ("needs --label COLUMN", "'width', 'height', 'round', 'answer'")),
        (PLAIN, {"label": "anser"}, ("no column 'anser' for --label", "Did you mean 'answer'?")),
        ("width;answer\n1;ja\n", {}, ("'width;answer'", "separated by commas?")),
        (
            PLAIN,
            {"categorical": ("round", "hight")},
            ("no column 'hight' for --categorical", "Did you mean 'height'?"),
        ),
        (
            PLAIN,
            {"categorical": ("answer",)},
            ("column 'answer' is the label", "Leave it out of --categorical."),
        ),
        (PLAIN, {"sequence_id": "with"}, ("no column 'with' for --sequence-id", "mean 'width'?")),
        (PLAIN, {"sequence_id": "answer"}, ("is both --label and --sequence-id. Name two.",)),
        (
            PLAIN,
            {"sequence_id": "width", "categorical": ("round",)},
            ("the steps of a sequence are numbers. Leave out --categorical, or --sequence-id.",),
        ),
    ],
)
def test_an_option_that_names_a_wrong_column_is_answered_with_the_choices(
    tmp_path: Path, text: str, options: dict[str, Any], fragments: tuple[str, ...]
) -> None:
    path = csv_file(tmp_path / "a.csv", text)
    message = refusal(UsageError, lambda: load_dataset(path, **({"label": "answer"} | options)))
    for fragment in (repr(path), *fragments):
        assert fragment in message


CSV_REFUSALS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "short row": (
        except_at(5, "1,2"),
        ("column 'answer' has missing labels: 1 of 120, the first in row 5 ",),
    ),
    "missing label": (
        except_at(0, "1,2,True,"),
        ("column 'answer' has missing labels: 1 of 120", "in row 0 (counting from 0, without the"),
    ),
    "long row": (except_at(7, "1,2,True,ja,5"), ("is not a table", "as many values")),
    "long rows": (
        csv_of("width,height,round,answer", lambda i: plain(i) + ",5"),
        ("is not a table", "as many values as the header has names"),
    ),
    "open quote": (except_at(7, '"1,2,True,ja'), ("is not a table",)),
    "same name": (
        "width,width,round,answer\n" + plain(0),
        ("has columns of the same name: 'width'",),
    ),
    "no name": (
        csv_of(",width,round,answer", plain),
        ("column without a name, column 0 (counting from 0)", "index=False"),
    ),
    "empty": ("", ("is empty; expected a header and rows",)),
    "blank lines": ("\n\n", ("is empty; expected a header and rows",)),
    "header only": ("width,height,answer\n", ("has zero rows, only a header",)),
    "label only": ("answer\nja\n", ("has no column beside the label 'answer'",)),
    "not utf-8": (PLAIN.encode() + b"\xff\xfe,1,True,ja\n", ("is not UTF-8 text",)),
    "header not utf-8": (b"gr\xf6\xdfe,answer\n1,ja\n", ("is not UTF-8 text",)),
    "continuous label": (
        csv_of("width,answer", lambda i: f"{i},{i / 7}"),
        ("column 'answer' has continuous labels", "in row 1 (", "Podium does classification only"),
    ),
    "whole floats": (
        csv_of("width,answer", lambda i: f"{i},{i % 2}.0"),
        ("column 'answer' has whole numbers stored as of dtype float64",),
    ),
    "negative label": (
        csv_of("width,answer", lambda i: f"{i},{i % 2 - 1}"),
        ("column 'answer' has labels out of range, negative: 60 of 120, the first in row 0 (",),
    ),
    "one class": (
        csv_of("width,answer", lambda i: f"{i},ja"),
        ("column 'answer' has one class only, 'ja'",),
    ),
    "mostly numbers": (
        except_at(7, "1,high,True,ja"),
        (
            "column 'height' has text where a number should be: 1 of 120, the first in row 7 (co",
            "Correct these cells, or name it with --categorical COLUMN if these are categories.",
        ),
    ),
    "infinite": (
        except_at(7, "-inf,2,True,ja"),
        ("column 'width' has infinite values", ": 1 of 120, the first in row 7 (", "Drop or fill"),
    ),
    "beyond float32": (
        except_at(7, "1e39,2,True,ja"),
        ("values beyond float32 (3.4e38): 1 of 120, the first in row 7 (counting from 0, ",),
    ),
    "beyond float64": (
        except_at(7, f"{10**400},2,True,ja"),
        ("values beyond float32 (3.4e38): 1 of 120, the first in row 7 (",),
    ),
    "one number": (
        csv_of("width,height,answer", lambda i: f"{i},7,{i % 2}"),
        ("'a.csv': column 'height' has one value only. Leave it out of the file.",),
    ),
    "one number or none": (
        csv_of("width,height,answer", lambda i: f"{i},{'7' * (i % 2)},{i % 2}"),
        ("column 'height' has one value only. Leave it out of the file.",),
    ),
    "one number as float32": (
        csv_of("width,height,answer", lambda i: f"{i},{2**30 + i % 3},{i % 2}"),
        ("column 'height' has one value only",),
    ),
    "one category": (
        csv_of("width,colour,answer", lambda i: f"{i},{'red' * (i % 2)},{i % 2}"),
        ("column 'colour' has one value only. Leave it out of the file.",),
    ),
    "nothing": (
        csv_of("width,height,answer", lambda i: f"{i},,{i % 2}"),
        ("column 'height' is missing in every row. Leave it out of the file.",),
    ),
    "identifiers": (
        csv_of("width,name,answer", lambda i: f"{i},n{i},{i % 2}", n=1_001),
        (
            "column 'name' has 1001 categories, as identifiers or free text have; expected at most "
            "1000. Leave it out of the file.",
        ),
    ),
    "dates": (
        csv_of("width,when,answer", lambda i: f"{i},2026-01-{i % 28 + 1:02} 08:00,{i % 2}"),
        ("column 'when' holds dates. Save it as numbers, or not at all.",),
    ),
    "three columns": (
        csv_of(
            "a,b,c,answer", lambda i: f"7,{'x' if i == 3 else i},{'inf' if i == 4 else i},{i % 2}"
        ),
        (
            "'a.csv': column 'a' has one value only; column 'b' has text where a number should be: "
            "1 of 120, the first in row 3 (counting from 0, without the header); column 'c' has",
            "the first in row 4. Leave 'a' out of the file. Correct these cells, or name 'b' with ",
        ),
    ),
    "seven columns": (
        csv_of("a,b,c,d,e,f,g,answer", lambda i: f"1,2,3,4,5,6,7,{i % 2}"),
        ("column 'e' has one value only; and 2 more. Leave 'a', 'b', 'c'",),
    ),
}


@pytest.mark.parametrize("case", CSV_REFUSALS)
def test_a_csv_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    text, fragments = CSV_REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(DataError, lambda: load_dataset("a.csv", label="answer"))
    assert "'a.csv'" in message
    for fragment in fragments:
        assert fragment in message


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.text(max_size=3) | st.just("1") | st.none(), min_size=12, max_size=12))
def test_any_text_is_read_or_refused_in_one_line_that_does_not_repeat_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[str | None]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    table = pa.table({"v": pa.array(values, pa.string()), "answer": list("ab" * 6)})
    pq.write_table(table, path)
    try:
        found = cells(read(path), "v")
    except DataError as err:
        assert "\n" not in str(err)
    else:
        assert [value is None for value in found] == [not value for value in values]
        if any(isinstance(value, str) for value in found):
            assert found == [category_name(value) if value else None for value in values]
