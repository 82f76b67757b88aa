"""Tests that need a CUDA device: where there is none, they are not collected."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))  # what the engine's tests share
collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
