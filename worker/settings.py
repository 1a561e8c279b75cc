"""Every setting of Holdfast: its default, unit and meaning, and the only place that reads the environment."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.errors import SettingsError

#: The file a running embedded stack leaves in `home`, so that every process of the folder finds the same servers.
RUNTIME_FILE = "services.json"

Names = Annotated[list[str], NoDecode]
Statements = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """The settings of one process, read once from the environment and validated at start.

    A field `name` is read from `HOLDFAST_NAME`; the three server URLs also go by their usual short names.
    """

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", validate_default=True)

    database_url: str = Field("", validation_alias=AliasChoices("DATABASE_URL", "HOLDFAST_DATABASE_URL"),
        description="Postgres, the record. Empty: the embedded stack of this folder.")
    redis_url: str = Field("", validation_alias=AliasChoices("REDIS_URL", "HOLDFAST_REDIS_URL"),
        description="Redis for coordination: broker, locks. Must run with `noeviction`.")
    cache_url: str = Field("", validation_alias=AliasChoices("CACHE_URL", "HOLDFAST_CACHE_URL"),
        description="Redis for caching: results. May evict.")
    home: Path = Field(Path(".holdfast"), description="Folder of the embedded stack.")

    include: Names = Field([], description="Modules with tasks to import, separated by commas.")
    queues: Names = Field(["default"], description="Names of the ledger queues, separated by commas; the first is the default.")
    foreign_queue: str = Field("celery", description="Queue on which messages of foreign Celery clients arrive, to be adopted.")

    window: int = Field(2000, ge=1, le=100_000, description="Jobs of one queue that may lie in Redis at a time; the rest wait in Postgres.")
    relay_interval_s: float = Field(0.1, gt=0, le=60, description="Seconds between two rounds of an idle relay.")
    audit_after_s: float = Field(5.0, gt=0, description="Seconds after which a sent job that nobody claimed is looked for.")
    max_message_bytes: int = Field(1_048_576, ge=1024, description="Largest encoded arguments of one job, in bytes.")

    node_beat_s: float = Field(2.0, gt=0, description="Seconds between two signs of life of a worker.")
    node_dead_s: float = Field(10.0, gt=0, description="Seconds of silence after which a worker is dead and its jobs go back.")
    max_crashes: int = Field(3, ge=1, description="Deaths of its worker after which a job is discarded.")
    lease_s: float = Field(10.0, gt=0.1, description="Life of a job's Redis lock, in seconds; renewed at a third of it.")
    shutdown_grace_s: float = Field(25.0, ge=0, description="Seconds a stopping worker lets running jobs go on before it hands them back.")

    result_ttl_s: int = Field(86_400, ge=1, description="Seconds a result stays in the cache Redis; Postgres keeps it longer.")
    idempotency_ttl_s: int = Field(86_400, ge=1, description="Seconds an idempotency key is remembered.")
    history_days: int = Field(30, ge=1, description="Days a finished job is kept.")

    db_pool_size: int = Field(5, ge=1, description="Postgres connections one process keeps open.")
    db_connect_s: float = Field(3.0, gt=0, description="Seconds to wait for a Postgres connection.")
    db_prepared: bool = Field(True, description="Whether statements are prepared and sessions set up on the server; off behind a pooler in transaction mode.")
    redis_timeout_s: float = Field(1.0, gt=0, description="Seconds to wait for one answer of the coordination Redis.")

    cache_timeout_ms: int = Field(50, ge=1, le=60_000, description="Milliseconds to wait for one answer of the cache Redis; after that its callers do without.")
    cache_bypass_loads: int = Field(8, ge=1, description="Loads one process runs at a time while the cache Redis is away; further callers wait.")

    limits: Statements = Field([], description="Limit policies, separated by semicolons: a name, a scope, a rate and perhaps closed, local or open, as in `host {host} 10/second local`, or `budget org:* 5000000 micros/day`.")
    limits_timeout_ms: int = Field(40, ge=1, le=60_000, description="Milliseconds to wait for one answer on a limit; after that its outage policy decides.")
    limits_fleet_size: int = Field(8, ge=1, description="Processes among which a limit with the outage policy `local` is divided while Redis is away.")

    intake_keep_size: int = Field(10_000, ge=0, description="Entries of the intake stream that are kept after they were accepted, for a replay.")
    intake_reclaim_s: float = Field(5.0, gt=0, description="Seconds after which what a consumer of the intake stream holds is taken over by another.")
    events_keep_size: int = Field(100_000, ge=1, description="Entries of the event stream that are kept; ten times as many while a group has yet to read them.")
    events_days: int = Field(7, ge=1, description="Days an event is kept in Postgres.")

    redlock_urls: Names = Field([], description="Redis servers of `Redlock`, separated by commas: an odd number, independent of each other and of the other two.")
    redlock_timeout_ms: int = Field(50, ge=1, le=60_000, description="Milliseconds to wait for each of the servers of `Redlock`.")
    lock_snooze_s: float = Field(1.0, gt=0, le=3600, description="Seconds after which a job that found its lock held is tried again, half as many to half as many more.")

    flags_poll_s: float = Field(0.5, gt=0, le=60, description="Seconds between two looks of a process for flags that changed; a nudge through Redis tells it sooner.")
    presence_beat_s: float = Field(5.0, gt=0.1, le=600, description="Seconds between two signs of life of who is on-line; two of them after its last one, who is gone is known to be.")

    http_allow_private: bool = Field(False, description="Whether `http.call` may reach private, loopback and link-local addresses.")
    http_max_bytes: int = Field(1_048_576, ge=0, description="Largest response body `http.call` reads, in bytes.")

    llm_base_url: str = Field("", description="Base URL of the OpenAI-compatible API that `llm.chat` calls, such as https://api.example.com/v1. Empty: its jobs fail.")
    llm_api_key: SecretStr = Field(SecretStr(""), description="Key that `llm.chat` sends to its API. Empty: none is sent.")
    llm_prices: Statements = Field([], description="Price table of `llm.chat`, separated by semicolons: a model or the beginning of its name and a star, then the millionths of money a million tokens cost sent, returned, and perhaps sent from the API's own cache, as in `small 150000 600000 75000; large-* 2500000 10000000`.")
    llm_subject: str = Field("llm:default", description="Whose budget a call of `llm.chat` counts in that names no subject.")
    llm_max_output_tokens: int = Field(1024, ge=1, le=10_000_000, description="Most tokens of an answer to a call of `llm.chat` that does not say how many; so many are reserved.")
    llm_timeout_s: float = Field(120.0, gt=0, le=3600, description="Seconds a call of `llm.chat` may take that does not say how many.")
    llm_lease_s: float = Field(30.0, ge=1, le=3600, description="Seconds after which the reservation of a dead worker's call is free again; renewed at a third of it.")
    llm_cache_ttl_s: int = Field(3600, ge=1, description="Seconds an answer of `llm.chat` is kept where its call allows that.")
    webhook_secrets: Names = Field([], repr=False, description="Secrets by which callbacks are signed, separated by commas: `whsec_` and base64 of 24 to 64 bytes, for one caller's jobs `caller:whsec_…`. All that fit sign, so that they can be rotated.")
    webhook_retry_s: float = Field(86_400.0, ge=0, description="Seconds for which a callback that was not taken is tried again.")
    gateway_body_bytes: int = Field(2_097_152, ge=1024, description="Largest body of a request to the gateway, in bytes.")
    gateway_batch_bytes: int = Field(33_554_432, ge=1024, description="Largest body of a batch of jobs, in bytes.")
    gateway_wait_s: float = Field(60.0, ge=0, le=600, description="Seconds that a request to the gateway may wait for a job at the most.")

    console_tls: bool = Field(False, description="Whether the console is reached through a proxy that ends TLS and sets `X-Forwarded-For`. Off: it serves loopback only, and its cookie goes without TLS.")
    console_url: str = Field("", description="Where browsers reach the console, such as https://holdfast.example.com/console; with it, and without HOLDFAST_FLOWER_AUTH, Flower asks for the console's login.")
    flower_url: str = Field("", description="Where browsers reach Flower, such as https://flower.example.com/; the console leads there. Empty: it leads nowhere.")
    flower_auth: str = Field("", description="`user:password` that Flower asks for. Empty, and no HOLDFAST_CONSOLE_URL: it listens on loopback only, and a password is made up and told at each start.")
    log_level: str = Field("INFO", description="Least severe log line that is written.")
    log_json: bool = Field(False, description="Whether log lines are JSON objects.")
    fault: str = Field("", description="Fault points to arm, for chaos tests only: `name:action[:nth]`, separated by commas.")

    @field_validator("include", "queues", "redlock_urls", "webhook_secrets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("limits", "llm_prices", mode="before")
    @classmethod
    def _split_statements(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(";") if part.strip()]
        return value

    @field_validator("limits")
    @classmethod
    def _are_policies(cls, value: list[str]) -> list[str]:
        if any(len(text.split()) < 3 for text in value):
            raise ValueError("must be policies of three words or more, such as `host {host} 10/second`, separated by semicolons")
        return value

    @field_validator("llm_prices")
    @classmethod
    def _are_prices(cls, value: list[str]) -> list[str]:
        if any(not re.fullmatch(r"[^\s*]*\*?( +[0-9]{1,15}){2,3}", text) for text in value):
            raise ValueError("must be prices such as `small 150000 600000`: whole millionths of money for a million tokens, sent and returned")
        return value

    @field_validator("llm_base_url")
    @classmethod
    def _is_api(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError("must be a URL like https://api.example.com/v1, without a password and without a query")
        return value

    @field_validator("llm_api_key")
    @classmethod
    def _is_header(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
            raise ValueError("must be printable ASCII without spaces, as it goes into a header")
        return value

    @field_validator("llm_subject")
    @classmethod
    def _is_subject(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*:[^\s/*]{1,100}(/[a-z][a-z0-9_]*:[^\s/*]{1,100}){0,4}", value):
            raise ValueError("must be a subject like llm:default or org:acme/team:7")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a URL like postgresql://user:password@host:5432/name")
        return value

    @field_validator("redis_url", "cache_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://")):
            raise ValueError("must be a URL like redis://:password@host:6379/0, or rediss:// for TLS")
        return value

    @field_validator("redlock_urls")
    @classmethod
    def _are_redis(cls, value: list[str]) -> list[str]:
        return [cls._is_redis(url) for url in value]

    @field_validator("webhook_secrets")
    @classmethod
    def _are_secrets(cls, value: list[str]) -> list[str]:
        if not all(_is_secret(text.rpartition(":")[2]) for text in value):
            raise ValueError("must be texts of `whsec_` and the base64 of 24 to 64 random bytes, after `caller:` for one caller's")
        return value

    @field_validator("flower_url", "console_url")
    @classmethod
    def _is_page(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError("must be a URL like https://holdfast.example.com/console, without a password and without a query")
        return value

    @field_validator("flower_auth")
    @classmethod
    def _is_user_and_password(cls, value: str) -> str:
        if value and not all(value.partition(":")):
            raise ValueError("must be user:password")
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if not self.queues:
            raise ValueError("HOLDFAST_QUEUES: at least one queue is needed")
        if self.foreign_queue in self.queues:
            raise ValueError(f"HOLDFAST_FOREIGN_QUEUE: {self.foreign_queue!r} is also a ledger queue")
        if self.node_dead_s < 2 * self.node_beat_s:
            raise ValueError("HOLDFAST_NODE_DEAD_S: must be at least twice HOLDFAST_NODE_BEAT_S, or one late beat kills a worker")
        given = [bool(self.database_url), bool(self.redis_url), bool(self.cache_url)]
        if any(given) and not all(given):
            raise ValueError("DATABASE_URL, REDIS_URL and CACHE_URL go together: set all three, or none for the embedded stack")
        return self

    @property
    def embedded(self) -> bool:
        """Tell whether this process is to use the embedded stack of its folder."""
        return not self.database_url

    def located(self) -> Settings:
        """Return these settings with the server URLs filled in from the running embedded stack.

        Raises `SettingsError` when no server is configured and no embedded stack runs here.
        """
        if not self.embedded:
            return self
        try:
            found = json.loads((self.home / RUNTIME_FILE).read_text())
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"DATABASE_URL, REDIS_URL and CACHE_URL are not set and no embedded stack runs in {self.home}/: "
                "set them, or start one with `holdfast up`"
            ) from exc
        return self.model_copy(update={k: found[k] for k in ("database_url", "redis_url", "cache_url")})


def _is_secret(text: str) -> bool:
    try:
        return text.startswith("whsec_") and 24 <= len(b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False


def read_settings() -> Settings:
    """Read and validate the environment anew. Raises `SettingsError` that names each wrong variable."""
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as exc:
        # Without its cause: that would print the values, and URLs hold passwords.
        raise SettingsError("; ".join(_line(error["loc"], error["msg"]) for error in exc.errors())) from None


def _line(loc: tuple[int | str, ...], message: str) -> str:
    said = message.removeprefix("Value error, ")
    if not loc:  # What is wrong between several settings names them itself.
        return said
    name = str(loc[0])
    return f"{name if name.isupper() else f'HOLDFAST_{name.upper()}'}: {said}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process with its servers located; read once."""
    return read_settings().located()
