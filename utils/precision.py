"""The floating-point precision of a run, from the options, the checkpoint and the hardware."""

import os
import platform
from typing import NamedTuple

import torch

from utils.cli import log

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Values of oneDNN's ONEDNN_MAX_CPU_ISA without AVX-512, and those without any bfloat16 instructions.
_ISAS_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_ISAS_WITHOUT_BF16 = (*_ISAS_WITHOUT_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")


class Precision(NamedTuple):
    """A precision (a key of `DTYPES`) and the reason for it, for the log."""

    amp: str
    reason: str

    def __str__(self) -> str:
        name = "float32" if self.amp == "off" else self.amp
        return f"{name} ({self.reason})"


def has_instructions(device: torch.device, amp: str) -> bool:
    """Whether a device has instructions for a precision. Emulation is slower than float32.

    ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, which limit PyTorch and oneDNN, count as limits of the CPU.
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
    # On x86 oneDNN answers yes for any AVX-512, and emulates bfloat16 with it.
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_BF16:
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "AVX10")):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_avx2_at_most() -> bool:
    """Whether PyTorch uses AVX2 on this CPU, or oneDNN is limited to AVX2 or less."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_AVX512:
        return True
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def training_precision(option: str | None, checkpoint_amp: str | None, device: torch.device) -> Precision:
    """Choose the precision of training from `--amp`, or else from the checkpoint of the resumed run."""
    if option not in (None, "auto"):
        return Precision(option, f"--amp {option}")
    if checkpoint_amp:
        emulated = "" if has_instructions(device, checkpoint_amp) else f", emulated on {_name(device)}"
        return Precision(checkpoint_amp, f"as the checkpoint was trained{emulated}")
    if option is None:
        return Precision("off", "as published")
    if has_instructions(device, "bf16"):
        return Precision("bf16", f"--amp auto: {_name(device)} has instructions for it")
    return Precision("off", f"--amp auto: {_name(device)} has no bfloat16 instructions")


def evaluation_precision(option: str | None, training_amp: str, device: torch.device) -> Precision:
    """Choose the precision of an evaluation: during training, by `main.py -e` and by `test_models.py`.

    Without an option it is the precision of training if the device has instructions for it, else float32.
    """
    if option == "auto":
        return training_precision("auto", None, device)
    if option is not None:
        return Precision(option, f"--amp {option}")
    if has_instructions(device, training_amp):
        return Precision(training_amp, "as in training" if training_amp != "off" else "as published")
    return Precision("off", f"trained in {training_amp}, which {_name(device)} has no instructions for")


def warn_if_emulated(precision: Precision, device: torch.device) -> None:
    """Warn if a device has no instructions for a precision."""
    if not has_instructions(device, precision.amp):
        log.warning(
            f"warning: {_name(device)} has no instructions for {precision.amp}; it is emulated and many "
            "times slower than float32; use --amp auto or --amp off"
        )


def _name(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else "this GPU"
