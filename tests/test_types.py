"""The records that cross borders hold what they should, and no more."""

import dataclasses
from typing import get_args

import jax
import numpy as np

from score_jax.types import Effort, Episodes, Ids, Scores, TrainState


def test_pytrees_can_be_mapped_and_replaced():
    scores = Scores(logprobs=np.ones((2, 3)), hidden=None)
    doubled = jax.tree.map(lambda x: 2 * x, scores)
    assert doubled.logprobs.tolist() == [[2.0] * 3] * 2 and doubled.hidden is None
    assert scores.replace(hidden=np.zeros(1)).hidden is not None


def test_the_train_state_never_holds_the_reference():
    """An update is given the state to donate; the reference must outlive it."""
    names = {field.name for field in dataclasses.fields(TrainState)}
    assert names == {"step", "params", "opt_state", "baseline", "coefficients"}


def test_every_field_of_a_row_leads_with_the_batch():
    """So that rows can be split, dealt out and gathered without knowing the fields."""
    own = [field for field in dataclasses.fields(Episodes) if field.name not in ("ids", "effort")]
    for field in [*own, *dataclasses.fields(Ids), *dataclasses.fields(Effort)]:
        kinds = [kind for kind in get_args(field.type) or (field.type,) if kind is not type(None)]
        assert [str(kind.dim_str).split()[0] for kind in kinds] == ["B"], field.name
