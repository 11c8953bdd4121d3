"""What FSDP and DeepSpeed need in addition to what transformers and accelerate do."""

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from transformers import Trainer

_SCALARS = ("logit_scale", "logit_bias")


def prepare_parallel(trainer: Trainer) -> None:
    """Prepare a trainer whose arguments have `fsdp` or `deepspeed`.

    The model's scalars become vectors of one element, because neither can shard a scalar.
    """
    for name in _SCALARS:
        parameter = getattr(trainer.model, name)
        if parameter is not None:
            parameter.data = parameter.data.view(1)
    if not trainer.args.fsdp:
        return
    state = trainer.accelerator.state
    if not trainer.is_fsdp_enabled:
        # torch supports FSDP on CPUs, but accelerate would silently train without it.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        trainer.is_fsdp_enabled = True
    # accelerate's mixed precision for FSDP would round logit_scale and the embeddings; autocast does not.
    state.fsdp_plugin.mixed_precision_policy = None


def with_scalars(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a sharded model in the layout of every checkpoint, with scalars."""
    return {key: value.view(()) if key in _SCALARS else value for key, value in state_dict.items()}


def clamp_deepspeed_parameter(parameter: nn.Parameter, maximum: float) -> None:
    """Clamp the fp32 copy that DeepSpeed's optimizer updates and copies into the parameter."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    safe_set_full_fp32_param(parameter, safe_get_full_fp32_param(parameter).clamp(max=maximum))
