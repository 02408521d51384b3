"""Does a method keep the contract of ``registry.METHODS``?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pckd.objective import Objective, says
from pckd.ops import PUBLISHED_EPOCHS
from pckd.testing.cases import PAIRS, PATHS, Case, enough_views, make_case, objective_of, reached, tensors_of
from pckd.testing.contract import Contract
from registry import METHODS, NotApplicable, Term


def check_method(method: str | Callable[..., list[Term]]) -> None:
    """Hold a method to its contract: what its defaults give is built, summed up and trains, for one pair at least.

    Clauses: builds, terms, objective, applicable, runs, finite, gradient to the student, teacher is constant.

    Args:
        method: a registered name, with options or without, or the function ``(**weights) -> list[Term]``.
    """
    contract = Contract("method", METHODS, method)
    with contract.clause("builds"):
        terms = contract.make()
    with contract.clause("terms") as expect:
        expect(isinstance(terms, list), f"returned {type(terms).__name__}", "a list of registry.Term")
        others = {type(term).__name__ for term in terms if not isinstance(term, Term)}
        expect(terms and not others, f"the list holds {', '.join(others) or 'nothing'}", "registry.Term")
    accepted = False
    for views, width in PAIRS:
        with contract.trial(make_case(views, width)):
            accepted |= _check(contract, terms, views, width)
    contract.holds("applicable", accepted, "refused every pair of networks", "one that it works for")


def _check(contract: Contract, terms: list[Term], views: int, width: int) -> bool:
    """Whether this pair is not refused."""
    setup = make_case(views, width).setup
    with contract.clause("objective"):
        try:
            terms = [replace(t, options={**t.options, **PATHS}) if says(t, "reads_layers", False) else t for t in terms]
            objective = objective_of(terms, setup)
        except NotApplicable:
            return False
    strong = "strong" in objective.row_sets
    case = make_case(enough_views(views, objective.losses.values()) + strong, width, strong=strong)
    case = case._replace(setup=setup)
    contract.case = str(case)
    _values(contract, objective, case, "main")
    if objective.initial_epochs(PUBLISHED_EPOCHS):
        _values(contract, objective, case, "initial")
    return True


def _values(contract: Contract, objective: Objective, case: Case, stage: Literal["initial", "main"]) -> None:
    with contract.clause("runs"):
        values = objective(case.student, case.teacher, replace(case.context, stage=stage))
    for label, value in values.items():
        is_finite = value.ndim == 0 and value.isfinite()
        contract.holds("finite", is_finite, f"{label} is {value.tolist()}", "a finite number")
    if stage == "main":
        with contract.clause("gradient to the student") as expect:
            values["loss"].backward()
            expect(reached(tensors_of(case.student)), "none came", "some in the student's outputs")
    contract.holds("teacher is constant", not reached(case.constants), "gradient reached the teacher", "none")
