"""CUDA shared memory: on a GPU where there is one, and everywhere what a caller without one is told."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from parure.cuda_regions import CudaRegion, DeviceBuffer, DeviceTensor, cuda_regions
from parure.errors import InputError
from parure.host import gpus
from parure.region_pool import RegionPool
from parure.regions import Region
from parure.shared_tensors import SharedMemory

NO_GPU = "needs a GPU of NVIDIA" if not gpus() else ""
NO_LIBRARY = "" if importlib.util.find_spec("cuda") else "needs cuda-python: pip install 'parure[cuda-shm]'"


class Nobody:
    """A registrar without a server."""

    def register(self, region: Region, until: float) -> None:
        pass

    def unregister(self, region: Region, until: float) -> bool:
        return True


@pytest.mark.skipif(bool(NO_GPU or NO_LIBRARY), reason=NO_GPU or NO_LIBRARY)
def test_a_tensor_on_the_device_is_written_read_found_and_poisoned() -> None:
    pool = RegionPool(1 << 20, cuda_regions(0), Nobody())
    array = np.arange(1024, dtype=np.float16).reshape(1, 1024)
    place = pool.lend(array.nbytes, 0)
    assert place is not None
    place.buffer.poison()
    tensor = place.tensor(np.float16, array.shape)
    assert np.isnan(np.asarray(tensor)).all()
    place.buffer.write(array)
    assert np.array_equal(np.asarray(tensor), array)
    found = pool.find(tensor)
    assert found is not None and found.region is place.region
    pool.close()


def test_without_cuda_python_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    with pytest.raises(InputError, match=r"pip install 'parure\[cuda-shm\]'"):
        SharedMemory(kind="cuda").make()


@pytest.mark.skipif(bool(NO_LIBRARY), reason=NO_LIBRARY)
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no GPU 99"):
        cuda_regions(99)


@pytest.fixture
def tensor(monkeypatch: pytest.MonkeyPatch) -> DeviceTensor:
    """A tensor whose device is this process's own memory."""
    content = np.arange(6, dtype=np.float32)
    monkeypatch.setattr(DeviceTensor, "__array__", lambda self, dtype=None, copy=None: content.reshape(self.shape))
    return DeviceTensor(DeviceBuffer(object.__new__(CudaRegion)), np.dtype(np.float32), (2, 3))


def test_a_tensor_on_the_device_has_what_executors_and_the_loop_ask_of_an_array(tensor: DeviceTensor) -> None:
    assert (tensor.shape, tensor.ndim, len(tensor), tensor.nbytes) == ((2, 3), 2, 2, 24)
    assert tensor.astype(np.float32, copy=False) is tensor and tensor.reshape(2, 3) is tensor
    assert np.array_equal(np.asarray(tensor, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert tensor.astype(np.float16).dtype == np.float16 and tensor.reshape(3, 2).shape == (3, 2)
    assert tensor.tobytes() == np.arange(6, dtype=np.float32).tobytes()
    assert np.zeros(tensor.shape, tensor.dtype).shape == (2, 3)
