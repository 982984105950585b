"""Host memory that is made once, in parallel, and used again."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_ultralong.mcore import host_memory
from megatron_ultralong.mcore.host_memory import PinnedMemory
from megatron_ultralong.plan.job import in_pages
from megatron_ultralong.program.errors import InputError

SIZES = [3 * 2**20, 5, 4096, 5, 4097]


def take(memory: PinnedMemory) -> list[torch.Tensor]:
    """A buffer of each of the sizes."""
    return [memory.take(torch.Size((size,)), torch.uint8) for size in SIZES]


@pytest.mark.parametrize("slab", [1, 2**13, 2**30])
def test_buffers_are_made_once_and_used_again(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "SLAB_BYTES", slab)
    memory, told = PinnedMemory(), []
    memory.reserve(SIZES, told.append)
    assert memory.num_bytes == sum(told) == sum(map(in_pages, SIZES))
    for _ in range(2):
        buffers = take(memory)
        places = {buffer.data_ptr() for buffer in buffers}
        for value, buffer in enumerate(buffers):
            buffer.fill_(value)
        assert [buffer.unique().tolist() for buffer in buffers] == [[n] for n in range(5)]
        for buffer in reversed(buffers):
            memory.give_back(buffer)
        memory.reserve(SIZES, told.append)
    assert memory.num_bytes == sum(told) == sum(map(in_pages, SIZES)), "it was made again"
    assert {buffer.data_ptr() for buffer in take(memory)} == places


def test_what_nobody_has_planned_is_made_when_it_is_needed() -> None:
    memory = PinnedMemory()
    buffer = memory.take(torch.Size((7, 3)), torch.bfloat16)
    assert (buffer.shape, buffer.dtype) == (torch.Size((7, 3)), torch.bfloat16)
    address = buffer.data_ptr()
    memory.give_back(buffer.fill_(1.5))
    # Of the same pages, for a tensor of another shape.
    assert memory.take(torch.Size((1024,)), torch.float32).data_ptr() == address
    assert memory.num_bytes == 4096


def test_memory_that_is_not_there_is_refused_by_its_size() -> None:
    with pytest.raises(InputError, match=r"1,153 PB of host memory cannot be pinned .*ulimit -l"):
        PinnedMemory().reserve([2**60])


def is_mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = ([int(end, 16) for end in line.split()[0].split("-")] for line in lines)
    return any(begin <= address < end for begin, end in ranges)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_the_gpu_forgets_memory_before_it_is_unmapped() -> None:
    memory, found = host_memory._Mapping(-1, 2**20), []
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    address = flat.data_ptr()
    memory.forget = lambda: found.append(is_mapped(address))
    del memory
    gc.collect()
    assert not found, "a tensor has it"
    del flat
    gc.collect()
    assert found == [True]
    assert not is_mapped(address)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_a_forked_process_has_none_of_it() -> None:
    buffer = PinnedMemory().take(torch.Size((2**20,)), torch.uint8)
    address = buffer.data_ptr()
    child = os.fork()
    if not child:
        os._exit(int(is_mapped(address)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_mapped(address)


def test_a_kernel_without_huge_pages_has_memory_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)  # no advice: EINVAL
    assert PinnedMemory().take(torch.Size((8,)), torch.float32).fill_(1.0).sum() == 8


# A runtime that pins nothing more (cudaErrorMemoryAllocation), and is never asked to let it go.
FULL_RUNTIME = SimpleNamespace(cudaHostRegister=lambda address, num_bytes, flags: 2)


@pytest.mark.parametrize("on_gpu", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_memory_that_cannot_be_pinned_is_refused_or_used_with_a_warning(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if on_gpu and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: FULL_RUNTIME)
    if not on_gpu:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "CudaError", lambda status: f"out of memory ({status})")
    with pytest.raises(InputError, match=r"4.1 kB of host memory cannot be pinned \(cudaHostReg"):
        PinnedMemory().reserve([8])
    memory = PinnedMemory(is_required=False)
    buffer = memory.take(torch.Size((2**20,)), torch.float32)
    source = torch.randn(2**20, device="cuda" if on_gpu else "cpu")
    buffer.copy_(source, non_blocking=True)
    assert torch.equal(buffer, source.cpu())
    assert "cannot be pinned (cudaHostRegister: " in caplog.text
    assert "copies are slower" in caplog.text
    memory.give_back(buffer)
    assert memory.take(torch.Size((2**20,)), torch.float32).data_ptr() == buffer.data_ptr()
    assert len(caplog.records) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_knows_of_it_until_it_is_let_go() -> None:
    memory = PinnedMemory()
    memory.reserve([2**26] * 20 + [5])  # slabs of several buffers
    buffers = [memory.take(torch.Size((2**24,)), torch.float32) for _ in range(20)]
    assert all(buffer.is_pinned() for buffer in buffers)
    source = torch.randn(2**24, device="cuda")
    for number, buffer in enumerate(buffers):
        buffer.copy_(source + number, non_blocking=True)
    back = [buffer.to("cuda", non_blocking=True) for buffer in buffers]
    torch.cuda.synchronize()
    assert all(torch.equal(x, source + number) for number, x in enumerate(back))
    assert not PinnedMemory(pins=False).take(torch.Size((8,)), torch.float32).is_pinned()
    # Registered memory that is unmapped, and mapped again there, would be refused the second time.
    for _ in range(3):
        memory = PinnedMemory()
        del buffers
        gc.collect()
        memory.reserve([2**26] * 20)
        buffers = [memory.take(torch.Size((2**24,)), torch.float32) for _ in range(20)]
        assert all(buffer.is_pinned() for buffer in buffers)
