"""The server loop through a real Triton: the in-process picture, shared batches, bounds, cancelling, bad requests."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

import parure
from parure.errors import DeadlineExceeded, InputError, ModelUnavailable, RequestError, ServerBusy
from parure.health import probe
from parure.image import Pixels
from parure.server_loop import ServerLoop
from parure.tryon_wire import png
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

BOX = (30.3, 40.0, 70.0, 75.0)
AT_WORK, WAITING = 8, 4


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("server_loop")
    options = RepositoryOptions.of(at_work=AT_WORK, waiting=WAITING, threads=1)
    write_repository(tiny_bundle, folder / "models", options=options)
    with EmbeddedServer(folder / "models", log=folder / "triton.log") as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def remote(server: EmbeddedServer) -> Iterator[parure.TryOn]:
    with parure.open(server.addresses.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def local(tiny_bundle: Path) -> Iterator[parure.TryOn]:
    with parure.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def stub(server: EmbeddedServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.addresses.grpc.removeprefix("grpc://")) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def metric(server: EmbeddedServer, name: str, **labels: str) -> float:
    """The value of the first line of the metrics that has these labels."""
    with urllib.request.urlopen(server.addresses.metrics, timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(w in line for w in wanted)]
    assert found, f"{name} {labels} is not among the server's metrics"
    return float(found[0].rsplit(" ", 1)[1])


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


def same_picture(one: parure.Result, other: parure.Result) -> bool:
    return (
        np.array_equal(one.latents, other.latents)
        and np.array_equal(np.asarray(one.image), np.asarray(other.image))
        and np.array_equal(np.asarray(one.mask), np.asarray(other.mask))
    )


def request(
    photo: Pixels, ornament: Pixels, model: str = "tryon", changes: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """A raw request; a value None leaves the input out."""
    inputs = {
        "photo": png(photo),
        "ornament": png(ornament),
        "box": np.array(BOX),
        "steps": np.array([3], np.int32),
        **changes,
    }
    types = {"float64": "FP64", "float32": "FP32", "int32": "INT32", "uint8": "UINT8", "object": "BYTES"}
    message = service_pb2.ModelInferRequest(model_name=model, id="raw")
    for name, array in inputs.items():
        if array is None:
            continue
        message.inputs.add(name=name, datatype=types[str(array.dtype)], shape=array.shape)
        content = array.tobytes()
        if array.dtype == object:
            content = b"".join(len(word).to_bytes(4, "little") + word for word in array)
        message.raw_input_contents.append(content)
    return message


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("form", ["pixels", "file"])
def test_the_picture_is_the_in_process_one_bit_for_bit(
    transport: str, form: str, server: EmbeddedServer, local: parure.TryOn, photo: Pixels, ornament: Pixels,
    tmp_path: Path,
) -> None:  # fmt: skip
    mask = (ornament.min(axis=2) < 240).astype(np.uint8) * 255
    given: tuple[Any, Any, Any] = (photo, ornament, mask)
    if form == "file":
        given = tuple(tmp_path / f"{name}.jpg" for name in ("photo", "ornament", "mask"))
        for path, pixels in zip(given, (photo, ornament, mask), strict=True):
            Image.fromarray(pixels).save(path, quality=40)
    options = {"ornament_mask": given[2], "steps": 5, "guidance": 2.3, "seed": 2**63 + 1}
    expected = local(given[0], given[1], BOX, **options)
    with parure.open(getattr(server.addresses, transport), loop="server") as tryon:
        result = tryon(given[0], given[1], BOX, **options)
    assert same_picture(result, expected)
    assert np.abs(result.masks - expected.masks).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(result.box_mask, expected.box_mask) and result.region == expected.region
    assert result.calls["unet"] == 10 and {"queue", "network", "unet", "total"} <= set(result.timings)


def test_a_stream_tells_of_every_step_and_ends_in_the_calls_result(
    remote: parure.TryOn, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    expected = local(photo, ornament, BOX, steps=4)
    for preview in ("none", "latents", "decode"):
        seen = list(remote.stream(photo, ornament, BOX, steps=4, preview=preview))  # type: ignore[arg-type]
        assert [(p.step, p.steps) for p in seen] == [(k, 4) for k in (1, 2, 3, 4)]
        assert all((p.preview is None) == (preview == "none") for p in seen)
        assert seen[-1].result is not None and same_picture(seen[-1].result, expected)
        assert np.abs(seen[1].mask - expected.masks[1]).max() <= 0.5 / 255 + 1e-6


def test_server_is_the_default_and_the_client_loop_a_choice(
    server: EmbeddedServer, local: parure.TryOn, photo: Pixels, ornament: Pixels, tiny_bundle: Path
) -> None:
    with parure.open(server.addresses.grpc) as default, parure.open(server.addresses.grpc, loop="client") as client:
        assert (default.loop.place, client.loop.place) == ("server", "client")
        assert same_picture(client(photo, ornament, BOX, steps=2), local(photo, ornament, BOX, steps=2))
    with pytest.raises(InputError, match="is a bundle folder, which runs in this process"):
        parure.open(tiny_bundle, loop="server")
    with (
        parure.open(server.addresses.http) as http,
        pytest.raises(RequestError, match="over HTTP Triton does not stream"),
    ):
        http.stream(photo, ornament, BOX)


def test_eight_pictures_share_batches_and_each_is_as_if_alone(
    server: EmbeddedServer, remote: parure.TryOn, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    def counts() -> tuple[float, float]:
        return tuple(metric(server, f"nv_inference_{n}", model="unet") for n in ("request_success", "exec_count"))  # type: ignore[return-value]

    for _ in range(3):  # a machine that is busy with something else may tear them apart
        calls, runs = counts()
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda seed: remote(photo, ornament, BOX, steps=20, seed=seed), range(8)))
        more_calls, more_runs = counts()
        assert more_calls - calls == sum(result.calls["unet"] for result in results) >= 8 * 20
        if (mean_batch := (more_calls - calls) / (more_runs - runs)) >= 4:
            break
    assert mean_batch >= 4
    for seed, result in enumerate(results):
        alone = local(photo, ornament, BOX, steps=20, seed=seed)
        scale = np.abs(alone.latents).max()
        assert np.abs(result.latents - alone.latents).max() <= 3e-4 * scale
        assert np.abs(result.crop - alone.crop).max() <= 1 / 255


def test_pictures_at_different_steps_share_batches_and_each_is_as_if_alone(
    server: EmbeddedServer, remote: parure.TryOn, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    def counts() -> tuple[float, ...]:
        return tuple(metric(server, f"nv_inference_{n}", model="unet") for n in ("request_success", "exec_count"))

    steps = range(8, 16)  # of one solver: the k-th step of each is at another timestep
    calls, runs = counts()
    with ThreadPoolExecutor(len(steps)) as pool:
        results = list(pool.map(lambda count: remote(photo, ornament, BOX, steps=count, seed=count), steps))
    more_calls, more_runs = counts()
    assert (more_calls - calls) / (more_runs - runs) > 1.5
    for count, result in zip(steps, results, strict=True):
        alone = local(photo, ornament, BOX, steps=count, seed=count)
        assert np.abs(result.latents - alone.latents).max() <= 3e-4 * np.abs(alone.latents).max()


def test_a_late_picture_is_not_starved_by_earlier_ones(remote: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    ended: list[str] = []

    def make(name: str, steps: int) -> None:
        remote(photo, ornament, BOX, steps=steps)
        ended.append(name)

    early = [threading.Thread(target=make, args=("early", 120)) for _ in range(AT_WORK - 1)]
    for thread in early:
        thread.start()
    time.sleep(0.3)
    make("late", 4)
    for thread in early:
        thread.join()
    assert ended[0] == "late" and len(ended) == AT_WORK


@pytest.mark.parametrize("how", ["close", "deadline", "http deadline"])
def test_a_picture_that_nobody_waits_for_stops_within_a_step(
    how: str, server: EmbeddedServer, photo: Pixels, ornament: Pixels
) -> None:
    model = "tryon_unary" if how == "http deadline" else "tryon"
    cancelled = metric(server, "parure_pictures_total", model=model, outcome="cancelled")
    url = server.addresses.http if how == "http deadline" else server.addresses.grpc
    with parure.open(url, deadline=60 if how == "close" else 0.5) as tryon:
        if how == "close":
            stream = tryon.stream(photo, ornament, BOX, steps=900, preview="none")
            for progress in stream:
                if progress.step == 5:
                    break
            stream.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(DeadlineExceeded):
                tryon(photo, ornament, BOX, steps=900)
    gave_up = metric(server, "parure_steps_total", model=model)
    eventually(lambda: metric(server, "parure_pictures_total", model=model, outcome="cancelled") == cancelled + 1)
    assert metric(server, "parure_steps_total", model=model) - gave_up <= 2  # what was under way when it was given up
    eventually(lambda: metric(server, "parure_pictures_at_work", model=model) == 0)
    line = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")][-1]
    assert line["outcome"] == "cancelled" and line["steps"] < 900


def test_ctrl_c_at_the_client_stops_the_loop_on_the_server(
    server: EmbeddedServer, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    import signal
    import sys

    for name, pixels in (("photo", photo), ("ornament", ornament)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    cancelled = metric(server, "parure_pictures_total", model="tryon", outcome="cancelled")
    steps = metric(server, "parure_steps_total", model="tryon")
    command = [sys.executable, "-m", "parure", "run", server.addresses.grpc, "--photo", tmp_path / "photo.png"]
    command += ["--ornament", tmp_path / "ornament.png", "--box", "30,40,70,75", "--steps", "900", "--out", tmp_path]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE) as process:
        eventually(lambda: metric(server, "parure_steps_total", model="tryon") > steps + 3, 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    eventually(lambda: metric(server, "parure_pictures_total", model="tryon", outcome="cancelled") == cancelled + 1)


def test_calls_that_have_ended_do_not_keep_the_server_from_ending(
    tiny_bundle: Path, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "models", options=RepositoryOptions.of(at_work=AT_WORK, threads=1))
    log = tmp_path / "triton.log"
    with EmbeddedServer(tmp_path / "models", log=log) as server, ThreadPoolExecutor(AT_WORK) as pool:
        server.wait_ready()
        with parure.open(server.addresses.grpc) as tryon:
            list(pool.map(lambda seed: tryon(photo, ornament, BOX, steps=1, seed=seed), range(40)))
        for _ in range(40):
            assert all(finding.passed for finding in probe(server.addresses.grpc, 20))  # it sends refused pictures
    assert "successfully unloaded 'tryon' version 1" in log.read_text()


def test_what_is_beyond_the_bound_is_refused_and_says_so(
    server: EmbeddedServer, stub: Any, photo: Pixels, ornament: Pixels
) -> None:
    long = request(photo, ornament, changes={"steps": np.array([300], np.int32)})
    streams = [stub.ModelStreamInfer(iter([long])) for _ in range(AT_WORK + WAITING)]
    try:
        eventually(lambda: metric(server, "parure_pictures_waiting", model="tryon") == WAITING)
        assert metric(server, "parure_pictures_at_work", model="tryon") == AT_WORK
        (refused,) = stub.ModelStreamInfer(iter([long]))
        said = f"{AT_WORK} pictures are at work and {WAITING} wait"
        assert refused.error_message.startswith(f"UNAVAILABLE: {said}")
        with (
            parure.open(server.addresses.grpc, deadline=1.0) as tryon,
            pytest.raises(ServerBusy, match="takes no more pictures for now"),
        ):
            tryon(photo, ornament, BOX, steps=1)
        assert all(finding.passed for finding in probe(server.addresses.grpc, 20))  # full is not ill
    finally:
        for stream in streams:
            stream.cancel()
    eventually(lambda: metric(server, "parure_pictures_at_work", model="tryon") == 0)
    eventually(lambda: metric(server, "parure_pictures_waiting", model="tryon") == 0)


def test_ten_times_more_than_fits_all_finish_with_few_attempts(
    server: EmbeddedServer, remote: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    count = 10 * (AT_WORK + WAITING)

    def counted(outcome: str) -> float:
        return metric(server, "parure_pictures_total", model="tryon", outcome=outcome)

    eventually(lambda: metric(server, "parure_pictures_at_work", model="tryon") == 0)
    before = {outcome: counted(outcome) for outcome in ("made", "full")}
    with parure.open(server.addresses.grpc) as other, ThreadPoolExecutor(count) as pool:
        clients = [remote] * (count - 6) + [other] * 6
        results = list(pool.map(lambda client: client(photo, ornament, BOX, steps=2), clients))
    assert len(results) == count and counted("made") - before["made"] == count
    assert sum(counted(outcome) - before[outcome] for outcome in before) <= 1.5 * count


def test_many_independent_clients_at_once_all_finish(server: EmbeddedServer, photo: Pixels, ornament: Pixels) -> None:
    """Ten that know nothing of each other, each with as many pictures as the server takes.

    At first nine of ten pictures are refused, and whoever is refused asks again: with 12 places for 120 pictures that
    makes 1.9 attempts per picture at least. Waits that double keep it near that.
    """
    clients, places = 10, AT_WORK + WAITING
    eventually(lambda: metric(server, "parure_pictures_at_work", model="tryon") == 0)

    def counted() -> float:
        outcomes = ("made", "full")
        return sum(metric(server, "parure_pictures_total", model="tryon", outcome=each) for each in outcomes)

    before = counted()
    with ExitStack() as stack:
        opened = [stack.enter_context(parure.open(server.addresses.grpc, deadline=120)) for _ in range(clients)]
        pool = stack.enter_context(ThreadPoolExecutor(clients * places))
        results = list(pool.map(lambda client: client(photo, ornament, BOX, steps=2), opened * places))
    assert len(results) == clients * places
    assert counted() - before <= 4 * len(results)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no photo": ({"photo": None}, "photo"),
    "no box": ({"box": None}, "box"),
    "box of another type": ({"box": np.array(BOX, np.float32)}, "box"),
    "box of another shape": ({"box": np.zeros(3)}, "box"),
    "NaN in the box": ({"box": np.array([math.nan, 1, 2, 3])}, "box nan,1,2,3"),
    "box beyond the photo": ({"box": np.array([0.0, 0, 9000, 50])}, "box 0,0,9000,50"),
    "no steps at all": ({"steps": np.array([0], np.int32)}, "steps is 0"),
    "absurd steps": ({"steps": np.array([2**31 - 1], np.int32)}, "steps is 2147483647"),
    "unknown solver": ({"solver": np.array([b"runge-kutta"], object)}, "solver 'runge-kutta'"),
    "unknown stream": ({"stream": np.array([b"all"], object)}, "stream is 'all'"),
    "infinite guidance": ({"guidance": np.array([math.inf])}, "guidance is inf"),
    "negative deadline": ({"deadline": np.array([-1.0])}, "deadline is -1.0"),
    "no picture": ({"photo": np.arange(50, dtype=np.uint8)}, "photo"),
    "empty picture": ({"ornament": np.zeros(0, np.uint8)}, "ornament"),
    "truncated picture": ({"photo": png(np.zeros((90, 90, 3), np.uint8))[:80]}, "photo"),
    "crop of another size": ({"photo_size": np.array([500, 500], np.int32)}, "photo is 128 x 96"),
    "mask of another size": ({"ornament_mask": png(np.zeros((7, 7), np.uint8))}, "ornament mask"),
    "unknown input": ({"colour": np.zeros(1, np.int32)}, "colour"),
}

REFUSED_BY_TRITON = {"no photo", "no box", "box of another type", "box of another shape", "unknown input"}


@pytest.mark.parametrize("model", ["tryon", "tryon_unary"])
@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_request_is_invalid_argument_naming_the_field(
    model: str, case: str, stub: Any, photo: Pixels, ornament: Pixels
) -> None:
    changes, words = WRONG[case]
    message = request(photo, ornament, model, changes)
    if model == "tryon":
        (reply,) = stub.ModelStreamInfer(iter([message]), timeout=60)
        assert words in reply.error_message
        assert reply.error_message.startswith("INVALID_ARGUMENT: ") or case in REFUSED_BY_TRITON
        return
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert words in caught.value.details()


def test_an_oversize_picture_is_invalid_argument(stub: Any, ornament: Pixels) -> None:
    huge = request(np.zeros((8, 16_400, 3), np.uint8), ornament, "tryon_unary")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(huge, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "16400 x 8" in caught.value.details()


@pytest.mark.parametrize("model", ["tryon", "tryon_unary"])
def test_garbage_where_a_word_should_be_is_refused(model: str, stub: Any, photo: Pixels, ornament: Pixels) -> None:
    message = request(photo, ornament, model, {"solver": np.array([b"ddim"], object)})
    for content in (b"\xff\xff\xff\x7fddim", b"dd", b"\x02\x00\x00\x00\xff\xfe"):
        message.raw_input_contents[-1] = content
        if model == "tryon":
            (reply,) = stub.ModelStreamInfer(iter([message]), timeout=60)
            assert "solver" in reply.error_message
            continue
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message, timeout=60)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "solver" in caught.value.details()


def test_shared_memory_does_not_grow_with_the_pictures(
    server: EmbeddedServer, remote: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    def regions() -> int:
        return sum(path.stat().st_size for path in Path("/dev/shm").glob(f"{server._shm_prefix}*"))

    sizes = []
    for _ in range(3):
        with ThreadPoolExecutor(AT_WORK) as pool:
            list(pool.map(lambda seed: remote(photo, ornament, BOX, steps=2, seed=seed), range(2 * AT_WORK)))
        sizes.append(regions())
    assert sizes[2] == sizes[1]


def test_after_all_that_the_server_still_makes_the_same_picture(
    remote: parure.TryOn, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    assert same_picture(remote(photo, ornament, BOX, steps=3), local(photo, ornament, BOX, steps=3))


def test_wire_bytes_stay_near_the_encoded_pictures(
    remote: parure.TryOn, photo: Pixels, ornament: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(remote.loop, ServerLoop)
    calls, sizes = remote.loop._calls, []
    start = calls.start

    def counted(inputs: Any, *more: Any) -> Any:
        sizes.append(sum(array.nbytes for array in inputs.values()))
        for outputs in start(inputs, *more):
            sizes.append(sum(array.nbytes for array in outputs.values()))
            yield outputs

    monkeypatch.setattr(calls, "start", counted)
    result = remote(photo, ornament, BOX, steps=20)
    pictures = png(photo).size + png(ornament).size + png(np.asarray(result.image)).size
    assert sum(sizes) <= 1.5 * pictures


def test_a_server_without_the_loop_runs_it_at_the_client(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    write_repository(tiny_bundle, tmp_path / "models", threads=1)
    for model in ("tryon", "tryon_unary"):
        shutil.rmtree(tmp_path / "models" / model)
    with EmbeddedServer(tmp_path / "models") as server:
        server.wait_ready()
        with parure.open(server.addresses.grpc) as tryon:
            assert tryon.loop.place == "client"
        with pytest.raises(ModelUnavailable, match="tryon"):
            parure.open(server.addresses.grpc, loop="server")
