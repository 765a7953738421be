"""The processes and devices of a run: one process (CPU, one GPU, DataParallel), or those of torchrun."""

import atexit
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from utils.cli import InputError


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Without torchrun there is one process, every method is the identity, and `devices` may be several
    GPUs that share each batch by DataParallel. With torchrun a process has one device.
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
        """Where this process's batches go."""
        return self.devices[0]

    def place(self, model: nn.Module, for_training: bool = False, sync_bn: bool = False) -> nn.Module:
        """Move a model to the devices.

        Args:
            model: moved in place.
            for_training: average the gradients over the processes.
            sync_bn: compute batch norm over the clips of all processes.

        Returns:
            What to call: the model, or a wrapper that shares the work.
        """
        if sync_bn and self.size > 1:
            # torch's own works on GPUs only.
            convert = nn.SyncBatchNorm.convert_sync_batchnorm if self.device.type == "cuda" else _sync_on_cpu
            model = convert(model)
        model.to(self.device)
        if for_training and self.size > 1:
            # Channels last and NCTHW differ in the strides of 1x1x1 kernels by name only.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            return DistributedDataParallel(model)
        return nn.DataParallel(model, device_ids=self.devices) if len(self.devices) > 1 else model

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def max(self, *values: int) -> list[int]:
        """The largest of each value over the processes. Goes over the CPU: no GPU is waited for."""
        box = torch.tensor(values)
        if self.size > 1:
            distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return box.tolist()

    def share(self, value: Any) -> Any:
        """What `value` is in the main process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What `value` is in every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        box = [None] * self.size
        distributed.all_gather_object(box, value)
        return box

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main process's running statistics of batch norm."""
        for buffer in model.buffers() if self.size > 1 else ():
            distributed.broadcast(buffer, 0)

    def describe(self, batch_size: int) -> str:
        """One line for the log: the devices, and what each gets of a batch."""
        if self.device.type == "cpu":
            device = f"CPU, {torch.get_num_threads()} threads"
        else:
            device = torch.cuda.get_device_name(self.device)
        if self.size > 1:
            device += f", in each of {self.size} processes ({distributed.get_backend()})"
        elif len(self.devices) > 1:
            device = f"{len(self.devices)} x {device}, DataParallel"
        shares = self.size * len(self.devices)
        each = -(-batch_size // shares)
        return f"device: {device}; batch of {batch_size}" + (f", {each} clips on each" if shares > 1 else "")


def start(gpus: list[int] | None) -> World:
    """Find this process's place, and join the others if torchrun started it.

    Args:
        gpus: numbers of the GPUs to use; None for all that are visible.

    Raises:
        InputError: a GPU that is not there, or `gpus` given together with torchrun.
    """
    available = torch.cuda.device_count()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        for gpu in gpus or []:
            if gpu >= available:
                raise InputError(f"--gpus {gpu}: this machine has {available} visible GPUs, numbered from 0")
        numbers = gpus or range(available)
        return World(0, 1, [torch.device("cuda", number) for number in numbers] or [torch.device("cpu")])
    if gpus:
        raise InputError("--gpus: torchrun gives each process its GPU; choose with CUDA_VISIBLE_DEVICES")
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if available and local >= available:
        raise InputError(f"--nproc_per_node is more than this machine's {available} visible GPUs")
    device = torch.device("cuda", local) if available else torch.device("cpu")
    if available:
        torch.cuda.set_device(device)
    store, _, _ = next(rendezvous("env://"))
    # After a restart by torchrun the store still holds the addresses of the processes before it.
    store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    # gloo beside NCCL: what is said on the CPU makes no GPU wait.
    backend = "cpu:gloo,cuda:nccl" if available else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    atexit.register(_leave)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - one log, for as long as the process lives
    return World(rank, size, [device])


def _leave() -> None:
    # Threads of the group that still run when Python ends can abort the process.
    if distributed.is_initialized():
        distributed.destroy_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """`all_reduce` that gradients pass through."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOverProcesses.apply(gradient)


class _SyncBatchNorm(nn.BatchNorm3d):
    """Batch norm over the clips of all processes, for CPUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        # Sums in float64, as in torch's own batch norm on CPUs.
        x = x.float()
        axes = (0, 2, 3, 4)
        count = torch.tensor(x.numel() / x.shape[1], dtype=torch.float64)
        distributed.all_reduce(count)
        mean = _SumOverProcesses.apply(x.sum(axes, dtype=torch.float64)) / count
        centred = x - mean.float().view(1, -1, 1, 1, 1)
        variance = _SumOverProcesses.apply(centred.square().sum(axes, dtype=torch.float64)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt().float()
        return centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)


def _sync_on_cpu(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = _SyncBatchNorm  # same parameters and buffers, another forward
    return model
