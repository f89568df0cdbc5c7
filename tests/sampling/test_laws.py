"""The law of drawn texts is the law that each way of unmasking promises, by enumeration on three tokens."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import tiny
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.policies import policy_of

T = 4
DRAWS = 2000


def words_without_end():
    """Three tokens, none of which ends a document, so that every text has T tokens."""
    words = tiny.vocabulary(3)
    object.__setattr__(words, "eos_id", 99)
    return words


def model_of(context: int = T):
    """A model that is sure enough for the order to matter, and not so sure that texts are all alike."""
    return tiny.model(words_without_end(), context, seed=2)


class Conditionals:
    """What a model says about hidden tokens, a forward pass for each question, computed from the definitions."""

    def __init__(self, model, block: int, clean: str = "block_causal") -> None:
        self.model, self.block, self.clean, self.known = model, block, clean, {}

    def of(self, shown: tuple) -> np.ndarray:
        """Probabilities [T, 3] where `shown` has None for hidden tokens; only the rows of hidden ones are of use."""
        if shown not in self.known:
            self.known[shown] = self._told(shown)
        return self.known[shown]

    def _told(self, shown: tuple) -> np.ndarray:
        words, context = self.model.vocabulary, len(shown)
        whole = np.array([words.bos_id, *(words.mask_id if token is None else token for token in shown)])
        found = np.zeros((context, words.predictable))
        if self.block in (1, context):
            pattern = Pattern("causal" if self.block == 1 else "full")
            mask = tiny.allowed(pattern, context + 1)
            return self._run(whole, np.arange(context + 1), mask)[:context]
        for first in range(0, context, self.block):
            # The clean prefix, then the noisy copy: the token before the block, and the block.
            copy = np.arange(first, first + self.block + 1)
            inputs, positions = np.append(whole[:first], whole[copy]), np.append(np.arange(first), copy)
            noisy = np.arange(len(inputs)) >= first
            group = np.arange(len(inputs)) // (1 if self.clean == "causal" else self.block)
            mask = noisy[:, None] | (~noisy[None, :] & (group[:, None] >= group[None, :]))
            found[first : first + self.block] = self._run(inputs, positions, mask)[first : first + self.block]
        return found

    def _run(self, inputs: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = self.model.states(tiny.tensor(inputs[None]), tiny.tensor(positions)[None], tiny.dense_plan(mask))[
                0
            ]
        return torch.softmax(self.model.logits(states).double(), -1).detach().numpy()


def order_averaged(conditionals: Conditionals, context: int, block: int, *, left_to_right: bool = False) -> dict:
    """Probability of each text when blocks go left to right, and inside them one token at a time."""
    law = {}
    for text in itertools.product(range(3), repeat=context):
        total = 1.0
        for first in range(0, context, block):
            places = range(first, first + block)
            orders = [tuple(places)] if left_to_right else list(itertools.permutations(places))
            total *= np.mean([_chain(conditionals, text, order, first + block) for order in orders])
        law[text] = total
    return law


def _chain(conditionals: Conditionals, text: tuple, order: tuple, end: int) -> float:
    chance, hidden = 1.0, set(order) | set(range(end, len(text)))
    for place in order:
        shown = tuple(None if other in hidden else token for other, token in enumerate(text))
        chance *= conditionals.of(shown)[place, text[place]]
        hidden.remove(place)
    return chance


def ancestral(conditionals: Conditionals, context: int, steps: int, cap: float = 0.0) -> dict:
    """Law of texts after each step of the reverse process, written as a Markov chain over shown windows."""
    law = {(None,) * context: 1.0}
    for step in range(steps):
        now, then = 1 - step / steps, 1 - (step + 1) / steps
        sigma = min(cap, then / (1 - now)) if step else 0.0
        reveal = ((1 - then) - (1 - sigma) * (1 - now)) / now
        following: dict = Counter()
        for shown, chance in law.items():
            told = conditionals.of(shown)
            choices = [
                [(None, sigma), (token, 1 - sigma)]
                if token is not None
                else [(None, 1 - reveal), *((new, reveal * told[place, new]) for new in range(3))]
                for place, token in enumerate(shown)
            ]
            for way in itertools.product(*choices):
                weight = math.prod(part for _, part in way)
                if weight > 1e-15:
                    following[tuple(token for token, _ in way)] += chance * weight
        law = following
    return law


def compare(sampler, model, law: dict, context: int = T, draws: int = DRAWS) -> None:
    """Chi-square of drawn texts against a law; those that are expected fewer than five times count as one."""
    assert sum(law.values()) == pytest.approx(1, abs=1e-5)
    made = sampler.sample(model, [[]] * draws, context, seed=11)
    found = Counter(item.ids for item in made)
    assert set(found) <= {text for text, chance in law.items() if chance > 0}
    texts = [text for text, chance in law.items() if chance * draws > 5]
    observed = np.array([found[text] for text in texts] + [0.0])
    expected = np.array([law[text] * draws for text in texts] + [0.0])
    observed[-1], expected[-1] = draws - observed.sum(), max(draws - expected.sum(), 1e-9)
    live = expected > 1
    ratio = observed[live].sum() / expected[live].sum()
    assert chisquare(observed[live], expected[live] * ratio).pvalue > 1e-3
    # Total variation between law and frequencies is at most this in expectation (each |error| <= sqrt(p / draws)).
    distance = 0.5 * sum(abs(found[text] / draws - chance) for text, chance in law.items())
    assert distance < 1.5 * 0.5 * sum(math.sqrt(chance / draws) for chance in law.values())
    assert np.ptp(list(law.values())) > 0.02, "the law is not uniform, or the test would say nothing"


def test_next_tokens_have_the_law_of_the_chain_rule() -> None:
    model = model_of()
    law = order_averaged(Conditionals(model, 1), T, 1)
    compare(AutoregressiveSampler(), model, law)
    compare(AutoregressiveSampler(cached=False), model, law, draws=600)


def test_first_hitting_has_the_law_of_random_order() -> None:
    model = model_of()
    compare(MaskedSampler(), model, order_averaged(Conditionals(model, T), T, T))


def test_left_to_right_has_the_law_that_l2r_scores() -> None:
    model = model_of()
    law = order_averaged(Conditionals(model, T), T, T, left_to_right=True)
    compare(MaskedSampler(policy=policy_of("left_to_right")), model, law)
    other = order_averaged(Conditionals(model, T), T, T)
    assert 0.5 * sum(abs(law[text] - other[text]) for text in law) > 0.05, (
        "the orders differ, or neither test says much"
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ancestral_steps_have_the_law_of_the_reverse_process(steps) -> None:
    model = model_of(3)
    compare(
        MaskedSampler(policy=policy_of(f"ancestral({steps})")), model, ancestral(Conditionals(model, 3), 3, steps), 3
    )


def test_many_ancestral_steps_come_near_random_order() -> None:
    """With n steps two of three tokens share one with a chance of at most 3 / n, which bounds the distance."""
    model, steps = model_of(3), 15
    exact = order_averaged(Conditionals(model, 3), 3, 3)
    law = ancestral(Conditionals(model, 3), 3, steps)
    assert 0.5 * sum(abs(law[text] - exact[text]) for text in exact) < 3 / steps
    compare(MaskedSampler(policy=policy_of("ancestral(100)")), model, exact, 3, draws=1000)


@pytest.mark.parametrize("cap", [0.3, 1.0])
def test_remasking_has_the_law_of_its_reverse_process(cap) -> None:
    model, steps = model_of(3), 4
    law = ancestral(Conditionals(model, 3), 3, steps, cap)
    compare(MaskedSampler(policy=policy_of(f"remasking({steps}, {cap})")), model, law, 3)
    plain = ancestral(Conditionals(model, 3), 3, steps)
    assert 0.5 * sum(abs(law[text] - plain[text]) for text in law) > 0.01


def greedy_place(told: np.ndarray, shown: tuple, policy: str) -> int:
    ordered = np.sort(told, axis=1)
    score = ordered[:, -1] - (ordered[:, -2] if policy == "margin" else 0)
    if policy == "entropy":
        score = (told * np.log(told)).sum(1)
    return max((place for place, token in enumerate(shown) if token is None), key=lambda place: score[place])


@pytest.mark.parametrize("policy", ["confidence", "margin", "entropy"])
def test_a_policy_that_looks_draws_from_the_law_of_its_own_order(policy) -> None:
    model = model_of()
    conditionals, law = Conditionals(model, T), {}
    for text in itertools.product(range(3), repeat=T):
        shown, chance = (None,) * T, 1.0
        while None in shown:
            told = conditionals.of(shown)
            place = greedy_place(told, shown, policy)
            chance *= told[place, text[place]]
            shown = (*shown[:place], text[place], *shown[place + 1 :])
        law[text] = chance
    compare(MaskedSampler(policy=policy_of(policy + ("(0)" if policy == "entropy" else ""))), model, law)


@pytest.mark.parametrize("clean", ["block_causal", "causal"])
@pytest.mark.parametrize("order", ["first_hitting", "left_to_right"])
def test_blocks_have_the_law_of_block_after_block(clean, order) -> None:
    model = model_of()
    conditionals = Conditionals(model, 2, clean)
    law = order_averaged(conditionals, T, 2, left_to_right=order == "left_to_right")
    compare(BlockSampler(2, policy=policy_of(order), clean=clean), model, law)
