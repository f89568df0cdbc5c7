"""Drawn ids as texts: stop strings, holes, guidance, and watchers."""

import pytest
import torch

import tiny
from crossover.errors import RecipeError
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import policy_of
from crossover.sampling.reading import Reading

T = 8
GREEDY = Picking(temperature=0)
POLICIES = ("first_hitting(3)", "left_to_right", "ancestral(5)", "remasking(6, 0.3)", "confidence", "entropy(0.5)")
SAMPLERS = [
    AutoregressiveSampler(),
    *(MaskedSampler(policy=policy_of(name)) for name in POLICIES),
    *(BlockSampler(4, policy=policy_of(name)) for name in POLICIES),
]


def spell(ids) -> str:
    """Every id is two letters."""
    return "".join(chr(97 + token // 26) + chr(97 + token % 26) for token in ids)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_stop_string_ends_a_text_and_is_no_part_of_it(sampler) -> None:
    words = tiny.vocabulary(40)
    model, stopped = tiny.model(words, T), 0
    for seed in range(12):
        whole = sampler.sample(model, [[1, 2]], 6, seed, reading=Reading(spell))[0]
        assert whole.pieces == ((spell(whole.ids),) if whole.ids else ())
        assert whole.text == spell(whole.window_ids)
        if len(whole.ids) < 4:
            continue
        # It begins in the middle of a token and ends in the middle of another one.
        stop = whole.pieces[0][3:6]
        cut = sampler.sample(model, [[1, 2]], 6, seed, reading=Reading(spell, ("never", stop)))[0]
        place = whole.pieces[0].find(stop)
        assert cut.ended == "stop" and cut.pieces == (whole.pieces[0][:place],)
        assert cut.ids == whole.ids[: -(-place // 2)] and cut.text == spell([1, 2]) + cut.pieces[0]
        assert cut.passes <= whole.passes
        stopped += 1
    assert stopped > 3


def spell_words(ids) -> str:
    """Every id is a word behind a space; as SentencePiece does, the space before a text is left out."""
    return "".join(" " + chr(97 + token % 26) + str(token // 26) for token in ids)[1:]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_stop_string_may_begin_with_the_space_before_the_first_drawn_word(sampler) -> None:
    model = tiny.model(tiny.vocabulary(40), 16)
    whole = sampler.sample(model, [[1, 2]], 14, 3, reading=Reading(spell_words))[0]
    for place, token in enumerate(whole.ids[:12]):
        stop = spell_words([0, token])[2:]
        cut = sampler.sample(model, [[1, 2]], 14, 3, reading=Reading(spell_words, (stop,)))[0]
        first = whole.ids.index(token)
        assert stop[0] == " " and cut.ended == "stop" and cut.ids == whole.ids[:first]
        assert cut.text == spell_words([1, 2, *whole.ids[:first]])
        if isinstance(sampler, AutoregressiveSampler):
            assert cut.passes == first + 1 <= place + 1


def test_next_tokens_and_blocks_stop_early() -> None:
    model = tiny.model(tiny.vocabulary(40), 16)
    whole = AutoregressiveSampler().sample(model, [[]], 16, 1, reading=Reading(spell))[0]
    reading = Reading(spell, (spell(whole.ids[2:3]),))
    assert AutoregressiveSampler().sample(model, [[]], 16, 1, reading=reading)[0].passes == 3
    whole = BlockSampler(4).sample(model, [[]], 16, 1, reading=Reading(spell))[0]
    reading = Reading(spell, (spell(whole.ids[1:2]),))
    assert BlockSampler(4).sample(model, [[]], 16, 1, reading=reading)[0].passes == 4
    with pytest.raises(RecipeError, match="empty"):
        Reading(spell, ("",))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [4, 12])
def test_holes_are_filled_and_what_is_given_stays(policy, size) -> None:
    words = tiny.vocabulary(5)
    hole, ends = words.mask_id, 0
    template = [1, hole, hole, 2, 3, hole, 1, *[hole] * 3]
    for seed in range(10):
        model = tiny.model(words, 12, seed=seed)
        sampler = BlockSampler(size, policy=policy_of(policy))
        made, behind = sampler.sample(model, [template, template[:7]], [0, 0], seed, reading=Reading(spell))
        for item, length in ((made, 10), (behind, 7)):
            for place, token in enumerate(item.window_ids):
                assert token == template[place] or template[place] == hole
            assert hole not in item.window_ids
            assert words.eos_id not in item.window_ids, "no document ends in a hole with text behind it"
            assert (item.ended == "length") == (len(item.window_ids) == length)
        assert len(behind.ids) == 3 and [len(piece) for piece in behind.pieces] == [4, 2]
        assert made.text == spell(made.window_ids)
        ends += made.ended == "document"
    assert ends, "behind the last given token a document may end"


@pytest.mark.parametrize("policy", ["confidence", "margin", "entropy(0)"])
def test_a_place_where_only_the_end_is_likely_is_not_sure_in_a_hole(monkeypatch, policy) -> None:
    """An end is barred there, so that what remains counts: nothing is known of the first place, much of the second."""
    words, shown = tiny.vocabulary(5), []
    model = tiny.model(words, T)
    says = torch.tensor([[0.0, 0.0, 0.0, 0.0, 20.0], [0.0, 0.0, 2.0, 0.0, 0.0]])
    monkeypatch.setattr(model, "logits", lambda states: says[-len(states) :].clone())
    template = [words.mask_id, words.mask_id, 1]
    MaskedSampler(policy=policy_of(policy)).sample(
        model, [template], 0, seed=0, on_change=lambda _, ids: shown.append([token == words.mask_id for token in ids])
    )
    assert shown == [[True, False, False], [False, False, False]]


def test_next_token_sampling_refuses_holes() -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    with pytest.raises(RecipeError, match="prompt 0 has a hole at place 1"):
        AutoregressiveSampler().sample(model, [[1, model.vocabulary.mask_id, 2]], 0, seed=0)


def test_guidance_is_llada_s_formula() -> None:
    """One greedy token: u + (1 + w)(c - u), u from the window with the prompt hidden."""
    words = tiny.vocabulary(40)
    differ = 0
    for seed in range(8):
        model = tiny.model(words, T, seed=seed)
        logits = []
        for given in ([5, 6], [words.mask_id] * 2):
            window = torch.tensor([[words.bos_id, *given, *[words.mask_id] * (T - 2)]])
            with torch.no_grad():
                states = model.states(window, torch.arange(T + 1)[None], model.plan(Pattern("full"), T + 1))
            logits.append(model.logits(states[0, 2]))
        wanted = int((logits[1] + 3 * (logits[0] - logits[1])).argmax())
        made = MaskedSampler(GREEDY, guidance=2.0).sample(model, [[5, 6]], 1, seed=0)[0]
        assert made.ids == ((wanted,) if wanted != words.eos_id else ()) and made.passes == 2
        differ += wanted != int(logits[0].argmax())
    assert differ
    with pytest.raises(RecipeError, match="guidance needs a prompt"):
        MaskedSampler(guidance=1.0).generate(model, [], 3, seed=0)
    with pytest.raises(RecipeError, match="guidance must be"):
        MaskedSampler(guidance=-1.0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_watcher_sees_the_text_as_it_grows(sampler) -> None:
    words = tiny.vocabulary(40)
    model, seen = tiny.model(words, T), {0: [], 1: []}
    made = sampler.sample(model, [[1, 2], [3]], 5, 4, on_change=lambda number, ids: seen[number].append(tuple(ids)))
    for item, states in zip(made, seen.values(), strict=True):
        assert len(states) <= item.passes and states[-1][: len(item.window_ids)] == item.window_ids
        shown = [sum(token != words.mask_id for token in state) for state in states]
        assert shown == sorted(shown) or getattr(getattr(sampler, "policy", None), "remasks", False)
