"""Retrain from the old weights: the gate decides whether the result is still the same space, or the next version.

Training goes on from the version's latest model, on the rows since its cut-off, with a loss that keeps every entity's
vector near the old one. What comes out is judged as a refresh of the old version would be. Accepted, the new model
continues that version; refused, its space becomes the next version, as that of any retrain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, check_version, embedding_view
from feature_repo.contracts.types import Check, Entity, Space, Verdict
from feature_repo.lake import write_json
from jobs import config as settings
from jobs import refresh, train_upstream, versions
from jobs.workspace import Progress, Workspace, silent

ALIGNMENT = 10.0


@dataclass(frozen=True)
class Result:
    """What became of a retrain.

    Attributes
    ----------
    space
        The trained model.
    continues
        The version that it goes on with; None where it left the space.
    version
        The next version that it became; None where it continues the old one.
    verdicts
        The gate's word on its vectors as a refresh of the old version, by entity.
    """

    space: Space
    continues: str | None
    version: str | None
    verdicts: dict[Entity, Verdict]

    def reasons(self) -> list[tuple[Entity, Check]]:
        """Return the checks that failed, by entity."""
        return [(entity, check) for entity, verdict in self.verdicts.items() for check in verdict.failures()]


def run(
    ws: Workspace,
    like: str,
    train_end: datetime,
    *,
    alignment: float = ALIGNMENT,
    name: str | None = None,
    description: str = "",
    progress: Progress = silent,
) -> Result:
    """Train a version's model on from its latest weights, and let the gate say what the result is.

    Killed and run again, the training goes on.

    Parameters
    ----------
    train_end
        Nothing from this moment on is trained on; the rows since the latest model's cut-off are.
    alignment
        Weight of the loss that keeps vectors near the old ones; 0 leaves it out.
    name, description
        Of the next version, should it become one.

    Raises
    ------
    ConfigError
        If there is no upstream `like`, `train_end` is not after the latest model's or not in the log, or `name` is
        taken.
    NotReadyError
        If no labelled row lies in between, or the version has no snapshot before `train_end`.
    """
    base = ws.config.upstream(like)
    models = lifecycle.models_of(ws.ledger, like)
    done = next((model for model in models[1:] if model.train_end == train_end), None)
    start = models[models.index(done) - 1] if done is not None else models[-1]
    if train_end <= start.train_end:
        raise ConfigError(
            f"{like} was trained on events up to {start.train_end:%Y-%m-%d} already: choose a later --train-end."
        )
    if done is None:
        versions.check_train_end(ws, base, train_end)
    for view in [embedding_view(entity, like) for entity in ENTITIES]:
        if not lifecycle.earlier_days(ws.ledger, view, train_end):
            raise NotReadyError(
                f"{view} has no snapshot before {train_end:%Y-%m-%d}: there is nothing to compare with."
            )
    text = description or f"{base.description or like}, trained on up to {train_end:%Y-%m-%d}"
    changes = {"train_end": train_end, "start_from": start.space_id, "alignment": alignment}
    wanted = base.model_copy(update={**changes, "description": text})
    chosen = _name(ws, wanted, name)
    ws.use_threads()
    trained = train_upstream.train(ws, wanted.model_copy(update={"version": chosen}), progress=progress).space
    upstream = refresh.Upstream(ws, trained)
    upstream.space = ws.ledger.space(ws.ledger.version(like).space_id)
    verdicts: dict[Entity, Verdict] = {}
    for step, entity in enumerate(ENTITIES):
        progress(f"is {trained.space_id} still the space of {like}? {entity}s", step, len(ENTITIES))
        verdicts[entity] = _judge(ws, upstream, like, entity, train_end)
    progress(f"judged {trained.space_id}", len(ENTITIES), len(ENTITIES))
    stays = all(verdict.accepted for verdict in verdicts.values())
    report = {entity: verdict.to_dict() for entity, verdict in verdicts.items()}
    write_json(
        {"like": like, "stays": stays, "verdicts": report}, ws.home.reports / f"warm-start-{trained.space_id}.json"
    )
    if stays:
        lifecycle.continue_with(ws.ledger, like, trained)
        return Result(trained, like, None, verdicts)
    if all(upstream.version != chosen for upstream in ws.config.upstreams):
        added = wanted.model_copy(update={"version": chosen})
        settings.save(ws.config.model_copy(update={"upstreams": (*ws.config.upstreams, added)}), ws.home)
    registered = versions.register(ws, trained.space_id, name=chosen, description=text)
    return Result(trained, None, registered.version.version, verdicts)


def _name(ws: Workspace, wanted: settings.Upstream, name: str | None) -> str:
    """Return the name that the new space gets should it become a version: that of the same retrain, or the next."""
    for upstream in ws.config.upstreams:
        if upstream == wanted.model_copy(update={"version": upstream.version}) and name in (None, upstream.version):
            return upstream.version
    chosen = check_version(name or versions.next_version(ws))
    if any(upstream.version == chosen for upstream in ws.config.upstreams):
        raise ConfigError(f"config.yaml has another upstream {chosen}: leave the name out for the next one.")
    return chosen


def _judge(ws: Workspace, upstream: refresh.Upstream, version: str, entity: Entity, as_of: datetime) -> Verdict:
    """Return the gate's verdict on the model's vectors as that version's refresh; nothing is published."""
    candidate = refresh.candidate(ws, upstream, entity, version, as_of)
    with TemporaryDirectory() as folder:
        staged = Path(folder) / "snapshot.parquet"
        pq.write_table(candidate.table, staged)
        return candidate.gate(staged)
