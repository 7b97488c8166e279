"""The machine and the versions that numbers come from; nothing that names a person or a host."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "pytorch-lightning": ("pytorch-lightning",),
    "opencv": ("opencv-python", "opencv-python-headless"),
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
_CPUINFO = Path("/proc/cpuinfo")


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _processor() -> str:
    if _CPUINFO.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(encoding="utf-8", errors="replace"), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> str:
    # A container or a job scheduler may lend fewer cores than the machine has.
    return str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _gpus() -> str:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _operating_system() -> str:
    # The rest of a kernel's release is free text of whoever built it.
    release = re.match(r"\d+(\.\d+)*", platform.release())
    system = f"{platform.system()} {release[0] if release else ''}".strip()
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} ({system})"
    except (OSError, KeyError):
        return system


def environment() -> dict[str, str]:
    """Versions and machine, by name; reads the libraries' metadata and imports none of them.

    The GPU is named where PyTorch is already imported and has one.
    """
    found = {"python": platform.python_version()}
    found |= {name: _version(packages) for name, packages in _PACKAGES.items()}
    found |= {"processor": _processor(), "cores": _cores(), "memory": _memory()}
    gpus = _gpus()
    if gpus:
        found["GPU"] = gpus
    found["system"] = _operating_system()
    return found
