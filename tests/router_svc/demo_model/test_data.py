"""The generators are right: steps lead to their answers, and no test item is ever drawn for training."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_svc.demo_model import arithmetic, strings
from router_svc.demo_model.chat import read_answer, write_output
from router_svc.demo_model.corpus import DOMAIN_WEIGHTS, answer, draw_document
from router_svc.demo_model.task import is_held_out

NUMBERS = st.integers(0, 9999)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=10)


@given(NUMBERS, NUMBERS)
def test_every_line_of_an_addition_is_true(a: int, b: int) -> None:
    lines = arithmetic.addition_steps(a, b).splitlines()
    carried = 0
    found = ""
    for line in lines[1:-1]:
        if match := re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d+) write (\d) carry (\d): (\d+)", line):
            x, y, carry, total, digit, next_carry = map(int, match.groups()[:6])
            assert (carry, total) == (carried, x + y + carry)
            assert divmod(total, 10) == (next_carry, digit)
            carried, found = next_carry, f"{digit}{found}"
            assert match[7] == found
        else:
            assert carried == 1
            assert line == f"write 1: 1{found}"
            found = f"1{found}"
    assert int(found) == a + b
    assert lines[-1] == f"result {a + b}"


@given(NUMBERS, NUMBERS)
def test_every_line_of_a_subtraction_is_true(a: int, b: int) -> None:
    lines = arithmetic.subtraction_steps(a, b).splitlines()
    assert (lines[0] == f"{a}<{b} swap") == (a < b)
    borrowed = 0
    found = ""
    for line in lines[2 if a < b else 1 : -1]:
        match = re.fullmatch(r"(\d)-(\d)-(\d)=(-?\d+)( add 10)? write (\d) borrow (\d): (\d+)", line)
        assert match, line
        x, y, borrow, rest, digit, next_borrow = (int(match[i]) for i in (1, 2, 3, 4, 6, 7))
        assert (borrow, rest) == (borrowed, x - y - borrow)
        assert digit == rest + 10 * next_borrow
        assert bool(match[5]) == bool(next_borrow)
        borrowed, found = next_borrow, f"{digit}{found}"
        assert match[8] == found
    assert borrowed == 0
    assert int(found) == abs(a - b)
    assert lines[-1] == f"result {a - b}"


@given(WORDS)
def test_a_word_is_reversed_and_sorted_letter_by_letter(word: str) -> None:
    for maker, expected in ((strings.reverse_steps, word[::-1]), (strings.sort_steps, "".join(sorted(word)))):
        steps, result = maker(word)
        spelled, _, turned = steps.splitlines()
        assert result == expected
        assert (spelled.replace("-", ""), turned.replace("-", "")) == (word, expected)


@given(WORDS, st.sampled_from("abcxyz"))
def test_a_letter_is_counted_up_to_its_number(word: str, letter: str) -> None:
    steps, result = strings.count_steps(word, letter)
    counts = [int(line.split()[1]) for line in steps.splitlines()[2:]]
    assert len(counts) == len(word)
    assert str(counts[-1]) == result == str(word.count(letter))


@given(st.integers(10, 9999), NUMBERS)
def test_a_pair_is_held_out_in_either_order(a: int, b: int) -> None:
    assert arithmetic.pair_is_held_out(a, b) == arithmetic.pair_is_held_out(b, a)


def test_one_pair_in_ten_is_held_out() -> None:
    pairs = [(a, b) for a in range(100, 1000, 9) for b in range(a, 1000, 9)]
    assert sum(arithmetic.pair_is_held_out(*pair) for pair in pairs) / len(pairs) == pytest.approx(0.1, abs=0.015)


def test_training_draws_no_test_item_and_tests_draw_nothing_else() -> None:
    rng = Random(0)
    for _ in range(2000):
        a, b = map(int, re.findall(r"\d+", arithmetic.draw(rng).question))
        assert not arithmetic.pair_is_held_out(a, b)
        assert not is_held_out(strings.draw(rng).steps.splitlines()[0].replace("-", ""))
    for kind in arithmetic.QUESTIONS:
        for _ in range(100):
            a, b = map(int, re.findall(r"\d+", arithmetic.draw_held_out(rng, kind, 3).question))
            assert arithmetic.pair_is_held_out(a, b)
    for kind in strings.QUESTIONS:
        assert is_held_out(strings.draw_held_out(rng, kind).steps.splitlines()[0].replace("-", ""))


def test_a_document_ends_with_a_token_that_ends_and_is_drawn_alike_for_one_seed() -> None:
    documents = [draw_document(Random(seed)) for seed in range(300)]
    assert documents == [draw_document(Random(seed)) for seed in range(300)]
    assert {document.domain for document in documents} == set(DOMAIN_WEIGHTS) - {"plain"}
    assert all(document.target.endswith(("<|eos|>", "<|extra_5|>")) for document in documents)


@pytest.mark.parametrize("mode", ["think", "default", "no_think", "closed"])
def test_the_answer_can_be_read_back_in_every_mode(mode: str) -> None:
    task = arithmetic.make_task("addition", 12, 30, "{a}+{b}")
    output = answer(task, mode)
    assert read_answer(output) == "42"
    assert ("write" in output) == (mode in ("think", "default"))
    assert output.startswith("<answer>" if mode == "closed" else "<think>\n")


def test_no_answer_is_read_from_an_output_that_was_cut() -> None:
    assert read_answer(write_output("steps", "42").removesuffix("</answer>")) is None
