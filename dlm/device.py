"""What this machine can do, and the rules that follow from it: precision and compilation.

Measured on a Xeon with AMX: at width 128 bf16 trains 1.9 times faster than fp32, at width 96 1.35 times, and
without AMX it is slower; compiling costs half a minute and returns a quarter in bf16 and nothing in fp32. On a GPU
both always pay. So `auto` means: bf16 on a GPU, or on a processor with AMX from width 128 on; compiled blocks on a
GPU only. Every choice can be set by hand (trainer.precision, trainer.compile).
"""

from pathlib import Path

import torch

from dlm.errors import UserError

BF16_FROM_DIM = 96


def has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()


def check_accelerator(accelerator: str, devices: int, nodes: int = 1) -> None:
    """Raises UserError if the configured device is not there."""
    if accelerator not in ("cpu", "gpu", "cuda"):
        raise UserError(f"trainer.accelerator is cpu or gpu, not {accelerator!r}")
    if accelerator == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no CUDA device here: use trainer=cpu")
    if devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this node has {torch.cuda.device_count()} GPUs")


def resolve_precision(choice: str, accelerator: str, dim: int) -> str:
    if choice not in ("auto", "32-true", "bf16-mixed", "bf16-true"):
        raise UserError(f"trainer.precision is auto, 32-true, bf16-mixed or bf16-true, not {choice!r}")
    if choice != "auto":
        return choice
    fast = torch.cuda.is_bf16_supported() if accelerator != "cpu" else has_amx() and dim >= BF16_FROM_DIM
    return "bf16-mixed" if fast else "32-true"


def resolve_compile(choice: str, accelerator: str) -> bool:
    if choice not in ("auto", "true", "false"):
        raise UserError(f"trainer.compile is auto, true or false, not {choice!r}")
    return accelerator != "cpu" if choice == "auto" else choice == "true"


def describe() -> str:
    """One line about the hardware, for records."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    name = "processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread(s)" + (", AMX" if has_amx() else "")
