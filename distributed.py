"""Which devices a run uses: CUDA DataParallel, one GPU, or the CPU."""

import torch
from torch import nn

from errors import InputError


def select_devices(gpus: list[int] | None) -> list[torch.device]:
    """The devices to run on; the first one is where a batch goes.

    Args:
        gpus: numbers of the GPUs to use; None for all that are visible.

    Returns:
        CUDA devices, or the CPU alone where there is no GPU.

    Raises:
        InputError: a GPU that is not there.
    """
    available = torch.cuda.device_count()
    for gpu in gpus or []:
        if gpu >= available:
            raise InputError(f"--gpus {gpu}: this machine has {available} visible GPUs, numbered from 0")
    numbers = gpus or range(available)
    return [torch.device("cuda", number) for number in numbers] or [torch.device("cpu")]


def place(model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """Move a model to its devices; several GPUs share each batch by DataParallel."""
    model = model.to(devices[0])
    return nn.DataParallel(model, device_ids=devices) if len(devices) > 1 else model


def describe(devices: list[torch.device], batch_size: int) -> str:
    """One line for the log about the devices."""
    if devices[0].type == "cpu":
        return f"device: CPU, {torch.get_num_threads()} threads, batch of {batch_size}"
    name = torch.cuda.get_device_name(devices[0])
    share = f", DataParallel, {-(-batch_size // len(devices))} of them each" if len(devices) > 1 else ""
    return f"device: {len(devices)} x {name}, batch of {batch_size}{share}"
