"""The environment of a run (versions, git revision, hardware), and the rank of this process."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from clip_common.runs.ledger import now

PACKAGES = (
    *("clip-common", "aaclip", "clipse", "edgeglass", "videoclip"),
    *("torch", "torchvision", "lightning", "numpy", "open-clip-torch", "timm"),
    *("transformers", "sentence-transformers", "peft", "bitsandbytes"),
)


def describe_environment() -> dict[str, Any]:
    """Return time, command, versions, git revision of the working folder and hardware; imports nothing heavy."""
    return {
        "time": now(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "git": _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "hardware": {
            "host": platform.node(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines(),
        },
    }


def rank() -> int:
    """Return this process's index among those of torchrun, srun or Lightning's launcher; 0 for a single process."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _output(*command: str) -> str:
    """Return what a program prints, or an empty string if it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
