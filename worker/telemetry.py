"""Logs and counters of one process."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from prometheus_client import Counter

#: Each time a feature met a server that was away, by what it then did.
OUTAGES = Counter("holdfast_outages", "Times a server was away, by feature and what was done instead.", ["feature", "policy"])
#: Each message a worker dropped, by reason.
DROPPED = Counter("holdfast_dropped_messages", "Messages a worker dropped because the job was not its to run.", ["reason"])
#: Jobs by what became of them in this process.
SETTLED = Counter("holdfast_settled_jobs", "Attempts this process ended, by outcome.", ["outcome"])
#: What the relay did.
RELAYED = Counter("holdfast_relayed_jobs", "Jobs the relay moved, by deed.", ["deed"])

#: Decisions of limits, by the limit's name; `refused` counts those it refused.
LIMITED = Counter("holdfast_limit_decisions", "Decisions of limits, by limit and outcome.", ["limit", "outcome"])
#: Decisions that Redis was not there to make, by limit and what its policy did.
LIMIT_OUTAGES = Counter("holdfast_limit_outages", "Decisions made without Redis, by limit and policy.", ["limit", "policy"])
#: What became of reservations.
BUDGETED = Counter("holdfast_budget_calls", "Reservations of budgets, by what became of them.", ["outcome"])

#: Calls of language models.
LLM_CALLS = Counter("holdfast_llm_calls", "Calls of language models, by what became of them.", ["outcome"])

#: Reads that the cache answered.
CACHE_HITS = Counter("holdfast_cache_hits", "Reads the cache answered with a fresh value.", ["region"])
#: Reads that found nothing usable.
CACHE_MISSES = Counter("holdfast_cache_misses", "Reads that found no usable value in the cache.", ["region"])
#: Reads answered with a value past its ttl.
CACHE_STALE = Counter("holdfast_cache_stale", "Reads answered with a value past its ttl.", ["region"])
#: Callers that waited while another loaded.
CACHE_WAITS = Counter("holdfast_cache_waits", "Callers that waited while another loaded.", ["region"])
#: Refreshes begun before the ttl was over.
CACHE_EARLY = Counter("holdfast_cache_early", "Refreshes begun before the ttl was over.", ["region"])
#: Callers that did without the cache.
CACHE_BYPASSES = Counter("holdfast_cache_bypasses", "Callers served without the cache, because its Redis was away.", ["region"])
#: Runs of loaders.
CACHE_LOADS = Counter("holdfast_cache_loads", "Runs of loaders.", ["region"])
#: Loaded values that were not stored.
CACHE_REFUSED = Counter("holdfast_cache_refused", "Values not stored, because they were invalidated or overtaken.", ["region"])
#: What went wrong, by what it was.
CACHE_FAILURES = Counter("holdfast_cache_failures", "Failed loads, unreadable entries, lost writes.", ["region", "what"])


def log(name: str) -> structlog.stdlib.BoundLogger:
    """Return the structured logger of a module; lines go through the standard library, so Celery's set-up applies."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _as_text(stream: TextIO) -> structlog.dev.ConsoleRenderer:
    # Without the local variables of a traceback: those of a request hold its key, and to write them out takes seconds.
    return structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)


def print_lines(*, on_stderr: bool = False) -> None:
    """Print log lines as text, on stdout unless told otherwise; whatever was set up before is made for other loggers."""
    structlog.reset_defaults()
    *before, _ = structlog.get_config()["processors"]
    renderer = _as_text(sys.stderr if on_stderr else sys.stdout)
    structlog.configure(
        processors=[*before, renderer], logger_factory=lambda *_: structlog.PrintLogger(sys.stderr if on_stderr else None)
    )


def configure(level: str = "INFO", *, as_json: bool = False) -> None:
    """Send log lines to stderr, as text or as one JSON object a line."""
    renderer = structlog.processors.JSONRenderer() if as_json else _as_text(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso")],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
