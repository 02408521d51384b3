from __future__ import annotations

from registry import METHODS, Term


@METHODS.register("kd", paper="Hinton et al., arXiv 1503.02531", year=2015)
def kd(ce: float = 1.0, weight: float = 1.0, temperature: float = 4.0) -> list[Term]:
    """Knowledge distillation (Hinton et al. 2015): cross entropy plus softened logits."""
    return [Term("cross_entropy", ce), Term("kd", weight, options={"temperature": temperature})]
