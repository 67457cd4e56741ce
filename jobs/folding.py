"""Recent choices folded into a model's vectors of one moment (`models.upstream.fold_in`), for users and items alike.

Legend: U users, I items, N asked, E vector dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.types import Entity

if TYPE_CHECKING:
    from models.upstream.fold_in import Choices, Folded, FoldIn

KEY = "fold_in"  # in a space's config


@dataclass(frozen=True)
class _Moment:
    folded: Folded
    choices: Choices
    norms: dict[Entity, np.ndarray]


class Folding:
    """Folds the choices before a moment into vectors; keeps the last moment, which is asked for again.

    Parameters
    ----------
    config
        From :func:`of_space`.
    choices
        Moment, how far back to read and half-life -> user code, item code and weight of every choice.
    codes
        Entity and moment -> the codes that have a vector, ascending.
    raw
        Entity and moment -> the model's unit vectors of all of them, and their norms before scaling.
    """

    def __init__(
        self,
        config: FoldIn,
        choices: Callable[[datetime, timedelta, timedelta], tuple[np.ndarray, np.ndarray, np.ndarray]],
        codes: Callable[[Entity, datetime], np.ndarray],
        raw: Callable[[Entity, datetime], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self._config, self._choices, self._codes, self._raw = config, choices, codes, raw
        self._held: tuple[datetime, _Moment] | None = None

    def vectors(self, entity: Entity, as_of: datetime) -> tuple[np.ndarray, np.ndarray]:
        """Return unit vectors of all users or items of a moment [N, E] and the norms of the model's [N], float32."""
        held = self._at(as_of)
        return (held.folded.users if entity == "user" else held.folded.items).numpy(), held.norms[entity]

    def again(self, entity: Entity, as_of: datetime, places: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Solve some rows anew, from the model's vectors of them: float32 [N, E].

        Parameters
        ----------
        places
            Positions of the rows, int64 [N].
        raw
            The model's unit vectors of them, float32 [N, E].
        """
        import torch
        from torch.nn import functional

        from models.upstream.fold_in import solve

        held, rows = self._at(as_of), torch.from_numpy(places)
        if entity == "user":
            given, choices = held.folded.for_users, held.choices
        else:
            given, choices = held.folded.for_items, held.choices.by_item()
        return functional.normalize(solve(torch.from_numpy(raw), given, choices.of(rows), self._config)).numpy()

    def _at(self, as_of: datetime) -> _Moment:
        if self._held is None or self._held[0] != as_of:
            import torch

            from models.upstream.fold_in import fold_in

            choices = self._counted(as_of)
            (users, user_norms), (items, item_norms) = self._raw("user", as_of), self._raw("item", as_of)
            folded = fold_in(torch.from_numpy(users), torch.from_numpy(items), choices, self._config)
            self._held = as_of, _Moment(folded, choices, {"user": user_norms, "item": item_norms})
        return self._held[1]

    def _counted(self, as_of: datetime) -> Choices:
        import torch

        from models.upstream.fold_in import Choices

        reach, half_life = timedelta(days=self._config.reach_days), timedelta(days=self._config.half_life_days)
        users, items, weights = self._choices(as_of, reach, half_life)
        user, item = _positions(self._codes("user", as_of), users), _positions(self._codes("item", as_of), items)
        both = (user >= 0) & (item >= 0)
        width = max(len(self._codes("item", as_of)), 1)
        pair, place = np.unique(user[both] * width + item[both], return_inverse=True)
        count = np.bincount(place, weights[both], minlength=len(pair))
        return Choices(
            torch.from_numpy(pair // width), torch.from_numpy(pair % width), torch.from_numpy(count.astype(np.float32))
        )


def setting(prior: float | None, half_life_days: float | None = None) -> dict[str, Any]:
    """Return what a space's config says of it; empty where nothing is folded in."""
    from models.upstream.fold_in import FoldIn

    if prior is None:
        return {}
    return {KEY: asdict(FoldIn(prior) if half_life_days is None else FoldIn(prior, half_life_days=half_life_days))}


def of_space(config: dict[str, Any]) -> FoldIn | None:
    """Return how a space folds choices in; None where it does not."""
    from models.upstream.fold_in import FoldIn

    return FoldIn(**config[KEY]) if KEY in config else None


def _positions(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted code stands among ascending ones; -1 where it is not."""
    if len(codes) == 0:
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.where(codes[place] == wanted, place, -1).astype(np.int64)
