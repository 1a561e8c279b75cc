"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.reference import pages
from worker.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(pages()))
def test_reference_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text() == pages()[name], "run `python -m worker.cli.reference`"


def test_every_setting_and_command_is_on_its_page() -> None:
    from worker.cli.program import app

    settings, commands = pages()["settings.md"], pages()["cli.md"]
    assert all(field.description and field.description in settings for field in Settings.model_fields.values())
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            assert f"`holdfast {group.name} {command.name}`" in commands
