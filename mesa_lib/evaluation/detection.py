"""Detectors counted over many models: p-values from clean models, combined over stages, and ROC curves.

A p-value says how rarely a clean model scores so high. It is taken from the scores of clean models that were set aside
for it (a conformal p-value; Vovk, Gammerman, Shafer 2005), so it needs no assumption on their distribution:
p = (1 + number of those that score as high) / (1 + number of all).
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score, roc_curve


def p_values(reference: Sequence[float], scores: Sequence[float]) -> np.ndarray:
    """Return the p-value of each score (N,), in (0, 1].

    Args:
        reference: scores of clean models that are not judged here, at least one.
        scores: of the judged models; higher is more suspicious.

    Raises:
        ValueError: if there is no reference, or a score is NaN.
    """
    known, judged = np.sort(np.asarray(reference, float)), np.asarray(scores, float)
    if not len(known) or np.isnan(known).any() or np.isnan(judged).any():
        raise ValueError(f"{len(known)} reference scores, {np.isnan(judged).sum()} NaN: expected one or more, no NaN")
    as_high = len(known) - np.searchsorted(known, judged, side="left")
    return (1 + as_high) / (1 + len(known))


def combined(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return one p-value for each model from several stages (N,): how rarely a clean model stands out as much in any.

    How far a model stands out is its best rank in any stage. A model is ranked together with all reference models, so
    that each of these has the same chance to stand out as a clean model that is judged: the p-value is not too small,
    however few reference models there are.

    Args:
        reference: (M, stages), scores of clean models that are not judged here, one or more.
        scores: (N, stages), of the judged models.
    """
    reference, scores = np.asarray(reference, float), np.asarray(scores, float)

    def one(judged: np.ndarray) -> float:
        together = np.vstack([reference, judged])
        ranks = rankdata(-together, method="max", axis=0)  # 1: the highest; equal scores share the larger rank
        best = ranks.min(1)
        return (best <= best[-1]).mean()

    if not len(reference) or np.isnan(reference).any() or np.isnan(scores).any():
        raise ValueError(f"{len(reference)} reference models, {np.isnan(scores).sum()} NaN: expected some, no NaN")
    return np.array([one(judged) for judged in scores])


def roc(clean: Sequence[float], attacked: Sequence[float]) -> dict:
    """Return the ROC curve of scores: `fpr` and `tpr` (points,), and `auc`.

    Args:
        clean: scores of clean models, one or more; higher is more suspicious.
        attacked: scores of attacked models, one or more.
    """
    labels = np.r_[np.zeros(len(clean)), np.ones(len(attacked))]
    scores = np.r_[np.asarray(clean, float), np.asarray(attacked, float)]
    fpr, tpr, _ = roc_curve(labels, scores)
    return {"fpr": fpr, "tpr": tpr, "auc": float(roc_auc_score(labels, scores))}
