"""What the upstream model reads: the shapes once (InputSpec) and the tensors of one batch.

Index 0 means padding or unknown in every integer tensor.

Legend: B rows, U distinct users, I distinct items, P extra pairs, T sequence, K interest values, J top items,
Cu/Ci/Cc categorical and Nu/Ni/Nc numeric features of user, item and context.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from feature_repo.contracts.errors import ConfigError
from models.upstream import config as config_io


@dataclass(frozen=True)
class InputSpec:
    """Vocabularies and widths that a model is built for.

    Attributes
    ----------
    user_cats
        Vocabulary size per categorical user attribute, the 0 for unknown included.
    user_nums
        Number of numeric user features (already log1p-ed or standardized).
    item_cats, item_nums
        The same for items.
    item_rows
        Rows of the item id table: 0 is none, then own rows of frequent items, then hash buckets.
    actions
        Number of activity types, the 0 for padding included.
    sequence_length
        T, activities kept per user. The model accepts any length; this one is the caller's.
    interests
        K, values kept per item attribute.
    top_items
        J, items kept per user.
    context_cats, context_nums
        The same for the context of an impression; either may be empty.
    """

    user_cats: tuple[int, ...]
    user_nums: int
    item_cats: tuple[int, ...]
    item_nums: int
    item_rows: int
    actions: int
    sequence_length: int
    interests: int
    top_items: int
    context_cats: tuple[int, ...] = ()
    context_nums: int = 0

    def __post_init__(self) -> None:
        sizes = (*self.user_cats, *self.item_cats, *self.context_cats, self.item_rows, self.actions)
        if any(size < 1 for size in sizes):
            raise ConfigError("Every vocabulary needs at least the entry 0 (unknown); one here has none.")
        if (
            min(self.user_nums, self.item_nums, self.context_nums, self.sequence_length, self.interests) < 0
            or self.top_items < 0
        ):
            raise ConfigError("The widths of an InputSpec cannot be negative.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return config_io.to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputSpec:
        """Read what :meth:`to_dict` wrote; raise ConfigError on anything else."""
        return config_io.from_dict(cls, values)


class _Movable:
    def to(self, device: torch.device | str) -> Self:
        """Return the batch with every tensor on `device`."""
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: value if value is None else value.to(device) for name, value in held.items()})


@dataclass(frozen=True, eq=False)
class UserBatch(_Movable):
    """Features of U distinct users as known at one moment."""

    cats: Tensor  # [U, Cu] int64
    nums: Tensor  # [U, Nu] float32
    seq_item: Tensor  # [U, T] int64, id-table row, 0 = pad
    seq_cats: Tensor  # [U, T, Ci] int64, that item's attributes
    seq_action: Tensor  # [U, T] int64
    seq_age: Tensor  # [U, T] float32, log1p hours between the event and as_of
    interest_value: Tensor  # [U, Ci, K] int64, values of item attribute c, 0 = pad
    interest_weight: Tensor  # [U, Ci, K] float32, >= 0, 0 for pad
    top_item: Tensor  # [U, J] int64, id-table row, 0 = pad
    top_weight: Tensor  # [U, J] float32, >= 0, 0 for pad


@dataclass(frozen=True, eq=False)
class ItemBatch(_Movable):
    """Features of I distinct items as known at one moment."""

    row: Tensor  # [I] int64
    cats: Tensor  # [I, Ci] int64
    nums: Tensor  # [I, Ni] float32


@dataclass(frozen=True, eq=False)
class ContextBatch(_Movable):
    """What is known of B impressions besides user and item."""

    cats: Tensor  # [B, Cc] int64
    nums: Tensor  # [B, Nc] float32


@dataclass(frozen=True, eq=False)
class TrainBatch(_Movable):
    """B labelled impressions over U distinct users and I distinct items, plus P activity pairs.

    Users and items are stored once, so that their towers run once however often they occur. Items that
    no row refers to are welcome: they are further negatives of the contrastive loss.
    """

    user: UserBatch
    item: ItemBatch
    context: ContextBatch
    user_index: Tensor  # [B] int64 into U
    item_index: Tensor  # [B] int64 into I
    click: Tensor  # [B] float32
    click_known: Tensor  # [B] bool
    conversion: Tensor  # [B] float32
    conversion_known: Tensor  # [B] bool
    user_key: Tensor  # [U] int64, identity: equal keys are the same user
    item_key: Tensor  # [I] int64, identity: equal keys are the same item
    item_log_q: Tensor  # [I] float32, log probability of the item as an in-batch negative
    positive: Tensor  # [B] bool, rows that are positives of the contrastive loss
    pos_user_index: Tensor  # [P] int64 into U, activity pairs for the contrastive loss only
    pos_item_index: Tensor  # [P] int64 into I
    click_trains: Tensor | None = None  # [B] bool, rows of the click head's data source; None: all
    conversion_trains: Tensor | None = None  # [B] bool, rows of the conversion head's data source; None: all
    # [] float32, log odds that sampling added to a click: minus the log share of rows without one that were kept.
    click_shift: Tensor | None = None


def check_users(users: UserBatch, spec: InputSpec) -> None:
    """Raise ConfigError unless `users` has the shapes and stays within the vocabularies of `spec`."""
    count, length = users.cats.shape[0], users.seq_item.shape[-1]
    fields = len(spec.item_cats)
    _shape("user.cats", users.cats, (count, len(spec.user_cats)))
    _shape("user.nums", users.nums, (count, spec.user_nums))
    _shape("user.seq_item", users.seq_item, (count, length))
    _shape("user.seq_cats", users.seq_cats, (count, length, fields))
    _shape("user.seq_action", users.seq_action, (count, length))
    _shape("user.seq_age", users.seq_age, (count, length))
    _shape("user.interest_value", users.interest_value, (count, fields, users.interest_value.shape[-1]))
    _shape("user.interest_weight", users.interest_weight, tuple(users.interest_value.shape))
    _shape("user.top_item", users.top_item, (count, users.top_item.shape[-1]))
    _shape("user.top_weight", users.top_weight, tuple(users.top_item.shape))
    _range("user.cats", users.cats, spec.user_cats)
    _range("user.seq_cats", users.seq_cats, spec.item_cats)
    _range("user.seq_item", users.seq_item.unsqueeze(-1), (spec.item_rows,))
    _range("user.seq_action", users.seq_action.unsqueeze(-1), (spec.actions,))
    _range("user.top_item", users.top_item.unsqueeze(-1), (spec.item_rows,))
    _range("user.interest_value", users.interest_value.transpose(1, 2), spec.item_cats)


def check_items(items: ItemBatch, spec: InputSpec) -> None:
    """Raise ConfigError unless `items` has the shapes and stays within the vocabularies of `spec`."""
    count = items.row.shape[0]
    _shape("item.row", items.row, (count,))
    _shape("item.cats", items.cats, (count, len(spec.item_cats)))
    _shape("item.nums", items.nums, (count, spec.item_nums))
    _range("item.row", items.row.unsqueeze(-1), (spec.item_rows,))
    _range("item.cats", items.cats, spec.item_cats)


def check_context(context: ContextBatch, spec: InputSpec) -> None:
    """Raise ConfigError unless `context` has the shapes and stays within the vocabularies of `spec`."""
    count = context.cats.shape[0]
    _shape("context.cats", context.cats, (count, len(spec.context_cats)))
    _shape("context.nums", context.nums, (count, spec.context_nums))
    _range("context.cats", context.cats, spec.context_cats)


def _shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ConfigError(f"{name} has shape {list(tensor.shape)}, the model needs {list(expected)}.")


def _range(name: str, values: Tensor, sizes: tuple[int, ...]) -> None:
    """Attributes share one table by offsets: a value out of range would read its neighbour's rows."""
    if values.numel() == 0:
        return
    flat = values.reshape(-1, len(sizes))
    low, high = flat.amin(0).tolist(), flat.amax(0).tolist()
    for column, (smallest, largest, size) in enumerate(zip(low, high, sizes, strict=True)):
        if smallest < 0 or largest >= size:
            raise ConfigError(
                f"{name}, column {column}, holds {smallest}..{largest}; the model knows 0..{size - 1}. "
                "Encode with the vocabularies that the model was trained with."
            )
