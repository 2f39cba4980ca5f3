"""Asking: order, one repair, every status, and requests made no earlier than they can be in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Scripted, is_repair

from latentgloss.errors import LanguageModelError
from latentgloss.llm.asking import Query, UnparsableReply, ask_all
from latentgloss.protocols import Message, Reply, Request


def read(reply):
    if not reply.text.startswith("good"):
        raise UnparsableReply("it is not good")
    return reply.text


def repaired(messages, reply, problem):
    return (*messages, Message("assistant", reply or "-"), Message("user", f"That could not be read: {problem}"))


def asks(n):
    return [Query(Request((Message("user", str(i)),), 10), read, repaired) for i in range(n)]


def by_plan(plan):
    """First and second reply per number."""

    def answer(request):
        first, second = plan[int(request.messages[0].content)]
        return second if is_repair(request) else first

    return answer


STATUSES = ["truncated", "refused", "llm_error", "unsupported"]
replies = st.one_of(
    st.sampled_from(["good", "bad", "", "\ud800"]).map(lambda text: Reply("ok", text=text)),
    st.sampled_from(STATUSES).map(lambda status: Reply(status, text="good")),
)


@given(st.lists(st.tuples(replies, replies), max_size=12), st.integers(1, 20))
def test_everything_asked_is_told_in_order_whatever_is_answered(plan, ahead):
    model = Scripted(by_plan(plan), ahead=ahead)
    told = list(ask_all(model, asks(len(plan))))
    assert len(told) == len(plan)
    for (first, second), one in zip(plan, told, strict=True):
        unread = (first.status == "ok" and first.text != "good") or first.status == "truncated"
        last = second if unread else first
        assert one.repaired == unread
        good = last.status == "ok" and last.text == "good"
        parse = last.status in ("ok", "truncated") and not good
        assert one.status == ("ok" if good else "parse_failed" if parse else last.status)
        assert (one.value == "good") == good and (one.value is None) == (not good)
        assert bool(one.reason) == (one.status != "ok")
        assert one.prompt_tokens > 0 and one.cost_usd == pytest.approx(0.001 * (1 + unread))
        one.reply.encode()


def test_repairs_go_out_among_the_next_requests():
    plan = [(Reply("ok", text="bad"), Reply("ok", text="good again"))] + [(Reply("ok", text="good"),) * 2] * 20
    model = Scripted(by_plan(plan), ahead=4)
    told = list(ask_all(model, asks(21)))
    assert [t.value for t in told] == ["good again", *["good"] * 20]
    assert [is_repair(r) for r in model.seen].index(True) == 4  # right after what was in flight


def test_requests_are_made_no_earlier_than_the_model_takes_them():
    made = []

    def coming():
        for i, ask in enumerate(asks(100)):
            made.append(i)
            yield ask

    model = Scripted(lambda request: "good", ahead=7)
    told = ask_all(model, coming())
    next(told)
    assert len(made) == 7
    assert len([*told]) == 99 and model.most_ahead == 7


def test_a_spent_budget_ends_the_run_and_is_nobodys_row():
    model = Scripted(lambda request: Reply("over_budget"))
    with pytest.raises(LanguageModelError, match="budget"):
        list(ask_all(model, asks(3)))


def test_an_engine_that_loses_requests_is_told_so():
    class Loses(Scripted):
        def complete(self, requests):
            yield from list(super().complete(requests))[1:]

    with pytest.raises(LanguageModelError, match="without a reply"):
        list(ask_all(Loses(lambda request: "good"), asks(3)))
