"""State that lives in Redis and may be lost with it: flags, sessions, presence and leaderboards."""

from worker.live.asgi import Request, SessionMiddleware
from worker.live.feed import Feed, nudge
from worker.live.flags import Flag, Snapshot, flag
from worker.live.leaderboards import Board, Place, Score
from worker.live.presence import Diff, Heart, Presence, Typing, Watch
from worker.live.sessions import AsyncSessions, Listed, Session, Sessions

__all__ = [
    # flags
    "Feed", "Flag", "Snapshot", "flag", "nudge",
    # sessions
    "AsyncSessions", "Listed", "Request", "Session", "SessionMiddleware", "Sessions",
    # presence
    "Diff", "Heart", "Presence", "Typing", "Watch",
    # leaderboards
    "Board", "Place", "Score",
]  # fmt: skip
