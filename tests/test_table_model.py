"""Networks for tables that are saved with how rows are read: the same inputs, or a refusal."""

import csv
import dataclasses
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fairjax
from fairjax.data import Dataset, load_adult, load_csv
from fairjax.data.encoding import Categories, Encoder, Numbers, described
from fairjax.data.numerals import plain_number, read_numerals
from fairjax.models import image_model, logistic_regression, mlp
from fairjax.table_model import save_model, table_header

ROOT = Path(__file__).parents[1]
HEADER = ("age", "amount", "rate", "purpose", "sex", "city", "code", "y")


def cells(seed=0, num_rows=240):
    """Rows as a bank in Germany has them: decimal commas, points, percent, words, spellings."""
    draw = random.Random(seed)
    for _ in range(num_rows):
        yield (
            draw.choice([str(draw.randint(18, 80))] * 20 + ["unknown", "NA"]),
            f"{draw.randint(1, 9)}.{draw.randint(100, 999)},{draw.randint(10, 99)}",
            f"{draw.randint(0, 30)},5%",
            draw.choice(["car", "Car ", "tv", "furniture", "unknown"]),
            draw.choice(["male", "female", "Female."]),
            draw.choice([*["Oslo", "Rome", "?"] * 6, "Bern"]),
            draw.choice(["1", "2", "3.0", "3"]),
            draw.choice(["good", "bad"]),
        )


def write(path, rows, delimiter=";"):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([HEADER, *rows])
    return path


def bank(tmp_path, missing="impute", **options):
    path = write(tmp_path / "bank.csv", cells())
    options |= {"missing": missing, "label": "y", "sensitive": "sex", "positive": "bad"}
    return path, load_csv(path, categorical=["code"], **options)


def network(data, hidden=()):
    sizes = data.inputs.shape[1], data.num_classes
    model = mlp(*sizes, hidden) if hidden else logistic_regression(*sizes)
    return model, model.init(jax.random.key(1))[0]


@pytest.mark.parametrize(("missing", "hidden"), [("impute", ()), ("drop", (5,))])
def test_a_fresh_process_gives_raw_rows_the_logits_of_training(missing, hidden, tmp_path):
    path, data = bank(tmp_path, missing)
    model, params = network(data, hidden)
    save_model(tmp_path / "network.safetensors", model, params, data)
    rows = list(cells())
    if missing == "drop":
        rows = [r for r in rows if r[0] not in ("unknown", "NA") and r[5] != "?"]
    tested = data.splits["test"]
    write(tmp_path / "new.csv", [rows[i] for i in tested])
    code = (
        "import sys, fairjax, numpy; network = fairjax.load_model(sys.argv[1]);"
        "numpy.save(sys.argv[3], network.logits(sys.argv[2]))"
    )
    files = [str(tmp_path / name) for name in ("network.safetensors", "new.csv", "logits.npy")]
    process = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    expected = model.apply(params, {}, data.examples("test").inputs)[0]
    np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-6)
    assert ("with the train median" in process.stderr) == (missing == "impute")


def test_a_data_frame_a_mapping_and_a_file_are_read_alike(tmp_path):
    pandas = pytest.importorskip("pandas")
    path, data = bank(tmp_path)
    model, params = network(data)
    save_model(tmp_path / "network.safetensors", model, params, data)
    read = fairjax.load_model(tmp_path / "network.safetensors")
    assert read.label_names == ("good", "bad") and read.group_names == data.group_names
    columns = dict(zip(HEADER, zip(*cells(), strict=True), strict=True))
    local = {"sep": ";", "decimal": ",", "thousands": ".", "na_values": ["unknown", "?"]}
    frame = pandas.read_csv(path, **local, keep_default_na=True)
    frame["purpose"] = columns["purpose"]  # in which "unknown" is a category
    frame["code"] = [float(code) for code in columns["code"]]  # of which pandas makes 30
    frame.columns = [f" {name}" for name in frame.columns]
    assert frame[" age"].dtype == frame[" amount"].dtype == np.float64
    for rows in (path, columns, frame.iloc[::-1]):
        inputs = read.encoder.encode(rows)[0]
        inputs = inputs[::-1] if isinstance(rows, pandas.DataFrame) else inputs
        np.testing.assert_allclose(inputs, data.inputs, atol=1e-6)
    with pytest.warns(UserWarning, match="Filled .* missing 'age' with the train median"):
        probs = read.predict_proba(columns)
    assert probs.shape == (240, 2)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)


def test_what_train_lacks_is_all_zeros_with_a_warning(tmp_path):
    _, data = bank(tmp_path)
    row = {"age": [30], "amount": ["1,5"], "rate": ["3%"], "purpose": ["boat"], "sex": ["MALE"]}
    row |= {"city": [" oslo"], "code": [3.0]}
    inputs, notes = data.encoder.encode(row)
    names = np.array(data.feature_names)
    assert set(names[3:][inputs[0, 3:] == 1]) == {"sex=male", "city=Oslo", "code=3"}
    assert notes == [
        "Rows with a 'purpose' that train lacks: 1 (such as 'boat'), encoded as all zeros."
    ]
    age = data.encoder.columns[0]
    assert inputs[0, 0] == np.float32((30 - age.mean) / age.spread)


GOOD = {"age": 30, "amount": "1,5", "rate": "3%", "purpose": "tv", "sex": "male", "city": "Oslo"}
GOOD = {name: [cell] for name, cell in (GOOD | {"code": "1"}).items()}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"age": None}, "no column 'age'; their columns are 'amount', .*'code'$"),
        ({"amount": ["1.5"]}, "row 0 .*column 'amount' holds '1.5', only numbers with decimal"),
        ({"amount": ["nine"]}, "'amount' holds 'nine'"),
        ({"rate": ["3"]}, "'rate' holds '3', only numbers with percent and decimal comma are"),
        ({"age": [float("inf")]}, "'age' holds 'inf', only finite"),
        ({"age": [True]}, "'age' holds 'True', only plain numbers are accepted"),
        ({"age": ["30,5"]}, "'age' holds '30,5', only plain"),
        ({"age": [1e38], "rate": ["1%"]}, None),
        ({"sex": ["unknown"]}, "row 0 .*'sex' is missing, and training dropped such rows"),
        ({"age": [30, 31]}, "columns must be of one length, got .*'age': 2"),
        ({" age": [30]}, "two columns of the rows are named 'age'"),
    ],
)
def test_a_wrong_frame_is_refused_by_column_and_row(change, error, tmp_path):
    encoder = Encoder(
        (
            Numbers("age", 40.0, 10.0, fill=38.0),
            Numbers("amount", 2.0, 1.0, "decimal comma"),
            Numbers("rate", 2.0, 1.0, "percent and decimal comma"),
            Categories("sex", ("female", "male"), None, True),
            Categories("code", ("1", "2"), "1"),
        )
    )
    assert described(json.loads(json.dumps(encoder.description()))) == encoder
    rows = {name: cells for name, cells in (GOOD | change).items() if cells is not None}
    if error is None:
        assert np.isfinite(encoder.encode(rows)[0]).all()
        return
    with pytest.raises(ValueError, match=error):
        encoder.encode(rows)
    with pytest.raises(ValueError, match="rows must be a DataFrame, a mapping .* got list"):
        encoder.encode([GOOD])


def test_a_file_with_a_missing_column_or_cell_is_refused_by_its_line(tmp_path):
    _, data = bank(tmp_path, "drop")
    rows = [row for row in cells() if row[0] not in ("unknown", "NA") and row[5] != "?"][:3]
    rows[2] = ("NA", *rows[2][1:])
    path = write(tmp_path / "new.csv", rows)
    with pytest.raises(ValueError, match="new.csv, line 4: column 'age' is missing"):
        data.encoder.encode(path)
    path.write_text("age;amount\n30;1,5\n")
    with pytest.raises(ValueError, match="new.csv: no column 'rate'"):
        data.encoder.encode(path)
    with pytest.raises(FileNotFoundError, match="absent.csv: no such file"):
        data.encoder.encode(tmp_path / "absent.csv")


def test_words_that_are_values_in_training_are_values_afterwards(tmp_path):
    lines = [f"{('NA', 'DE')[i % 2]},{'mf'[i // 2 % 2]},{i // 4 % 2}" for i in range(80)]
    (tmp_path / "t.csv").write_text("\n".join(["land,sex,y", *lines]))
    data = load_csv(tmp_path / "t.csv", label="y", sensitive="sex", not_missing=["NA"])
    assert data.feature_names[:2] == ("land=DE", "land=NA")
    inputs, notes = data.encoder.encode({"land": ["na", "DE"], "sex": ["m", "m"]})
    assert inputs[:, :2].tolist() == [[0, 1], [1, 0]] and not notes


def test_adult_is_encoded_as_it_was_read():
    data = load_adult(("sex", "race"))
    with np.load(ROOT / "fairjax/data/adult.npz") as file:
        arrays = {name: file[name] for name in file.files}
    rows = {
        name: arrays[f"{name}_values"][arrays[name]] if f"{name}_values" in arrays else arrays[name]
        for name in arrays
        if not name.endswith("_values")
    }
    assert np.array_equal(data.encoder.encode(rows)[0], data.inputs)


@pytest.mark.parametrize(
    "texts",
    [("20,5", "3"), ("1,000", "999"), ("1.234,5", "2.000"), ("5 %", "7,5 %"), ("1", "1e-3", "-2.")],
)
def test_a_rule_reads_each_cell_as_the_whole_column_was_read(texts):
    found = read_numerals(texts, ",")
    assert found is not None
    assert tuple(plain_number(text, found.rule) for text in texts) == found.texts


def saved(tmp_path):
    _, data = bank(tmp_path)
    model, params = network(data)
    path = tmp_path / "network.safetensors"
    save_model(path, model, params, data)
    return path, data, model, params


def test_files_that_are_no_networks_for_tables_are_refused(tmp_path):
    path, data, model, params = saved(tmp_path)
    tensors, header = load_file(path), table_header(model, data)
    with pytest.raises(FileNotFoundError, match="models.safetensors: no such file"):
        fairjax.load_model(tmp_path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not say how rows of a table are read"):
        fairjax.load_model(path)
    content = json.loads(header["fairjax"])
    for change, error in (
        ({"columns": content["table"]["columns"][1:]}, "make 14 inputs and 2 classes"),
        ({"columns": [{"kind": "code", "name": "x"}]}, "KeyError"),
        ({"columns": [{"kind": "numbers", "run": "x"}]}, "unexpected keyword"),
    ):
        table = {**content["table"], **change}
        save_file(tensors, path, {"fairjax": json.dumps({**content, "table": table})})
        with pytest.raises(ValueError, match=error):
            fairjax.load_model(path)
    save_file({**tensors, "head/bias": np.full(1, np.nan, np.float32)}, path, header)
    with pytest.raises(ValueError, match="head/bias holds NaN"):
        fairjax.load_model(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        fairjax.load_model(path)
    with pytest.raises(ValueError, match="only networks of logistic_regression and mlp"):
        save_model(path, image_model("vgg_micro", 2), {}, data)
    with pytest.raises(ValueError, match="written as .safetensors"):
        save_model(tmp_path / "network.npz", model, params, data)


def test_of_several_networks_one_must_be_named(tmp_path):
    path, data, model, params = saved(tmp_path)
    tensors = {}
    for i, name in enumerate(("plain", "equal_opportunity@rate")):
        for leaf, array in load_file(path).items():
            tensors[f"{name}/{leaf}"] = np.stack([array + i, array + i + 0.5])
    save_file(tensors, tmp_path / "models.safetensors", table_header(model, data))
    with pytest.raises(ValueError, match="several networks; row must be one of equal_.*, plain"):
        fairjax.load_model(tmp_path)
    with pytest.raises(ValueError, match=r"run must be in \[0, 2\), got 2"):
        fairjax.load_model(tmp_path, "plain", 2)
    read = fairjax.load_model(tmp_path, "equal_opportunity@rate", 1)
    shifted = jax.tree.map(lambda leaf: leaf + 1.5, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read.logits(tmp_path / "bank.csv")
    np.testing.assert_allclose(found, model.apply(shifted, {}, data.inputs)[0], atol=1e-5)


def test_data_without_columns_has_no_encoder(tmp_path):
    _, data = bank(tmp_path)
    plain = dataclasses.replace(data, encoder=None)
    assert isinstance(plain, Dataset) and plain.fingerprint == data.fingerprint
    with pytest.raises(ValueError, match="tables with columns"):
        save_model(tmp_path / "n.safetensors", *network(data), plain)


def test_the_networks_of_a_run_predict_for_the_raw_rows(tmp_path):
    path, data = bank(tmp_path, split=(0.5, 0.2, 0.3))
    flags = "--data.label y --data.sensitive sex --data.positive bad --data.categorical code"
    flags += " --data.missing impute --data.split 0.5,0.2,0.3 --criteria equalized_odds"
    flags += " --signals rate --num-splits 1 --num-seeds 2 --num-epochs 2 --num-replicates 20"
    command = [sys.executable, "-m", "experiments.fairbatch", "csv", "--data.csv", str(path)]
    command += [*flags.split(), "--out", str(tmp_path / "run")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["data"]["fingerprint"] == data.fingerprint
    tested, columns = data.splits["test"], zip(*cells(), strict=True)
    rows = {name: np.array(column)[tested] for name, column in zip(HEADER, columns, strict=True)}
    tensors = load_file(tmp_path / "run/models.safetensors")
    for row, run in (("plain", 0), ("equalized_odds@rate", 1)):
        read = fairjax.load_model(tmp_path / "run", row, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits, probs = read.logits(rows), read.predict_proba(rows)
        z = data.inputs[tested] @ tensors[f"{row}/head/kernel"][run]
        z += tensors[f"{row}/head/bias"][run]
        np.testing.assert_allclose(logits, np.concatenate([-z, z], axis=1), atol=1e-6)
        right = (probs.argmax(1) == data.labels[tested]).mean()
        assert np.isclose(right, summary["results"][row]["per_seed"]["accuracy"][run], atol=1e-6)
    lines = (tmp_path / "run/README.md").read_text().split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {"rows": rows}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(lines, space)
    assert space["network"].label_names == ("good", "bad")
