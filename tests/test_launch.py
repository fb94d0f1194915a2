"""Launch: which precision is chosen on which hardware, and which process speaks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_transfer import launch
from hf_transfer.config import TrainConfig
from hf_transfer.errors import InputError
from hf_transfer.launch import (
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
    monkeypatch.setattr(launch, "Accelerator", lambda mixed_precision: SimpleNamespace(mixed_precision=mixed_precision))
    accelerator = start_processes(TrainConfig(precision=precision), "bert", stages=2)
    assert accelerator.mixed_precision == handed_over
    assert precision_name(accelerator) == precision


def test_sharded_parameters_refuse_several_stages_and_take_one(hardware, monkeypatch):
    hardware(**OLD_CPU)
    monkeypatch.setattr(launch, "Accelerator", lambda mixed_precision: SimpleNamespace(is_fsdp2=True))
    assert start_processes(TrainConfig(), "bert", stages=1).is_fsdp2
    with pytest.raises(InputError, match=r"--adapt.head_first and --adapt.gradual_unfreezing .* or use DDP"):
        start_processes(TrainConfig(), "bert", stages=2)


def test_the_first_process_is_known_before_accelerate_is_set_up(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
    monkeypatch.setenv("RANK", "3")
    assert not is_main_process()


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
