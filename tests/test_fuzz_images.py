"""Tables of images made at random are refused in one line or mean what pandas and Pillow read."""

import collections
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from fairjax.data.image_tables import load_image_table

# Pillow's remarks on broken EXIF and on palettes
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE, ROWS = 10, 24
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
}
HARMS = ("half", "empty", "eps", "text", "huge", "absent", "nan", "bit")
SUFFIXES = (".jpg", ".png", ".tif", ".gif", ".bmp", ".webp", ".jpeg")
SEXES = ("M", "F", "male", "Female", "woman", "man")
WORDS = {"m": "male", "man": "male", "f": "female", "woman": "female"}


def huge_png():
    """A header that claims ten gigapixels, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + size + header + check


class Maker:
    """A folder of images of all kinds, some of them harmed, and a table that names them."""

    def __init__(self, seed, folder):
        self.random, self.pixels = random.Random(seed), np.random.default_rng(seed)
        self.folder, self.harm = folder, {}
        draw, rows = self.random, []
        share = draw.choice((0.0, 0.1, 0.3))
        for row in range(ROWS):
            stem, suffix = f"i{row}", draw.choice(SUFFIXES)
            data = self.picture()
            if draw.random() < share:
                data = self.harmed(row, data)
            if data is not None:
                (folder / f"{stem}{suffix}").write_bytes(data)
            rows.append([f"{stem}{draw.choice((suffix, suffix, ''))}", *self.facts(row)])
        if draw.random() < 0.2:  # an image listed twice
            rows[-1][0] = rows[0][0]
            self.harm[ROWS - 1] = self.harm.get(0)
        header = ["image", "y", draw.choice(("sex", "Gender")), "part", "patient"]
        self.path = folder / "t.csv"
        pd.DataFrame(rows, columns=header).to_csv(self.path, index=draw.random() < 0.5)
        self.on_error: Any = draw.choice(("skip", "skip", "skip", "error"))
        self.split = draw.choice(("part", (0.5, 0.25, 0.25)))
        self.id_column = draw.choice((None, "patient")) if self.split != "part" else None

    def facts(self, row):
        draw = self.random
        sex = draw.choice(SEXES) if draw.random() > 0.05 else draw.choice(("", "unknown", "-1"))
        label = draw.choice("01") if draw.random() > 0.04 else draw.choice(("", "NA"))
        part = draw.choice(("train", "train", "val", "test"))
        return label, sex, part, row // 2 + 10**16  # more digits than a float has

    def picture(self):
        draw = self.random
        kind = draw.choice(tuple(MODES))
        mode = draw.choice(MODES[kind])
        shape = (draw.choice((SIZE, SIZE, 13, 17)), draw.choice((SIZE, SIZE, 9, 16)))
        if mode in ("I;16", "I", "F"):
            deep = self.pixels.integers(0, 60_000, shape)
            kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
            image = Image.fromarray(deep.astype(kinds[mode]) - kinds[mode](0))
        else:
            colours = self.pixels.integers(0, 256, (*shape, 3), dtype=np.uint8)
            image = Image.fromarray(colours).convert(mode if mode != "RGBA" else "RGB")
            if mode in ("RGBA", "LA"):
                image.putalpha(Image.fromarray(colours[..., 0]))
        more = {}
        if draw.random() < 0.4 and kind in ("PNG", "JPEG", "TIFF", "WEBP"):
            more["exif"] = image.getexif()
            more["exif"][0x0112] = draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 9))
        if mode == "P" and kind in ("PNG", "GIF") and draw.random() < 0.5:
            more["transparency"] = 3
        if kind in ("GIF", "TIFF", "WEBP") and draw.random() < 0.2:  # a film, whose first is read
            more |= {"save_all": True, "append_images": [ImageOps.invert(image.convert("L"))]}
        file = io.BytesIO()
        image.save(file, format=kind, **more)
        return file.getvalue()

    def harmed(self, row, data):
        """Bytes that may not be an image any more; None for no file at all."""
        self.harm[row] = harm = self.random.choice(HARMS)
        if harm == "bit":
            data = bytearray(data)
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            return bytes(data)
        file = io.BytesIO()
        if harm == "eps":
            Image.new("RGB", (SIZE, SIZE)).save(file, format="EPS")
        if harm == "nan":
            pixels = np.full((SIZE, SIZE), 7, np.float32)
            pixels[3, 3] = np.nan
            Image.fromarray(pixels).save(file, format="TIFF")
        bad = {"half": data[: len(data) // 2], "empty": b"", "text": b"<html>404</html>" * 9}
        return {**bad, "huge": huge_png(), "absent": None}.get(harm, file.getvalue())

    def load(self):
        return load_image_table(
            self.path,
            label="y",
            sensitive="sex",
            size=SIZE,
            split=self.split,
            id_column=self.id_column,
            on_error="skip" if self.on_error == "skip" else "error",
            cache_dir=self.folder / "cache",
            allow_small_groups=True,
        )

    def file(self, name):
        exact = self.folder / name
        found = [exact] if exact.is_file() else list(self.folder.glob(f"{name}.*"))
        return found[0] if found else None


def theirs(path):
    """The centre of an image by Pillow, or None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            if opened.format not in MODES or opened.width * opened.height > 2**27:
                return None
            image = ImageOps.exif_transpose(opened)
            if image.mode[0] in "IF":
                values = np.asarray(image).astype(np.float64)
                if not np.isfinite(values).all():
                    return None
                span = np.ptp(values) or 1.0
                shown = np.round(255 * (values - values.min()) / span).astype(np.uint8)
                image = Image.fromarray(shown)
            image = image.convert("RGB")
    except Exception:
        return None
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def check(maker, data):
    """Asserts that the set says what pandas and Pillow read; returns how many images it holds."""
    frame: Any = pd.read_csv(maker.path, dtype=str, keep_default_na=False)
    frame["line"] = np.arange(2, len(frame) + 2)
    frame = frame[frame["y"].isin(["0", "1"])].reset_index(drop=True)
    assert data.labels.tolist() == frame["y"].astype(int).tolist()
    sex: Any = frame[next(name for name in frame if name.lower() in ("sex", "gender"))].str.lower()
    sex = sex.replace(WORDS)
    known = sex.isin(["male", "female"]).to_numpy()
    usable = known.copy()
    for row, name in enumerate(frame["image"]):
        path = maker.file(name)
        pixels = None if path is None else theirs(path)
        line = f"t.csv, line {frame['line'][row]}: "
        if pixels is None:
            usable[row] = False
            assert any(n.startswith("Skipped ") and line in n for n in data.notes), line
        elif maker.harm.get(row) != "bit":
            assert not any(line in note for note in data.notes), line
            np.testing.assert_array_equal(data.inputs[row], pixels, line)
        elif any(line in note for note in data.notes):
            usable[row] = False  # what Pillow forgives may be refused
    assert [data.group_names[g] for g in data.group[known]] == sex[known].tolist()
    rows = np.sort(np.concatenate(list(data.splits.values())))
    assert rows.tolist() == np.flatnonzero(usable).tolist()
    for split, own in data.splits.items():
        if maker.split == "part":
            assert own.tolist() == np.flatnonzero((frame["part"] == split) & usable).tolist()
    if maker.id_column is not None:
        owners = [set(frame["patient"][own]) for own in data.splits.values()]
        assert sum(map(len, owners)) == frame["patient"][usable].nunique()
    same = np.flatnonzero(frame["image"].duplicated(keep=False))
    assert any("named by several rows" in note for note in data.notes) == (len(same) == 2)
    if len(same) == 2 and usable[same].all() and maker.split != "part" and not maker.id_column:
        assert any(set(same) <= set(own.tolist()) for own in data.splits.values())
    return len(rows)


def run(seeds, folder):
    """How many tables were read and refused, and images compared."""
    outcomes = collections.Counter()
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        maker = Maker(seed, place)
        try:
            data = maker.load()
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            assert "\n" not in text and len(text) <= 900 and "t" in text, seed
            if maker.on_error == "error" and maker.harm:
                assert "t.csv, line " in text, text
            outcomes["refused"] += 1
            continue
        try:
            outcomes["images"] += check(maker, data)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {maker.__dict__}") from error
        outcomes["read"] += 1
    return outcomes


def test_twelve_tables_of_images_are_refused_or_agree_with_pillow(tmp_path):
    outcomes = run(range(12), tmp_path)
    assert outcomes["images"] >= 120 and outcomes["refused"] >= 1, outcomes


@pytest.mark.slow
def test_a_thousand_images_and_more_are_refused_or_agree_with_pillow(tmp_path):
    outcomes = run(range(100, 200), tmp_path)
    assert outcomes["images"] >= 1000 and outcomes["refused"] >= 10, outcomes
