"""What is installed here, and whether it goes together."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from parure.finding import Finding
from parure.host import TENSORRT_PACKAGES, Gpu, installed

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
_EMPTY = "the server's python backend returns empty outputs with numpy 2, and says nothing"
_NUMPY_REMEDY = "`pip install 'numpy<2'` in the server's Python"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def examine_software(here: Sequence[Gpu]) -> Iterator[Finding]:
    """`here`: the GPUs that the runtimes should be able to use."""
    yield Finding("parure", True, f"{installed('parure')} on Python {platform.python_version()}")
    yield numpy_here()
    yield embedded_server()
    yield from container_server()
    yield onnx_runtime(here)
    yield triton_client()
    yield tensorrt()


def numpy_here() -> Finding:
    return Finding("numpy", True, str(installed("numpy")))


def embedded_server() -> Finding:
    """The Triton of the nvidia-pytriton wheel; its models run in this very Python."""
    subject = "embedded Triton"
    version, numpy = installed("nvidia-pytriton"), installed("numpy") or "none"
    if version is None:
        return Finding(subject, True, "not installed; `pip install 'parure[cpu,serve]'` brings it")
    if not numpy.startswith("1."):
        return Finding(subject, False, f"nvidia-pytriton {version} with numpy {numpy}: {_EMPTY}", _NUMPY_REMEDY)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not _stub(python).is_file():
        remedy = "use a Python from 3.11 to 3.13"
        return Finding(subject, False, f"nvidia-pytriton {version} has no python backend for Python {python}", remedy)
    if not any(map(installed, _RUNTIMES)):
        remedy = "`pip install 'parure[cpu,serve]'`; on a GPU host gpu instead of cpu"
        return Finding(subject, False, f"nvidia-pytriton {version}, and no ONNX Runtime for its models", remedy)
    return Finding(subject, True, f"nvidia-pytriton {version}; its models run with this Python's numpy {numpy}")


def _stub(python: str) -> Path:
    spec = importlib.util.find_spec("pytriton")
    package = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    return package / "tritonserver" / "python_backend_stubs" / python / "triton_python_backend_stub"


def container_server() -> Iterator[Finding]:
    """A Triton of NVIDIA's container; its models run in the first `python3` on PATH, which need not be this one."""
    server = shutil.which("tritonserver") or (str(CONTAINER_SERVER) if CONTAINER_SERVER.is_file() else None)
    if server is None:
        return
    python, subject = shutil.which("python3"), "numpy of the server's Python"
    command = [str(python), "-c", "import numpy; print(numpy.__version__)"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        numpy = asked.stdout.strip() if asked.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        numpy = ""
    if not numpy:
        remedy = f"{_NUMPY_REMEDY}, or ask doctor inside the server's container"
        yield Finding(subject, False, f"{server} is here, and {python or 'python3'} cannot import numpy", remedy)
    elif not numpy.startswith("1."):
        yield Finding(subject, False, f"{python} has numpy {numpy}: {_EMPTY}", _NUMPY_REMEDY)
    else:
        yield Finding(subject, True, f"{python} has numpy {numpy}")


def onnx_runtime(here: Sequence[Gpu]) -> Finding:
    subject = "ONNX Runtime"
    found = {name: installed(name) for name in _RUNTIMES}
    versions = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if not versions:
        return Finding(subject, None, "not installed; components run from engines or on a server only")
    if all(found.values()):
        remedy = "uninstall both, then install one"
        return Finding(subject, False, f"{versions}: they overwrite each other; keep one of the two", remedy)
    if here and not found["onnxruntime-gpu"]:
        return Finding(subject, None, f"{versions} does not use the GPU; `pip install 'parure[gpu]'` does")
    return Finding(subject, True, versions)


def triton_client() -> Finding:
    """Imported, since protobuf and grpcio of other versions break it only then."""
    version = installed("tritonclient")
    try:
        import tritonclient.grpc.service_pb2_grpc  # type: ignore[import-untyped]  # noqa: F401
    except Exception as error:  # protobuf raises errors of its own, and TypeError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = "install parure anew, into an environment of its own"
        return Finding("tritonclient", False, f"{version}, and cannot be imported ({reason})", remedy)
    return Finding("tritonclient", True, f"{version}, grpcio {installed('grpcio')}, protobuf {installed('protobuf')}")


def tensorrt() -> Finding:
    versions = [f"{name} {version}" for name in TENSORRT_PACKAGES.values() if (version := installed(name))]
    return Finding("TensorRT", True, ", ".join(versions) or "not installed; engines can be neither built nor run here")
