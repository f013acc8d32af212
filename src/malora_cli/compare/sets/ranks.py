"""Table 11 of the paper: MALoRA and MoLoRA at four ranks each, of about equal size side by side."""

from __future__ import annotations

from malora_cli.recipe import Recipe

BASELINE = "molora-r8"
#: Expanded rank, rank of the subspace, beta.
_MALORA = ((6, 16, 0.3), (12, 32, 1.0), (24, 64, 3.5), (48, 128, 5.0))
_MOLORA = (4, 8, 16, 32)


def contenders(_recipe: Recipe) -> dict[str, list[str]]:
    """The update is scaled by 2 at every rank, as in the paper."""
    found = {f"molora-r{r}": [f"method={{name: molora, r: {r}, lora_alpha: {2 * r}}}"] for r in _MOLORA}
    for r, d, beta in _MALORA:
        settings = f"{{name: malora, r: {r}, lora_alpha: {2 * r}, subspace_rank: {d}, beta: {beta}}}"
        found[f"malora-r{r}"] = [f"method={settings}"]
    return found
