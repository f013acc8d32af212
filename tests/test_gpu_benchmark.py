"""``benchmarks/gpu.py`` goes through to its end without a GPU, so that only the card is untried there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import malora_cli

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
PARTS = ("attention", "contracts", "steps", "decode", "train", "resume", "nf4")


def test_every_part_comes_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "all", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    source = str(Path(malora_cli.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": source})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {part: json.loads((tmp_path / f"gpu-{part}.json").read_text())["found"] for part in PARTS}
    for case in found["attention"]["cases"]:
        assert case["difference"] < (1e-4 if case["dtype"] == "torch.float32" else 0.1), case
        assert case["by lengths"]["seconds"] > 0
    assert len(found["attention"]["cases"]) == 8
    assert [test["exit_code"] for test in found["contracts"].values()] == [0]
    for rows in ("rows", "without_triton"):
        assert {row["name"] for row in found["steps"][rows]} == {"peft-lora", "malora"}
    assert not found["steps"]["triton"]
    assert {row["batch"] for row in found["decode"]["rows"]} == {1, 16}
    assert all(run["label_tokens_per_second"] > 0 for run in found["train"].values())
    assert found["resume"] == {"dtype": "float32", "largest_difference": 0.0}
    assert abs(found["nf4"]["nf4"]["nats"] - found["nf4"]["bfloat16"]["nats"]) < 0.1
