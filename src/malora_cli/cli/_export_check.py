"""What ``malora merge-export --check`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from malora_cli.cli._common import prepare_libraries
from malora_cli.cli._terminal import plain_table, result_console, say, say_json
from malora_cli.errors import RecipeError, RunError

_DOES = {"loads": "loads it", "differs": "computes something else", "refuses": "refuses it"}


def check_export(folder: Path, given: Sequence[str], *, as_json: bool) -> int:
    """Print whether an export is as it was written, and what runtimes make of the LoRAs in it.

    Args:
        folder: The export, or any LoRA in PEFT's format.
        given: What else was given, and has no meaning here.
        as_json: Print JSON.

    Returns:
        The exit code: 1 where a file has changed, or a runtime does not compute what PEFT does; that servers refuse an
        adapter with routed experts is as it should be.

    Raises:
        MaloraError: It is neither, or is damaged.
    """
    if given:
        what = f"it takes nothing else than --json, and got {', '.join(given)}"
        raise RecipeError(what, where="--check", fix="Leave that out.")
    if not folder.is_dir():
        raise RunError("not found as a folder", where=str(folder))
    prepare_libraries()
    from malora_cli.export.lint import is_adapter, is_routed, lint
    from malora_cli.export.sums import SUMS, changed_files

    changed = changed_files(folder)
    places = [place for place in (folder, *sorted(folder.iterdir())) if place.is_dir() and is_adapter(place)]
    if changed is None and not places:
        raise RunError(f"neither an export (no {SUMS}) nor an adapter in PEFT's format", where=str(folder))
    found = {"." if place == folder else place.name: lint(place) for place in places}
    routed = [name for name in found if is_routed(folder / name)]
    looked_at = [verdict for name, verdicts in found.items() for verdict in verdicts if name not in routed]
    fine = not changed and all(verdict.does == "loads" for verdict in looked_at)
    if as_json:
        runtimes = {name: [asdict(verdict) for verdict in verdicts] for name, verdicts in found.items()}
        say_json({"folder": str(folder), "changed": changed, "runtimes": runtimes})
        return int(not fine)
    if changed is not None:
        say(f"changed since it was written: {', '.join(changed)}" if changed else "unchanged since it was written")
    if found:
        table = plain_table(("adapter", "runtime", "by its rules", ""), ())
        for name, verdicts in found.items():
            for verdict in verdicts:
                table.add_row(*map(Text, (name, verdict.runtime, _DOES[verdict.does], verdict.why)))
        result_console().print_table(table)
    for name in routed:
        say(f"{name}: an adapter with routed experts, as it was trained; servers take another export, a LoRA")
    return int(not fine)
