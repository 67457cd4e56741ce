"""The RecBole side of `benchmarks.peers_sasrec`; imports nothing of the project. Argument: the folder."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

LENGTH, KEPT = 50, 50  # activities read, choices per user that are targets
EPOCHS, ROWS = 10, 2_500_000  # passes at most, and rows of all passes, of which a core learns from 800 a second
SETTINGS: dict[str, Any] = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "timestamp",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "hidden_size": 64,
    "inner_size": 256,
    "n_layers": 2,
    "n_heads": 2,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "train_batch_size": 1024,
    "eval_batch_size": 1024,
    "learning_rate": 1e-3,
    "stopping_step": 2,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Recall"],
    "topk": [100],
    "valid_metric": "Recall@100",
    "use_gpu": torch.cuda.is_available(),
    "show_progress": False,
    "seed": 0,
    "reproducibility": True,
}


def main() -> None:
    """Train on the choices, score every item for the users that are asked about."""
    folder = Path(sys.argv[1])
    with np.load(folder / "asked.npz") as given:
        users, items, asked, count = (given[name] for name in ("users", "items", "asked", "count"))
    histories: dict[int, list[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        histories.setdefault(user, []).append(item)
    started = time.monotonic()
    score, facts = trained(folder, histories)
    scores = np.full((len(asked), int(count)), np.nan, np.float32)  # of those who chose nothing it knows nothing
    for start in range(0, len(asked), 256):
        known = [row for row in range(start, min(start + 256, len(asked))) if int(asked[row]) in histories]
        if known:
            scores[known] = score([histories[int(asked[row])] for row in known], int(count))
    with open(folder / "scored.npz.tmp", "wb") as out:
        np.savez(out, scores=scores)
    (folder / "training.json").write_text(json.dumps({**facts, "seconds": round(time.monotonic() - started)}))
    (folder / "scored.npz.tmp").rename(folder / "scored.npz")


def trained(folder: Path, histories: dict[int, list[int]]) -> tuple[Any, dict[str, Any]]:
    """Return a function from histories and the number of items to scores [B, I], and how training went."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    place = folder / "choices"
    place.mkdir(exist_ok=True)
    rows = sum(min(len(chosen), KEPT + LENGTH) - 1 for chosen in histories.values())
    epochs = max(1, min(EPOCHS, ROWS // max(rows, 1)))
    with open(place / "choices.inter", "w", encoding="utf-8") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, chosen in histories.items():
            # RecBole makes a training row of every choice: the last ones, or an epoch takes half an hour.
            for at, item in enumerate(chosen[-(KEPT + LENGTH) :]):
                out.write(f"{user}\t{item}\t{at}\n")
    settings = {**SETTINGS, "epochs": epochs, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    config = Config(model="SASRec", dataset="choices", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    model = get_model("SASRec")(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    # RecBole keeps the best pass so far, and a run that was killed goes on behind it.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its own file holds its settings as objects
    for kept in sorted((folder / "saved").glob("SASRec-*.pth"))[-1:]:
        trainer.resume_checkpoint(str(kept))
    best, _ = trainer.fit(train, valid, saved=True, show_progress=False)
    state = torch.load(trainer.saved_model_file, weights_only=False, map_location=config["device"])
    model.load_state_dict(state["state_dict"])
    model.eval()
    position = np.full(dataset.item_num, -1, np.int64)
    codes = {}
    for code in range(1, dataset.item_num):
        token = int(dataset.id2token("item_id", code))
        position[code], codes[token] = token, code

    @torch.no_grad()
    def score(chosen: list[list[int]], count: int) -> np.ndarray:
        sequences = [[codes[item] for item in items if item in codes][-LENGTH:] for items in chosen]
        sequence = torch.zeros(len(sequences), LENGTH, dtype=torch.int64)
        for at, row in enumerate(sequences):
            sequence[at, : len(row)] = torch.tensor(row)
        length = torch.tensor([max(1, len(row)) for row in sequences])
        asked = Interaction({"item_id_list": sequence, "item_length": length}).to(config["device"])
        scores = model.full_sort_predict(asked).view(len(sequences), -1).cpu().numpy()[:, 1:]
        found = np.tile(scores.min(axis=1, keepdims=True), (1, count))  # what nobody chose comes last
        found[:, position[1:]] = scores
        return found

    facts = {"next_recall_at_100": float(best), "best_epoch": state["epoch"] + 1, "epochs": epochs, "hidden_size": 64}
    return score, facts


if __name__ == "__main__":
    main()
