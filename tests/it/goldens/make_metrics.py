"""Makes metrics.json: what scikit-learn and SciPy say about rows that are made here, for couplet to equal to 1e-6.

  python -m venv .venv && . .venv/bin/activate
  pip install scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
  python tests/it/goldens/make_metrics.py

The seeds are fixed: a second run writes the same file.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

HERE = Path(__file__).resolve().parent
BINS = 10
warnings.filterwarnings("ignore")


def number(value) -> float | None:
    """NaN, which JSON lacks, as null: not defined."""
    value = float(value)
    return None if math.isnan(value) else value


def expected_calibration_error(gold, probabilities) -> float:
    """Guo et al. 2017, equation 3: bins closed above."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == gold
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).sum() for b in set(bins)]
    return sum(gaps) / len(gold)


def classes(name, gold, probabilities):
    gold, probabilities = np.asarray(gold), np.asarray(probabilities)
    labels = list(range(probabilities.shape[1]))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        gold, predicted, labels=labels, zero_division=0
    )
    case = {
        "name": name,
        "labels": len(labels),
        "gold": gold.tolist(),
        "probabilities": probabilities.ravel().tolist(),
        "confusion": sk.confusion_matrix(gold, predicted, labels=labels).ravel().tolist(),
        "classes": [list(map(float, row)) for row in zip(precision, recall, f1, support)],
        "accuracy": sk.accuracy_score(gold, predicted),
        "f1_macro": sk.f1_score(gold, predicted, average="macro", zero_division=0),
        "f1_micro": sk.f1_score(gold, predicted, average="micro", zero_division=0),
        "f1_weighted": sk.f1_score(gold, predicted, average="weighted", zero_division=0),
        "matthews": sk.matthews_corrcoef(gold, predicted),
        "log_loss": sk.log_loss(gold, probabilities, labels=labels),
        "calibration_error": expected_calibration_error(gold, probabilities),
    }
    if len(labels) == 2:
        score = probabilities[:, 1]
        case |= {
            "f1": sk.f1_score(gold, predicted, zero_division=0),
            "precision": sk.precision_score(gold, predicted, zero_division=0),
            "recall": sk.recall_score(gold, predicted, zero_division=0),
            "roc_auc": number(sk.roc_auc_score(gold, score)),
            "average_precision": number(sk.average_precision_score(gold, score)),
            "brier": sk.brier_score_loss(gold, score, labels=[0, 1], pos_label=1),
        }
    else:
        case["brier"] = sk.brier_score_loss(gold, probabilities, labels=labels)
    return case


def softmax_rows(rng, gold, labels, skill, digits=4):
    logits = rng.normal(size=(len(gold), labels))
    logits[np.arange(len(gold)), gold] += skill
    probabilities = np.round(special.softmax(logits, axis=1), digits)
    probabilities[:, 0] = np.round(1 - probabilities[:, 1:].sum(axis=1), digits)
    return probabilities


def all_classes():
    rng = np.random.default_rng(1)
    pair = lambda scores: np.stack([1 - np.asarray(scores), np.asarray(scores)], axis=1)
    gold = rng.integers(0, 2, 60)
    yield classes("two labels", gold, softmax_rows(rng, gold, 2, 1.0))
    gold = (rng.random(60) < 0.1).astype(int)
    yield classes("few positives", gold, softmax_rows(rng, gold, 2, 0.7))
    yield classes("many ties", rng.integers(0, 2, 60), pair(rng.integers(0, 5, 60) / 4))
    yield classes("no positives", [0] * 6, pair([0.1, 0.6, 0.3, 0.9, 0.2, 0.4]))
    yield classes("only positives", [1] * 6, pair([0.1, 0.6, 0.3, 0.9, 0.2, 0.4]))
    yield classes("none predicted", [0, 1, 0, 1], pair([0.1, 0.2, 0.3, 0.4]))
    yield classes("all predicted", [0, 1, 1, 1], pair([0.7, 0.8, 0.9, 0.6]))
    yield classes("all right", [0, 1, 0, 1], pair([0.1, 0.9, 0.3, 0.8]))
    yield classes("all wrong", [1, 0, 1, 0], pair([0.1, 0.9, 0.3, 0.8]))
    yield classes("certain, and wrong once", [0, 1, 0, 1], pair([0.0, 1.0, 1.0, 1.0]))
    gold = rng.integers(0, 3, 60)
    yield classes("three labels", gold, softmax_rows(rng, gold, 3, 1.0))
    gold = rng.choice([0, 2, 3], 60, p=[0.7, 0.2, 0.1])
    yield classes("five labels, two of them not in the rows", gold, softmax_rows(rng, gold, 5, 1.5))
    yield classes(
        "a label that occurs nowhere", [0, 1, 0, 1], [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1]]
    )


def values(name, gold, predicted):
    gold, predicted = np.asarray(gold, dtype=float), np.asarray(predicted, dtype=float)
    return {
        "name": name,
        "gold": gold.tolist(),
        "predicted": predicted.tolist(),
        "pearson": number(stats.pearsonr(gold, predicted).statistic),
        "spearman": number(stats.spearmanr(gold, predicted).statistic),
        "mse": sk.mean_squared_error(gold, predicted),
        "rmse": sk.root_mean_squared_error(gold, predicted),
        "mae": sk.mean_absolute_error(gold, predicted),
    }


def all_values():
    rng = np.random.default_rng(2)
    gold = np.round(rng.uniform(0, 5, 60), 3)
    yield values("values", gold, np.round(gold + rng.normal(size=60), 3))
    yield values("ties", rng.integers(0, 6, 60), rng.integers(0, 4, 60) / 2)
    yield values("falling", [1, 2, 3, 4], [8, 6, 5, 1])
    yield values("gold all the same", [0.1] * 5, [1, 2, 3, 4, 5])
    yield values("predicted all the same", [1, 2, 3, 4, 5], [0.1] * 5)
    yield values("far from zero", 1e6 + np.arange(20.0), np.round(-1e6 + rng.normal(size=20), 3))
    yield values("two rows", [1, 2], [5, 9])


def sets(name, gold, probabilities):
    gold, probabilities = np.asarray(gold).astype(int), np.asarray(probabilities)
    predicted = (probabilities >= 0.5).astype(int)
    return {
        "name": name,
        "labels": gold.shape[1],
        "gold": gold.ravel().tolist(),
        "probabilities": probabilities.ravel().tolist(),
        "subset_accuracy": sk.accuracy_score(gold, predicted),
        "f1_micro": sk.f1_score(gold, predicted, average="micro", zero_division=0),
        "f1_macro": sk.f1_score(gold, predicted, average="macro", zero_division=0),
    }


def all_sets():
    rng = np.random.default_rng(3)
    gold = rng.random((40, 4)) < [0.5, 0.3, 0.1, 0.8]
    yield sets("sets", gold, np.round(np.clip(0.35 * gold + 0.75 * rng.random((40, 4)), 0, 1), 2))
    yield sets("a label that occurs nowhere", [[1, 0], [0, 0]], [[0.9, 0.1], [0.6, 0.1]])
    yield sets("no labels at all", [[0, 0], [0, 0]], [[0.1, 0.1], [0.2, 0.1]])


def temperature(name, logits, gold, multi=False):
    logits, gold = np.asarray(logits), np.asarray(gold)

    def loss(t):
        if multi:
            return float(np.mean(np.logaddexp(0, np.where(gold == 1, -1, 1) * logits / t)))
        return float(-special.log_softmax(logits / t, axis=1)[np.arange(len(gold)), gold].mean())

    fitted = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10})
    return {
        "name": name,
        "multi": multi,
        "labels": logits.shape[1],
        "logits": logits.ravel().tolist(),
        "gold": gold.ravel().tolist(),
        "temperature": float(fitted.x),
        "before": loss(1.0),
        "after": float(fitted.fun),
    }


def all_temperatures():
    rng = np.random.default_rng(4)
    for name, labels, scale in [("too sure", 2, 6.0), ("not sure enough", 2, 0.3), ("three labels", 3, 3.0)]:
        gold = rng.integers(0, labels, 60)
        logits = rng.normal(size=(60, labels))
        logits[np.arange(60), gold] += 1.0
        yield temperature(name, np.round(logits * scale, 3), gold)
    gold = (rng.random((30, 3)) < 0.4).astype(int)
    yield temperature("sets", np.round(4 * (rng.normal(size=(30, 3)) + gold - 0.5), 3), gold, multi=True)


def thresholds(name, gold, scores):
    """The best value of each objective over every threshold that differs by what it does."""
    gold, scores = np.asarray(gold), np.asarray(scores)
    candidates = [*np.unique(scores), 1.1 if scores.max() < 1 else scores.max()]
    predictions = [(scores >= candidate).astype(int) for candidate in candidates]
    precision = [sk.precision_score(gold, p, zero_division=0) for p in predictions]
    recall = [sk.recall_score(gold, p) for p in predictions]
    best = {
        "f1": max(sk.f1_score(gold, p, zero_division=0) for p in predictions),
        "accuracy": max(sk.accuracy_score(gold, p) for p in predictions),
        "matthews": max(sk.matthews_corrcoef(gold, p) for p in predictions),
    }
    for share in (0.7, 0.9):
        best[f"precision >= {share}"] = max((r for p, r in zip(precision, recall) if p >= share), default=None)
        best[f"recall >= {share}"] = max(p for p, r in zip(precision, recall) if r >= share)
    return {"name": name, "gold": gold.tolist(), "scores": scores.tolist(), "best": best}


def all_thresholds():
    rng = np.random.default_rng(5)
    gold = (rng.random(60) < 0.3).astype(int)
    yield thresholds("scores", gold, np.round(np.clip(0.3 * gold + 0.7 * rng.random(60), 0, 1), 3))
    yield thresholds("ties", gold, np.clip((gold + rng.integers(0, 4, 60)) / 4, 0, 1))
    yield thresholds("turned round", [1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])


def intervals():
    """Percentile intervals: other resamples than couplet's, so equal only to within the error of 20,000 of them."""
    rng = np.random.default_rng(6)
    gold = np.round(rng.uniform(0, 5, 80), 3)
    predicted = np.round(gold + rng.normal(size=80), 3)
    draw = lambda statistic: stats.bootstrap(
        (gold, predicted), statistic, paired=True, vectorized=False, n_resamples=20000, method="percentile", rng=rng
    ).confidence_interval
    result = {"gold": gold.tolist(), "predicted": predicted.tolist()}
    for name, statistic in {
        "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
        "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
        "mae": sk.mean_absolute_error,
    }.items():
        interval = draw(statistic)
        result[name] = [float(interval.low), float(interval.high)]
    return result


def class_weights():
    gold = [0] * 7 + [1] * 2 + [2] * 5
    weights = compute_class_weight("balanced", classes=np.unique(gold), y=gold)
    return {"rows": [7, 2, 5], "weights": weights.tolist()}


def main():
    document = {
        "classes": list(all_classes()),
        "values": list(all_values()),
        "sets": list(all_sets()),
        "temperatures": list(all_temperatures()),
        "thresholds": list(all_thresholds()),
        "intervals": intervals(),
        "class_weights": class_weights(),
    }
    # A case a line: small, and a change shows as the case that changed.
    lines = []
    for key, value in document.items():
        items = [json.dumps(item) for item in value] if isinstance(value, list) else None
        lines.append(f'"{key}": ' + ("[\n" + ",\n".join(items) + "\n]" if items else json.dumps(value)))
    (HERE / "metrics.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
