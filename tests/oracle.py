"""Slow, obvious NumPy versions of the metrics: loops and definitions, float64, no tricks."""

import numpy as np


def rate(hits, base, weights):
    """Weighted share of `hits` among `base` (both bool `[N]`), nan if the base is empty."""
    total = weights[base].sum()
    return weights[base & hits].sum() / total if total > 0 else np.nan


def gap(values):
    """Largest minus smallest defined value, nan if fewer than two are defined."""
    defined = [v for v in values if not np.isnan(v)]
    return max(defined) - min(defined) if len(defined) > 1 else np.nan


def deviation(values, overall):
    """Largest distance of a defined value from the overall one, nan if fewer than two."""
    defined = [v for v in values if not np.isnan(v)]
    return max(abs(v - overall) for v in defined) if len(defined) > 1 else np.nan


def auc(scores, labels, weights):
    """Weighted share of (positive, negative) pairs in the right order, ties counting half."""
    won = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels != 1):
            pair = weights[i] * weights[j]
            won += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            pairs += pair
    return won / pairs if pairs > 0 else np.nan


def calibration_error(probs, labels, weights, num_bins):
    """Guo et al.'s ECE over bins (low, high]."""
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    if weights.sum() == 0:
        return np.nan
    error = 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if weights[inside].sum() > 0:
            accuracy = np.average(correct[inside], weights=weights[inside])
            error += weights[inside].sum() * abs(
                np.average(confidence[inside], weights=weights[inside]) - accuracy
            )
    return error / weights.sum()


def softmax(logits):
    """Row-wise softmax in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def fairness_metrics(logits, labels, group, num_groups, weights):
    """What `fairjax.metrics.fairness_metrics` returns, for two classes, by definition."""
    preds, probs = logits.argmax(1), softmax(logits)
    scores = logits[:, 1] - logits[:, 0]
    everyone = np.ones(len(labels), bool)
    members = [group == g for g in range(num_groups)]

    def rates(hits, base):
        return [rate(hits, base & m, weights) for m in members], rate(hits, base, weights)

    selection = rates(preds == 1, everyone)
    true_positive = rates(preds == 1, labels == 1)
    false_positive = rates(preds == 1, labels == 0)
    group_accuracy, accuracy = rates(preds == labels, everyone)
    group_auc = [auc(scores[m], labels[m], weights[m]) for m in members]
    losses = -np.log(probs[np.arange(len(labels)), labels])
    group_loss = [
        np.average(losses[m], weights=weights[m]) if weights[m].sum() else np.nan for m in members
    ]
    group_ece = [
        calibration_error(probs[m], labels[m], weights[m], 15) if weights[m].sum() else np.nan
        for m in members
    ]
    odds = [gap(true_positive[0]), gap(false_positive[0])]
    odds_deviation = [deviation(*true_positive), deviation(*false_positive)]
    return {
        "n": [weights[m].sum() for m in members],
        "accuracy": accuracy,
        "auc": auc(scores, labels, weights),
        "ece": calibration_error(probs, labels, weights, 15),
        "group_accuracy": group_accuracy,
        "worst_group_accuracy": np.nanmin(group_accuracy),
        "accuracy_gap": gap(group_accuracy),
        "group_auc": group_auc,
        "worst_group_auc": min([a for a in group_auc if not np.isnan(a)], default=np.nan),
        "auc_gap": gap(group_auc),
        "group_loss": group_loss,
        "group_ece": group_ece,
        "max_group_loss": np.nanmax(group_loss),
        "demographic_parity_difference": gap(selection[0]),
        "demographic_parity_deviation": deviation(*selection),
        "equal_opportunity_difference": gap(true_positive[0]),
        "equal_opportunity_deviation": deviation(*true_positive),
        "equalized_odds_difference": np.nan if np.isnan(odds).any() else max(odds),
        "equalized_odds_deviation": (
            np.nan if np.isnan(odds_deviation).any() else max(odds_deviation)
        ),
    }


def pruning_variants(preds, labels, group, num_classes, skip=False):
    """The pruning paper's disparities of two groups; 0/0 is 0, or skips the class."""
    eopp0, eopp1, eodd, eodd_scp, dp = [], [], [], [], []
    for c in range(num_classes):
        rates = {}
        for g in (0, 1):
            p, y = preds[group == g] == c, labels[group == g] == c
            rates[g] = {
                "tpr": (p & y).sum() / y.sum() if y.sum() else np.nan,
                "fpr": (p & ~y).sum() / (~y).sum() if (~y).sum() else np.nan,
                "tnr": (~p & ~y).sum() / (~y).sum() if (~y).sum() else np.nan,
            }
            if not skip:
                rates[g] = {name: np.nan_to_num(value) for name, value in rates[g].items()}
        tpr, fpr, tnr = (rates[0][r] - rates[1][r] for r in ("tpr", "fpr", "tnr"))
        eopp0.append(abs(tnr))
        eopp1.append(abs(tpr))
        eodd.append((abs(tpr) + abs(fpr)) / 2)
        eodd_scp.append(abs(tpr + fpr) / 2)
        dp.append(abs(np.mean(preds[group == 0] == c) - np.mean(preds[group == 1] == c)))
    means = {"eopp0": eopp0, "eopp1": eopp1, "eodd": eodd, "eodd_scp": eodd_scp}
    defined = {name: [v for v in values if not np.isnan(v)] for name, values in means.items()}
    result = {name: np.mean(v) if v else np.nan for name, v in defined.items()}
    return result | {"dp_scp": sum(dp)}
