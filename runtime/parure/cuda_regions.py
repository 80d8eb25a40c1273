"""Shared memory of a GPU: tensors that stay on the device between the components of a server on this host.

Over tritonclient's CUDA utilities, which need cuda-python (`pip install 'parure[cuda-shm]'`). An array on such a region
is a `DeviceTensor`: it has the shape and type of an array, is handed to components as it is, and becomes an array
of numpy, by a copy, where something looks at its numbers.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from parure.errors import InputError
from parure.executor import Array
from parure.regions import POISON, Region, SystemRegion
from parure.triton_regions import Kind, RegionApi


def cuda_regions(device: int) -> Callable[[int], Region]:
    """What makes regions on the GPU `device`. Raises `InputError` where there is none, or cuda-python is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise InputError(
            f"CUDA shared memory needs {error.name}, which is not installed; run `pip install 'parure[cuda-shm]'`, or "
            "use system shared memory"
        ) from error
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess or not 0 <= device < count:
        found = count if status == runtime.cudaError_t.cudaSuccess else 0
        raise InputError(f"CUDA shared memory: there is no GPU {device} ({found} found); use system shared memory")
    return partial(CudaRegion, device)


class CudaRegion:
    """`size` bytes on the GPU `device`. A system region of one page, under the same name, tells that its owner lives.

    Raises `OSError` where the device has no room.
    """

    kind: Kind = "cuda"

    def __init__(self, device: int, size: int) -> None:
        from tritonclient.utils import cuda_shared_memory as library  # type: ignore[import-untyped]

        self._library = library
        self._sign = SystemRegion(1)
        self.name = self._sign.name
        self.size = size
        self._device = device
        try:
            self.handle = library.create_shared_memory_region(self.name, size, device)
        except library.CudaSharedMemoryException as error:
            self._sign.release()
            raise OSError(f"no room for {size} bytes on GPU {device}: {error}") from error

    def register(self, api: RegionApi, timeout: float) -> None:
        handle = base64.b64decode(self._library.get_raw_handle(self.handle))
        api.register_cuda(self.name, handle, self._device, self.size, timeout)

    def lend(self) -> DeviceBuffer:
        return DeviceBuffer(self)

    def offset(self, array: Array) -> int | None:
        return 0 if isinstance(array, DeviceTensor) and array.buffer.region is self else None

    def release(self) -> None:
        """Device memory is freed with the last tensor on it, here and on the server."""
        self._sign.release()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._library.destroy_shared_memory_region(self.handle)


class DeviceBuffer:
    """`root` is the buffer itself: every tensor on the region keeps it alive."""

    def __init__(self, region: CudaRegion) -> None:
        self.region = region

    @property
    def root(self) -> DeviceBuffer:
        return self

    def poison(self) -> None:
        self.write(np.full(self.region.size, POISON, np.uint8))

    def write(self, array: Array) -> None:
        self.region._library.set_shared_memory_region(self.region.handle, [np.ascontiguousarray(array)])

    def tensor(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        return cast(Array, DeviceTensor(self, np.dtype(dtype), shape))


class DeviceTensor:
    """An array on a GPU: as much of `numpy.ndarray` as executors and the loop ask for."""

    base = None
    flags = np.zeros(0).flags  # writeable, so that nobody takes it for a constant of the host

    def __init__(self, buffer: DeviceBuffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.buffer = buffer
        self.dtype = dtype
        self.shape = shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The numbers, copied from the device."""
        region = self.buffer.region
        array: NDArray[Any] = region._library.get_contents_as_numpy(region.handle, self.dtype, self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        return self if not copy and np.dtype(dtype) == self.dtype else np.asarray(self).astype(dtype, copy=False)

    def reshape(self, *shape: int) -> Any:
        return self if shape == self.shape else np.asarray(self).reshape(*shape)

    def tobytes(self) -> bytes:
        return np.asarray(self).tobytes()
