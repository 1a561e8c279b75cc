"""Guards that need no server: public names, Lua headers, settings and Redis keys are all declared and documented."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import models
import worker
from worker.settings import Settings
from worker.store import keys, script

ROOT = Path(__file__).resolve().parents[2]
LUA = sorted((ROOT / "worker" / "store" / "lua").glob("*.lua"))
PACKAGES = sorted(["models", "worker", *(m.name for m in pkgutil.walk_packages(worker.__path__, "worker.") if m.ispkg)])
MODULES = sorted(path.relative_to(ROOT) for top in ("worker", "models") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("name", PACKAGES)
def test_package_exports_what_it_imports_and_nothing_else(name: str) -> None:
    """An `__init__` re-exports public names with `__all__`, or holds nothing but its docstring."""
    package = importlib.import_module(name)
    tree = ast.parse(Path(str(package.__file__)).read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert all(hasattr(package, exported) for exported in getattr(package, "__all__", []))
    assert imported == set(getattr(package, "__all__", [])) - defined(tree), "every imported name is exported, and only those"
    assert len(getattr(package, "__all__", [])) == len(set(getattr(package, "__all__", [])))


def defined(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_model_is_exported() -> None:
    mapped = {mapper.class_.__name__ for mapper in models.Base.registry.mappers}
    assert mapped <= set(models.__all__)


def test_app_exports_what_services_import() -> None:
    app = importlib.import_module("worker.app")
    assert set(app.__all__) == {"app", "enqueue_in", "enqueue_many"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_says_in_a_sentence_what_it_is(path: Path) -> None:
    source = (ROOT / path).read_text()
    doc = ast.get_docstring(ast.parse(source))
    assert doc, "no docstring"
    assert doc.split("\n\n")[0].rstrip().endswith((".", ":", "?")), doc.splitlines()[0]


# ---- Lua


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_lua_header_tells_purpose_keys_arguments_and_return(path: Path) -> None:
    source = path.read_text()
    header, code = header_and_code(source)
    assert re.match(r"-- [A-Z].*\.$", header[0]), "the first line says what it does"
    for kind in ("KEYS", "ARGV"):
        parts = [path, *family(path)]  # what one part of a script uses another may describe
        described, used = (set().union(*(numbers(part, kind)[which] for part in parts)) for which in (0, 1))
        assert numbers(path, kind)[0] <= used, f"{kind} described is used"
        assert numbers(path, kind)[1] <= described, f"{kind} used is described"
        assert used == set(range(1, len(used) + 1))
    assert any(re.match(r"-- returns  +\S", line) for line in header)
    assert len(re.findall(r"\breturn\b", code)) >= 1


def family(path: Path) -> list[Path]:
    """Return the files that one stands before or behind, by its header."""
    if "-- Goes b" not in path.read_text():
        return []
    return [other for other in LUA if other.stem.split("_")[0] == path.stem.split("_")[0] and "-- Goes b" in other.read_text()]


def numbers(path: Path, kind: str) -> tuple[set[int], set[int]]:
    """Return which KEYS or ARGV a file describes, and which it uses."""
    header, code = header_and_code(path.read_text())
    described = {int(n) for line in header for n in re.findall(rf"^-- {kind}\[(\d+)\]  +\S", line)}
    return described, {int(n) for n in re.findall(rf"{kind}\[(\d+)\]", code)}


def header_and_code(source: str) -> tuple[list[str], str]:
    lines = source.splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end], "\n".join(lines[end:])


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_lua_script_is_loaded_by_name_never_lists_keys_and_takes_time_from_the_server(path: Path) -> None:
    assert script(path.stem).source == path.read_text()
    assert "'KEYS'" not in path.read_text()
    assert "os.time" not in path.read_text()


def test_there_are_scripts() -> None:
    assert LUA


# ---- settings and keys


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_has_a_description_a_default_and_a_unit(name: str) -> None:
    found = Settings.model_fields[name]
    assert found.description, "no description"
    assert found.description.endswith(".")
    assert not found.is_required(), "no default"
    number = found.annotation in (int, float)
    unit = re.search(r"(_s|_ms|_days|_bytes|_size|_loads|_tokens|window|max_crashes)$", name)
    assert not number or unit, "a number carries its unit in its name"
    if name.endswith("_s"):
        assert re.search("seconds", found.description, re.IGNORECASE), "the description says that it counts seconds"


def test_environment_is_read_in_settings_alone() -> None:
    readers = [path for path in MODULES if re.search(r"os\.(environ|getenv)", (ROOT / path).read_text())]
    allowed = {Path("worker/settings.py"), Path("worker/embedded/server.py"), Path("worker/embedded/stack.py")}  # to hand it on
    assert {path for path in readers if path.parts[:2] != ("worker", "cli")} <= allowed


def test_every_kind_of_key_says_all_about_itself() -> None:
    for kind in keys.KINDS:
        assert kind.role in ("coordination", "cache"), kind
        assert kind.type in ("string", "list", "hash", "set", "zset", "stream"), kind
        assert kind.life, kind
        assert kind.policy, kind
    assert len({kind.pattern for kind in keys.KINDS}) == len(keys.KINDS)


def test_every_function_that_makes_a_key_has_a_kind() -> None:
    made = [keys.queue("default"), keys.epoch(), keys.job_lock("some-id"), keys.result("some-id"), keys.cache_hot()]
    made += [of("some-name") for of in (keys.cache_entry, keys.cache_lease, keys.cache_version, keys.cache_tag)]
    made += [keys.limit("host:a", "s60"),
            keys.limit("host:a", "slots"), keys.budget("org:a"), keys.budget_calls("org:a"),
            *(beside(lease) for lease in (keys.lock("a"), keys.semaphore("a")) for beside in (str, keys.fence, keys.waiters)),
            keys.redlock("a"), keys.llm_room("a:small", "tokens"),
            keys.stream("a"), keys.dead(keys.stream("a")), keys.stream_once(keys.stream("a"), "b"), keys.intake(),
            keys.dead(keys.intake()), keys.events()]  # fmt: skip
    made += [keys.flags(), keys.session("abc"), keys.login_link("abc"), keys.sessions("u:1"), keys.board("callers", "d20000"),
             keys.board_new(keys.board("callers", "d20000"), "b1"),
             *(beside(place) for place in (keys.presence("fleet"), keys.typing("job:1")) for beside in (str, keys.members))]
    for key in made:
        assert any(keys_match(kind.pattern, key) for kind in keys.KINDS), key


def keys_match(pattern: str, key: str) -> bool:
    return re.fullmatch(re.sub(r"<\w+>", ".+", re.escape(pattern).replace(r"\<", "<").replace(r"\>", ">")), key) is not None


def test_priorities_fall_into_celerys_buckets() -> None:
    assert [keys.bucket(p) for p in range(10)] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert keys.queue_lists("q") == ("q", "q\x06\x163", "q\x06\x166", "q\x06\x169")
