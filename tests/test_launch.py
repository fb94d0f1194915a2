"""Launch: which precision is chosen on which hardware, and which process speaks."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny import make_checkpoint
from tiny_translation import make_translation_checkpoint
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from hf_transfer import cli, launch, page
from hf_transfer.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.launch import (
    check_sharding,
    choose_precision,
    cpu_has_bf16,
    is_main_process,
    peak_memory_bytes,
    precision_name,
    start_processes,
)

OLD_CPU = {"gpu": False, "bf16_units": False}
NEW_CPU = {"gpu": False, "bf16_units": True}
OLD_GPU = {"gpu": True, "bf16_units": False}
NEW_GPU = {"gpu": True, "bf16_units": True}


@pytest.fixture
def hardware(monkeypatch):
    """Pretends that this machine has some processor and that some launcher started it."""

    def pretend(gpu: bool, bf16_units: bool, launcher: str = "no", use_cpu: str = ""):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16_units)
        monkeypatch.setattr(launch, "cpu_has_bf16", lambda: bf16_units)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)

    return pretend


@pytest.mark.parametrize(
    ("wanted", "machine", "chosen"),
    [
        ("auto", OLD_CPU, "fp32"),
        ("auto", NEW_CPU, "fp32"),  # on a CPU half precision is used only where it is asked for
        ("auto", OLD_GPU, "fp32"),
        ("auto", NEW_GPU, "bf16"),
        ("auto", NEW_GPU | {"use_cpu": "true"}, "fp32"),
        ("auto", NEW_GPU | {"use_cpu": "on"}, "fp32"),
        ("auto", NEW_GPU | {"use_cpu": "false"}, "bf16"),
        ("auto", NEW_GPU | {"launcher": "fp16"}, "fp16"),
        ("auto", NEW_CPU | {"launcher": "bf16"}, "bf16"),
        ("auto", NEW_GPU | {"launcher": "fp8"}, "bf16"),
        ("fp32", NEW_GPU | {"launcher": "bf16"}, "fp32"),  # the flag wins over the launcher
        ("bf16", NEW_CPU, "bf16"),
        ("bf16", NEW_GPU, "bf16"),
        ("fp16", OLD_GPU, "fp16"),
    ],
)
def test_the_precision_follows_flag_then_launcher_then_hardware(hardware, wanted, machine, chosen):
    hardware(**machine)
    assert choose_precision(wanted, "bert") == chosen


@pytest.mark.parametrize(
    ("wanted", "machine", "model_type", "says"),
    [
        ("bf16", OLD_CPU, "bert", "this CPU has no bf16 units and would be about three times slower"),
        ("auto", OLD_CPU | {"launcher": "bf16"}, "bert", "this CPU has no bf16 units"),
        ("bf16", OLD_GPU, "bert", "this GPU has no bf16 units; use fp16 or fp32"),
        ("fp16", OLD_CPU, "bert", "--train.precision fp16 needs a GPU: use fp32 here"),
        ("fp16", NEW_GPU | {"use_cpu": "1"}, "bert", "--train.precision fp16 needs a GPU"),
        ("fp16", NEW_GPU, "t5", "--train.precision fp16 overflows in t5"),
        ("auto", NEW_GPU | {"launcher": "fp16"}, "mt5", "fp16 overflows in mt5"),
    ],
)
def test_a_precision_that_does_not_serve_is_refused_with_one_that_does(hardware, wanted, machine, model_type, says):
    hardware(**machine)
    with pytest.raises(InputError, match=says) as caught:
        choose_precision(wanted, model_type)
    assert any(remedy in str(caught.value) for remedy in ("Use --train.precision fp32", "use fp", "use bf16 or fp32"))


@pytest.mark.parametrize(("precision", "handed_over"), [("fp32", "no"), ("bf16", "bf16")])
def test_accelerate_is_told_the_precision_and_tells_it_back_as_the_flag_spells_it(
    hardware, monkeypatch, precision, handed_over
):
    hardware(**NEW_CPU, launcher="fp16")
    on = torch.device("cuda")
    monkeypatch.setattr(
        launch, "Accelerator", lambda mixed_precision: SimpleNamespace(mixed_precision=mixed_precision, device=on)
    )
    accelerator = start_processes(TrainConfig(precision=precision), "bert", stages=2)
    assert accelerator.mixed_precision == handed_over
    assert precision_name(accelerator) == precision


def test_products_in_tf32_are_off_and_told_where_a_script_has_turned_them_on():
    gpu, cpu = (SimpleNamespace(mixed_precision="no", device=torch.device(name)) for name in ("cuda", "cpu"))
    before = torch.get_float32_matmul_precision()
    assert before == "highest"
    assert precision_name(gpu) == "fp32"
    torch.set_float32_matmul_precision("high")
    try:
        assert precision_name(gpu) == "fp32, products in TF32"
        assert precision_name(cpu) == "fp32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_sharded_parameters_refuse_several_stages_and_take_one(hardware, monkeypatch):
    hardware(**OLD_CPU)
    monkeypatch.setattr(launch, "Accelerator", lambda mixed_precision: SimpleNamespace(is_fsdp2=True))
    assert start_processes(TrainConfig(), "bert", stages=1).is_fsdp2
    with pytest.raises(InputError, match=r"--adapt.head_first and --adapt.gradual_unfreezing .* or use DDP"):
        start_processes(TrainConfig(), "bert", stages=2)
    with pytest.raises(InputError, match=r"--train.compile auto does not go with FSDP's sharded parameters: use DDP"):
        start_processes(TrainConfig(compile="auto"), "bert", stages=1)


def test_deepspeed_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed, which is not served: choose DDP"):
        start_processes(TrainConfig(), "bert", stages=1)


def test_the_first_process_is_known_before_accelerate_is_set_up(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
    monkeypatch.setenv("RANK", "3")
    assert not is_main_process()


def test_runs_of_one_process_may_have_different_precisions(monkeypatch):
    monkeypatch.setattr(launch, "cpu_has_bf16", lambda: True)
    wanted = ["fp32", "bf16", "bf16", "fp32"]
    found = [start_processes(TrainConfig(precision=one), "bert", stages=1) for one in wanted]
    assert [accelerator.state.mixed_precision for accelerator in found] == ["no"] * 4, "they share what the last one is"
    assert [accelerator.native_amp for accelerator in found] == [False, True, True, False]


def test_a_number_in_the_environment_does_not_divide_gradients_once_more(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = start_processes(TrainConfig(precision="fp32"), "bert", stages=1)
    weight = torch.ones((), requires_grad=True)
    accelerator.backward(weight * 3)
    assert float(weight.grad) == 3.0


def test_under_fsdp_all_runs_of_a_process_have_the_precision_of_the_first(monkeypatch):
    found = {"_mixed_precision": "bf16", "distributed_type": DistributedType.FSDP}
    monkeypatch.setattr(launch.AcceleratorState, "_shared_state", found)
    with pytest.raises(
        InputError, match=r"--train.precision fp32: under FSDP all runs of a script have that of the fi"
    ):
        start_processes(TrainConfig(), "bert", stages=1)


def a_meeting() -> SimpleNamespace:
    """The second process of two that have arrived."""
    return SimpleNamespace(rank=1, share="share", count="count", for_connecting=lambda: {"store": "of all"})


def test_processes_that_accelerate_would_not_join_are_refused(monkeypatch):
    """Each would take itself for the only one, and write into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "_joined", False)
    monkeypatch.setattr(launch, "_arrive", lambda processes: a_meeting())
    monkeypatch.setattr(launch.watch, "start", lambda *given: None)
    monkeypatch.setattr(launch, "PartialState", lambda **given: SimpleNamespace(num_processes=1))
    with pytest.raises(InputError, match=r"started 2 processes, .* set ACCELERATE_USE_CPU=true in their environment"):
        start_processes(TrainConfig(), "bert", stages=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start_processes(TrainConfig(), "bert", stages=1).num_processes == 1


def test_long_work_of_one_process_is_waited_for_by_the_others(monkeypatch):
    asked = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(launch, "_joined", False)
    monkeypatch.setattr(launch, "_arrive", lambda processes: a_meeting())
    monkeypatch.setattr(launch.watch, "start", lambda *given: asked.update(watched=given))
    state = SimpleNamespace(num_processes=2, process_index=1, wait_for_everyone=lambda: asked.update(met=True))
    monkeypatch.setattr(launch, "PartialState", lambda **given: asked.update(given) or state)
    monkeypatch.setattr(launch, "_set_pg_timeout", lambda timeout, group: asked.update(afterwards=(timeout, *asked)))
    launch.join_processes()
    order = ("watched", "cpu", "timeout", "store", "met")
    assert asked.pop("afterwards") == (launch.LONGEST_WAIT, *order), "once they have met"
    limit = {"timeout": launch.LONGEST_HANDSHAKE, "store": "of all"}
    assert asked == {"watched": (1, 2, "share", "count"), "cpu": True, **limit, "met": True}
    assert launch.LONGEST_WAIT.total_seconds() >= 3600


def linux_says(path: str, start: str) -> list[str]:
    """The words of the first line of a file of /proc that starts with ``start``."""
    if not Path(path).is_file():
        pytest.skip(f"only Linux has {path}")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((line.split() for line in lines if line.startswith(start)), [])


def test_the_units_of_this_cpu_are_those_that_its_flags_name():
    flags = linux_says("/proc/cpuinfo", "flags")
    assert cpu_has_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_peak_memory_on_a_cpu_is_that_of_the_process_in_bytes():
    kibibytes = int(linux_says("/proc/self/status", "VmHWM:")[1])
    found = peak_memory_bytes(SimpleNamespace(device=torch.device("cpu")))
    assert found == pytest.approx(kibibytes * 1024, rel=0.02)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot forget a peak")
def test_each_run_of_a_process_has_its_own_peak_of_memory():
    accelerator = Accelerator(cpu=True)
    launch.reset_peak_memory(accelerator)
    before = launch.peak_memory_bytes(accelerator)
    held = torch.ones(50_000_000)  # 200 MB
    with_it = launch.peak_memory_bytes(accelerator)
    assert with_it > before + 150_000_000
    del held
    launch.reset_peak_memory(accelerator)
    assert launch.peak_memory_bytes(accelerator) < with_it - 150_000_000


# --- sharded parameters


def sharding(cpu_offload):
    """What is asked of an accelerator of FSDP2."""
    return SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=SimpleNamespace(cpu_offload=cpu_offload)))


SHARDING = sharding(OffloadPolicy())


def classifier(folder, architecture):
    made = make_checkpoint(folder, architecture)
    return transformers.AutoModelForSequenceClassification.from_pretrained(made)


def translator(folder, family):
    made = make_translation_checkpoint(family, folder)
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(made)


@pytest.mark.parametrize("family", ["marian", "t5", "nllb"])
def test_tied_weights_of_a_model_that_translates_are_no_business_of_fsdp2(family, tmp_path):
    model = translator(tmp_path, family)
    with pytest.raises(InputError) as caught:
        check_sharding(SHARDING, model, 0.0)
    (problem,) = caught.value.problems
    assert problem.startswith(f"FSDP2 cannot shard this checkpoint ({model.config.model_type}): ")
    assert "shared.weight and " in problem and "are one matrix (tied weights)" in problem
    assert problem.endswith("which it refuses: use DDP.")
    check_sharding(SimpleNamespace(is_fsdp2=False), model, 1.0)
    check_sharding(Accelerator(), model, 1.0)


def test_parameters_that_stay_on_the_host_are_refused_under_fsdp2(tmp_path):
    model = classifier(tmp_path, "bert")
    check_sharding(SHARDING, model, 0.0)
    with pytest.raises(InputError, match=r"fsdp_offload_params keeps parameters off the GPU, .*: leave it out"):
        check_sharding(sharding(CPUOffloadPolicy()), model, 0.0)


def test_a_model_that_translates_needs_its_output_layer_whole_even_if_it_is_not_tied(tmp_path):
    class Untied:
        config = SimpleNamespace(model_type="mine", is_encoder_decoder=True)
        named_parameters = staticmethod(lambda remove_duplicate: [("a", object()), ("b", object())])
        get_output_embeddings = staticmethod(lambda: "layer")

    with pytest.raises(InputError, match=r"\(mine\): the loss of translation needs the whole output layer: use DDP"):
        check_sharding(SHARDING, Untied(), 0.0)


def test_classifiers_are_sharded_unless_they_are_tied(tmp_path):
    check_sharding(SHARDING, classifier(tmp_path / "bert", "bert"), 0.0)
    with pytest.raises(InputError, match=r"\(bart\): .* use DDP, or a checkpoint whose weights are not tied\."):
        check_sharding(SHARDING, classifier(tmp_path / "bart", "bart"), 0.0)
    with pytest.raises(InputError, match=r"^--train\.l2_sp 0\.5 needs the start beside each parameter, and FSDP2"):
        check_sharding(SHARDING, classifier(tmp_path / "bert", "bert"), 0.5)


def test_a_run_that_fsdp2_cannot_shard_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    folder = make_translation_checkpoint("marian", tmp_path / "marian")
    monkeypatch.setattr(page, "start_processes", lambda *settings: SHARDING)
    config = RunConfig(
        task="translation",
        data=DataConfig(source="bundled:phrases", source_lang="en", target_lang="de", max_length=60),
        model=ModelConfig(checkpoint=str(folder)),
        output_dir=str(tmp_path / "out"),
    )
    for checkpoint in (str(folder), "scratch:marian-tiny"):
        with pytest.raises(InputError, match=r"FSDP2 cannot shard this checkpoint \(marian\)"):
            page.run(replace(config, model=ModelConfig(checkpoint=checkpoint)))
        assert not (tmp_path / "out").exists()


def start_to_join(rank: int, port: int, *before: str) -> subprocess.Popen:
    """A process of two that joins, and runs ``before`` first."""
    words = (
        *("import os", "from datetime import timedelta", "from hf_transfer import cli, launch"),
        "cli.SECONDS_FOR_THE_FIRST_PROCESS = 0",
        *before,
        *("with cli.exit_codes():", "    launch.join_processes()"),
    )
    launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", "\n".join(words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | launched)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def last_words(process: subprocess.Popen) -> str:
    """What a process says of its end, which a failure of torch's may precede."""
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said[said.index("hf-transfer") :]


def test_a_process_whose_others_do_not_come_says_so_and_ends(port):
    alone = start_to_join(1, port, "launch.LONGEST_ARRIVAL = timedelta(seconds=1)")
    said = last_words(alone)
    assert said.startswith("hf-transfer, process 1: the run failed: process 1 of 2 could not join the others: one did ")
    assert "one did not start within 0:00:01, or has ended" in said


def test_all_end_within_a_minute_of_one_that_goes_when_all_have_arrived():
    longest = launch.LONGEST_MEETING.total_seconds() + cli.SECONDS_FOR_THE_FIRST_PROCESS
    assert longest < 60 <= launch.LONGEST_HANDSHAKE.total_seconds() < launch.LONGEST_ARRIVAL.total_seconds()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_goes_when_all_watch_each_other_is_named_at_once(port, rank):
    """The other waits for a connection that never comes, and cannot be woken."""
    gone = start_to_join(rank, port, "launch.PartialState = lambda **_: os._exit(9)")
    left = start_to_join(1 - rank, port, "from hf_transfer import watch", "watch.SECONDS_TO_LEAVE = 1")
    assert gone.wait(100) == 9
    assert last_words(left).startswith(f"hf-transfer: the run failed: process {rank} of 2 (on {socket.gethostname()}, ")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_goes_before_they_watch_each_other_is_missed_before_long(port, rank):
    gone = start_to_join(rank, port, "launch.watch.start = lambda *_: os._exit(9)")
    left = start_to_join(1 - rank, port, "launch.LONGEST_MEETING = timedelta(seconds=2)")
    assert gone.wait(100) == 9
    assert f"the run failed: process {1 - rank} of 2 could not join the others: " in last_words(left)


@pytest.mark.parametrize(("rank", "broken"), [(0, "listen"), (1, "connect")])
def test_processes_that_cannot_watch_each_other_say_so_and_go_on(port, rank, broken):
    """Behind a firewall, say. A second call finds that they have joined."""
    cannot = ("from hf_transfer import watch", "def no(*_): raise OSError('refused')", f"watch.Watch.{broken} = no")
    again = ("import atexit", "atexit.register(launch.join_processes)")
    both = [start_to_join(i, port, *(cannot if i == rank else ()), *again) for i in (0, 1)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "process 1 cannot reach the first one's watch (" in said[1]
    assert ("process 0 cannot" in said[0]) == (rank == 0)


def test_an_environment_that_does_not_say_how_processes_meet_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"speaks of 2 processes \(WORLD_SIZE\) .* launch or torchrun, or unset"):
        launch.join_processes()
