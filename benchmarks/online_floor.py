"""The floor of HTTP reads: a FastAPI route that looks at nothing and answers with as many bytes."""

from __future__ import annotations

import json

from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks import online_home

SIZES = (1, 100, 500, 1_000)
_VECTOR = [0.12345679] * online_home.DIM
_READY = {size: json.dumps({"vectors": [_VECTOR] * size}).encode() for size in SIZES}
app = FastAPI()


class Asked(BaseModel):
    """Ids of a request."""

    ids: list[int]


@app.post("/v1/embeddings", response_model=None)
async def bare(body: Asked) -> Response:
    """Answer with so many vectors."""
    return Response(_READY[len(body.ids)], media_type="application/json")
