"""The HTTP gateway: any service hands in jobs, follows them and looks at the system, by JSON over HTTP."""

from worker.gateway.app import create_app

__all__ = ["create_app"]
