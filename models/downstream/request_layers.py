"""The layers of a ranker for joined inputs that are a sum of two: one row ``a`` for all candidates, and ``z`` of each.

With x0 = a + z, cross layer l of DCN-v2 is ``x_{l+1} = x_l + x0 * (U_l d_l + b_l)`` where ``d_l = V_l x_l``. Hence
``x_l = x0 * t_l`` with ``t_l = 1 + (b_0 + U_0 d_0) + ... + (b_{l-1} + U_{l-1} d_{l-1})``, and

- ``V_l (a * t_l)`` is a vector plus r x r matrices times d_0, d_1, ...: they are made once per request;
- the head reads the last x by weights h alone, and ``h . (x0 * U d) = d . (U' (h * x0))``: the last layer is a product
  of x0 with constants, and never as wide as x0;
- that, V_0 and the first layer of the MLP are linear in x0: one product for all three.

Shapes: N candidates, X width of the joined input, A and Z widths of the parts that a and z fill, r rank of a cross
layer (X where it is full), S width of that product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.downstream.layers import CrossLayer
from models.downstream.ranker import Ranker


class _Cross(NamedTuple):
    """A cross layer with one behind it: from its d to what t gains, and on to the next d."""

    up_A: Tensor  # U transposed, [r, A]
    up_Z: Tensor  # [r, Z]
    gained_Z: Tensor  # its bias, in the first layer with 1 added, [Z]
    before_A: Tensor  # 1 and all biases so far, [A]
    down_A: Tensor  # V of the next, transposed, [A, r]
    down_Z: Tensor  # [Z, r]


class RequestLayers:
    """Cross layers, MLP and head of a ranker.

    Parameters
    ----------
    asked, own
        Positions in the joined input of the columns of a and of z. A position that both have holds their sum.
    """

    def __init__(self, ranker: Ranker, asked: list[int], own: list[int]) -> None:
        mlp = [layer for layer in ranker.mlp if isinstance(layer, nn.Linear)]
        crosses = [_weights(layer) for layer in ranker.crosses]
        weights = ranker.head.weight.detach()[0]
        width = len(weights) - (mlp[-1].out_features if mlp else len(weights) // 2)
        head, self._last = weights[:width].double(), weights[width:].clone()
        rows = [mlp[0].weight.double()] if mlp else []
        if crosses:
            rows += [crosses[0][2], crosses[-1][0].T * head]
        self._sizes = [len(part) for part in rows]
        product_SX = torch.cat([torch.zeros(0, width).double(), *rows])
        self._product_A, self._product_Z = _float(product_SX[:, asked].T), _float(product_SX[:, own].T)
        self._start = torch.zeros(1, len(product_SX))
        if mlp:
            self._start[0, : mlp[0].out_features] = mlp[0].bias
        # What the head reads of x0 itself.
        direct = head * (crosses[-1][1] + (len(crosses) == 1)) if crosses else head
        direct = direct if mlp else direct + self._last
        self._direct_A, self._direct_Z = _float(direct[asked]), _float(direct[own])
        self._head_A, self._head_Z, self._bias = (
            _float(head[asked]),
            _float(head[own]),
            ranker.head.bias.detach().clone(),
        )
        self._has_mlp, self._has_crosses = bool(mlp), bool(crosses)
        self._mlp = [(_float(layer.weight.T), layer.bias.detach().clone()) for layer in mlp[1:]]
        self._crosses = []
        before = torch.ones(width, dtype=torch.float64)
        for at, (up, bias, _) in enumerate(crosses[:-1]):
            gained, before, down = (bias if at else 1 + bias), before + bias, crosses[at + 1][2]
            parts = up[asked].T, up[own].T, gained[own], before[asked], down[:, asked].T, down[:, own].T
            self._crosses.append(_Cross(*map(_float, parts)))

    def __call__(self, a: Tensor, z: Tensor) -> Tensor:
        """Return logits ``[N]`` from ``[1, A]`` and ``[N, Z]``."""
        linear = torch.addmm(torch.addmm(self._start, a, self._product_A), z, self._product_Z)  # [N, S]
        parts = linear.split(self._sizes, dim=1)
        logits = torch.addmv(torch.addmv(self._bias, a, self._direct_A), z, self._direct_Z)
        if self._has_crosses:
            logits = self._crossed(logits, a, z, parts[-2], parts[-1])
        if self._has_mlp:
            hidden = torch.relu(parts[0])
            for weight, bias in self._mlp:
                hidden = torch.addmm(bias, hidden, weight).relu_()
            logits = torch.addmv(logits, hidden, self._last)
        return logits

    def _crossed(self, logits: Tensor, a: Tensor, z: Tensor, down: Tensor, seen: Tensor) -> Tensor:
        """Add what the head reads of cross layers; `down` is d_0, `seen` ``U' (h * x0)`` of the last, ``[N, r]``."""
        downs, met, t = [down], [], None
        for layer in self._crosses:
            met.append(layer.up_A * a)  # [r, A]
            gained = torch.addmm(layer.gained_Z, downs[-1], layer.up_Z)
            t = gained if t is None else t + gained
            last = len(downs) == len(self._crosses)
            # The next x, less what of a depends on d; nobody reads the last t again.
            own, asked = t.mul_(z) if last else t * z, a * layer.before_A
            down = torch.addmm(asked @ layer.down_A, own, layer.down_Z)
            for earlier, mine in zip(downs, met, strict=True):
                down.addmm_(earlier, mine @ layer.down_A)
            downs.append(down)
            if last:
                logits = torch.addmv(logits + asked @ self._head_A, own, self._head_Z)
                for earlier, mine in zip(downs, met, strict=False):
                    logits = torch.addmv(logits, earlier, mine @ self._head_A)
        return logits + torch.linalg.vecdot(down, seen)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return U ``[X, r]``, b ``[X]`` and V ``[r, X]`` of a cross layer, float64; the identity where there is no V."""
    assert isinstance(layer, CrossLayer)
    up = layer.up.weight.double()
    down = layer.down.weight.double() if isinstance(layer.down, nn.Linear) else torch.eye(len(up)).double()
    return up, layer.up.bias.double(), down


def _float(values: Tensor) -> Tensor:
    return values.detach().float().contiguous()
