"""What a running Triton needs of this environment, found and checked."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parure.errors import InputError

_PIP_LINE = "pip install 'parure[cpu,serve]'"


@dataclass(frozen=True)
class Installation:
    """What the wheel brings, checked: the binary, its libraries, the python backend and its stub."""

    binary: Path
    libraries: Path
    backend: Path
    stub: Path

    @classmethod
    def find(cls) -> Installation:
        """Raises `InputError` with the line that repairs the environment."""
        spec = importlib.util.find_spec("pytriton")
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"the Triton server is not installed; run `{_PIP_LINE}` (it brings nvidia-pytriton)")
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(f"the server's models need onnxruntime, which is not installed; run `{_PIP_LINE}`")
        try:
            numpy = version("numpy")
        except PackageNotFoundError:
            numpy = "none"
        if not numpy.startswith("1."):
            raise InputError(
                f"numpy is {numpy}; Triton's python backend silently returns empty outputs with numpy 2; "
                "run `pip install 'numpy<2'`"
            )
        package = Path(spec.submodule_search_locations[0])
        root = package / "tritonserver"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        found = cls(
            binary=root / "bin" / "tritonserver",
            libraries=package.parent / "nvidia_pytriton.libs",
            backend=root / "backends" / "python",
            stub=root / "python_backend_stubs" / python / "triton_python_backend_stub",
        )
        for path in (found.binary, found.libraries, found.backend, found.stub):
            if not path.exists():
                raise InputError(
                    f"nvidia-pytriton has no {path.relative_to(package.parent)} (Python {python}); "
                    "run `pip install --force-reinstall 'nvidia-pytriton>=0.7.0'` with a Python from 3.11 to 3.13"
                )
        return found

    def environment(self) -> dict[str, str]:
        """The stub finds this interpreter's packages through the first `python3` on PATH; it ignores PYTHONPATH."""
        own_libpython = sysconfig.get_config_var("LIBDIR")
        libraries = filter(None, [str(self.libraries), own_libpython, os.environ.get("LD_LIBRARY_PATH")])
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(path)}
