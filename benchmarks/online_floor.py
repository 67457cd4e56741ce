"""The floor of HTTP: FastAPI routes that look at nothing and answer with as many bytes."""

from __future__ import annotations

import json

from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks import online_home

SIZES = (1, 100, 500, 1_000)
_VECTOR = [0.12345679] * online_home.DIM
_READY = {size: json.dumps({"vectors": [_VECTOR] * size}).encode() for size in SIZES}
_ITEM = {"item_id": 12345, "score": 0.0123456789012345, "ctr": 0.1234567890123456, "cvr": 0.1234567890123456}
_ITEMS = json.dumps({"items": [{**_ITEM, "similarity": 0.8123456716537476}] * 20}).encode()
app = FastAPI()


class Asked(BaseModel):
    """Ids of a request."""

    ids: list[int]


class Request(BaseModel):
    """A request for recommendations."""

    user_id: int
    k: int
    candidates: int
    context: dict[str, int]


@app.post("/v1/recommend", response_model=None)
async def ready(body: Request) -> Response:
    """Answer with twenty items."""
    return Response(_ITEMS, media_type="application/json")


@app.post("/v1/embeddings", response_model=None)
async def bare(body: Asked) -> Response:
    """Answer with so many vectors."""
    return Response(_READY[len(body.ids)], media_type="application/json")
