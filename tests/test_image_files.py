"""Image paths as people have them: other cases, slashes, accents and machines."""

import unicodedata

import numpy as np
import pytest
from PIL import Image
from raw_sets import make_fitzpatrick, make_ham10000, make_papila, make_utkface

from fairjax.data.image_files import find_images
from fairjax.data.image_tables import load_image_table
from fairjax.data.named import load_named, read_named

OTHER = "by other letters or slashes"
MACHINE = "by the end of a path of another machine"


def put(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (10 * number, 0, 0)).save(root / name, format="PNG")


@pytest.mark.parametrize(
    ("file", "written", "way"),
    [
        ("a/b.png", "a/b.png", None),
        ("a/b.png", "a/b", None),
        ("a/b.JPG", "a/b.jpg", OTHER),
        ("a/b.JPG", "a/b", OTHER),
        ("A/b.jpg", "a/B.jpg", OTHER),
        ("a/b.jpg", "a\\b.jpg", OTHER),
        (unicodedata.normalize("NFD", "é.png"), "é.png", OTHER),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"), OTHER),
        ("0.png", "0.0", "as whole numbers"),
        ("7.npy", "7.0", "as whole numbers"),
        ("a/b.png", "/home/somebody/set/a/b.png", MACHINE),
        ("a/b.png", "C:\\Users\\me\\set\\A\\B.PNG", MACHINE),
        ("a/b.png", "/home/somebody/set/a/b", MACHINE),
    ],
)
def test_a_file_is_found_by_what_means_it_and_what_differed_is_noted(file, written, way, tmp_path):
    put(tmp_path, file, "a/other.png")
    (path,), notes = find_images([tmp_path], [written], ["line 2"])
    assert path == tmp_path / file
    if way is None:
        assert notes == ()
    else:
        (note,) = notes
        assert note.startswith(f"1 images were found {way}, such as ")


def test_the_longest_end_of_a_foreign_path_decides(tmp_path):
    put(tmp_path, "1.png", "site/1.png")
    (path,), _ = find_images([tmp_path], ["/x/site/1.png"], [""])
    assert path == tmp_path / "site/1.png"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["/x/site1/1.png", "/x/site2/1.png"], "'/x/site2/1.png' and '/x/site1/1.png' would both"),
        (["1.png", "/x/site2/1.png"], "'/x/site2/1.png' and '1.png' would both be"),
        (["../1.png"], "line 0: image path '../1.png' leads outside"),
        (["a\\..\\..\\1.png"], "leads outside"),
        (["/x/2.png"], "'/x/2.png' leads outside .*, and no end of it lies there"),
        (["C.PNG"], "line 0: image path 'C.PNG' may be .*c.pn.* or .*c.pn"),
    ],
)
def test_what_could_be_another_image_is_refused(names, said, tmp_path):
    put(tmp_path, "1.png", "c.png", "c.pnG")
    with pytest.raises(ValueError, match=said):
        find_images([tmp_path], names, [f"line {i}" for i in range(len(names))])


def test_absent_images_are_counted_or_kept_for_whoever_skips_them(tmp_path):
    put(tmp_path, "1.png")
    names, where = ["a.png", "1.png", "b/c.png"], ["line 2", "line 3", "line 4"]
    with pytest.raises(FileNotFoundError, match=r"line 2: no image a.png .* \(2 missing in all\)"):
        find_images([tmp_path], names, where)
    paths, notes = find_images([tmp_path], names, where, absent="keep")
    assert [path.is_file() for path in paths] == [False, True, False] and notes == ()


def test_a_table_skips_and_counts_images_that_are_absent(tmp_path):
    put(tmp_path, *(f"i{i}.JPG" for i in range(24)))
    lines = ["path,y,sex", *(f"i{i}.jpg,{i % 2},{'MF'[i // 2 % 2]}" for i in range(24))]
    (tmp_path / "my.csv").write_text("\n".join([*lines, "gone.jpg,1,M"]) + "\n")
    options = {"label": "y", "sensitive": "sex", "size": 8, "cache_dir": tmp_path / "cache"}
    with pytest.raises(FileNotFoundError, match=r"line 26: no image gone.jpg .* \(1 missing"):
        load_image_table(tmp_path / "my.csv", **options)
    data = load_image_table(tmp_path / "my.csv", **options, on_error="skip")
    assert 24 not in np.concatenate(list(data.splits.values()))
    np.testing.assert_array_equal(data.inputs[:24, 0, 0, 0], 10 * np.arange(24))
    text = "\n".join(data.notes)
    assert "Skipped" in text and "1 of 25 images are absent or not readable." in text
    assert "24 images were found by other letters or slashes" in text


def renamed(folder, old, new):
    for path in list(folder.rglob(f"*{old}")):
        path.rename(path.with_name(path.name.removesuffix(old) + new))


@pytest.mark.parametrize("make", [make_ham10000, make_papila, make_utkface])
def test_named_sets_take_suffixes_in_capitals(make, tmp_path):
    name = make.__name__.removeprefix("make_")
    make(tmp_path)
    usual = read_named(name, tmp_path)[1]
    renamed(tmp_path, ".jpg", ".JPG")
    found = read_named(name, tmp_path)[1]
    assert [path.stem for path in found.paths] == [path.stem for path in usual.paths]


def test_named_sets_lie_a_folder_deeper_and_images_one_more(tmp_path):
    make_fitzpatrick(tmp_path / "download")
    inside = tmp_path / "download" / "images"
    inside.rename(tmp_path / "images")
    inside.mkdir()
    (tmp_path / "images").rename(inside / "data")
    (tmp_path / "download" / "fitzpatrick17k.csv").rename(tmp_path / "download/Fitzpatrick17k.CSV")
    table = read_named("fitzpatrick17k", tmp_path)[1]
    assert all(path.is_file() and path.parent.name == "data" for path in table.paths)
    assert table.notes[0] == "The files lie one folder deeper, in download."


def test_named_sets_skip_and_count_dead_images(tmp_path):
    make_fitzpatrick(tmp_path)
    for number in (5, 9):
        (tmp_path / "images" / f"hash{number:02d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image hash05 .*2 missing in all.*skip"):
        read_named("fitzpatrick17k", tmp_path)
    options = {"size": 8, "cache_dir": tmp_path / "c", "allow_small_groups": True}
    data = load_named("fitzpatrick17k", tmp_path, **options, on_error="skip")
    assert f"2 of {len(data.labels)} images are absent or not readable." in data.notes
