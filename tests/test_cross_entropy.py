"""Chunked losses against the plain forms of torch, written with all logits at once, in double precision."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from hf_transfer.cross_entropy import r_drop_sum, smoothed_cross_entropy_sum

VOCABULARY, WIDTH, COUNT = 301, 32, 50


def plain(hidden, weight, bias, targets, label_smoothing=0.0):
    logits = functional.linear(hidden, weight, bias)
    return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")


def plain_r_drop(pair, weight, bias, targets, label_smoothing, alpha):
    log1, log2 = (functional.linear(h, weight, bias).log_softmax(-1) for h in pair)
    divergence = functional.kl_div(log2, log1, log_target=True, reduction="sum")
    divergence = divergence + functional.kl_div(log1, log2, log_target=True, reduction="sum")
    both = [plain(h, weight, bias, targets, label_smoothing) for h in pair]
    return sum(both) / 2 + alpha / 2 * divergence


def numbers(dtype, passes=None, seed=0):
    """hidden, weight, bias and targets."""
    torch.manual_seed(seed)
    shape = (COUNT, WIDTH) if passes is None else (passes, COUNT, WIDTH)
    tensors = [torch.randn(shape), torch.randn(VOCABULARY, WIDTH) / 4, torch.randn(VOCABULARY)]
    targets = torch.randint(0, VOCABULARY, (COUNT,))
    return [t.to(dtype).requires_grad_() for t in tensors], targets


def doubled(tensors):
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def distance(found, wanted):
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("most_bytes", [0, 10**8])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_value_and_gradients_equal_those_of_all_logits_at_once(dtype, tolerance, label_smoothing, most_bytes):
    """In chunks of 16 positions and in one."""
    tensors, targets = numbers(dtype)
    exact = doubled(tensors)
    wanted = plain(*exact, targets, label_smoothing)
    found = smoothed_cross_entropy_sum(*tensors, targets, label_smoothing, most_bytes)
    (3 * wanted).backward()
    (3 * found).backward()
    assert found.dtype == dtype
    assert distance(found, wanted) < tolerance
    for mine, reference in zip(tensors, exact, strict=True):
        assert mine.grad.dtype == dtype
        assert distance(mine.grad, reference.grad) < tolerance


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_r_drop_equals_its_formula_through_autograd(dtype, tolerance, label_smoothing):
    tensors, targets = numbers(dtype, passes=2)
    exact = doubled(tensors)
    wanted = plain_r_drop(*exact, targets, label_smoothing, 0.7)
    found = r_drop_sum(*tensors, targets, label_smoothing, 0.7, most_bytes=0)
    (3 * wanted).backward()
    (3 * found).backward()
    assert distance(found, wanted) < tolerance
    for mine, reference in zip(tensors, exact, strict=True):
        assert distance(mine.grad, reference.grad) < tolerance


def test_r_drop_of_two_equal_passes_is_the_cross_entropy():
    (hidden, weight, bias), targets = numbers(torch.float64)
    once = smoothed_cross_entropy_sum(hidden, weight, bias, targets, 0.1)
    pair = torch.stack([hidden, hidden])
    torch.testing.assert_close(r_drop_sum(pair, weight, bias, targets, 0.1, 5.0), once, rtol=1e-14, atol=0)


def test_r_drop_of_two_pieces_by_hand():
    """p1 = (3/4, 1/4), p2 = (1/2, 1/2), target 0: cross-entropies log 4/3 and log 2; KL1 + KL2 = (log 3)/4."""
    hidden = torch.tensor([[[1.0]], [[0.0]]], dtype=torch.float64)
    weight = torch.tensor([[3.0], [1.0]], dtype=torch.float64).log()
    wanted = (torch.tensor(4 / 3).log() + torch.tensor(2.0).log()) / 2 + 2.0 / 2 * torch.tensor(3.0).log() / 4
    assert float(r_drop_sum(hidden, weight, None, torch.tensor([0]), 0.0, 2.0)) == pytest.approx(float(wanted))


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_only_what_asks_for_a_gradient_gets_one(learning):
    tensors, targets = numbers(torch.float64)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in learning)
    exact = doubled(tensors)
    plain(*exact, targets, 0.1).backward()
    smoothed_cross_entropy_sum(*tensors, targets, 0.1, 0).backward()
    for i, (mine, reference) in enumerate(zip(tensors, exact, strict=True)):
        if i in learning:
            torch.testing.assert_close(mine.grad, reference.grad)
        else:
            assert mine.grad is None


def test_a_layer_without_bias_has_none():
    (hidden, weight, _), targets = numbers(torch.float64)
    found = smoothed_cross_entropy_sum(hidden, weight, None, targets, 0.1)
    torch.testing.assert_close(found, plain(hidden, weight, None, targets, 0.1), rtol=1e-14, atol=0)
    found.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("passes", [None, 2])
def test_without_gradients_the_value_is_the_same_and_no_gradient_is_worked_out(passes, monkeypatch):
    tensors, targets = numbers(torch.float64, passes)
    loss = smoothed_cross_entropy_sum if passes is None else r_drop_sum
    with_gradient = loss(*tensors, targets, 0.1)
    monkeypatch.setattr("hf_transfer.cross_entropy._add_product", lambda *args: pytest.fail("a gradient"))
    with torch.no_grad():
        value = loss(*tensors, targets, 0.1)
    assert not value.requires_grad and value == with_gradient
    assert loss(*[t.detach() for t in tensors], targets, 0.1) == with_gradient


def test_a_weight_that_is_tied_and_used_twice_in_a_graph_gets_the_sum_of_its_gradients():
    """As of an embedding that is the output layer, with a loss over two halves; scaled differently."""
    (_, weight, bias), targets = numbers(torch.float64)

    def total(loss, weight, bias):
        hidden = weight[targets.clamp(min=0)].tanh()
        return 2 * loss(hidden[:20], weight, bias, targets[:20], 0.1) + loss(
            hidden[20:], weight, bias, targets[20:], 0.1
        )

    exact = doubled([weight, bias])
    total(plain, *exact).backward()
    total(smoothed_cross_entropy_sum, weight, bias).backward()
    torch.testing.assert_close(weight.grad, exact[0].grad)
    torch.testing.assert_close(bias.grad, exact[1].grad)


def test_a_second_backward_says_what_to_do_and_changes_nothing():
    tensors, targets = numbers(torch.float64)
    loss = smoothed_cross_entropy_sum(*tensors, targets)
    loss.backward(retain_graph=True)
    before = tensors[1].grad.clone()
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    assert torch.equal(tensors[1].grad, before)


@pytest.mark.parametrize("loss", [smoothed_cross_entropy_sum, r_drop_sum])
def test_without_any_target_the_loss_and_its_gradients_are_zero(loss):
    (hidden, weight, bias), targets = numbers(torch.float32, None if loss is smoothed_cross_entropy_sum else 2)
    value = loss(hidden[..., :0, :], weight, bias, targets[:0], 0.1)
    value.backward()
    assert value.item() == 0.0
    assert all(t.grad is not None and not t.grad.any() for t in (hidden, weight, bias))


def test_a_piece_that_can_never_come_is_allowed():
    """A bias of minus infinity, as some checkpoints give padding."""
    (hidden, weight, bias), targets = numbers(torch.float64)
    with torch.no_grad():
        bias[7] = -torch.inf
    targets[targets == 7] = 8
    exact = doubled([hidden, weight, bias])
    wanted = plain(*exact, targets)
    found = smoothed_cross_entropy_sum(hidden, weight, bias, targets)
    torch.testing.assert_close(found, wanted)
    wanted.backward()
    found.backward()
    torch.testing.assert_close(weight.grad, exact[1].grad)


def test_very_large_logits_do_not_overflow():
    (hidden, weight, bias), targets = numbers(torch.float32)
    loss = smoothed_cross_entropy_sum(hidden * 1e4, weight, bias, targets, 0.1)
    torch.testing.assert_close(loss, plain(hidden * 1e4, weight, bias, targets, 0.1))
    assert loss.isfinite()


def devices():
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("passes", [None, 2])
def test_under_autocast_it_is_as_exact_as_the_plain_form_under_autocast(dtype, passes, device):
    tensors, targets = numbers(torch.float32, passes)
    exact = doubled(tensors)
    tensors, targets = [t.detach().to(device).requires_grad_() for t in tensors], targets.to(device)
    like = [t.detach().clone().requires_grad_() for t in tensors]
    with torch.autocast(device, dtype):
        if passes is None:
            found = smoothed_cross_entropy_sum(*tensors, targets, 0.1, 0)
            usual = plain(*like, targets, 0.1)
            wanted = plain(*exact, targets.cpu(), 0.1)
        else:
            found = r_drop_sum(*tensors, targets, 0.1, 0.7, 0)
            usual = plain_r_drop(*like, targets, 0.1, 0.7)
            wanted = plain_r_drop(*exact, targets.cpu(), 0.1, 0.7)
    for loss in (found, usual, wanted):
        loss.backward()
    assert found.dtype == torch.float32
    assert distance(found.cpu(), wanted) < 1e-3
    for mine, other, reference in zip(tensors, like, exact, strict=True):
        assert mine.grad.dtype == torch.float32
        # the plain form's logits are rounded too; where a bias is added in half precision it is further off
        assert distance(mine.grad.cpu(), reference.grad) <= 1.5 * distance(other.grad.cpu(), reference.grad) + 1e-5


def test_under_autocast_the_logits_are_those_of_autocast():
    """Not of single precision: at a width of 32 the two differ visibly."""
    (hidden, weight, _), targets = numbers(torch.float32)
    hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = smoothed_cross_entropy_sum(hidden, weight, None, targets)
        logits = functional.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16
    wanted = functional.cross_entropy(logits.float(), targets, reduction="sum")
    assert float(found) == pytest.approx(float(wanted), rel=1e-7)
    assert float(found) != pytest.approx(float(plain(hidden, weight, None, targets)), rel=1e-6)


def test_gradients_of_hidden_states_in_half_precision_come_back_in_half_precision():
    (hidden, weight, bias), targets = numbers(torch.float32)
    short = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        smoothed_cross_entropy_sum(short, weight, bias, targets, 0.1).backward()
    plain(*(exact := doubled([hidden, weight, bias])), targets, 0.1).backward()
    assert short.grad.dtype == torch.bfloat16
    assert distance(short.grad, exact[0].grad) < 0.01


def test_under_fp16_small_gradients_do_not_vanish_before_the_loss_is_scaled():
    """A vocabulary so large that most probabilities lie below 6e-8, the least that fp16 can hold."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 8) * 6, torch.randn(20000, 8, requires_grad=True)
    target = (hidden @ weight.detach().T).argmax(1)
    with torch.autocast("cpu", torch.float16):
        (65536 * smoothed_cross_entropy_sum(hidden, weight, None, target)).backward()
    exact = weight.detach().double().requires_grad_()
    (65536 * plain(hidden.double(), exact, None, target)).backward()
    small = exact.grad.abs().amax(1) < 65536 * 6e-8
    assert 0.3 < small.float().mean() < 1.0
    assert distance(weight.grad[small], exact.grad[small]) < 0.05


PEAK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from torch.nn import functional
from hf_transfer.cross_entropy import r_drop_sum, smoothed_cross_entropy_sum

def peak():  # not ru_maxrss, which begins at what the parent process held
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def run(form, count, vocabulary, width, dtype):
    hidden, targets = torch.ones(count, width).requires_grad_(), torch.arange(count) % vocabulary
    weight = torch.zeros(vocabulary, width).requires_grad_()
    pair = torch.stack([hidden.detach()] * 2).requires_grad_()
    before = peak()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        if form == "plain":
            logits = functional.linear(hidden, weight)
            loss = functional.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
        elif form == "r_drop":
            loss = r_drop_sum(pair, weight, None, targets, 0.1, 1.0)
        else:
            loss = smoothed_cross_entropy_sum(hidden, weight, None, targets, 0.1)
    loss.backward()
    return peak() - before - 4 * weight.numel()

form, count, width, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
run(form, 40, 50, width, dtype)  # libraries load, threads start
print(run(form, count, 65_000, width, dtype))
"""


def peak_bytes(*arguments):
    """Bytes that a loss of 65,000 pieces and its backward took beyond inputs and the weight's gradient."""
    words = [sys.executable, "-c", PEAK, *map(str, arguments)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_losses_over_a_large_vocabulary_hold_a_few_logits_at_once():
    """An eighth of the window that the slow test measures; what is held hardly depends on the number of targets."""
    assert peak_bytes("chunked", 512, 64, "fp32") < 150e6
    assert peak_bytes("plain", 512, 64, "fp32") > 250e6, "the measure sees logits"


@pytest.mark.slow
@pytest.mark.parametrize(("form", "width"), [("chunked", 64), ("chunked", 512), ("r_drop", 64), ("r_drop", 512)])
def test_4096_targets_of_65000_pieces_need_no_more_than_150_mb(form, width):
    assert peak_bytes(form, 4096, width, "fp32") < 150e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", [smoothed_cross_entropy_sum, r_drop_sum])
def test_on_a_gpu_under_bf16_4096_targets_of_65000_pieces_need_no_more_than_150_mb(form):
    shape = (4096, 512) if form is smoothed_cross_entropy_sum else (2, 4096, 512)
    hidden = torch.randn(shape, device="cuda", requires_grad=True)
    weight = torch.zeros(65_000, 512, device="cuda", requires_grad=True)
    targets = torch.arange(4096, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        form(hidden[..., :64, :], weight, None, targets[:64], 0.1).backward()  # cuBLAS takes its workspace
        weight.grad = hidden.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        form(hidden, weight, None, targets, 0.1).backward()
    assert torch.cuda.max_memory_allocated() - before - 4 * weight.numel() < 150e6
