"""Asking: order, one repair, every status, and requests made no earlier than they can be in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Scripted, is_repair

from latentgloss.errors import LanguageModelError
from latentgloss.llm.asking import Query, UnparsableReply, ask_all
from latentgloss.protocols import Message, Reply, Request


def parse(reply):
    if not reply.text.startswith("good"):
        raise UnparsableReply("it is not good")
    return reply.text


def repair(messages, reply, problem):
    return (*messages, Message("assistant", reply or "-"), Message("user", f"That could not be read: {problem}"))


def queries(n):
    return [Query(Request((Message("user", str(i)),), 10), parse, repair) for i in range(n)]


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
def test_every_query_has_a_result_in_order_whatever_is_answered(plan, ahead):
    model = Scripted(by_plan(plan), ahead=ahead)
    results = list(ask_all(model, queries(len(plan))))
    assert len(results) == len(plan)
    for (first, second), result in zip(plan, results, strict=True):
        unparsable = (first.status == "ok" and first.text != "good") or first.status == "truncated"
        last = second if unparsable else first
        assert result.repaired == unparsable
        good = last.status == "ok" and last.text == "good"
        parse = last.status in ("ok", "truncated") and not good
        assert result.status == ("ok" if good else "parse_failed" if parse else last.status)
        assert (result.value == "good") == good and (result.value is None) == (not good)
        assert bool(result.reason) == (result.status != "ok")
        assert result.prompt_tokens > 0 and result.cost_usd == pytest.approx(0.001 * (1 + unparsable))
        result.reply.encode()


def test_repairs_go_out_among_the_next_requests():
    plan = [(Reply("ok", text="bad"), Reply("ok", text="good again"))] + [(Reply("ok", text="good"),) * 2] * 20
    model = Scripted(by_plan(plan), ahead=4)
    results = list(ask_all(model, queries(21)))
    assert [result.value for result in results] == ["good again", *["good"] * 20]
    assert [is_repair(r) for r in model.seen].index(True) == 4  # right after what was in flight


def test_requests_are_made_no_earlier_than_the_model_takes_them():
    made = []

    def coming():
        for i, query in enumerate(queries(100)):
            made.append(i)
            yield query

    model = Scripted(lambda request: "good", ahead=7)
    results = ask_all(model, coming())
    next(results)
    assert len(made) == 7
    assert len([*results]) == 99 and model.most_ahead == 7


def test_a_spent_budget_ends_the_run_and_is_nobodys_row():
    model = Scripted(lambda request: Reply("over_budget"))
    with pytest.raises(LanguageModelError, match="budget"):
        list(ask_all(model, queries(3)))


def test_an_engine_that_loses_requests_raises():
    class Loses(Scripted):
        def complete(self, requests):
            yield from list(super().complete(requests))[1:]

    with pytest.raises(LanguageModelError, match="without a reply"):
        list(ask_all(Loses(lambda request: "good"), queries(3)))
