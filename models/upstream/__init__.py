"""The upstream model. Reading order: inputs, derm, towers, tokens, sequence, dhen, layers, losses."""

from models.upstream.derm import DERM, Outputs, space_id
from models.upstream.inputs import ContextBatch, InputSpec, ItemBatch, TrainBatch, UserBatch

__all__ = ["DERM", "ContextBatch", "InputSpec", "ItemBatch", "Outputs", "TrainBatch", "UserBatch", "space_id"]
