"""Training with FSDP or DeepSpeed: what transformers and accelerate leave to be done."""

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from transformers import Trainer

_SCALARS = ("logit_scale", "logit_bias")


def prepare_parallel(trainer: Trainer) -> None:
    """Make a trainer whose arguments have `fsdp` or `deepspeed` ready to train.

    The model's scalars become vectors of one element: neither has a way to part a scalar.
    """
    for name in _SCALARS:
        parameter = getattr(trainer.model, name)
        if parameter is not None:
            parameter.data = parameter.data.view(1)
    if not trainer.args.fsdp:
        return
    state = trainer.accelerator.state
    if not trainer.is_fsdp_enabled:
        # Torch has FSDP for CPUs too, but accelerate would train without it and say nothing.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        trainer.is_fsdp_enabled = True
    # accelerate's half precision for FSDP would round logit_scale and the embeddings; autocast does not.
    state.fsdp_plugin.mixed_precision_policy = None


def with_scalars(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as every checkpoint has it, from that of a sharded model."""
    return {key: value.view(()) if key in _SCALARS else value for key, value in state_dict.items()}


def clamp_deepspeed_parameter(parameter: nn.Parameter, maximum: float) -> None:
    """Clamp the copy that DeepSpeed's optimizer steps, and overwrites the parameter with."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    safe_set_full_fp32_param(parameter, safe_get_full_fp32_param(parameter).clamp(max=maximum))
