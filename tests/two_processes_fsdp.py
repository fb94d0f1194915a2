"""Run by torchrun: the recipe with parameters sharded by FSDP2, on CPUs, where accelerate itself would not shard."""

import os
import sys

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import hf_transfer.launch
import hf_transfer.train
from hf_transfer import load_config
from hf_transfer.page import run
from hf_transfer.records import WindowSums
from hf_transfer.train import learn_window

PLUGIN = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",
    transformer_cls_names_to_wrap=["BertLayer"],
    reshard_after_forward=True,
    state_dict_type="FULL_STATE_DICT",
    cpu_ram_efficient_loading=False,
)


def sharding_accelerator(**settings: object) -> Accelerator:
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    accelerator = Accelerator(**settings)
    for shared in (AcceleratorState._shared_state, PartialState._shared_state):
        shared["distributed_type"], shared["fsdp_plugin"] = DistributedType.FSDP, PLUGIN
    assert accelerator.is_fsdp2
    return accelerator


def learn_sharded(model: torch.nn.Module, *rest: object, **named: object) -> WindowSums:
    assert all(hasattr(parameter, "device_mesh") for parameter in model.parameters()), "nothing is left unsharded"
    return learn_window(model, *rest, **named)


hf_transfer.launch.Accelerator = sharding_accelerator
hf_transfer.train.learn_window = learn_sharded
torch.set_num_threads(1)
run(load_config(sys.argv[1:], "test"))
