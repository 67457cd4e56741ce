"""What the caller measured decides too: the model run again, live consumers, active entities, old snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.contracts.types import Verdict
from validation.evidence import Canary, Evidence, RawSample
from validation.gate import Gate
from validation.specs import Bounds


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def sample_of(kit: Any, fresh: np.ndarray, rows: np.ndarray) -> RawSample:
    return RawSample(pa.array(rows), unit(fresh[rows]), np.linalg.norm(fresh[rows], axis=1).astype(np.float32))


def check(kit: Any, gate: Gate, stored: np.ndarray, evidence: Callable[[], Evidence], **options: Any) -> Verdict:
    path = kit.write(kit.table(stored), "now")
    return gate.check(path, kit.spec(**options.pop("spec", {})), workdir=kit.folder, evidence=evidence, **options)


def failed(verdict: Verdict) -> set[str]:
    return {failure.name for failure in verdict.failures()}


ROWS = np.arange(0, 400, 7)


def test_what_the_model_says_again_is_accepted(kit: Any, gate: Gate) -> None:
    fresh = kit.vectors()
    verdict = check(kit, gate, fresh, lambda: Evidence(sample_of(kit, fresh, ROWS)))
    observed = {item.name: item.observed for item in verdict.checks}
    assert verdict.accepted is True
    assert observed["agreement_rows"] == len(ROWS) and observed["agreement"] == 0
    assert observed["agreement_usual"] == pytest.approx(1, abs=1e-6)


def test_one_vector_that_is_not_the_models_refuses(kit: Any, gate: Gate) -> None:
    fresh = kit.vectors()
    stored = fresh.copy()
    stored[ROWS[3]] = fresh[ROWS[3]] + 0.3 * fresh[ROWS[4]]
    assert failed(check(kit, gate, stored, lambda: Evidence(sample_of(kit, fresh, ROWS)))) >= {"agreement"}


def test_a_norm_that_is_not_the_models_refuses(kit: Any, gate: Gate) -> None:
    fresh = kit.vectors()
    sample = sample_of(kit, fresh, ROWS)
    sample.norms[5] *= 1.05
    assert failed(check(kit, gate, fresh, lambda: Evidence(sample))) == {"agreement_norms"}


def test_an_entity_that_the_model_does_not_know_refuses(kit: Any, gate: Gate) -> None:
    fresh = kit.vectors()
    sample = sample_of(kit, fresh, ROWS)
    sample.vectors[0], sample.norms[0] = np.nan, np.nan
    assert failed(check(kit, gate, fresh, lambda: Evidence(sample))) == {"agreement", "agreement_norms"}


def test_a_sample_of_strangers_proves_nothing(kit: Any, gate: Gate) -> None:
    fresh = kit.vectors()
    sample = replace(sample_of(kit, fresh, ROWS), ids=pa.array(ROWS + 10_000))
    assert "agreement_rows" in failed(check(kit, gate, fresh, lambda: Evidence(sample)))


def test_smoothing_is_part_of_what_is_expected(kit: Any, gate: Gate) -> None:
    """Old entities are mixed with their previous vector, new ones are not, and leaving it out is seen."""
    fresh = kit.vectors()
    old = unit(fresh[:300] + 2.0 * np.random.default_rng(4).normal(size=(300, kit.dim)))
    before = kit.write(kit.table(14 * old, at=kit.as_of - kit.week), "before")
    stored = unit(fresh)
    stored[:300] = unit(0.8 * old + 0.2 * stored[:300])

    def verdict(vectors: np.ndarray) -> Verdict:
        table = kit.table(vectors)
        norms = pa.array(np.linalg.norm(fresh, axis=1).astype(np.float32))
        path = kit.write(table.set_column(table.schema.get_field_index("norm"), "norm", norms), "now")
        spec = kit.spec(smoothing=0.8)
        evidence = Evidence(sample_of(kit, fresh, ROWS))
        return gate.check(path, spec, workdir=kit.folder, previous=before, evidence=lambda: evidence)

    assert verdict(stored).accepted is True, verdict(stored).failures()
    late = stored.copy()
    late[:300] = unit(0.9 * old + 0.1 * unit(fresh[:300]))
    assert failed(verdict(late)) == {"agreement"}


@pytest.mark.parametrize(("now", "noise", "accepted"), [(0.79, 0.001, False), (0.79, 0.01, True), (0.799, 0.0, True)])
def test_a_fall_beyond_the_noise_refuses(now: float, noise: float, accepted: bool, kit: Any, gate: Gate) -> None:
    canary = Canary("ctr_ranker", 5_000, 0.8, now, noise)
    verdict = check(kit, gate, kit.vectors(), lambda: Evidence(canaries=[canary]))
    found = next(item for item in verdict.checks if item.name == "canary_ctr_ranker")
    assert verdict.accepted is accepted and found.passed is accepted
    assert found.observed == pytest.approx(0.8 - now)
    assert "AUC 0.8000 before" in found.bound and "5,000 rows" in found.bound


@pytest.mark.parametrize(
    ("now", "noise", "accepted"), [(0.28, 0.001, False), (0.28, 0.01, True), (0.297, 0.001, True), (0.33, 0.0, True)]
)
def test_a_recall_has_a_bound_of_its_own(now: float, noise: float, accepted: bool, kit: Any, gate: Gate) -> None:
    canary = Canary("retrieval", 900, 0.3, now, noise, "recall@100", "users")
    verdict = check(kit, gate, kit.vectors(), lambda: Evidence(canaries=[canary]))
    found = next(item for item in verdict.checks if item.name == "canary_retrieval")
    assert verdict.accepted is accepted and found.passed is accepted
    assert "recall@100 0.3000 before" in found.bound and "900 users" in found.bound


def test_an_auc_that_is_no_number_refuses(kit: Any, gate: Gate) -> None:
    canary = Canary("ctr_ranker", 5_000, 0.8, float("nan"), 0.001)
    verdict = check(kit, gate, kit.vectors(), lambda: Evidence(canaries=[canary]))
    assert verdict.accepted is False and "canary_ctr_ranker" in (verdict.error or "")


def test_evidence_that_cannot_be_had_refuses(kit: Any, gate: Gate) -> None:
    def lost() -> Evidence:
        raise LakeError("the ranker is gone")

    verdict = check(kit, gate, kit.vectors(), lost)
    assert verdict.accepted is False and "the ranker is gone" in (verdict.error or "")
    assert verdict.checks


def test_models_do_not_run_on_what_is_refused_already(kit: Any, gate: Gate) -> None:
    def never() -> Evidence:
        raise AssertionError("was asked")

    broken = kit.vectors()
    broken[3] = np.nan
    verdict = check(kit, gate, broken, never)
    assert verdict.error is None and "vector_finite" in failed(verdict)


def test_a_consumer_whose_name_cannot_name_a_check_is_refused_when_made() -> None:
    with pytest.raises(ConfigError, match="cannot name a check"):
        Canary("ctr ranker!", 1, 0.5, 0.5, 0.0)


def active(kit: Any, gate: Gate, ids: range) -> Verdict:
    path = kit.write(kit.table(kit.vectors()), "now")
    return gate.check(path, kit.spec(active_ids=pa.array(ids)), workdir=kit.folder)


def test_active_entities_without_a_row_and_rows_of_inactive_ones(kit: Any, gate: Gate) -> None:
    assert active(kit, gate, range(kit.rows)).accepted is True
    assert active(kit, gate, range(kit.rows + 4)).accepted is True
    warned = {item.name for item in active(kit, gate, range(kit.rows + 4)).checks if not item.passed}
    assert warned == {"active_coverage_usual"}
    assert failed(active(kit, gate, range(kit.rows + 40))) == {"active_coverage"}
    assert failed(active(kit, gate, range(kit.rows - 40))) == {"inactive_share"}
    assert active(kit, gate, range(0)).accepted is False


def turned(vectors: np.ndarray, degrees: float) -> np.ndarray:
    from validation.corruptions import rotation

    return vectors @ rotation(vectors.shape[1], degrees)


def test_small_turns_add_up_against_an_old_snapshot(kit: Any, gate: Gate) -> None:
    def verdict(degrees: float, anchor: Path | None) -> Verdict:
        before = kit.write(kit.table(turned(kit.vectors(), degrees - 2), at=kit.as_of - kit.week), "before")
        path = kit.write(kit.table(turned(kit.vectors(), degrees)), "now")
        return gate.check(path, kit.spec(), workdir=kit.folder, previous=before, anchor=anchor)

    anchor = kit.write(kit.table(kit.vectors(), at=kit.as_of - 20 * kit.week), "anchor")
    assert verdict(40, None).accepted is True
    assert verdict(4, anchor).accepted is True
    assert failed(verdict(40, anchor)) == {"anchor_space"}


def test_bounds_of_evidence_can_be_changed(kit: Any) -> None:
    strict = Gate(Bounds(canary_fall=0.0, canary_noises=0.0))
    verdict = check(kit, strict, kit.vectors(), lambda: Evidence(canaries=[Canary("a", 10, 0.8, 0.7999, 0.1)]))
    assert failed(verdict) == {"canary_a"}
