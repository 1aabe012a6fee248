"""What members agree on, over any rows: one answer for all, nothing used that one lacks, no token beyond its bounds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from experts.epoch.agreement import Astray, GoTo, Row, StepHeader, agree

EPOCH, STEP = 7, 40
_TOKENS = st.integers(0, 300)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Rows of members that are at the same step, ready for few different epochs."""
    ready = st.sampled_from(draw(st.lists(st.integers(EPOCH, EPOCH + 2), min_size=1, max_size=2)))
    stop = st.sampled_from([0, 0, 0, 1])
    row = st.builds(Row, st.just(EPOCH), st.just(STEP), st.integers(0, 5), _TOKENS, _TOKENS, stop, ready)
    return draw(st.lists(row, min_size=1, max_size=8))


@settings(max_examples=500, deadline=None)
@given(found=rows(), budget=st.integers(1, 400))
def test_a_step_or_an_epoch_is_agreed_on(found: list[Row], budget: int) -> None:
    answer = agree(found, EPOCH, STEP, budget)
    named = {row.ready for row in found}
    goes = len(named) == 1 and named != {EPOCH} and not any(row.stop for row in found)
    assert isinstance(answer, GoTo) == goes
    if isinstance(answer, GoTo):
        assert answer.epoch == found[0].ready
        return
    assert isinstance(answer, StepHeader)
    assert (answer.epoch, answer.step) == (EPOCH, STEP)
    assert answer.version == min(row.version for row in found), "what some member lacks is not used"
    assert answer.stop == any(row.stop for row in found)
    assert answer.tokens == tuple(row.decode + own for row, own in zip(found, answer.prefill, strict=True))
    check_shares(found, answer.prefill, budget)


def check_shares(found: list[Row], granted: tuple[int, ...], budget: int) -> None:
    """Nobody gets more than it wants, all together no more than is left, and the same as the others as far as it wants."""
    decode, wanted = sum(row.decode for row in found), [row.prefill for row in found]
    assert all(0 <= own <= wish for own, wish in zip(granted, wanted, strict=True))
    left = max(budget - decode, 0)
    assert sum(granted) == min(left, sum(wanted)), "what is left is used"
    short = [own for own, wish in zip(granted, wanted, strict=True) if own < wish]
    assert not short or max(granted) - min(short) <= 1, (
        "who wants more has no less than the others, but for a rest of one"
    )


def test_the_rest_goes_round() -> None:
    found = [Row(EPOCH, STEP, 0, 0, 9, 0, EPOCH)] * 3
    first = [agree([row._replace(step=step) for row in found], EPOCH, step, 4) for step in range(3)]
    shares = [answer.prefill for answer in first if isinstance(answer, StepHeader)]
    assert sorted(shares) == [(1, 1, 2), (1, 2, 1), (2, 1, 1)]


@settings(max_examples=200, deadline=None)
@given(found=rows(), member=st.integers(0, 7), behind=st.sampled_from([(-1, 0), (1, -STEP), (0, 1), (0, -1)]))
def test_a_member_at_another_step_is_named(found: list[Row], member: int, behind: tuple[int, int]) -> None:
    at = member % len(found)
    found[at] = found[at]._replace(epoch=EPOCH + behind[0], step=STEP + behind[1])
    assert agree(found, EPOCH, STEP, 100) == Astray(at, EPOCH + behind[0], STEP + behind[1])
