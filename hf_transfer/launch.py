"""Floor 1: processes, devices and precision, the same under ``accelerate launch``, ``torchrun`` and plain python."""

from __future__ import annotations

import atexit
import copy
import json
import os
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, release_memory
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout  # the one way to change it, and not yet public

from hf_transfer import watch
from hf_transfer.config import TrainConfig
from hf_transfer.errors import EndedElsewhere, InputError, RunError
from hf_transfer.on_device import forget_peak, peak_bytes

LONGEST_ARRIVAL = timedelta(minutes=10)
"""For processes that start later, on another machine say, until all of a launch are there."""
SECONDS_BETWEEN_LOOKS = 0.01
"""Of the first process, for others that have come."""
LONGEST_MEETING = timedelta(seconds=20)
"""For processes that are there, until they watch each other; one that dies meanwhile is noticed by that alone."""
LONGEST_HANDSHAKE = timedelta(seconds=60)
"""For processes that watch each other, until they are connected for work."""
LONGEST_WAIT = timedelta(hours=2)
"""For others, in a collective: for the first process while it saves and proves the model, say. Whoever is gone is
noticed long before (watch.py)."""


def is_main_process() -> bool:
    """Whether this process writes and prints; answers before accelerate is set up."""
    return os.environ.get("RANK", "0") == "0"


_joined = False
"""Whether this process has met the others, and they have not left each other."""


def join_processes() -> None:
    """Meet the other processes of the launch, if there are any, and watch them from here on.

    To be called before anything that a process can fail in alone. A second call does nothing.

    Raises:
        InputError: the launcher asks for DeepSpeed, or started several, and each would take itself for the only one.
        RunError: another one did not come, or went while they joined or since; or an earlier run of the script has
            failed.
    """
    global _joined
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise InputError(
            "the launcher asks for DeepSpeed, which is not served: choose DDP or FSDP2 (recipes/accelerate)."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started < 2:
        return
    earlier = watch.current()
    ended = earlier.ended_elsewhere() if earlier is not None else None
    if ended is not None:  # since the first call
        raise ended
    if earlier is not None and earlier.is_over:
        raise RunError(
            "an earlier run of this script has failed, and its processes cannot go on together: start all of them anew."
        )
    if _joined:
        return
    try:
        with watch.one_for_all():
            _join(started)
        _joined = True
    except RuntimeError as error:  # of torch, whatever the backend; the first line says what, the others where in torch
        what = str(error).partition("\n")[0]
        raise RunError(
            f"process {os.environ.get('RANK')} of {started} could not join the others: one did not start within "
            f"{LONGEST_ARRIVAL}, or has ended; see what it said, and start all of them again ({what})."
        ) from error


def _join(started: int) -> None:
    """Arrive, watch each other, and only then connect, which may hang where one of them goes meanwhile."""
    meeting = _Group() if torch.distributed.is_initialized() else _arrive(started)
    try:
        watch.start(meeting.rank, started, meeting.share, meeting.count)
    except OSError as error:
        print(
            f"process {meeting.rank} cannot reach the first one's watch ({error}): should one of them die, the "
            f"others wait up to {LONGEST_WAIT} before they say so.",
            file=sys.stderr,
            flush=True,
        )
    state = PartialState(cpu=cpu_is_asked_for(), timeout=LONGEST_HANDSHAKE, **meeting.for_connecting())
    if state.num_processes != started:
        raise InputError(
            f"the launcher started {started} processes, and accelerate finds no GPU to join them on: for processes on "
            "CPUs, set ACCELERATE_USE_CPU=true in their environment."
        )
    state.wait_for_everyone()  # under the short limit
    _set_pg_timeout(LONGEST_WAIT, torch.distributed.group.WORLD)
    if isinstance(meeting, _Meeting):
        atexit.register(_disconnect)


def _arrive(processes: int) -> _Meeting:
    """Wait at the launch's own meeting place until all are there, so that connecting with each other is quick.

    Raises:
        InputError: the launcher did not say where that is.
        RuntimeError: one of them did not come.
    """
    try:
        store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST_ARRIVAL))
    except ValueError as error:  # a variable that is not there
        raise InputError(
            f"the environment speaks of {processes} processes (WORLD_SIZE) and does not say how they meet ({error}): "
            "start them with accelerate launch or torchrun, or unset WORLD_SIZE."
        ) from error
    store = torch.distributed.PrefixStore("hf_transfer", store)
    name = _wait_for_all(store, processes) if rank == 0 else _ask_for_name(store, rank)
    store.set_timeout(LONGEST_MEETING)
    return _Meeting(torch.distributed.PrefixStore(name, store), rank, processes)


def _wait_for_all(store: torch.distributed.Store, processes: int) -> str:
    """A name for this meeting, when all others have it, who ask for it until then.

    torchrun's store outlives processes that it starts again. Whoever asks has a word of its own, and the answer to it
    the name: so no process takes what an earlier one has left for its like.

    Raises:
        RuntimeError: they have not come within ``LONGEST_ARRIVAL``.
    """
    name = secrets.token_hex(8)
    last = time.monotonic() + LONGEST_ARRIVAL.total_seconds()
    missing = set(range(1, processes))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{name}/knows/{rank}"]):
                missing.remove(rank)
            elif store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", name)
        if time.monotonic() > last:
            raise RuntimeError(f"no word of {', '.join(map(str, sorted(missing)))}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    store.set(f"{name}/all", "")
    return name


def _ask_for_name(store: torch.distributed.Store, rank: int) -> str:
    """The name of this meeting, when all know it (``_wait_for_all``)."""
    word = secrets.token_hex(8)
    store.set(f"asks/{rank}", word)
    store.wait([f"answer/{word}"], LONGEST_ARRIVAL)
    name = store.get(f"answer/{word}").decode()
    store.set(f"{name}/knows/{rank}", "")
    store.wait([f"{name}/all"], LONGEST_ARRIVAL)
    return name


@dataclass(frozen=True)
class _Meeting:
    """Processes that can leave words for each other and are not connected yet.

    Their store is the one by which they are then connected: one that closed it and opened another at the same port
    would send those away who come to the first.
    """

    store: torch.distributed.Store
    rank: int
    processes: int

    def share(self, payload: Any) -> Any:
        """What the first process calls it with."""
        if self.rank == 0:
            self.store.set("shared", json.dumps(payload))
        return json.loads(self.store.get("shared"))

    def count(self, is_so: bool) -> int:
        """How many processes say so."""
        self.store.set(f"so/{self.rank}", str(is_so))
        return sum(self.store.get(f"so/{rank}") == b"True" for rank in range(self.processes))

    def for_connecting(self) -> dict[str, Any]:
        """What torch needs to know to connect them."""
        self.store.set_timeout(LONGEST_HANDSHAKE)
        return {"store": self.store, "rank": self.rank, "world_size": self.processes}


class _Group:
    """As ``_Meeting``, of processes that are connected: by an earlier run of the same script, or by the script."""

    def __init__(self) -> None:
        self.rank: int = PartialState(cpu=cpu_is_asked_for()).process_index
        _set_pg_timeout(LONGEST_ARRIVAL, torch.distributed.group.WORLD)

    def share(self, payload: Any) -> Any:
        """What the first process calls it with."""
        return broadcast_object_list([payload])[0]

    def count(self, is_so: bool) -> int:
        """How many processes say so."""
        return sum(gather_object([is_so]))

    def for_connecting(self) -> dict[str, Any]:
        """Nothing: they are."""
        return {}


def start_processes(train: TrainConfig, model_type: str, stages: int) -> Accelerator:
    """Join the processes of the launch, at the precision that the hardware supports.

    Raises:
        InputError: half precision that this hardware does not have or this architecture does not bear, or more stages
            than sharded parameters allow, or compiled layers of them.
    """
    precision = choose_precision(train.precision, model_type)
    join_processes()
    named = "no" if precision == "fp32" else precision
    earlier = AcceleratorState._shared_state
    if earlier and earlier.get("_mixed_precision") != named:
        if earlier.get("distributed_type") == DistributedType.FSDP:
            raise InputError(f"--train.precision {precision}: under FSDP all runs of a script have that of the first.")
        # of an earlier run of this process; accelerate offers no other way to another precision
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=named)
    # windows are divided once, by their targets; a number in the environment would divide them again
    accelerator.gradient_accumulation_steps = 1
    if getattr(accelerator, "is_fsdp2", False) and stages > 1:
        raise InputError(
            "--adapt.head_first and --adapt.gradual_unfreezing train in several stages, which FSDP's sharded "
            "parameters do not allow: leave them out, or use DDP."
        )
    if getattr(accelerator, "is_fsdp2", False) and train.compile != "never":
        raise InputError(f"--train.compile {train.compile} does not go with FSDP's sharded parameters: use DDP.")
    return accelerator


def check_sharding(accelerator: Accelerator, model: Any, l2_sp: float) -> None:
    """See that FSDP2, where the launch asks for it, can shard ``model``; to be called before training.

    Raises:
        InputError: matrices that parts of the model share, an output layer that the loss needs whole, parameters on
            the host, or ``l2_sp``.
    """
    if not getattr(accelerator, "is_fsdp2", False):
        return
    from torch.distributed.fsdp import CPUOffloadPolicy  # here, since few runs need what it brings along

    if not hasattr(model, "get_output_embeddings"):
        raise InputError("FSDP2 shards stock models, and --adapt.probe_layers makes one of another kind: use DDP.")
    problems = []
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = [same for same in names.values() if len(same) > 1]
    kind = model.config.model_type
    output_layer = model.get_output_embeddings()
    writes = bool(model.config.is_encoder_decoder) and output_layer is not None
    if shared:
        remedy = "use DDP." if writes else "use DDP, or a checkpoint whose weights are not tied."
        problems.append(
            f"FSDP2 cannot shard this checkpoint ({kind}): {' and '.join(shared[0][:3])} are one matrix (tied "
            f"weights), which it refuses: {remedy}"
        )
    elif writes:
        problems.append(
            f"FSDP2 cannot shard this checkpoint ({kind}): the loss of translation needs the whole output layer: use "
            "DDP."
        )
    if isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        problems.append("fsdp_offload_params keeps parameters off the GPU, where batches are put: leave it out.")
    if l2_sp:
        problems.append(
            f"--train.l2_sp {l2_sp:g} needs the start beside each parameter, and FSDP2 shards them: use DDP."
        )
    if problems:
        raise InputError(problems)


@contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """Around what one process does while the others wait; what fails there fails on all of them.

    Raises:
        EndedElsewhere: it failed on another process.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    found = gather_object([watch.in_short(problem) if problem is not None else None])
    if problem is not None:
        watch.keep_as_own(problem)
        raise problem
    for rank, text in enumerate(found):
        if text is not None:
            met = watch.current()
            raise EndedElsewhere(f"process {rank} of {len(found)} failed: {text}", met is not None and met.speaks)


def leave_processes() -> None:
    """Wait for all processes and stop watching them; they stay connected, for another run of the same script."""
    global _joined
    PartialState().wait_for_everyone()
    watch.stop()
    _joined = False


def _disconnect() -> None:
    """At the end of the script. Processes that were interrupted are not waited for."""
    if not _joined and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_processes(values: list[float], accelerator: Accelerator) -> list[float]:
    """Sums over all processes, which all call it, in double precision."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(tensor, reduction="sum").tolist()


def cpu_is_asked_for() -> bool:
    """Whether the launcher was told to leave GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")  # as accelerate


def uses_gpu() -> bool:
    """Whether a run would train on a GPU: there is one, and the launcher was not told to leave it."""
    return torch.cuda.is_available() and not cpu_is_asked_for()


def choose_precision(wanted: str, model_type: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``. ``auto`` follows the launcher's choice, else bf16 on GPUs that have it.

    Raises:
        InputError: see ``start_processes``.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_gpu = uses_gpu()
    if wanted == "auto":
        if launcher in ("bf16", "fp16"):
            wanted = launcher
        else:
            return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "fp16" and "t5" in model_type:
        raise InputError(
            f"--train.precision fp16 overflows in {model_type} (its feed-forward layers exceed 65,504): "
            "use bf16 or fp32."
        )
    if wanted == "fp16" and not on_gpu:
        raise InputError("--train.precision fp16 needs a GPU: use fp32 here.")
    if wanted == "bf16" and not on_gpu and not cpu_has_bf16():
        raise InputError(
            "--train.precision bf16: this CPU has no bf16 units and would be about three times slower than in fp32. "
            "Use --train.precision fp32."
        )
    if wanted == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("--train.precision bf16: this GPU has no bf16 units; use fp16 or fp32.")
    return wanted


def make_shell(model: nn.Module, accelerator: Accelerator) -> Any:
    """A copy of ``model`` without its parameters' memory, to be filled with whole ones where training shards them.

    None where nothing is sharded. Made before training, because a sharded module cannot be copied.
    """
    if not getattr(accelerator, "is_fsdp2", False):
        return None
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)  # buffers are copied as they are: some are in no state dict


def whole_model(model: nn.Module, shell: Any, accelerator: Accelerator) -> nn.Module:
    """``model`` as plain modules in fp32, whole on the main process. All processes call it.

    Without a shell it is ``model`` itself, less what half precision wrapped around its forward pass.
    """
    module = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if shell is None:
        return module
    state = {name: whole_tensor(tensor) for name, tensor in module.state_dict().items()}
    if accelerator.is_main_process:
        shell.load_state_dict(state, assign=True)
        if hasattr(shell, "tie_weights"):
            shell.tie_weights()
    return shell


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host, not sharing memory; shards are gathered, in which all processes take part."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.to("cpu", copy=True).contiguous()


def precision_name(accelerator: Accelerator) -> str:
    """``fp32``, ``bf16`` or ``fp16``, as the flag spells it; and whether the products of fp32 are rounded to TF32,
    which is off on a GPU too unless a script has turned it on in torch."""
    if accelerator.mixed_precision != "no":
        return accelerator.mixed_precision
    rounded = accelerator.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "fp32, products in TF32" if rounded else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def let_models_go() -> None:
    """Free what an earlier run or stage of this process has left. A model that accelerate has wrapped for half
    precision and its wrapper hold each other, and Python would collect them some time later."""
    release_memory()


def reset_peak_memory(accelerator: Accelerator) -> None:
    """Let ``peak_memory_bytes`` start anew, so that each of several runs in one process gets its own.

    What earlier runs hold on to still counts. Where the system has no such switch, the peak is the process's.
    """
    if accelerator.device.type == "cuda":
        forget_peak(accelerator.device)
    with suppress(OSError):  # Linux alone has the file, and a sandbox may forbid it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes(accelerator: Accelerator) -> int:
    """Most memory held at once: on the GPU where there is one, else resident memory of this process."""
    if accelerator.device.type == "cuda":
        return peak_bytes(accelerator.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
