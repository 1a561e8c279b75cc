"""Limits in Redis: how often, how much at once, how many together, and what it may cost."""

from worker.limits.aio import AsyncLimiter
from worker.limits.budget import Budgets, Level, OpenCall, Outcome, Reservation, Standing
from worker.limits.circuit import Circuit
from worker.limits.decision import Decision
from worker.limits.limit import Charge
from worker.limits.limiter import Limiter, ask_all, ask_many, peek_many, release_all, try_acquire_all
from worker.limits.plan import Budget, Plan, Spend, Window, parse_budget
from worker.limits.rate import Algorithm, Rate, parse_rate
from worker.limits.slots import Slot

__all__ = [
    # one limit
    "Limiter", "AsyncLimiter", "Decision", "Slot",
    # several
    "Charge", "ask_all", "ask_many", "peek_many", "release_all", "try_acquire_all",
    # what fails
    "Circuit",
    # rates
    "Algorithm", "Rate", "parse_rate",
    # budgets
    "Budgets", "Budget", "Plan", "Spend", "Window", "parse_budget", "Reservation", "Outcome",
    # and what they are rebuilt from
    "Standing", "OpenCall", "Level",
]  # fmt: skip
