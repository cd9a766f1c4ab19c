from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mlops.data import load_dataset
from mlops.errors import DataError, UsageError
from mlops.scoring import decode_picture
from mlops.sources.images import read_images

PHOTOS = dict(zip(("flower", "temple"), reversed(load_sample_images().images), strict=True))


def photo(name: str, height: int, width: int, start: int = 0) -> Image.Image:
    return Image.fromarray(PHOTOS[name][start : start + height, start : start + width])


def save(picture: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two pictures, all of 20x30 pixels."""
    for name in PHOTOS:
        for i in range(2):
            save(photo(name, 20, 30, i), tmp_path / "pics" / name / f"{i}.png")
    return tmp_path / "pics"


def png_of(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pictures_come_as_they_are_sorted_by_class_and_name(folder: Path) -> None:
    rows = read_images(folder, None)
    assert rows.x.shape == (4, 20, 30, 3)
    assert rows.x.dtype == np.uint8
    assert rows.labels.tolist() == ["flower", "flower", "temple", "temple"]
    np.testing.assert_array_equal(rows.x[1], PHOTOS["flower"][1:21, 1:31])
    np.testing.assert_array_equal(rows.x[2], PHOTOS["temple"][:20, :30])
    assert (rows.name, rows.source, rows.where) == ("pics", "pics", repr(str(folder)))
    assert rows.is_test is None
    assert rows.notes == ()


def test_a_row_is_what_serving_decodes(folder: Path) -> None:
    path = save(photo("temple", 61, 47), folder / "temple" / "2.JPG", quality=80)
    rows = read_images(folder, None)
    np.testing.assert_array_equal(rows.x[4], decode_picture(path.read_bytes(), (20, 30, 3)))


def test_hidden_files_and_the_clutter_of_systems_are_passed_over(folder: Path) -> None:
    for place in (folder, folder / "temple"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (place / name).write_text("clutter")
    (folder / ".git").mkdir()
    assert len(read_images(folder, None).x) == 4


def test_mixed_sizes_are_brought_to_the_median_and_that_is_noted(folder: Path) -> None:
    save(photo("flower", 90, 25), folder / "flower" / "tall.png")
    rows = read_images(folder, None)
    assert rows.x.shape == (5, 20, 30, 3)
    assert rows.notes == (
        "1 of 5 pictures were resized to 20x30 pixels (height x width); their heights were 90, "
        "their widths 25.",
    )


@pytest.mark.parametrize("name", ["flower", "temple"])
def test_the_longer_side_has_at_most_128_pixels(folder: Path, name: str) -> None:
    sizes = [(300, 400), (300, 400), (310, 500), (290, 390), (300, 400), (300, 400)]
    for i, size in enumerate(sizes):
        save(photo(name, *size), folder / name / f"large{i}.jpg")
    rows = read_images(folder, None)
    assert rows.x.shape[1:] == (96, 128, 3)
    assert "10 of 10" in rows.notes[0]
    assert "heights were 20 to 310, their widths 30 to 500" in rows.notes[0]


def test_large_pictures_of_one_size_are_made_smaller_too(tmp_path: Path) -> None:
    for name in PHOTOS:
        save(photo(name, 256, 192), tmp_path / name / "a.jpg")
    rows = read_images(tmp_path, None)
    assert rows.x.shape == (2, 128, 96, 3)
    assert rows.notes[0].startswith("2 of 2 pictures were resized to 128x96 pixels")


def test_a_size_that_is_asked_for_is_taken(folder: Path) -> None:
    rows = read_images(folder, (40, 200))
    assert rows.x.shape == (4, 40, 200, 3)
    with pytest.raises(UsageError, match="--image-size must be 1 or more, got 0 and 5"):
        read_images(folder, (0, 5))


def test_pictures_that_are_all_grey_have_one_channel(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pictures = {
        "L": Image.fromarray(levels),
        "LA": Image.fromarray(levels).convert("LA"),
        "1": Image.fromarray(levels > 99),
        "I;16": Image.fromarray(levels.astype(np.uint16) * 257),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        save(picture, tmp_path / f"class {mode}" / "a.png")
    rows = read_images(tmp_path, None)
    assert rows.x.shape == (4, 16, 16, 1)
    found = dict(zip(rows.labels.tolist(), rows.x[..., 0], strict=True))
    for mode in ("L", "LA", "I;16"):
        np.testing.assert_array_equal(found[f"class {mode}"], levels)
    np.testing.assert_array_equal(found["class 1"], (levels > 99) * 255)
    save(photo("flower", 16, 16), tmp_path / "class L" / "b.png")
    assert read_images(tmp_path, None).x.shape == (5, 16, 16, 3)


def test_pictures_are_turned_as_exif_says(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name in PHOTOS:
        for i in range(2):
            path = folder / name / f"{i}.png"
            turned = Image.open(path).transpose(Image.Transpose.ROTATE_90)
            save(turned, path, exif=exif)
    rows = read_images(folder, None)
    assert rows.x.shape == (4, 20, 30, 3)
    assert rows.notes == ()
    np.testing.assert_array_equal(rows.x[2], PHOTOS["temple"][:20, :30])


def test_a_folder_may_bring_its_own_test_rows(folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    split.mkdir()
    folder.rename(split / "train")
    save(photo("flower", 20, 30, 9), split / "test" / "flower" / "a.png")
    rows = read_images(split, None)
    assert rows.is_test is not None
    assert rows.is_test.tolist() == [False] * 4 + [True]
    assert rows.labels.tolist()[-1] == "flower"
    save(photo("flower", 20, 30, 9), split / "test" / "tree" / "a.png")
    with pytest.raises(DataError, match="test has classes that train lacks: 'tree'"):
        read_images(split, None)


def test_classes_may_be_called_train_and_test(folder: Path) -> None:
    (folder / "flower").rename(folder / "train")
    (folder / "temple").rename(folder / "test")
    rows = read_images(folder, None)
    assert rows.is_test is None
    assert rows.labels.tolist() == ["test", "test", "train", "train"]


def test_every_bad_file_counts_and_three_are_named(folder: Path) -> None:
    whole = (folder / "temple" / "0.png").read_bytes()
    jpeg = save(photo("temple", 60, 60), folder / "temple" / "cut.jpg").read_bytes()
    bad = {
        "flower/a.png": b"",
        "flower/b.png": whole[: len(whole) // 2],
        "flower/c.png": b"no picture",
        "temple/cut.jpg": jpeg[: len(jpeg) // 2],
        "temple/notes.txt": b"text",
        "temple/small.png": whole[:20],
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_images(folder, None)
    assert str(refused.value) == (
        f"{str(folder)!r} has files that are no whole PNG or JPEG pictures: 6 of 10; the first: "
        "'flower/a.png' is empty, 'flower/b.png' is a damaged or incomplete PNG or JPEG file, "
        "'flower/c.png' is neither a PNG nor a JPEG file. Replace or remove them."
    )


def make_gif(path: Path) -> None:
    save(photo("flower", 9, 9), path, format="gif")


def make_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "make", "fragment"),
    [
        ("a.gif", make_gif, "'flower/a.gif' is not named .png, .jpg or .jpeg"),
        ("a.png", make_gif, "'flower/a.png' is neither a PNG nor a JPEG file"),
        ("a.png", make_link, "'flower/a.png' is no file"),
        ("a.png", make_pipe, "'flower/a.png' is no file"),
        ("more", Path.mkdir, "'flower/more' is a folder within a class"),
        ("a.png", lambda path: path.write_bytes(png_of(20_000, 20_000)), "of 400000000 pixels"),
        ("a.png", lambda path: path.write_bytes(png_of(9_999, 9_999)), "of 99980001 pixels"),
        ("a.png", lambda path: path.write_bytes(png_of(9, 9)), "damaged or incomplete"),
    ],
)
def test_a_bad_file_is_named(folder: Path, name: str, make: Any, fragment: str) -> None:
    make(folder / "flower" / name)
    with pytest.raises(DataError, match="1 of 5") as refused:
        read_images(folder, None)
    assert fragment in str(refused.value)


def test_a_folder_of_bad_files_only_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 2; .*'a/x.png' is empty, 'b/x.png' is empty"):
        read_images(tmp_path, None)


def test_a_wrong_layout_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    def refusal(place: Path) -> str:
        with pytest.raises(DataError) as refused:
            read_images(place, None)
        return str(refused.value)

    assert "has no subfolders; expected one a class, got 2 pictures" in refusal(folder / "flower")
    (tmp_path / "none").mkdir()
    assert "has no subfolders; expected one a class, got none." in refusal(tmp_path / "none")
    assert "cannot be read: No such file or directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "validated" / "train").mkdir(parents=True)
    (tmp_path / "validated" / "val").mkdir()
    (folder / "flower").rename(tmp_path / "validated" / "train" / "flower")
    assert "the folder has one class only, 'temple'; expected two or more" in refusal(folder)
    save(photo("temple", 9, 9), tmp_path / "validated" / "val" / "temple" / "a.png")
    assert "'train' holds folders and no pictures; expected <class>/" in refusal(
        tmp_path / "validated"
    )
    (folder / "empty").mkdir()
    (folder / "empty" / ".hidden").touch()
    assert "has empty class folders: 'empty'. Add" in refusal(folder)
    (folder / "labels.csv").touch()
    assert "has files beside its class folders: 1; the first: 'labels.csv'" in refusal(folder)


def test_memory_stays_near_the_size_of_the_result(tmp_path: Path) -> None:
    content = io.BytesIO()
    photo("temple", 128, 128).save(content, "png")
    for name in PHOTOS:
        (tmp_path / name).mkdir()
        for i in range(100):
            (tmp_path / name / f"{i}.png").write_bytes(content.getvalue())
    read_images(tmp_path, (8, 8))  # imports
    tracemalloc.start()
    try:
        rows = read_images(tmp_path, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * rows.x.nbytes + 2**20


def test_a_folder_becomes_a_dataset_that_says_which_flips_are_harmless(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(600):
        for name in PHOTOS:
            top, left = rng.integers(0, 400), rng.integers(0, 600)
            crop = Image.fromarray(PHOTOS[name][top : top + 24, left : left + 24])
            save(crop, tmp_path / name / f"{i}.png")
    dataset = load_dataset(str(tmp_path))
    assert dataset.input.kind == "image"
    assert dataset.input.shape == (24, 24, 3)
    assert dataset.class_names == ("flower", "temple")
    assert "horizontal" in dataset.input.flips
