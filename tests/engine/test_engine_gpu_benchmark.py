"""The benchmark for a GPU, run where there is none: its code works, and its formula counts what a model multiplies."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "engine" / "gpu.py"


def test_it_runs_on_a_cpu_and_prints_one_object():
    run = subprocess.run(
        [sys.executable, SCRIPT, "tiny", "--device", "cpu"], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(run.stdout)
    assert found["card"] == "CPU"
    for side in ("doorstep", "peft"):
        assert found[side]["training_tokens_per_s"] > 0
        assert found[side]["decode_tokens_per_s"] > 0
        assert found[side]["training_flops_utilisation"] is None  # of a CPU nobody knows the peak


def test_its_formula_counts_a_known_model():
    code = "import gpu; c = gpu.SHAPES['qwen3-8b'](); print(gpu.matrices(c), gpu.model_flops(c, 32, 2048))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent
    )
    numbers, flops = map(float, run.stdout.split())
    embedding, norms = 151_936 * 4096, 36 * (2 * 4096 + 2 * 128) + 4096
    assert numbers + embedding + norms == 8_190_735_360  # the parameters of Qwen3-8B
    assert flops == 4 * numbers + 6 * 32 * 2_883_968 + 6 * 2048 * 4096 * 36
