"""What this machine can do, and the rules that follow from it: precision and compilation.

Measured on an EPYC with avx512_bf16, one thread: bf16 trains 1.5 times faster than fp32 at width 96 and 1.9 times
at 128; a processor without bf16 instructions emulates them, slowly. Compiling costs half a minute and returns a
tenth in fp32 at width 96. On a GPU both always pay. So `auto` means: bf16 on a GPU, or on a processor with bf16
instructions from width 96 on; compiled blocks on a GPU only. Every choice can be set by hand (trainer.precision,
trainer.compile).
"""

from pathlib import Path

import torch

from dlm.errors import UserError

BF16_FROM_DIM = 96


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AMX or avx512_bf16); Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and any(flag in cpuinfo.read_text() for flag in ("amx_bf16", "avx512_bf16"))


def check_accelerator(accelerator: str, devices: int, nodes: int = 1) -> None:
    """Raises UserError if the configured device is not there."""
    if accelerator not in ("cpu", "gpu", "cuda"):
        raise UserError(f"trainer.accelerator is cpu or gpu, not {accelerator!r}")
    if devices == 0 or devices < -1 or nodes < 1:
        raise UserError(f"trainer.devices={devices} on trainer.num_nodes={nodes} is no machine to run on")
    if accelerator == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no CUDA device here: use trainer=cpu")
    if devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this node has {torch.cuda.device_count()} GPUs")


def check_strategy(strategy: str) -> None:
    """Raises UserError unless every process is a full run of the command: what Lightning forks or spawns trains,
    but its counters end with it and the record would say nothing."""
    if strategy not in ("auto", "ddp"):
        raise UserError(f"trainer.strategy is auto or ddp, not {strategy!r}")


def resolve_precision(choice: str, accelerator: str, dim: int) -> str:
    if choice not in ("auto", "32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision is auto, 32-true or bf16-mixed, not {choice!r}")
    if choice != "auto":
        return choice
    fast = (
        torch.cuda.is_bf16_supported() if accelerator != "cpu" else processor_has_bf16() and dim >= BF16_FROM_DIM
    )
    return "bf16-mixed" if fast else "32-true"


def resolve_compile(choice: str, accelerator: str) -> bool:
    choice = choice.lower()  # a bare true in YAML arrives as "True"
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
    return f"{name}, {torch.get_num_threads()} thread(s)" + (", bf16 instructions" if processor_has_bf16() else "")
