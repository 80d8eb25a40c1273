"""Tensors in shared memory, with a real server: the same bits, bounded, renewed, and released on every path."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import stamina

from parure.errors import DeadlineExceeded, InputError, ServerUnavailable, SharedMemoryRefused
from parure.onnx_executor import OnnxExecutor
from parure.regions import FOLDER, PREFIX, SystemRegion, in_use, sweep
from parure.shared_tensors import SharedMemory
from parure.triton import TritonExecutor
from parure.triton_transport import open_transport
from parure.wire import Meter, metered
from parure_triton.server import EmbeddedServer

ALL = SharedMemory(least=1)  # every tensor, however small
SLOW = 9.0


def unet_inputs(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((batch, 4, 8, 8)).astype(np.float32)
    return {"latents": latents, "timestep": generator.uniform(0, 999, batch).astype(np.float32)}


def head_inputs(batch: int) -> dict[str, np.ndarray]:
    return {"features": np.random.default_rng(1).uniform(0.1, 9, (batch, 16)).astype(np.float16)}


def own_regions() -> set[str]:
    return {path.name for path in FOLDER.glob(f"{PREFIX}{os.getpid()}-*")}


def known_to(server: EmbeddedServer) -> set[str]:
    transport = open_transport(server.addresses.grpc, 5)
    try:
        return transport.regions.registered("system", 5)
    finally:
        transport.close()


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def executor(scheme: str, sharing: EmbeddedServer) -> Iterator[TritonExecutor]:
    with TritonExecutor(getattr(sharing.addresses, scheme), deadline=20, shared_memory=ALL) as opened:
        yield opened
    assert not own_regions() and not known_to(sharing)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_shared_bits_are_those_of_the_process(executor: TritonExecutor, in_process: OnnxExecutor, batch: int) -> None:
    for component, inputs in (("unet", unet_inputs(batch)), ("mask_head", head_inputs(batch))):
        shared, local = executor.run(component, inputs), in_process.run(component, inputs)
        assert shared.keys() == local.keys()
        for name, array in local.items():
            assert shared[name].dtype == array.dtype and shared[name].shape == array.shape
            assert shared[name].tobytes() == array.tobytes()


def test_what_one_call_wrote_the_next_one_reads_without_crossing_the_wire(
    executor: TritonExecutor, in_process: OnnxExecutor, sharing: EmbeddedServer
) -> None:
    inputs = unet_inputs(2)
    first = executor.run("unet", inputs)["noise"]
    assert executor._shared is not None
    before = own_regions()
    meter, plain = Meter(), Meter()
    with metered(meter):
        second = executor.run("unet", inputs | {"latents": first})["noise"]
    with metered(plain), TritonExecutor(executor.url) as unshared:
        meter_of_opening = plain.wire
        unshared.run("unet", inputs)
    tensor = first.nbytes
    assert meter.wire.total < 2 * tensor
    assert plain.wire.sent - meter_of_opening.sent > tensor and plain.wire.received - meter_of_opening.received > tensor
    expected = in_process.run("unet", inputs | {"latents": in_process.run("unet", inputs)["noise"]})["noise"]
    assert second.tobytes() == expected.tobytes()
    assert len(own_regions() - before) <= 1  # for the second output; its input was not copied


def test_only_tensors_that_are_large_enough_are_shared(sharing: EmbeddedServer, in_process: OnnxExecutor) -> None:
    with TritonExecutor(sharing.addresses.grpc, shared_memory=SharedMemory(least=32)) as executor:
        reply = executor.run("mask_head", head_inputs(2))  # mask: 64 bytes, score: 4
        expected = in_process.run("mask_head", head_inputs(2))
    assert all(reply[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_region_is_used_again_once_its_array_is_gone(executor: TritonExecutor) -> None:
    for seed in range(30):
        executor.run("unet", unet_inputs(1, seed))
    settled = own_regions()
    for seed in range(30):
        executor.run("unet", unet_inputs(1, seed))
    assert own_regions() == settled and len(settled) <= 4


def test_an_array_keeps_its_numbers_while_it_lives(executor: TritonExecutor, in_process: OnnxExecutor) -> None:
    kept = [executor.run("unet", unet_inputs(1, seed))["noise"][:, 1:] for seed in range(20)]
    for seed, part in enumerate(kept):
        assert np.array_equal(part, in_process.run("unet", unet_inputs(1, seed))["noise"][:, 1:])
        assert not part.flags.writeable


def test_arrays_outlive_the_executor(scheme: str, sharing: EmbeddedServer, in_process: OnnxExecutor) -> None:
    with TritonExecutor(getattr(sharing.addresses, scheme), shared_memory=ALL) as executor:
        noise = executor.run("unet", unet_inputs(1))["noise"]
        executor.close()
    gc.collect()
    assert np.array_equal(noise, in_process.run("unet", unet_inputs(1))["noise"])
    assert not own_regions() and not known_to(sharing)


def test_arrays_that_are_not_contiguous_are_read_right(executor: TritonExecutor, in_process: OnnxExecutor) -> None:
    inputs = unet_inputs(2)
    noise = executor.run("unet", unet_inputs(4))["noise"]
    for latents in (np.repeat(inputs["latents"], 2, axis=3)[..., ::2], noise[::2], noise[1:3], noise[:2, :, ::-1]):
        given = inputs | {"latents": latents}
        expected = in_process.run("unet", given | {"latents": latents.copy()})["noise"]
        assert np.array_equal(executor.run("unet", given)["noise"], expected)


def test_an_array_that_cannot_change_is_copied_once_and_one_that_can_every_time(
    executor: TritonExecutor, in_process: OnnxExecutor
) -> None:
    constant, variable = unet_inputs(1), unet_inputs(1)
    constant["latents"].flags.writeable = False
    for _ in range(3):
        variable["latents"] += 1
        for inputs in (constant, variable):
            assert np.array_equal(executor.run("unet", inputs)["noise"], in_process.run("unet", inputs)["noise"])
    assert executor._shared is not None and list(executor._shared._constants) == [id(constant["latents"])]
    del constant, inputs
    assert not executor._shared._constants


def test_many_threads_share_the_regions(executor: TritonExecutor, in_process: OnnxExecutor) -> None:
    def check(seed: int) -> bool:
        inputs = unet_inputs(1 + seed % 4, seed)
        return np.allclose(executor.run("unet", inputs)["noise"], in_process.run("unet", inputs)["noise"], atol=3e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(100)))


def test_beyond_the_limit_tensors_travel_in_messages_and_a_warning_says_so(
    scheme: str, sharing: EmbeddedServer, in_process: OnnxExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    limit = 3 * 1024  # three U-Net tensors of batch 1
    url = getattr(sharing.addresses, scheme)
    with TritonExecutor(url, shared_memory=SharedMemory(limit=limit, least=64)) as executor:
        kept = [executor.run("unet", unet_inputs(1, seed))["noise"] for seed in range(6)]
        assert sum((FOLDER / name).stat().st_size for name in own_regions()) <= limit
    for seed, noise in enumerate(kept):
        assert np.array_equal(noise, in_process.run("unet", unet_inputs(1, seed))["noise"])
    assert [record.getMessage() for record in caplog.records].count(
        f"shared memory for {url} is used up: large tensors travel in messages"
    ) == 1


def test_idle_regions_make_room_for_others(sharing: EmbeddedServer, in_process: OnnxExecutor) -> None:
    with TritonExecutor(sharing.addresses.grpc, shared_memory=SharedMemory(limit=9000, least=512)) as executor:
        for batch in (1, 4, 1, 4):
            reply = executor.run("unet", unet_inputs(batch))["noise"]
            assert reply.base is not None and own_regions()
            np.testing.assert_array_equal(reply, in_process.run("unet", unet_inputs(batch))["noise"])
        assert sum((FOLDER / name).stat().st_size for name in own_regions()) <= 9000


def test_a_server_that_was_restarted_gets_its_regions_again(
    scheme: str, repository: Path, in_process: OnnxExecutor
) -> None:
    with EmbeddedServer(repository, client_shared_memory=True) as server:
        server.wait_ready(60)
        ports = {f"{name}_port": int(at.split(":")[2].split("/")[0]) for name, at in vars(server.addresses).items()}
        executor = TritonExecutor(getattr(server.addresses, scheme), deadline=20, shared_memory=ALL)
        noise = executor.run("unet", unet_inputs(1))["noise"]
    with pytest.raises(ServerUnavailable):
        executor.run("unet", unet_inputs(1))
    with EmbeddedServer(repository, client_shared_memory=True, **ports) as server, executor:
        server.wait_ready(60)
        assert not known_to(server)
        for attempt in stamina.retry_context(on=ServerUnavailable, timeout=60):  # gRPC waits before it reconnects
            with attempt:
                again = executor.run("unet", unet_inputs(1) | {"latents": noise})["noise"]
        expected = in_process.run("unet", unet_inputs(1) | {"latents": noise.copy()})["noise"]
        assert np.array_equal(again, expected) and known_to(server) <= own_regions()
        executor.close()
        assert not known_to(server)


def test_a_server_that_does_not_take_shared_memory_says_what_to_do(scheme: str, server: EmbeddedServer) -> None:
    url = getattr(server.addresses, scheme)
    with pytest.raises(SharedMemoryRefused, match=r"parure serve --client-shared-memory.*--allow-client-shm"):
        TritonExecutor(url, shared_memory=SharedMemory())
    assert not own_regions()


@pytest.mark.parametrize("path", ["repository/models/unet/unload", "repository/index", "models/unet/trace/setting"])
def test_a_server_that_takes_shared_memory_stays_closed_otherwise(path: str, sharing: EmbeddedServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{sharing.addresses.http}/v2/{path}", data=b"{}", timeout=30)
    assert refused.value.code == 403


@pytest.mark.parametrize("name", ["limit", "least"])
def test_sizes_must_be_numbers_of_bytes(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} is 0; expected"):
        SharedMemory(**{name: 0})


def test_a_limit_below_one_tensor_is_refused(sharing: EmbeddedServer) -> None:
    with pytest.raises(InputError, match=r"no room for 65536 bytes .* limit of 100"):
        TritonExecutor(sharing.addresses.grpc, shared_memory=SharedMemory(limit=100))
    assert not own_regions() and not known_to(sharing)


def test_a_region_of_a_call_that_ran_out_of_time_is_not_used_before_the_server_has_let_go_of_it(
    scheme: str, misbehaving: EmbeddedServer
) -> None:
    with TritonExecutor(getattr(misbehaving.addresses, scheme), deadline=1.5, shared_memory=ALL) as executor:
        inputs = unet_inputs(1)
        slow = inputs | {"timestep": np.full(1, SLOW, np.float32)}
        inputs["timestep"][:] = 0
        executor.run("unet", inputs)
        with pytest.raises(DeadlineExceeded):
            executor.run("unet", slow)
        assert executor._shared is not None
        doubtful = [region.name for region in executor._shared._pool._doubtful]
        assert len(doubtful) == 1 and doubtful[0] in known_to(misbehaving) and not in_use(doubtful[0])
        time.sleep(2)  # the model answers, into a region that nobody reads
        for seed in range(3):
            inputs["latents"] = unet_inputs(1, seed)["latents"]
            assert np.array_equal(executor.run("unet", inputs)["noise"], inputs["latents"])
        executor.run("unet", unet_inputs(2) | {"timestep": np.zeros(2, np.float32)})  # needs new regions, so asks
        assert doubtful[0] not in known_to(misbehaving) and not executor._shared._pool._doubtful
    assert not own_regions() and not known_to(misbehaving)


def test_regions_of_the_dead_are_swept_and_those_of_the_living_are_not() -> None:
    living = SystemRegion(4096)
    dead = subprocess.Popen(
        [sys.executable, "-c", "import time; from parure.regions import SystemRegion; r = SystemRegion(4096);"
         "print(r.name, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert dead.stdout
    name = dead.stdout.readline().strip()
    sweep()
    assert in_use(name) and in_use(living.name)
    dead.kill()
    dead.wait()
    assert not in_use(name)
    sweep()
    assert not (FOLDER / name).exists() and (FOLDER / living.name).exists()
    living.release()
    assert not (FOLDER / living.name).exists()


CLIENT = """
import os, signal, sys, time
import numpy as np
from parure.triton import TritonExecutor
from parure.shared_tensors import SharedMemory
executor = TritonExecutor(sys.argv[1], deadline=20, shared_memory=SharedMemory(least=1))
inputs = {"latents": np.zeros((1, 4, 8, 8), np.float32), "timestep": np.zeros(1, np.float32)}
noise = executor.run("unet", inputs)["noise"]
print(os.getpid(), flush=True)
end = sys.argv[2]
if end == "exception":
    raise RuntimeError("of the caller")
if end == "fork" and os.fork() == 0:
    sys.exit()
if end == "fork":
    os.wait()
    assert np.array_equal(executor.run("unet", inputs)["noise"], noise)
if end == "interrupt":
    while True:
        executor.run("unet", inputs)
if end == "kill":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["return", "exception", "fork", "interrupt", "kill"])
def test_regions_are_released_however_a_client_ends(end: str, scheme: str, sharing: EmbeddedServer) -> None:
    url = getattr(sharing.addresses, scheme)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert client.stdout
    left = f"{PREFIX}{client.stdout.readline().strip()}-"
    if end in ("interrupt", "kill"):
        time.sleep(0.3)
        assert any(name.startswith(left) for name in known_to(sharing))
        client.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
    _, said = client.communicate(timeout=60)
    expected = {"return": 0, "fork": 0, "exception": 1, "interrupt": -signal.SIGINT, "kill": -signal.SIGKILL}
    assert client.returncode == expected[end], said
    if end == "kill":  # nobody could tidy up: the next client does
        assert any(name.startswith(left) for name in known_to(sharing))
        TritonExecutor(url, shared_memory=ALL).close()
    assert not list(FOLDER.glob(f"{left}*")) and not any(name.startswith(left) for name in known_to(sharing))
    assert "Exception ignored" not in said


FULL = """
import subprocess, time
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"], check=True)
import numpy as np
from parure.region_pool import RegionPool
from parure.regions import FOLDER, SystemRegion
class Nobody:
    def register(self, region, until): pass
    def unregister(self, region, until): return True
pool = RegionPool(1 << 30, SystemRegion, Nobody())
kept = [pool.lend(400_000, time.monotonic()) for _ in range(4)]
for place in kept[:2]:
    place.buffer.poison()
print([place is None for place in kept], len(list(FOLDER.iterdir())))
"""


def test_where_the_host_has_no_room_there_is_no_region_rather_than_a_crash() -> None:
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr or "mount" in done.stderr:
        pytest.skip("needs the right to mount a small /dev/shm of its own")
    assert (done.returncode, done.stdout.strip()) == (0, "[False, False, True, True] 2"), done.stderr
