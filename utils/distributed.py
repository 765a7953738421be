"""The processes and devices of a run: one process (CPU, one GPU, DataParallel), or those of torchrun."""

import ctypes
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from utils.cli import UserError, log, pluralize
from utils.pool import cores

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the process reuse freed memory for new tensors, instead of returning it to the system.

    Otherwise each activation on a CPU is mapped and unmapped, and the system fills its pages with zeros.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Without torchrun there is only one process, and no method communicates. `devices` may then be several GPUs
    that share each batch with DataParallel. With torchrun, each process has one device.
    """

    rank: int
    size: int
    devices: list[torch.device]

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log and the checkpoints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of this process; with DataParallel, the first one."""
        return self.devices[0]

    @property
    def num_devices(self) -> int:
        """Number of devices that share a training batch."""
        return self.size * len(self.devices)

    def wrap(self, model: nn.Module, for_training: bool = False, sync_bn: bool = False) -> nn.Module:
        """Move a model to the devices, and wrap it if there are several.

        `for_training` averages the gradients over the processes, `sync_bn` computes batch norm over them.
        """
        if sync_bn and self.size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(self.device)
        if for_training and self.size > 1:
            # For 1x1x1 kernels, channels last and NCTHW differ in strides, but not in memory.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.14's new name
            self.broadcast_buffers(model)  # only the main process has read the initial weights
            with self.lost_process():
                # Each process updates its running statistics separately. `broadcast_buffers` makes them equal
                # before an evaluation. Checkpoints have those of the main process.
                return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        return DataParallel(model, device_ids=self.devices) if len(self.devices) > 1 else model

    def seed(self, *numbers: int) -> None:
        """Seed torch's generators with a different seed for each device, derived from these numbers."""
        torch.manual_seed(derive_seed(*numbers, self.rank))
        for number, device in enumerate(self.devices[1:], start=1):
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derive_seed(*numbers, number))

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the processes. The tensor is overwritten and returned."""
        if self.size > 1:
            with self.lost_process():
                distributed.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each value over the processes, exchanged on the CPU so that no GPU has to wait."""
        box = torch.tensor(values)
        if self.size > 1:
            with self.lost_process():
                distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return box.tolist()

    def broadcast(self, value: Any) -> Any:
        """The main process's `value`."""
        if self.size == 1:
            return value
        box = [value]
        with self.lost_process():
            distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        box = [None] * self.size
        with self.lost_process():
            distributed.all_gather_object(box, value)
        return box

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's running statistics of batch norm to all processes."""
        with self.lost_process():
            for buffer in model.buffers() if self.size > 1 else ():
                distributed.broadcast(buffer, 0)

    @contextmanager
    def lost_process(self) -> Iterator[None]:
        """Report in one line that another process ended during communication."""
        try:
            yield
        except RuntimeError as error:
            # Errors of gloo have no separate type, but their text has the path of its source file.
            is_gloo = "/gloo/" in str(error) or " by peer" in str(error)
            is_lost = is_gloo or isinstance(error, distributed.DistError)
            if self.size == 1 or not is_lost:
                raise
            raise UserError("lost another process of this run; see the error of that process") from None

    def describe(self, batch_size: int) -> str:
        """Describe the devices and the clips of a batch on each of them, in one line for the log."""
        if self.device.type == "cpu":
            device = f"CPU, {pluralize(torch.get_num_threads(), 'thread')}"
        else:
            device = torch.cuda.get_device_name(self.device)
        if self.size > 1:
            device += f", in each of {self.size} processes ({distributed.get_backend()})"
        elif len(self.devices) > 1:
            device = f"{len(self.devices)} x {device}, DataParallel (torchrun is faster)"
        each = -(-batch_size // self.num_devices)
        more = f", {pluralize(each, 'clip')} on each" if self.num_devices > 1 else ""
        return f"device: {device}; batch of {batch_size}{more}"


class DataParallel(nn.DataParallel):
    """Copies the parts of a batch from the CPU directly to their devices, not through the first device.

    The only input of the model has the methods `chunk` and `to`, like a tensor.
    """

    def scatter(self, inputs: tuple, kwargs: dict, device_ids: list) -> tuple[list[tuple], list[dict]]:
        (batch,) = inputs
        shares = batch.chunk(len(device_ids))
        moved = [
            (share.to(torch.device("cuda", device), non_blocking=True),)
            for share, device in zip(shares, device_ids, strict=False)
        ]
        return moved, [{} for _ in moved]


def derive_seed(*numbers: int) -> int:
    """Derive a seed for torch from a combination of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def init_distributed(gpus: list[int] | None, sync_bn: bool = False, compiled: bool = False) -> World:
    """Choose the devices of this process, and join the other processes if torchrun started it.

    The arguments are the options `--gpus`, `--sync_bn` and `--compile`.
    """
    available = torch.cuda.device_count()
    if not available:
        keep_freed_memory()
    if sync_bn and not available:
        raise UserError("--sync_bn: needs GPUs; without them, try --freeze_bn")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return _single_process(gpus, available, sync_bn, compiled)
    if gpus:
        raise UserError("--gpus: torchrun gives each process its GPU; choose with CUDA_VISIBLE_DEVICES")
    rank, size, local, restarts = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    )
    if available and local >= available:
        raise UserError(f"--nproc_per_node is more than this machine's {pluralize(available, 'visible GPU')}")
    device = torch.device("cuda", local) if available else torch.device("cpu")
    if available:
        torch.cuda.set_device(device)
    else:
        share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    # NCCL for the GPUs; gloo for values on the CPU, so that no GPU has to wait for them.
    backend = "cpu:gloo,cuda:nccl" if available else "gloo"
    store, _, _ = next(rendezvous("env://"))
    # After a restart by torchrun, the store still has the addresses of the previous processes.
    store = distributed.PrefixStore(str(restarts), store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    if rank > 0:
        log.setLevel(logging.ERROR)  # one log is enough
    return World(rank, size, [device])


def share_cores(processes: int) -> None:
    """Use this process's share of the cores, unless the user has set OMP_NUM_THREADS.

    torchrun sets it to 1 for its processes, so this reads the environment of torchrun itself.
    """
    try:
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # not Linux, or not readable
        return
    if b"OMP_NUM_THREADS=" not in environment:
        torch.set_num_threads(max(1, cores() // processes))


def _single_process(gpus: list[int] | None, available: int, sync_bn: bool, compiled: bool) -> World:
    for gpu in gpus or []:
        if gpu >= available:
            raise UserError(f"--gpus {gpu}: only {pluralize(available, 'visible GPU')}, numbered from 0")
        if gpus.count(gpu) > 1:
            raise UserError(f"--gpus: {gpu} appears twice")
    numbers = gpus or range(available)
    if len(numbers) > 1 and (sync_bn or compiled):
        option = "--sync_bn" if sync_bn else "--compile"
        raise UserError(
            f"{option} does not work with {len(numbers)} GPUs in one process: use torchrun, or choose one "
            "with --gpus"
        )
    devices = [torch.device("cuda", number) for number in numbers] or [torch.device("cpu")]
    if devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
    return World(0, 1, devices)


def use_deterministic_kernels(device: torch.device) -> None:
    """Make a GPU compute the same bits in two runs."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)


def leave() -> None:
    """Leave the process group of torchrun after success.

    Do not call this after an error: NCCL would wait for the other processes, which wait for this one.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
