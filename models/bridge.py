"""From one space into another: Procrustes and small learned maps, chosen on entities that none of them saw.

Shapes: N entities that both spaces know, M new dim, D old dim, Q queries, K neighbours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn

from feature_repo.contracts.errors import NotFoundError, NotReadyError

Floats = NDArray[np.float32]

LEAST = 50
FIT, STOP = 0.7, 0.85
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTH, STEPS, BATCH, LEARNING_RATE, PATIENCE = 128, 400, 1024, 3e-3, 6
RIDGE = 1e-3


@dataclass(frozen=True)
class Bridge:
    """A map from a new space into an old one.

    Attributes
    ----------
    kind
        ``procrustes``, ``linear`` or ``learned``: the candidate whose mean cosine on held-out entities was the best.
    arrays
        Its weights.
    held_out
        Mean cosine of every candidate with the old vectors of entities that it was not fitted on.
    entities
        How many both spaces knew.
    """

    kind: str
    arrays: dict[str, Floats]
    held_out: dict[str, float]
    entities: int

    def map(self, vectors: Floats) -> Floats:
        """Return vectors [N, M] of the new space as unit vectors [N, D] of the old one."""
        mapped = vectors @ self.arrays["matrix"]
        if self.kind == "learned":
            hidden = vectors @ self.arrays["inner"] + self.arrays["shift"]
            # GELU as torch computes it by its tanh form.
            hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
            mapped = mapped + hidden @ self.arrays["outer"]
        return unit(mapped)

    def map_norms(self, norms: Floats) -> Floats:
        """Return norms [N] before scaling in the scale of the old space."""
        mean, spread, old_mean, old_spread = self.arrays["norms"]
        logs = (np.log(np.maximum(norms, 1e-12)) - mean) / max(spread, 1e-6)
        return np.exp(logs * old_spread + old_mean).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write weights to `path` (safetensors) and what is known of them beside it (JSON)."""
        save_file({name: np.ascontiguousarray(value) for name, value in self.arrays.items()}, path)
        notes = {"kind": self.kind, "held_out": self.held_out, "entities": self.entities}
        path.with_suffix(".json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Bridge:
        """Read what :meth:`save` wrote; NotFoundError if it is not there."""
        if not path.is_file():
            raise NotFoundError(f"No bridge at {path}: make one with `headwater version bridge`.")
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return cls(notes["kind"], load_file(path), notes["held_out"], notes["entities"])


def fit_bridge(
    new: Floats, old: Floats, norms: tuple[Floats, Floats] | None = None, *, seed: int = 0, groups: object = None
) -> Bridge:
    """Fit all candidates on 70% of the entities and take the one that is best on the last 15%.

    The other 15% stop the training of the learned map.

    Parameters
    ----------
    new, old
        Unit vectors float32 [N, M] and [N, D] of the same entities.
    norms
        Their norms before scaling, [N] each; 1 by default.
    groups
        Entity of each row, [N], where an entity has several rows: all of them fall on one side of the split.

    Raises
    ------
    NotReadyError
        If both spaces know fewer than 50 of these entities.
    """
    keys = np.unique(np.arange(len(new)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    count = int(keys.max(initial=-1)) + 1
    if count < LEAST:
        raise NotReadyError(f"Only {count} entities are known to both spaces, {LEAST} are needed to learn a bridge.")
    place = np.random.default_rng(seed).permutation(count)[keys] / count
    fit, stop, held = place < FIT, (place >= FIT) & (place < STOP), place >= STOP
    rotation = procrustes(new[fit], old[fit])
    matrix = _ridge(new[fit], old[fit])
    candidates = {
        "procrustes": {"matrix": rotation},
        "linear": {"matrix": matrix},
        "learned": _learned(new, old, fit, stop, matrix, seed),
    }
    scale = {"norms": _scale(norms)}
    made = {kind: Bridge(kind, arrays | scale, {}, count) for kind, arrays in candidates.items()}
    scores = {kind: float(cosine(bridge.map(new[held]), old[held]).mean()) for kind, bridge in made.items()}
    best = max(scores, key=lambda kind: scores[kind])
    return Bridge(best, made[best].arrays, scores, count)


@dataclass(frozen=True)
class Anchors:
    """What the map cannot say of each entity that both spaces know: its old vector less its mapped one.

    Two trainings agree on what entities have in common and differ in what they remember of each one, which no map
    brings back. It is known, though, for every entity that the old space has, and hardly changes: what the new
    model adds is the movement since.

    Attributes
    ----------
    residuals
        float32 [N, D].
    share
        How much of them is added to a mapped vector.
    scores
        By ``anchored <share>``: mean cosine with the old vectors of a later moment, over entities that the map was not
        fitted on; ``unchanged`` is that of the old vectors of the first moment themselves.
    """

    residuals: Floats
    share: float
    scores: dict[str, float]

    def add(self, mapped: Floats, residuals: Floats, known: NDArray[np.bool_]) -> Floats:
        """Return mapped vectors [Q, D] with their entities' residuals [Q, D] where these are known [Q], unit length.

        An entity that the old space never knew keeps its mapped vector.
        """
        added = self.share * np.where(known[:, None], residuals, np.float32(0))
        return unit((mapped + added).astype(np.float32))


def choose_share(
    bridge: Bridge, first: tuple[Floats, Floats], last: tuple[Floats, Floats], held: NDArray[np.bool_]
) -> tuple[float, dict[str, float]]:
    """Choose how much of the residuals to keep, by what would have come closest to later vectors.

    Parameters
    ----------
    first, last
        Vectors of the same N entities at an early and at a late moment: new [N, M] and old [N, D] of each.
    held
        Entities [N] to judge by; the map should not have been fitted on them.

    Returns
    -------
    tuple
        The share, and the scores of :class:`Anchors`.
    """
    mapped = [bridge.map(new) for new, _ in (first, last)]
    early = first[1] - mapped[0]
    scores = {f"anchored {share:g}": unit(mapped[1] + share * early) for share in SHARES}
    means = {name: float(cosine(found[held], last[1][held]).mean()) for name, found in scores.items()}
    best = max(SHARES, key=lambda share: means[f"anchored {share:g}"])
    means["unchanged"] = float(cosine(first[1][held], last[1][held]).mean())
    return best, means


def held_out(ids: object, seed: int = 0) -> NDArray[np.bool_]:
    """Return which rows :func:`fit_bridge` with these groups judges by, [N]."""
    keys = np.unique(np.asarray(ids), return_inverse=True)[1]
    count = int(keys.max(initial=-1)) + 1
    return np.asarray(np.random.default_rng(seed).permutation(count)[keys] / count >= STOP)


def procrustes(new: Floats, old: Floats) -> Floats:
    """Return the orthogonal map [M, D] that brings new vectors [N, M] closest to old ones [N, D].

    Schönemann, A generalized solution of the orthogonal Procrustes problem (Psychometrika 1966). Where M and D
    differ, its rows or its columns are orthonormal.
    """
    left, _, right = np.linalg.svd(new.astype(np.float64).T @ old.astype(np.float64), full_matrices=False)
    return (left @ right).astype(np.float32)


def _ridge(new: Floats, old: Floats) -> Floats:
    wide = new.astype(np.float64)
    gram = wide.T @ wide + RIDGE * len(new) / new.shape[1] * np.eye(new.shape[1])
    return np.linalg.solve(gram, wide.T @ old.astype(np.float64)).astype(np.float32)


def _learned(new: Floats, old: Floats, fit: NDArray, stop: NDArray, start: Floats, seed: int) -> dict[str, Floats]:
    """Train the linear map plus one hidden layer, which begins with no say, for the cosine with the old vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        matrix = nn.Parameter(torch.from_numpy(start.copy()))
        inner = nn.Parameter(torch.randn(new.shape[1], WIDTH) * new.shape[1] ** -0.5)
        shift, outer = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH, old.shape[1]))
        parameters = [matrix, inner, shift, outer]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=1e-3)
        generator = torch.Generator().manual_seed(seed)
        source, target = torch.from_numpy(new[fit]), torch.from_numpy(old[fit])
        kept_source, kept_target = torch.from_numpy(new[stop]), torch.from_numpy(old[stop])

        def score(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            hidden = torch.nn.functional.gelu(left @ inner + shift, approximate="tanh")
            return torch.nn.functional.cosine_similarity(left @ matrix + hidden @ outer, right).mean()

        best, weights, waited = -1.0, [parameter.detach().clone() for parameter in parameters], 0
        for step in range(STEPS):
            rows = torch.randint(len(source), (min(BATCH, len(source)),), generator=generator)
            optimizer.zero_grad()
            (1 - score(source[rows], target[rows])).backward()
            optimizer.step()
            if step % 10 == 9:
                with torch.no_grad():
                    now = float(score(kept_source, kept_target))
                waited = 0 if now > best else waited + 1
                if now > best:
                    best, weights = now, [parameter.detach().clone() for parameter in parameters]
                if waited >= PATIENCE:
                    break
    return dict(zip(("matrix", "inner", "shift", "outer"), (value.numpy() for value in weights), strict=True))


def _scale(norms: tuple[Floats, Floats] | None) -> Floats:
    if norms is None:
        return np.array([0, 1, 0, 1], np.float32)
    logs = [np.log(np.maximum(values, 1e-12)) for values in norms]
    return np.array([logs[0].mean(), logs[0].std(), logs[1].mean(), logs[1].std()], np.float32)


def unit(vectors: Floats) -> Floats:
    """Return vectors [N, D] scaled to length 1; those of length 0 stay."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def cosine(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Return the cosine of each row of `left` [N, D] with the same row of `right`, [N]."""
    return np.einsum("nd,nd->n", unit(left).astype(np.float64), unit(right).astype(np.float64))


def neighbour_overlap(new: Floats, old: Floats, k: int = 10, *, queries: int = 500, seed: int = 0) -> float:
    """Return the mean share of the k nearest entities that both spaces agree on; rotations do not change it.

    Parameters
    ----------
    new, old
        Unit vectors [N, M] and [N, D] of the same entities.
    queries
        Q, how many of them are asked about.
    """
    asked = np.random.default_rng(seed).permutation(len(new))[:queries]
    found = []
    for vectors in (new, old):
        scores = vectors[asked] @ vectors.T
        scores[np.arange(len(asked)), asked] = -np.inf
        found.append(np.argpartition(-scores, min(k, len(new) - 1) - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*found, strict=True)]))


def effective_rank(vectors: Floats) -> float:
    """Return the effective rank of vectors [N, D]: the exponential of the entropy of their singular values.

    Roy and Vetterli, The effective rank (EUSIPCO 2007), of the centred vectors.
    """
    values = np.linalg.svd((vectors - vectors.mean(axis=0)).astype(np.float64), compute_uv=False)
    share = values[values > 1e-12] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
