"""AdamW with row-wise Adagrad for embedding tables: one number of state per row where Adam keeps two per float.

Row-wise Adagrad is what large recommenders train their id tables with (Naumov et al. 2019, arXiv 1906.00091, and
FBGEMM's ``EXACT_ROWWISE_ADAGRAD``): each row has one sum of mean squared gradients. A row that no example of a batch
named has no gradient and stays as it is, whereas Adam's momentum moves it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

EPSILON = 1e-10


class RowWiseAdamW(torch.optim.AdamW):
    """AdamW for groups without ``rowwise``, row-wise Adagrad for those with it; learning rates are the groups'."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step; gradients of the row-wise tables are used up by it."""
        for group in self.param_groups:
            if group.get("rowwise"):
                for table in group["params"]:
                    if table.grad is not None:
                        self._rows(table, group["lr"])
                        table.grad = None  # AdamW passes over what has no gradient
        return super().step(closure)

    def _rows(self, table: torch.nn.Parameter, rate: float) -> None:
        assert table.grad is not None
        state = self.state[table]
        if "row_sum" not in state:
            state["row_sum"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
        rows = table.grad.abs().amax(1).nonzero().squeeze(1)
        gradient = table.grad.index_select(0, rows)
        summed = state["row_sum"].index_select(0, rows) + gradient.square().mean(1)
        state["row_sum"].index_copy_(0, rows, summed)
        table.index_add_(0, rows, gradient / (summed.sqrt() + EPSILON)[:, None], alpha=-rate)
