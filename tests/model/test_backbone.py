"""The one module around transformers' model: head, loss, dropout, seeds."""

import pytest
import torch
import torch.nn.functional as F

import tiny
from crossover.model import loss
from crossover.model.attention import make_plan
from crossover.model.backbone import build
from crossover.model.layers import Pieces
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.records import Pattern
from crossover.streams import stream

FAMILIES = ["llama", "qwen3", "qwen3_moe"]
CAUSAL = Pattern("causal")


def some_inputs(words, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, words.size, (2, count), generator=torch.Generator().manual_seed(0))
    return ids, torch.arange(count)[None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_mask_and_padding_have_no_probability(family, tied) -> None:
    words = tiny.vocabulary(5)
    model = tiny.model(words, 8, family, tied=tied)
    ids, positions = some_inputs(words)
    with torch.no_grad():
        states = model.states(ids, positions, model.plan(CAUSAL, 8))
        logits = model.logits(states)
        nats = model.nll(
            ids.repeat(5, 1), positions, model.plan(CAUSAL, 8), None, torch.arange(5).repeat_interleave(16)
        )
    assert logits.shape[-1] == words.predictable < words.mask_id < words.size
    total = torch.exp(-nats).view(5, 16).sum(0)
    torch.testing.assert_close(total, torch.ones(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", [Masked(), Block(4)])
def test_the_loss_is_the_weighted_cross_entropy_per_data_token(objective) -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, 8, tied=False)
    example = objective.corrupt(stream(0, "text").integers(0, 9, (3, 8)), stream(0, "mask"), words)
    states = tiny.states(model, example)[example.reads_R]
    logits = states @ model.inner.lm_head.weight.T
    logits[:, words.predictable :] = float("-inf")
    chosen = torch.log_softmax(logits, -1)[range(len(states)), example.targets_R]
    wanted = -(chosen * tiny.tensor(example.weights_R)).sum() / 96
    torch.testing.assert_close(tiny.loss(model, example, 96).detach(), wanted.detach(), rtol=1e-5, atol=0)


def test_padding_reads_do_not_count_even_towards_gradients() -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, 8)
    example = Masked().corrupt(stream(0, "text").integers(0, 9, (3, 8)), stream(1, "mask"), words)
    assert (example.weights_R == 0).any()
    gradients = []
    for targets in (example.targets_R, (example.targets_R + (example.weights_R == 0)) % 9):
        model.zero_grad()
        model(
            tiny.tensor(example.inputs_BN),
            tiny.tensor(example.positions_BN),
            tiny.plan_of(model, example),
            tiny.tensor(example.reads_R),
            tiny.tensor(targets),
            tiny.tensor(example.weights_R),
            24.0,
        ).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [700 * 4, 700 * 11, 10**6])
def test_the_chunked_head_is_the_plain_head(monkeypatch, precision, chunk) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(loss, "FEWEST_STATES", 1)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(33, 16, generator=generator).bfloat16().float().requires_grad_()
    head = torch.randn(700, 16, generator=generator).bfloat16().float().requires_grad_()
    targets = torch.randint(0, 700, (33,), generator=generator)
    weights = torch.rand(33, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        value = loss.weighted_nll(states, head, targets, weights, 10.0)
        found = (value.detach(), *torch.autograd.grad(3 * value, (states, head)))
        with torch.no_grad():
            nats = loss.nll_R(states, head, targets)
    plain = F.cross_entropy(states.double() @ head.double().T, targets, reduction="none")
    total = (plain * weights).sum() / 10
    wanted = (total.detach(), *torch.autograd.grad(3 * total, (states, head)))
    bound = 1e-6 if precision == torch.float32 else 1e-2
    torch.testing.assert_close(nats.double(), plain.detach(), rtol=0, atol=20 * bound)
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).norm() / other.norm()) < bound


def test_a_loss_whose_graph_is_kept_has_the_same_gradient_again() -> None:
    states, head = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    value = loss.weighted_nll(states, head, torch.tensor([0, 4, 2]), torch.ones(3), 1.0)
    first = torch.autograd.grad(2 * value, (states, head), retain_graph=True)
    again = torch.autograd.grad(2 * value, (states, head))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_loss_that_is_not_finite_says_so() -> None:
    head = torch.ones(5, 4)
    for value in (float("inf"), float("nan")):
        states = torch.full((2, 4), value, requires_grad=True)
        found = loss.weighted_nll(states, head.requires_grad_(), torch.zeros(2, dtype=torch.long), torch.ones(2), 1.0)
        assert not bool(torch.isfinite(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_keeps_the_names_and_acts_in_training_only(family) -> None:
    words = tiny.vocabulary(9)
    ids, positions = some_inputs(words)
    options = [{}, {"residual_dropout": 0.3}, {"attention_dropout": 0.3}]
    plain, *dropped = (build(tiny.shape(family, words.size), words, context=8, seed=0, **option) for option in options)
    reference = plain.eval().states(ids, positions, plain.plan(CAUSAL, 8))
    for model in dropped:
        assert list(model.state_dict()) == list(plain.state_dict())
        assert [name for name, _ in model.inner.named_parameters()] == [n for n, _ in plain.inner.named_parameters()]
        torch.manual_seed(0)
        noisy = [model.train().states(ids, positions, model.plan(CAUSAL, 8)) for _ in range(2)]
        assert not torch.equal(noisy[0], noisy[1])
        assert torch.equal(model.eval().states(ids, positions, model.plan(CAUSAL, 8)), reference)


def test_residual_dropout_acts_at_both_output_projections() -> None:
    words = tiny.vocabulary(9)
    model = build(tiny.shape(rows=words.size), words, context=8, seed=0, residual_dropout=0.25).train()
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.inner.named_modules():
        if name.endswith((".o_proj", ".down_proj", ".q_proj", ".up_proj")):
            module.register_forward_hook(lambda _, inputs, output, name=name: seen.__setitem__(name, output))
    ids, positions = some_inputs(words)
    torch.manual_seed(0)
    model.states(ids.repeat(20, 1), positions, model.plan(CAUSAL, 8))
    assert len(seen) == 8
    for name, output in seen.items():
        share = float((output == 0).float().mean())
        assert share == pytest.approx(0.25 if name.endswith((".o_proj", ".down_proj")) else 0.0, abs=0.03), name


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_depend_on_the_seed_and_the_shape_alone(family) -> None:
    words, shape = tiny.vocabulary(9), tiny.shape(family, 13)

    def weights(seed: int, context: int = 8, **options: float) -> torch.Tensor:
        made = build(shape, words, context=context, seed=seed, **options)
        return torch.cat([parameter.flatten() for parameter in made.inner.parameters()])

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = weights(5, context=32, residual_dropout=0.5, attention_dropout=0.1, rope_theta=500.0)
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before), "building a model must not move torch's own stream"
    assert not torch.equal(first, weights(6))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_waits_for_nothing_on_the_device(family) -> None:
    """On the meta device every look at a value is an error, so a host sync in the step would be one."""
    words = tiny.vocabulary(9)
    model = build(tiny.shape(family, words.size), words, context=8, seed=0)
    plan = model.plan(Pattern("full"), 8)
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    reads = torch.zeros(3, dtype=torch.long, device="meta")
    # Off the CPU, experts are one grouped product, which there is in bfloat16.
    model.to("meta", torch.bfloat16 if family == "qwen3_moe" else torch.float32)
    model(ids, ids[:1], plan, reads, reads, reads.float(), 16.0).backward()


@pytest.mark.filterwarnings("ignore")
def test_for_a_gpu_the_model_is_compiled_into_one_graph() -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, 8)
    ids, positions = some_inputs(words, 14)
    plan = make_plan(Pattern("two_stream", 4, 4, "block_causal"), 14, ids.device, torch.float32, "sdpa")
    reads = torch.arange(4)
    explained = torch._dynamo.explain(model)(ids, positions, plan, reads, reads, torch.ones(4), 16.0)
    assert explained.graph_break_count == 0, explained.break_reasons
    arguments = (ids, positions, plan, reads, reads, torch.ones(4), 16.0)
    wanted = model(*arguments)
    wanted.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(model, backend="aot_eager", dynamic=False)(*arguments).backward()
    assert all(torch.equal(one, two.grad) for one, two in zip(gradients, model.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_are_transformers_own_layers(family) -> None:
    """The last layer's shortcuts change no state that is read, and no gradient."""
    words = tiny.vocabulary(9)
    pattern = Pattern("two_stream", 2, 6, "block_causal")
    ids, positions = some_inputs(words, 18)
    reads = torch.tensor([6, 7, 9, 13, 17, 18 + 10, 18 + 16])
    for first_read in (0, 6):
        results = []
        for driven in (True, False):
            model = tiny.model(words, 8, family)
            model.pieces = model.pieces if driven else None
            states = model.read_states(ids, positions, model.plan(pattern, 18, None, first_read * driven), reads)
            states.square().sum().backward()
            results.append([states.detach(), *(parameter.grad for parameter in model.parameters())])
        for one, other in zip(*results, strict=True):
            if one is not None or other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_keeps_less_and_changes_no_gradient(dropout) -> None:
    words = tiny.vocabulary(9)
    ids, positions = some_inputs(words)
    results, kept_bytes = [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept_bytes[-1] += tensor.numel() * tensor.element_size()
        return tensor

    for checkpointed in (False, True):
        model = build(tiny.shape("llama", words.size), words, context=8, seed=0, residual_dropout=dropout).train()
        model.pieces = Pieces(checkpointed=checkpointed)
        torch.manual_seed(1)
        kept_bytes.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.states(ids, positions, model.plan(CAUSAL, 8))
        states.square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert results[0] and all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert kept_bytes[1] < 0.8 * kept_bytes[0], "of two layers, the first keeps its input only"
