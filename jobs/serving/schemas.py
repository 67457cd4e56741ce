"""What requests and answers look like; the source of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints

from jobs.serving.formula import LONGEST
from jobs.serving.settings import MOST_CANDIDATES

Integer = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
Text = Annotated[str, Strict(), StringConstraints(max_length=256)]
Id = Integer | Text
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Scalar = Annotated[bool, Strict()] | Integer | Number | Text
Context = Annotated[
    dict[Text, Scalar | None],
    Field(default_factory=dict, max_length=64, description="What is known of the impression, by the log's columns."),
]
Filters = Annotated[
    dict[Text, Annotated[list[Scalar], Field(min_length=1, max_length=1_000)]],
    Field(default_factory=dict, max_length=16, description="Item attribute -> values that it may have."),
]
Excluded = Annotated[
    list[Id], Field(default_factory=list, max_length=MOST_CANDIDATES, description="Items to leave out.")
]
FormulaText = Annotated[
    str | None,
    Field(
        max_length=LONGEST,
        description="Score of an item from ctr, cvr and similarity, with + - * / ** log exp sqrt abs; ctr * cvr "
        "by default, as far as the release has both.",
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RetrieveRequest(_Request):
    """Nearest items of a user."""

    user_id: Id = Field(examples=[1])
    k: int = Field(100, ge=1, le=MOST_CANDIDATES, strict=True, description="How many items.")
    filters: Filters
    exclude: Excluded

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": 1, "k": 10, "filters": {"department": ["GROCERY"]}}]},
    )


class RankRequest(_Request):
    """Scores of given items for a user."""

    user_id: Id = Field(examples=[1])
    item_ids: list[Id] = Field(min_length=1, max_length=MOST_CANDIDATES)
    context: Context
    formula: FormulaText = None

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"user_id": 1, "item_ids": [819063, 820165], "context": {"hour": 18, "display": "0"}}]
        },
    )


class RecommendRequest(_Request):
    """Retrieve, then rank, then answer with the best."""

    user_id: Id = Field(examples=[1])
    k: int = Field(20, ge=1, le=MOST_CANDIDATES, strict=True, description="How many items to answer with.")
    candidates: int = Field(500, ge=1, le=MOST_CANDIDATES, strict=True, description="How many items to retrieve.")
    filters: Filters
    exclude: Excluded
    context: Context
    formula: FormulaText = None

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": 1, "k": 5, "candidates": 200, "context": {"hour": 18}, "formula": "ctr * cvr ** 0.5"}
            ]
        },
    )


class EmbeddingsRequest(_Request):
    """Vectors of users or items."""

    entity: Literal["user", "item"]
    ids: list[Id] = Field(min_length=1, max_length=MOST_CANDIDATES)
    version: Annotated[str, StringConstraints(pattern=r"^v[1-9][0-9]{0,3}$")] | None = Field(
        None, description="A version that the release reads; that of the index by default."
    )

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"entity": "user", "ids": [1, 2], "version": "v1"}]}
    )


class _Answer(BaseModel):
    request_id: str
    release: str = Field(description="The one release that this answer comes from, whole.")
    moment: str = Field(description="The moment that features were read as of.")


class ScoredItem(BaseModel):
    """One item of an answer."""

    item_id: int | str
    score: float | None = None
    ctr: float | None = None
    cvr: float | None = None
    similarity: float | None = None


class ItemsAnswer(_Answer):
    """Items, best first; those of /v1/rank in the order of the request."""

    index_snapshot: str | None = Field(None, description="Item snapshot that was searched.")
    fallback: Literal["popular"] | None = Field(None, description="Set where the user has no vector.")
    ignored: list[str] = Field(
        [], description="Names of the context that no ranker of the release reads; left out where it reads all."
    )
    items: list[ScoredItem]


class EmbeddingsAnswer(_Answer):
    """Vectors in the order of the request."""

    version: str
    space_id: str
    dim: int
    found: list[bool]
    available_at: list[str | None]
    vectors: list[list[float] | None]


class ReleaseAnswer(BaseModel):
    """What is served."""

    release: str
    created: str
    versions: dict[str, str]
    consumers: dict[str, str] = Field(description="Task -> consumer.")
    snapshots: dict[str, str]
    index: dict[str, Any] | None
    context: list[str] = Field(description="Columns that a request may bring as its context.")


class Problem(BaseModel):
    """What went wrong, for a program and for a person."""

    code: str
    message: str
    details: list[str] = []


class ErrorAnswer(BaseModel):
    """Every answer that is none."""

    error: Problem
