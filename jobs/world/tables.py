"""Blocks of a world as Arrow tables: the log as anyone's log is, the truth beside it, users and items.

Legend: N impressions, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.world.config import SURFACES, WorldConfig
from jobs.world.exposure import DAY_US, SECOND
from jobs.world.population import AGES, DEVICES, INCOMES, REGIONS, Population
from jobs.world.world import Block

EVENT_TYPES = ("impression", "click", "add_to_cart", "conversion", "view")
IMPRESSION, CLICK, CART, CONVERSION, VIEW = range(5)
CATEGORIES_PER_DEPARTMENT = 6
_DAY_IDS = 1 << 40  # impressions of one day have ids of their own, so that no day has to know the others

_MOMENT = pa.timestamp("us", tz="UTC")
EVENTS_SCHEMA = pa.schema(
    {
        "event_timestamp": _MOMENT,
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "event_type": pa.string(),
        "impression_id": pa.int64(),
        "surface": pa.string(),
        "position": pa.int64(),
        "asked_for": pa.string(),
        "randomized": pa.bool_(),
        "device": pa.string(),
        "hour": pa.int64(),
        "day_of_week": pa.int64(),
    }
)
TRUTH_SCHEMA = pa.schema(
    {
        "impression_id": pa.int64(),
        "p_click": pa.float32(),
        "p_conversion": pa.float32(),
        "p_conversion_ever": pa.float32(),
        "p_examined": pa.float32(),
    }
)


def impression_ids(day: int, first: int, count: int) -> np.ndarray:
    """Return the ids of so many impressions of a day, counted on from `first`: int64 [count]."""
    return day * _DAY_IDS + first + np.arange(count, dtype=np.int64)


def truth_table(config: WorldConfig, block: Block, ids: np.ndarray) -> pa.Table:
    """Return the true probabilities of a block's impressions.

    ``p_conversion`` is P(a conversion is in the log | click), ``p_conversion_ever`` P(conversion | click) whenever it
    arrives; an impression of the last days has less of the former.
    """
    left = config.days * DAY_US - block.requests.time_us[block.slots.request]
    columns = [
        ids,
        block.truth.click,
        block.truth.conversion_within(left),
        block.truth.conversion(),
        block.truth.examined,
    ]
    return pa.table([pa.array(column) for column in columns], schema=TRUTH_SCHEMA)


@dataclass(frozen=True)
class _Rows:
    """Events [E] by time; `slot` is the position of the impression that an event hangs on, -1 for views."""

    kind: np.ndarray
    time_us: np.ndarray
    user: np.ndarray
    item: np.ndarray
    slot: np.ndarray


def _rows(config: WorldConfig, block: Block) -> _Rows:
    slots, clicks, followed = block.slots, block.clicks, block.followed
    shown_us = block.requests.time_us[slots.request]
    parts = [(IMPRESSION, np.arange(len(shown_us)), shown_us), (CLICK, clicks, block.click_us[clicks])]
    later = ((CART, followed.cart_us), (CONVERSION, followed.onsite_us), (CONVERSION, followed.offsite_us))
    for code, times in later:
        came = (times >= 0) & (times < config.days * DAY_US)
        parts.append((code, clicks[came], times[came]))
    parts.append((VIEW, np.full(len(block.view_user), -1), block.view_us))
    kind = np.concatenate([np.full(len(rows), code, np.int8) for code, rows, _ in parts])
    slot = np.concatenate([rows for _, rows, _ in parts])
    time_us = np.concatenate([times for _, _, times in parts])
    tied = slot[slot >= 0]
    user = np.concatenate([block.requests.user[slots.request[tied]], block.view_user])
    item = np.concatenate([slots.item[tied], block.view_item])
    order = np.lexsort((kind, time_us))
    return _Rows(kind[order], time_us[order], user[order], item[order], slot[order])


def events_table(population: Population, block: Block, ids: np.ndarray) -> pa.Table:
    """Return a block's events by time; what would arrive after the end of the world is left out."""
    config, slots, requests = population.config, block.slots, block.requests
    rows = _rows(config, block)
    start_us = int(config.start.timestamp() * SECOND)
    void = rows.kind != IMPRESSION  # the context belongs to the impression alone
    request = slots.request[rows.slot]
    anchor = requests.anchor[request]
    columns = {
        "event_timestamp": pa.array(rows.time_us + start_us, _MOMENT),
        "user_id": pa.array(rows.user + 1, pa.int64()),
        "item_id": pa.array(rows.item.astype(np.int64) + 1),
        "event_type": _names(rows.kind, EVENT_TYPES),
        "impression_id": pa.array(ids[rows.slot], mask=rows.slot < 0),
        "surface": _names(requests.surface[request], [place.name for place in SURFACES], void),
        "position": pa.array(slots.slot[rows.slot].astype(np.int64) + 1, mask=void),
        "asked_for": _names(anchor, category_names(population), void | (anchor < 0)),
        "randomized": pa.array(requests.randomized[request], mask=void),
        "device": _names(population.users.device[rows.user], DEVICES, void),
        "hour": pa.array(rows.time_us % DAY_US // (3600 * SECOND), mask=void),
        "day_of_week": pa.array((rows.time_us // DAY_US + config.start.weekday()) % 7 + 1, mask=void),
    }
    return pa.table(columns, schema=EVENTS_SCHEMA)


def users_table(population: Population) -> pa.Table:
    """Return what users told of themselves."""
    told = population.users.attributes
    names = {"age": AGES, "region": REGIONS, "income": INCOMES}
    columns = {name: _names(told[name], values, told[name] < 0) for name, values in names.items()}
    return pa.table({"user_id": pa.array(np.arange(1, population.config.users + 1)), **columns})


def items_table(population: Population) -> pa.Table:
    """Return the catalogue; a row holds from the item's first day on, and nobody knows the item before."""
    items, config = population.items, population.config
    category = items.category
    departments = [f"d{code // CATEGORIES_PER_DEPARTMENT:02d}" for code in range(population.categories)]
    born_us = (items.born.astype(np.float64) * DAY_US).astype(np.int64) + int(config.start.timestamp() * SECOND)
    return pa.table(
        {
            "item_id": pa.array(np.arange(1, config.items + 1)),
            "event_timestamp": pa.array(born_us, _MOMENT),
            "category": _names(category, category_names(population)),
            "department": _names(category, departments),
            "brand": _names(items.brand, [f"b{code:04d}" for code in range(int(items.brand.max()) + 1)]),
            "price": pa.array(items.price.astype(np.float64)),
        }
    )


def category_names(population: Population) -> list[str]:
    """Return the names of all categories by code."""
    return [f"c{code:02d}" for code in range(population.categories)]


def _names(codes: np.ndarray, names: list[str] | tuple[str, ...], missing: np.ndarray | None = None) -> pa.Array:
    safe = codes if missing is None else np.where(missing, 0, codes)
    indices = pa.array(safe.astype(np.int32), mask=missing)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names)).cast(pa.string())
