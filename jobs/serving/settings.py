"""The settings of a serving process, handed from the command to its workers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

LOOPBACK = ("127.0.0.1", "localhost", "::1")
VARIABLE = "HEADWATER_SERVE"
TOKEN_VARIABLE = "HEADWATER_TOKEN"
# No request may ask for more, whatever the settings.
MOST_CANDIDATES = 10_000


class ServeSettings(BaseModel):
    """How one home folder is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free one")
    workers: int = Field(1, ge=1, le=64, description="processes")
    now: AwareDatetime | None = Field(None, description="moment to serve at; null: the wall clock")
    token: SecretStr | None = Field(None, description="what a request must carry as its bearer token")
    timeout_s: float = Field(2.0, gt=0, description="longest time to an answer")
    body_s: float = Field(5.0, gt=0, description="longest time that a request's body may take to arrive")
    queue: int = Field(256, ge=1, description="requests that may wait")
    max_candidates: int = Field(1_000, ge=1, le=MOST_CANDIDATES)
    max_body_kb: int = Field(256, ge=1)
    batch_candidates: int = Field(4_000, ge=1, description="candidates that are scored together")
    poll_s: float = Field(1.0, gt=0, description="seconds between two looks at the release pointer")
    log_sample: float = Field(0.05, ge=0, le=1, description="share of requests whose features are logged")
    log_rows: int = Field(100, ge=1, description="candidates logged per request, the best ones")
    log_mb: int = Field(512, ge=1, description="size of the served-feature log before the oldest files go")
    threads: int = Field(1, ge=1, description="threads of torch per process")
    shutdown_s: int = Field(10, ge=1, description="time for requests in flight when the server is told to stop")

    def moment(self) -> datetime:
        """Return the moment that a request asks at."""
        return self.now or datetime.now(UTC)

    def to_variable(self) -> str:
        """Return the settings as text for the workers' environment; the token goes by a variable of its own."""
        return self.model_dump_json(exclude={"token"})
