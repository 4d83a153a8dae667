"""Files of predictions made at random are refused in one line or rated as scikit-learn does."""

import collections
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fairjax.audit import audit, read_predictions
from fairjax.metrics import group_table

NOTHING = {"", "na", "nan", "none", "n/a", "?", "missing"}
LABELS = (("0", "1"), ("0", "1"), ("-1", "1"), ("1", "2"), ("no", "Yes"), ("0", "1", "2"))
SCORES = ("plain", "plain", "plain", "long", "log", "percent", "inf", "nan", "comma", "above")
GROUPS = (("f", "m"), ("F", "M", "x"), ("1", "2"), ("18-29", "<18", "65+"), ("all",))


WHOLE, LACKING = 40, 3  # rows; a constant number is compiled for once


class Maker:
    """A file of predictions, and what its columns are."""

    def __init__(self, seed, folder):
        self.random = draw = random.Random(seed)
        self.path = folder / f"{seed}.csv"
        self.labels, self.kind = draw.choice(LABELS), draw.choice(SCORES)
        self.by_score = draw.random() < 0.75
        self.positive = self.labels[1] if draw.random() < 0.85 else None
        self.sensitive = ("g", "h") if draw.random() < 0.3 else ("g",)
        groups, others = draw.choice(GROUPS), draw.choice(GROUPS)
        given = "p" if self.by_score else "guess"
        rows = []
        for row in range(WHOLE + LACKING):
            cells = {name: self.vary(draw.choice(self.labels)) for name in ("y", "guess")}
            cells |= {"g": self.vary(draw.choice(groups)), "h": self.vary(draw.choice(others))}
            cells["p"] = self.score()
            if row < LACKING:
                cells[draw.choice(("y", given, *self.sensitive))] = draw.choice(("", "NA", "nan"))
            rows.append(cells)
        draw.shuffle(rows)
        frame = pd.DataFrame(rows)
        frame.to_csv(self.path, index=draw.random() < 0.3, sep=draw.choice(",;\t"))

    def vary(self, word):
        whole = f"{word}.0" if word.isdecimal() else word
        return self.random.choice((word, word, word, f" {word}", whole))

    def score(self):
        draw = self.random
        value = round(draw.random(), draw.choice((1, 2, 17)))
        if self.kind == "log":
            return repr(draw.gauss(0, 3))
        if self.kind == "percent":
            return f"{100 * value:g}%"
        if self.kind == "comma":
            return f"{value:.3f}".replace(".", ",")
        if self.kind == "long":  # that float32 would merge
            return repr(1 - 2.0 ** -draw.randrange(25, 53))
        rare = {"inf": "inf", "nan": "-nan", "above": "1.5"}
        return rare[self.kind] if self.kind in rare and draw.random() < 0.1 else repr(value)

    def read(self):
        role: Any = (
            {"score": "p", "log_odds": self.kind == "log"} if self.by_score else {"pred": "guess"}
        )
        return read_predictions(
            self.path, label="y", sensitive=self.sensitive, positive=self.positive, **role
        )

    def truth(self):
        """Labels, scores or predictions, and groups by pandas."""
        frame: Any = pd.read_csv(
            self.path, dtype=str, keep_default_na=False, sep=None, engine="python"
        ).map(lambda cell: str(cell).strip())
        given = "p" if self.by_score else "guess"
        for name in ("y", given, *self.sensitive):
            frame = frame[~frame[name].str.lower().isin(NOTHING)]
        for name in ("y", "guess", *self.sensitive):
            frame[name] = frame[name].str.removesuffix(".0").str.lower()
        positive = "1" if self.positive is None else self.positive.lower()
        labels = (frame["y"] == positive).to_numpy().astype(int)
        group = frame[list(self.sensitive)].agg(" & ".join, axis=1).to_numpy()
        if not self.by_score:
            return labels, None, (frame["guess"] == positive).to_numpy().astype(int), group
        scores = frame["p"].astype(float).to_numpy()
        return labels, scores, (scores > (0.0 if self.kind == "log" else 0.5)).astype(int), group


def rates(labels, scores, preds):
    """What a table says of some rows, by definition and by scikit-learn."""
    found = {
        "selection_rate": preds.mean(),
        "true_positive_rate": preds[labels == 1].mean() if labels.any() else np.nan,
        "false_positive_rate": preds[labels == 0].mean() if not labels.all() else np.nan,
        "accuracy": (preds == labels).mean(),
    }
    if scores is not None:
        two = len(set(labels)) == 2
        found["auc"] = roc_auc_score(labels, scores) if two else np.nan
    return found


def gap(values):
    values = [value for value in values if not np.isnan(value)]
    return max(values) - min(values) if len(values) > 1 else np.nan


def check(maker, table):
    labels, scores, preds, group = maker.truth()
    assert {name.lower() for name in table.groups[:-1]} == set(group)
    rows = {name: group == name.lower() for name in table.groups[:-1]}
    rows["everyone"] = np.ones(len(group), bool)
    by_group = {}
    for place, (name, own) in enumerate(rows.items()):
        assert (table.n[place], table.positives[place]) == (own.sum(), labels[own].sum())
        theirs = rates(labels[own], None if scores is None else scores[own], preds[own])
        by_group[name] = theirs
        for rate, value in theirs.items():
            np.testing.assert_allclose(table.rates[rate].estimate[place], value, atol=1e-6)
            low, high = table.rates[rate].lower[place], table.rates[rate].upper[place]
            assert not low > value + 1e-6 and not high < value - 1e-6
    by_group.pop("everyone")
    of = lambda rate: gap([values[rate] for values in by_group.values()])
    odds = [of("true_positive_rate"), of("false_positive_rate")]
    expected = {
        "demographic_parity_difference": of("selection_rate"),
        "equal_opportunity_difference": odds[0],
        "equalized_odds_difference": np.nan if np.isnan(odds).all() else np.nanmax(odds),
        "accuracy_gap": of("accuracy"),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(table.gaps[name].estimate, value, atol=1e-6)


def run(seeds, folder):
    outcomes = collections.Counter()
    for seed in seeds:
        maker = Maker(seed, folder)
        try:
            read = maker.read()
            table = group_table(**read.arguments, num_replicates=20)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) <= 600, seed
            outcomes["refused"] += 1
            continue
        try:
            check(maker, table)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {maker.__dict__}") from error
        outcomes["read"] += 1
    return outcomes


def test_forty_files_of_predictions_are_refused_or_agree_with_scikit_learn(tmp_path):
    outcomes = run(range(40), tmp_path)
    assert outcomes["read"] >= 12 and outcomes["refused"] >= 8, outcomes


@pytest.mark.slow
def test_a_thousand_files_of_predictions_are_refused_or_agree_with_scikit_learn(tmp_path):
    outcomes = run(range(40, 1040), tmp_path)
    assert outcomes["read"] >= 300 and outcomes["refused"] >= 200, outcomes


def test_an_audit_says_of_a_file_what_its_table_says(tmp_path):
    maker = next(m for m in (Maker(s, tmp_path) for s in range(99)) if readable(m))
    read = maker.read()
    found = audit(**read.arguments, num_replicates=20)
    check(maker, found.table)
    labels, scores, _, group = maker.truth()
    assert scores is not None
    for name, bins in found.calibration.items():
        own, n = group == name.lower(), bins[:, 4]
        assert n.sum() == own.sum()
        np.testing.assert_allclose(np.nansum(bins[:, 0] * n), scores[own].sum(), rtol=1e-6)
        np.testing.assert_allclose(np.nansum(bins[:, 1] * n), labels[own].sum(), rtol=1e-6)


def readable(maker):
    if maker.kind != "plain" or not maker.by_score or len(maker.sensitive) > 1:
        return False
    try:
        return len(set(maker.truth()[3])) > 1 and bool(maker.read())
    except ValueError:
        return False
