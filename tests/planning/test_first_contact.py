"""First contact, tried with this machine's CPU through the script that a TPU host runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from score_jax.model.decoder import Decoder, forward
from score_jax.planning import contact_probe, first_contact
from score_jax.planning.first_contact import Contact, PartFailed, finish, kill_midway
from tests.tiny import MODEL
from tests.tiny_stages import CACHE, FILE, ROOT


def test_the_script_tries_everything_and_writes_one_file(tmp_path, cache):
    done = subprocess.run(
        ["bash", "launch/first_contact.sh", "--here", f"--workdir={tmp_path}",
         f"--config={FILE}:stage1", f"--bench-config={FILE}:stage1"],
        cwd=ROOT,
        env=os.environ | CACHE | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "first_contact.json").read_text())
    assert found["failed"] == {}
    numbers = found["numbers"]["logprobs_against_cpu"]
    assert numbers["float32"] == {"mean": 0.0, "max": 0.0}  # it is the CPU itself
    assert 0 < numbers["bfloat16"]["mean"] <= numbers["bfloat16"]["max"] < 0.2
    survival = found["survival"]
    assert survival["equal"] and survival["differing_metrics"] == []
    assert survival["exit_code_of_killed"] == 143 and 1 <= survival["killed_after_step"] <= 4
    assert set(survival["mismatch_nats_per_token"]) == {f"mismatch/mean/turn{n}" for n in (1, 2)}
    assert found["file_system"]["same_bytes"]
    assert {"sample", "update"} <= set(found["speed"]["seconds"])
    assert found["speed"]["plan"]["bytes"] > 0 and found["speed"]["plan"]["fits"]


def test_a_part_that_fails_is_told_and_the_others_are_run(tmp_path, monkeypatch):
    def fail(contact):
        raise PartFailed("exit code 1: no TPU")

    parts = {"numbers": fail, "survival": lambda contact: {"equal": True}}
    monkeypatch.setattr(first_contact, "PARTS", parts)
    found = first_contact.make_contact(Contact(folder=tmp_path / "here"))
    assert found["failed"] == {"numbers": "exit code 1: no TPU"} and found["survival"]["equal"]
    assert json.loads((tmp_path / "here.json").read_text())["failed"] == found["failed"]


def test_a_command_that_fails_tells_its_last_line(tmp_path):
    script = "import sys; print('first'); print('error: no chip', file=sys.stderr); sys.exit(3)"
    with pytest.raises(PartFailed, match=r"^exit code 3: error: no chip$"):
        finish([sys.executable, "-c", script], tmp_path / "log")


def test_a_run_that_ends_before_its_first_step_is_no_killed_one(tmp_path):
    with pytest.raises(PartFailed, match="no step before the end: error: broken"):
        kill_midway([sys.executable, "-c", "print('error: broken')"], tmp_path, tmp_path / "log")


@pytest.mark.parametrize("changed", [{"loss": 0.5}, {"kl/turn1": 1.0}])
def test_runs_are_compared_by_all_that_is_no_time(tmp_path, changed):
    rows = {"whole": {"step": 1, "loss": 0.25, "time/update": 1.0}}
    rows["cut"] = rows["whole"] | {"time/update": 9.0, "compile/programs": 3.0} | changed
    found = {}
    for name, row in rows.items():
        folder = tmp_path / name / "stage1"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (found[name],) = first_contact.training_rows(tmp_path / name)
    assert {k for k in found["cut"] if found["cut"][k] != found["whole"].get(k)} == set(changed)


def test_log_probabilities_are_those_of_the_softmax():
    """By numpy, from the decoder's logits."""
    decoder = Decoder(MODEL)
    tokens = np.asarray([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.int32)
    positions = np.broadcast_to(np.arange(5), tokens.shape)
    params = decoder.init(jax.random.key(0), tokens, positions)["params"]
    params = jax.tree.map(lambda x: getattr(x, "value", x), params,
                          is_leaf=lambda x: hasattr(x, "value"))  # fmt: skip
    found = np.asarray(contact_probe.token_logprobs(decoder, params, tokens))
    hidden = forward(decoder, params, tokens, positions)
    logits = np.asarray(decoder.apply({"params": params}, hidden, method="logits"), np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [[scores[b, t, tokens[b, t + 1]] for t in range(4)] for b in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_differences_by_hand():
    found = contact_probe.difference(np.float32([[1, 2]]), np.float32([[1.5, 1]]))
    assert found == {"mean": 0.75, "max": 1.0}
