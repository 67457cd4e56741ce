"""What happened lately folded into a model's vectors of one moment, for users and items alike.

Two methods: choices alone (`models.upstream.fold_in`), or outcomes (`models.upstream.fold_in_outcomes`), that is what
was chosen out of what was shown, or what followed out of what was clicked.

Legend: U users, I items, N asked, E vector dim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.features.history import Activity
    from jobs.features.log import EventLog
    from jobs.features.numbers import ItemNumbers
    from models.upstream.fold_in import Choices, Folded, FoldedChoices, FoldIn
    from models.upstream.fold_in_outcomes import FoldedOutcomes
    from models.upstream.outcome_settings import OutcomeFoldIn
    from models.upstream.outcomes import BothSides

Codes = dict[Entity, np.ndarray]
# In a space's config, by what is folded in.
KEY, OUTCOMES_KEY = "fold_in", "fold_in_outcomes"
MOST_NUMBERS = 8  # of items, each of which takes a direction of vectors
# Fewer floats, and products that are worth a tenth of what they are worth to clicks: slopes and numbers stand out more.
OF_CONVERSIONS = {"slope": 2.0, "number": 0.2}


class Method(Protocol):
    """How a moment's vectors are folded: reads what happened once, and solves all rows, or some of them again."""

    def read(self, as_of: datetime, codes: Codes) -> Any:
        """Return what happened before a moment between the users and items that have a vector, codes ascending."""

    def fold(self, users: Tensor, items: Tensor, happened: Any) -> Folded:
        """Return the vectors of both sides after it, from the model's unit vectors [U, E] and [I, E]."""

    def again(self, entity: Entity, raw: Tensor, folded: Any, happened: Any, places: Tensor) -> Tensor:
        """Solve some rows of an entity: unit vectors float32 [N, E].

        Parameters
        ----------
        raw
            The model's unit vectors of the rows [N, E].
        folded
            What :meth:`fold` returned.
        places
            Positions of the rows, int64 [N].
        """


@dataclass(frozen=True)
class ChoiceFolding:
    """Folds choices in, whatever else was shown."""

    config: FoldIn
    activity: Callable[[], Activity]

    def read(self, as_of: datetime, codes: Codes) -> Choices:
        """Return the choices as far back as they count."""
        import torch

        from models.upstream.fold_in import Choices

        reach, half_life = timedelta(days=self.config.reach_days), timedelta(days=self.config.half_life_days)
        users, items, weights = self.activity().fading(as_of - reach, as_of, half_life)
        user, item = _positions(codes["user"], users), _positions(codes["item"], items)
        both = (user >= 0) & (item >= 0)
        width = max(len(codes["item"]), 1)
        pair, place = np.unique(user[both] * width + item[both], return_inverse=True)
        count = np.bincount(place, weights[both], minlength=len(pair))
        return Choices(
            torch.from_numpy(pair // width), torch.from_numpy(pair % width), torch.from_numpy(count.astype(np.float32))
        )

    def fold(self, users: Tensor, items: Tensor, happened: Choices) -> FoldedChoices:
        """Return both sides after the choices."""
        from models.upstream.fold_in import fold_in

        return fold_in(users, items, happened, self.config)

    def again(self, entity: Entity, raw: Tensor, folded: FoldedChoices, happened: Choices, places: Tensor) -> Tensor:
        """Solve some rows of an entity."""
        from torch.nn import functional

        from models.upstream.fold_in import solve

        choices = happened if entity == "user" else happened.by_item()
        return functional.normalize(solve(raw, folded.given(entity), choices.of(places), self.config))


@dataclass(frozen=True)
class OutcomeFolding:
    """Folds outcomes in, as far back as `coverage`: of impressions, with the activity beside them, or of clicks."""

    config: OutcomeFoldIn
    log: EventLog
    activity: Callable[[], Activity]
    coverage: timedelta

    @cached_property
    def numbers(self) -> ItemNumbers:
        """What items' numbers are told against."""
        from jobs.features.numbers import ItemNumbers

        since = datetime.fromisoformat(self.config.numbers_since) if self.config.numbers else self.log.start
        return ItemNumbers.fit(self.log, self.config.numbers, since)

    def read(self, as_of: datetime, codes: Codes) -> BothSides:
        """Return the outcomes of both sides."""
        import torch

        from jobs.features.outcomes import OutcomeReader
        from models.upstream.outcomes import BothSides, Outcomes

        reader = OutcomeReader(self.log, as_of, self.coverage, codes["user"], codes["item"])
        after = self.config.after_click
        read = reader.conversions(after) if after else reader.clicks(self.activity().actions)
        by_user = Outcomes.by(*map(torch.from_numpy, read.rows))
        rates = (torch.from_numpy(read.user_rates), torch.from_numpy(read.item_rates))
        numbers = torch.from_numpy(self.numbers.of(self.log, as_of)[codes["item"]])
        return BothSides(by_user, by_user.turned(), *rates, numbers)

    def fold(self, users: Tensor, items: Tensor, happened: BothSides) -> FoldedOutcomes:
        """Return both sides after the outcomes."""
        from models.upstream.fold_in_outcomes import fold_in_outcomes

        return fold_in_outcomes(users, items, happened, self.config)

    def again(self, entity: Entity, raw: Tensor, folded: FoldedOutcomes, happened: BothSides, places: Tensor) -> Tensor:
        """Solve some rows of an entity."""
        from models.upstream.fold_in_outcomes import published
        from models.upstream.outcome_solving import solve_outcomes

        before, rows = folded.before[entity].take(places), happened.of(entity).of(places)
        state = solve_outcomes(entity, raw, before, folded.given[entity], rows, folded.frame, self.config)
        return published(entity, raw, state, folded.own[entity].take(places), folded.frame, self.config)


@dataclass(frozen=True)
class _Moment:
    folded: Folded
    happened: Any
    norms: dict[Entity, np.ndarray]


class Folding:
    """Folds what happened before a moment into vectors; keeps the last moment, which is asked for again.

    Parameters
    ----------
    method
        From :func:`of_space`.
    codes
        Entity and moment -> the codes that have a vector, ascending.
    raw
        Entity and moment -> the model's unit vectors of all of them, and their norms before scaling.
    """

    def __init__(
        self,
        method: Method,
        codes: Callable[[Entity, datetime], np.ndarray],
        raw: Callable[[Entity, datetime], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self._method, self._codes, self._raw = method, codes, raw
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

        held = self._at(as_of)
        given, rows = torch.from_numpy(raw), torch.from_numpy(places)
        return self._method.again(entity, given, held.folded, held.happened, rows).numpy()

    def _at(self, as_of: datetime) -> _Moment:
        if self._held is None or self._held[0] != as_of:
            import torch

            self._held = None  # what it held may be as large as what comes
            happened = self._method.read(as_of, {entity: self._codes(entity, as_of) for entity in ENTITIES})
            (users, user_norms), (items, item_norms) = self._raw("user", as_of), self._raw("item", as_of)
            folded = self._method.fold(torch.from_numpy(users), torch.from_numpy(items), happened)
            self._held = as_of, _Moment(folded, happened, {"user": user_norms, "item": item_norms})
        return self._held[1]


def setting(
    prior: float | None,
    half_life_days: float | None = None,
    reads: Literal["choices", "outcomes", "conversions"] | None = None,
    conversions: Sequence[str] | None = None,
    numbers: Sequence[str] = (),
    since: datetime | None = None,
) -> dict[str, Any]:
    """Return what a space's config says of it; empty where nothing is folded in.

    `conversions` are the event types after a click that count as one, `numbers` the attributes of items of which
    each user has slopes of his own where outcomes are folded in, beside what was usual at the moment `since`.
    """
    from jobs.features.labels import CONVERSION
    from models.upstream.fold_in import FoldIn
    from models.upstream.outcome_settings import OutcomeFoldIn

    if prior is None:
        return {}
    if reads in (None, "choices"):
        return {KEY: asdict(FoldIn(prior) if half_life_days is None else FoldIn(prior, half_life_days=half_life_days))}
    told = asdict(OutcomeFoldIn(prior)) | {"numbers": list(numbers) if since is not None else []}
    if told["numbers"] and since is not None:
        told["numbers_since"] = since.isoformat()
    if reads == "conversions":
        told |= OF_CONVERSIONS
    if half_life_days is not None:
        for entity in ENTITIES:
            told[entity]["fades_days"] = half_life_days
    return {OUTCOMES_KEY: {**told, "after_click": list(conversions or CONVERSION) if reads == "conversions" else []}}


def continued(new: dict[str, Any], old: dict[str, Any], told: Collection[str]) -> dict[str, Any]:
    """Return how a space folds in that goes on from another: as that one does, but for what it was told otherwise.

    So a model that stays in a space keeps to what its vectors mean, whatever a new space would begin with.

    Parameters
    ----------
    new, old
        The config that the space would have by itself, and that of the one it goes on from.
    told
        Which of its settings were given, besides the prior and what counts as a conversion: numbers, fades_days.
    """
    if OUTCOMES_KEY not in new or OUTCOMES_KEY not in old:
        return new
    own, kept = new[OUTCOMES_KEY], dict(old[OUTCOMES_KEY])
    kept |= {"prior": own["prior"], "after_click": own["after_click"]}
    if "numbers" in told:
        kept |= {name: own[name] for name in ("numbers", "numbers_since")}
    if "fades_days" in told:
        kept.pop("half_life_days", None)
        fades = {entity: {"fades_days": own[entity]["fades_days"]} for entity in ENTITIES}
        kept |= {entity: {"moving": 0.0, **kept.get(entity, {}), **fades[entity]} for entity in ENTITIES}
    return {OUTCOMES_KEY: kept}


def numbers_of(log: EventLog, named: Sequence[str] | None, dim: int) -> tuple[str, ...]:
    """Return the numeric attributes of items that a new space reads: those that are named, or the first few by name.

    Of `dim` floats a quarter is theirs at most.

    Raises
    ------
    ConfigError
        If items have no such number, or too many are named.
    """
    there, room = log.attribute_columns("item").numeric, min(MOST_NUMBERS, dim // 4)
    if named is None:
        return there[:room]
    if unknown := [name for name in named if name not in there]:
        raise ConfigError(
            f"fold_in_numbers: items have no number {', '.join(unknown)}; there are: {', '.join(there) or 'none'}."
        )
    if len(named) > room or len(set(named)) < len(named):
        raise ConfigError(f"fold_in_numbers: name each number once, and {room} at most with vectors of {dim} floats.")
    return tuple(named)


def of_space(
    config: dict[str, Any], log: EventLog, activity: Callable[[], Activity], coverage: timedelta
) -> Method | None:
    """Return how a space folds in what happened; None where it does not.

    Raises
    ------
    ConfigError
        As :func:`check`.
    """
    from models.upstream.fold_in import FoldIn
    from models.upstream.outcome_settings import OutcomeFoldIn

    if KEY in config:
        return ChoiceFolding(FoldIn(**config[KEY]), activity)
    if OUTCOMES_KEY in config:
        check(config, log)
        return OutcomeFolding(OutcomeFoldIn.of(config[OUTCOMES_KEY]), log, activity, coverage)
    return None


def check(config: dict[str, Any], log: EventLog) -> None:
    """Raise ConfigError if a log does not say what a space with this config folds in."""
    if OUTCOMES_KEY not in config:
        return
    if after := config[OUTCOMES_KEY].get("after_click"):
        if not set(after) & set(log.record.counts):
            raise ConfigError(
                f"fold_in_of: conversions learns which clicks are followed by {' or '.join(after)}, and this log has "
                "none. Name other conversion_events in config.yaml, or leave fold_in out."
            )
    elif log.record.opportunity != "impression":
        raise ConfigError(
            "fold_in_of: outcomes learns what was chosen out of what was shown, and this log has no impressions. "
            "Set fold_in_of: choices in config.yaml."
        )


def _positions(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted code stands among ascending ones; -1 where it is not."""
    if len(codes) == 0:
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.where(codes[place] == wanted, place, -1).astype(np.int64)
