"""The rule that the documentation writes, taken from its page, works as a job's rule."""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from chain.genesis import Params
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.errors import Refused
from fl.jobrules import check_rules
from fl.rules import RULES
from fl.rules.rule import Rule, written_settings
from fl.tensors.encodings import Place, encode_update
from fl.tensors.model import build_model, parse_model
from fl.updates import form_of
from tests.fl.builders import SCHEMA, make_rules

PAGE = Path(__file__).parents[3] / "docs" / "aggregation.md"
STEP = 0.1


@pytest.fixture
def sign_vote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rule:
    (text,) = re.findall(r'```python\n(""".*?)```', PAGE.read_text(), re.DOTALL)
    path = tmp_path / "sign_vote.py"
    path.write_text(text)
    module = ModuleType("sign_vote")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "sign_vote", module)
    exec(compile(text, path, "exec"), module.__dict__)
    rule: Rule = module.SignVote()
    monkeypatch.setitem(RULES, rule.name, rule)
    return rule


def test_the_rule_of_the_page_is_a_rule_as_any_other(sign_vote: Rule) -> None:
    settings = written_settings(sign_vote, {"step": STEP})
    rules = make_rules(rule="sign_vote", settings=settings)
    check_rules(rules, Params())
    chance = np.random.default_rng(4)
    deltas = [
        {
            each.name: chance.choice([-3.0, -0.0, 0.0, 2.0**-149, 5.0], each.shape).astype(np.float32)
            for each in SCHEMA.tensors
        }
        for _ in range(7)
    ]
    aggregation, form = Aggregation(AggregationRules(bytes(32), 1, rules, 1)), form_of(rules, 0)
    for index, delta in enumerate(deltas):
        member = index.to_bytes(32, "big")
        payload = encode_update(form, Place(bytes(32), 1, member), delta)
        aggregation.add(Update(index, 1, member, 1, 0, payload, member))
    base = build_model(SCHEMA, {each.name: np.ones(each.shape, np.float32) for each in SCHEMA.tensors})
    model = parse_model(SCHEMA, b"".join(aggregation.finish(bytes(32), base, None).model()))
    for each in SCHEMA.tensors:
        # What is sent is canonical: a denormal is zero.
        votes = sum(np.sign(np.where(abs(delta[each.name]) < 1, 0, delta[each.name])) for delta in deltas)
        wanted = [float(1 + Fraction(STEP) * int(vote) / 7) for vote in np.ravel(votes)]
        assert np.allclose(np.ravel(model[each.name]), wanted, rtol=2.0**-23, atol=0)


def test_a_step_beyond_the_range_is_refused(sign_vote: Rule) -> None:
    settings = written_settings(sign_vote, {"step": 300.0})
    with pytest.raises(Refused, match="beyond the job's range"):
        check_rules(make_rules(rule="sign_vote", settings=settings), Params())
