"""Which floating-point precision a run computes in: what the hardware has, and what a checkpoint says."""

import os
import platform
from typing import NamedTuple

import torch

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that leave out AVX-512, and those that leave out every bfloat16
# instruction.
_ISAS_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_ISAS_WITHOUT_BF16 = (*_ISAS_WITHOUT_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")


class Precision(NamedTuple):
    """A precision (a key of `DTYPES`), and the reason for it, for the log."""

    amp: str
    reason: str

    def __str__(self) -> str:
        name = "float32" if self.amp == "off" else self.amp
        return f"{name} ({self.reason})"


def has_instructions(device: torch.device, amp: str) -> bool:
    """Whether a device computes in a precision itself, not by emulation, which is slower than float32.

    CPUs are asked at run time; ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, which make PyTorch and oneDNN
    treat a CPU like an older one, count as the CPU's own limits.
    """
    if amp == "off":
        return True
    if device.type == "cuda":
        return amp == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if amp == "fp16":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # On x86 oneDNN says yes to any AVX-512, and emulates where only that is there.
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_BF16:
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "AVX10")):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_avx2_at_most() -> bool:
    """Whether this CPU is an x86 without AVX-512, or PyTorch or oneDNN are told to take it for one."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_AVX512:
        return True
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def training_precision(option: str | None, saved: str | None, device: torch.device) -> Precision:
    """The precision of a training run's steps.

    Args:
        option: of the command line: a key of `DTYPES`, 'auto', or None.
        saved: what the run that is resumed was trained in; None for a new run.
        device: where it computes.
    """
    if option not in (None, "auto"):
        return Precision(option, f"--amp {option}")
    if saved:
        is_native = has_instructions(device, saved)
        emulated = "" if is_native else f", which {_name(device)} has no instructions for and emulates"
        return Precision(saved, f"as the checkpoint was trained{emulated}")
    if option is None:
        return Precision("off", "as published")
    if has_instructions(device, "bf16"):
        return Precision("bf16", f"--amp auto: {_name(device)} has instructions for it")
    return Precision("off", f"--amp auto: {_name(device)} has no bfloat16 instructions")


def evaluation_precision(option: str | None, trained: str, device: torch.device) -> Precision:
    """The precision that a checkpoint is evaluated in, in training, by `main.py -e` and by `test_models.py`.

    Args:
        option: of the command line: a key of `DTYPES`, 'auto', or None.
        trained: what the checkpoint was trained in; 'off' where it does not say.
        device: where it computes.

    Returns:
        Without an option what the checkpoint was trained in, or float32 where the device has no
        instructions for that.
    """
    if option == "auto":
        return training_precision("auto", None, device)
    if option is not None:
        return Precision(option, f"--amp {option}")
    if has_instructions(device, trained):
        return Precision(trained, "as it was trained" if trained != "off" else "as published")
    return Precision("off", f"trained in {trained}, which {_name(device)} has no instructions for")


def emulation_warning(precision: Precision, device: torch.device) -> str | None:
    """What to warn of where a precision would be emulated; None where the device has it."""
    if has_instructions(device, precision.amp):
        return None
    return (
        f"warning: {_name(device)} has no instructions for {precision.amp}, which is emulated and many times "
        "slower than float32; --amp off, or --amp auto, is faster here"
    )


def _name(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else "this GPU"
