"""Peak memory of training beyond that of the idle process.

    python benchmarks/peak_memory.py --train_args_file FILE

runs train_clip.py and writes `peak_megabytes` to trainer_state.json: the peak of all steps, minus the memory just
before the first.
"""

import re
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, trainer

ROOT = Path(__file__).resolve().parent.parent


class PeakMemory:
    """Peak from now on: of GPU memory, or of the resident memory of this process (Linux only)."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.rest = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            self.rest = self._peak()

    def megabytes(self) -> float:
        return (self._peak() - self.rest) / 1e6

    def _peak(self) -> int:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


class TrainingMemory(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.memory = PeakMemory(args.device.type == "cuda")

    def on_train_end(self, args, state, control, **kwargs):
        state.log_history.append({"step": state.global_step, "peak_megabytes": self.memory.megabytes()})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import train_clip

    trainer.DEFAULT_CALLBACKS.append(TrainingMemory)
    sys.exit(train_clip.main())
