"""Lift by sub-group of the test period: new users, rare items, and where the impression was shown.

Groups are fixed by what was known before the test period and never by its outcomes. They are for looking closer, not
for claims: nothing corrects for how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from jobs.workspace import Workspace
from models.bootstrap import bootstrap_lift

MOST_SURFACES = 8
LEAST_USERS = 20  # with a positive row, and with a negative one; an interval over fewer says nothing


@dataclass(frozen=True)
class Group:
    """Some rows of the test period: what kind of group, its name, and which rows (bool [N])."""

    kind: str
    name: str
    rows: np.ndarray


def groups_of(ws: Workspace, rows: pl.DataFrame) -> list[Group]:
    """Return the sub-groups of test rows (user_id, item_id and the context columns).

    New users have no event before the upstream cut-off: no upstream model has learned from them. Rare items are the
    half of the items shown in the test period that have the fewest events in the coverage window before it. The
    surface is the context column of that name, or else the categorical one with the fewest values.
    """
    known, events = _before(ws)
    new = ~rows["user_id"].is_in(known.implode())
    shown = rows.select("item_id").unique().join(events, on="item_id", how="left").fill_null(0)
    rare = shown.filter(pl.col("events").rank("ordinal") <= shown.height / 2)
    seldom = rows["item_id"].is_in(rare["item_id"].implode())
    found = [
        Group("users", "new users", new.to_numpy()),
        Group("users", "known users", (~new).to_numpy()),
        Group("items", "rare items", seldom.to_numpy()),
        Group("items", "common items", (~seldom).to_numpy()),
    ]
    surface = surface_column(ws, rows)
    if surface is not None:
        values = rows[surface].cast(pl.String).fill_null("unknown")
        found += [
            Group(surface, str(name), (values == name).to_numpy())
            for name in values.value_counts(sort=True)[surface].to_list()
        ]
    return found


def surface_column(ws: Workspace, rows: pl.DataFrame) -> str | None:
    """Return the context column by which impressions are grouped; None where none has few values."""
    sizes = {name: rows[name].n_unique() for name in ws.log.context_columns.categorical if name in rows.columns}
    few = [name for name, size in sizes.items() if 2 <= size <= MOST_SURFACES]
    return min(few, key=lambda name: (name != "surface", sizes[name], name), default=None)


def _before(ws: Workspace) -> tuple[pl.Series, pl.DataFrame]:
    """Return the users known to upstream training, and events per item in the coverage window before the test."""
    start: datetime = ws.splits.valid_end - ws.config.coverage
    users: list[pl.Series] = []
    counts: list[pl.DataFrame] = []
    for file in sorted((ws.home.lake / "events").glob("month=*/*.parquet")):
        # A month at a time: the log may be larger than memory, the answers are not.
        events = pl.read_parquet(file, columns=["event_timestamp", "user_id", "item_id"], hive_partitioning=False)
        time = pl.col("event_timestamp")
        users.append(events.filter(time < ws.splits.upstream_end)["user_id"].unique())
        recent = events.filter(time.is_between(start, ws.splits.valid_end, closed="left"))
        counts.append(recent.group_by("item_id").agg(pl.len().alias("events")))
    return pl.concat(users).unique(), pl.concat(counts).group_by("item_id").agg(pl.col("events").sum())


def lift_by_group(
    groups: list[Group],
    facts: tuple[np.ndarray, np.ndarray, np.ndarray],
    baseline: np.ndarray,
    treatments: Mapping[str, np.ndarray],
    *,
    oracle: np.ndarray | None = None,
    resamples: int = 200,
) -> list[dict[str, Any]]:
    """Return a row per group and treatment; one without figures where a group is too small.

    Parameters
    ----------
    facts
        Label, weight and user of the test rows, ``[N]`` each.
    baseline, treatments
        Logits ``[S, N]``.
    oracle
        Logits of the true probabilities ``[N]``, where they are known.
    """
    table = []
    for group in groups:
        label, weight, user = (values[group.rows] for values in facts)
        sizes = {"rows": len(label), "users": len(np.unique(user)), "positives": int(label.sum())}
        told = {"kind": group.kind, "group": group.name, **sizes}
        if why := too_few(label, user):
            table.append({**told, "embeddings": None, "why": why})
            continue
        lifts = bootstrap_lift(
            label,
            weight,
            user,
            baseline[:, group.rows],
            {name: logits[:, group.rows] for name, logits in treatments.items()},
            oracle=None if oracle is None else oracle[group.rows],
            resamples=resamples,
        )
        for name in treatments:
            row = lifts[name]
            share = row.share_of_possible_gain
            table.append(
                {
                    **told,
                    "embeddings": name,
                    "baseline_auc": lifts["baseline"].auc.value,
                    "auc": row.auc.value,
                    "relative_auc_lift": row.relative_auc_lift.value,
                    "ci95": list(row.relative_auc_lift.ci95),
                    "share_of_possible_gain": share.value if share else None,
                }
            )
    return table


def too_few(label: np.ndarray, user: np.ndarray) -> str | None:
    """Return why an interval over the users of some rows would say nothing; None where it says something."""
    least = min(len(np.unique(user[label > 0.5])), len(np.unique(user[label < 0.5])))
    return f"fewer than {LEAST_USERS} users with either outcome" if least < LEAST_USERS else None


def table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the sub-groups of a summary, written for a person."""
    written = []
    for row in rows:
        known = row["embeddings"] is not None
        written.append(
            {
                "task": row["task"],
                "sub-group": row["group"] if row["kind"] in ("users", "items") else f"{row['kind']} {row['group']}",
                "embeddings": row["embeddings"] or "-",
                "rows": f"{row['rows']:,}",
                "users": f"{row['users']:,}",
                "positives": f"{row['positives']:,}",
                "lift": f"{row['relative_auc_lift']:+.3%}" if known else row["why"],
                "95% interval": f"[{row['ci95'][0]:+.3%}, {row['ci95'][1]:+.3%}]" if known else "",
            }
        )
    return written
