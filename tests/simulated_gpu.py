"""hf-transfer's command on a GPU that is none: ``python simulated_gpu.py LIBRARY COUNTS COMMAND...``.

Tensors say that they are on ``cuda:0`` and hold a tensor of the host, on which every operation is computed. So what a
run does on a GPU alone (one call of attention for all lengths, flash attention over the long row, the trial of memory,
copies) is gone through with real numbers, which can be held against those of a run on the CPU. Two devices in one
operation are an error, as on a GPU, and each moment at which the host waits for the device is counted, with the line of
the package that asked. Seconds and memory say nothing here, and kernels are not those of a GPU.

``LIBRARY`` is built from ``simulated_gpu.cpp``; counts go to the file ``COUNTS`` as JSON.
"""

from __future__ import annotations

import collections
import ctypes
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch, which asks once whether there is a GPU

import torch
import torch.nn.attention.varlen
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
HOST = torch.device("cpu")
aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)
"""What the host has to wait for: a number, or a shape that depends on values."""
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""These take indices that are on the host, and copy them."""
SOFTMAXES = (aten._softmax.default, aten._log_softmax.default)

waits: collections.Counter[str] = collections.Counter()
"""``what, file`` of the package that asked -> how often."""
attention: collections.Counter[str] = collections.Counter()
"""Which attention was called how often."""
PACKAGE = f"{Path(__file__).parents[1] / 'hf_transfer'}/"


def waited(what: str) -> None:
    """Count it, by the innermost file of the package, and whether it was within a window."""
    files, within = [], ""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            files.append(Path(frame.f_code.co_filename).name)
            within = "in a window: " if frame.f_code.co_name == "learn_window" else within
        frame = frame.f_back
    waits[f"{within}{what}, {(files or ['elsewhere'])[0]}"] += 1


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **shape, device=GPU)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        waited("list")
        return self.held.tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")


def is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What ``function`` gives, on the device that it would be on."""
    if function is aten._pin_memory.default:
        return args[0].clone()
    if function is aten.is_pinned.default:
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, OnGpu)]
    there = [t for t in tensors if not isinstance(t, OnGpu)]
    device = kwargs.get("device")
    is_free = function in COPIES or function in INDEXING
    if here and not is_free and any(t.dim() for t in there):  # single numbers of the host may be anywhere
        raise RuntimeError(f"{function}: two devices, {[(tuple(t.shape), str(t.device)) for t in tensors]}")
    count_waits(function, args, kwargs, here, there)

    given, named = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnGpu) else leaf, (args, kwargs))
    if device is not None:
        named["device"] = HOST if is_gpu(device) else device
        named.pop("pin_memory", None)
    if function in SOFTMAXES and given[2]:  # half precision in, single precision out, which the CPU has not
        given = (given[0].float(), given[1], False)
    found = function(*given, **named)
    goes_there = is_gpu(device) if device is not None else isinstance(args[0], OnGpu) if function in COPIES else here
    if not goes_there:
        return found
    found = tree_map(lambda leaf: OnGpu(leaf) if type(leaf) is torch.Tensor else leaf, found)
    if not here or function is aten._to_copy.default:
        return found
    return return_and_correct_aliasing(function, args, kwargs, found)


def count_waits(function: Any, args: Any, kwargs: Any, here: list[Any], there: list[Any]) -> None:
    if not here and not is_gpu(kwargs.get("device")):
        return
    if function in READS and here:
        waited("read")
    if function in INDEXING and (there or any(t.dtype == torch.bool for t in tree_leaves(args[1]) if t is not None)):
        waited("index")
    in_queue = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
    if function is aten.copy_.default and there and not in_queue:
        waited("copy")
    moves = function is aten._to_copy.default and kwargs.get("device") is not None
    if moves and bool(here) != is_gpu(kwargs["device"]) and not in_queue:
        waited("to the host" if here else "to the GPU")


class Factories(TorchDispatchMode):
    """What is made on the GPU from nothing, or from what is on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_gpu(kwargs.get("device")) or function in (aten._pin_memory.default, aten.is_pinned.default):
            return compute(function, args, kwargs)
        return function(*args, **kwargs)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """scaled_dot_product_attention, whose kernel torch chooses by device."""
    attention["sdpa"] += 1
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    assert query.dtype == key.dtype == value.dtype
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    with torch.autocast("cuda", enabled=False):
        scores = query.float() @ key.float().transpose(-2, -1)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            assert attn_mask is None
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        shares = functional.dropout(scores.softmax(-1).nan_to_num(0.0), dropout_p)
        return (shares @ value.float()).to(query.dtype)


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: OnGpu,
    key_ends: OnGpu,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.attention.varlen.varlen_attn, example by example; arguments as flash attention wants them."""
    attention["varlen"] += 1
    assert query.dtype == key.dtype == value.dtype in (torch.float16, torch.bfloat16)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    found = []
    for ends, longest in ((query_ends, longest_query), (key_ends, longest_key)):
        assert int(ends.held.diff().max()) == longest
    assert (int(query_ends.held[-1]), int(key_ends.held[-1])) == (len(query), len(key))
    pairs = zip(query_ends.held.diff().tolist(), key_ends.held.diff().tolist(), strict=True)
    sizes = [list(lengths) for lengths in zip(*pairs, strict=True)]
    parts = (query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]))
    assert window_size in ((-1, -1), (-1, 0))
    for example in zip(*parts, strict=True):
        q, k, v = (states.transpose(0, 1)[None] for states in example)
        found.append(attend(q, k, v, None, 0.0, window_size == (-1, 0), scale, enable_gqa)[0].transpose(0, 1))
        attention["sdpa"] -= 1
    return torch.cat(found)


def install() -> ExitStack:
    """Let torch have this GPU until the stack is closed, or the process ends."""
    memory = {"memory_allocated": 1 << 20, "memory_reserved": 2 << 20, "max_memory_allocated": 5 << 20}
    answers: dict[str, Any] = {
        **dict.fromkeys(("is_available", "is_initialized"), True),
        **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "reset_peak_memory_stats", "empty_cache")),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all")),
        **memory,
        "device_count": 1,
        "current_device": 0,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
        "get_device_name": "simulated GPU",
        "get_device_properties": SimpleNamespace(name="simulated GPU", total_memory=8 << 30, major=9, minor=0),
        "mem_get_info": (6 << 30, 8 << 30),
        "get_rng_state": torch.get_rng_state(),
        "get_rng_state_all": [torch.get_rng_state()],
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.backends.cuda.is_flash_attention_available = lambda: True
    torch.nn.attention.varlen.varlen_attn = attend_varlen
    stock = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, *args, **kwargs: (  # also in threads of the backward
        attend if isinstance(query, OnGpu) else stock
    )(query, *args, **kwargs)
    torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device="cuda") would look for a driver
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters that are tied stay tied
    stack = ExitStack()
    stack.enter_context(Factories())
    return stack


def main() -> None:
    """Run what the command line asks for."""
    counts, *words = sys.argv[2:]
    with install():
        from hf_transfer.cli import main as command

        sys.argv = ["hf-transfer", *words]
        command()
    Path(counts).write_text(json.dumps({"waits": waits, "attention": attention}), encoding="utf-8")


if __name__ == "__main__":
    main()
