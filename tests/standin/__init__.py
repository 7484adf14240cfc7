"""A stand-in for an accelerator: a device of its own in the processor's memory, for machines that have none.

Its tensors mix with the processor's no more than an accelerator's do, and its random numbers come from generators of its
own; its operations run on the processor. ``pytest -p tests.standin FILE`` makes it torch's current accelerator.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

COMPILER = shutil.which("c++")


def _compiled(directory: str) -> str:
    """The path of the library, made in ``directory``."""
    library, source = f"{directory}/standin.so", Path(__file__).with_name("standin.cpp")
    places = [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
    options = ["-std=c++20", "-O0", "-fPIC", "-shared"]
    command = [str(COMPILER), *options, str(source), "-o", library, *places, "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    return library


class _Current:
    """``with torch.standin.device(…)``: there is one."""

    def __init__(self, device: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def begin() -> None:
    """Makes it torch's accelerator, for the rest of this process."""
    torch.utils.rename_privateuse1_backend("standin")
    with tempfile.TemporaryDirectory() as directory:
        torch.ops.load_library(_compiled(directory))
    module = types.ModuleType("torch.standin")
    vars(module).update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        device=_Current,
        synchronize=lambda device=None: None,
        manual_seed=torch.ops.standin.seed,
        manual_seed_all=torch.ops.standin.seed,
        get_rng_state=lambda device=None: torch.ops.standin.state(),
        set_rng_state=lambda state, device=None: torch.ops.standin.set_state(state),
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
    )
    torch._register_device_module("standin", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert accelerator == torch.device("standin"), accelerator
    torch.__future__.set_swap_module_params_on_conversion(True)  # a weight that is moved stays the same, as elsewhere


def pytest_configure() -> None:
    begin()
