"""First contact, tried with this machine's CPU through the script that a TPU host runs."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import contact
from score_jax.model.decoder import Decoder, forward
from score_jax.planning import contact_probe, first_contact
from score_jax.planning.first_contact import Contact, PartFailed, finish, kill_midway
from score_jax.stages.settings import parse
from tests.tiny import MODEL
from tests.tiny_stages import CACHE, FILE, ROOT


def test_the_script_tries_everything_on_four_devices_and_writes_one_file(tmp_path, cache):
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "launch/first_contact.sh", "--here", f"--workdir={tmp_path}",
         f"--config={FILE}:stage1", f"--bench-config={FILE}:stage1"],
        cwd=ROOT,
        env=os.environ | CACHE | four
        | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "first_contact.json").read_text())
    assert found["failed"] == {}
    numbers = found["numbers"]["logprobs_against_cpu"]
    assert found["numbers"]["devices"] == 4
    assert numbers["float32"]["max"] < 1e-5  # they are the CPU itself
    assert 0 < numbers["bfloat16"]["mean"] <= numbers["bfloat16"]["max"] < 0.2
    survival = found["survival"]
    assert survival["equal"] and survival["differing_metrics"] == [] and survival["was_resumed"]
    assert survival["exit_code_of_killed"] == 143 and 1 <= survival["killed_after_step"] < 4
    assert set(survival["mismatch_nats_per_token"]) == {f"mismatch/mean/turn{n}" for n in (1, 2)}
    assert found["file_system"]["same_bytes"]
    assert {"sample", "update"} <= set(found["speed"]["seconds"])
    assert found["plan"]["bytes"] > 0 and found["plan"]["fits"]


def test_a_part_that_fails_is_told_and_the_others_are_run(tmp_path, monkeypatch):
    def fail(contact):
        raise PartFailed("exit code 1: no TPU")

    parts = {"numbers": fail, "survival": lambda contact: {"equal": True}}
    monkeypatch.setattr(first_contact, "PARTS", parts)
    found = first_contact.make_contact(Contact(folder=tmp_path / "here"))
    told = {"numbers": "PartFailed: exit code 1: no TPU"}
    assert found["failed"] == told and found["survival"]["equal"]
    assert json.loads((tmp_path / "here.json").read_text())["failed"] == found["failed"]


def test_a_command_that_fails_tells_its_last_line(tmp_path):
    script = "import sys; print('first'); print('error: no chip', file=sys.stderr); sys.exit(3)"
    with pytest.raises(PartFailed, match=r"^exit code 3: error: no chip$"):
        finish([sys.executable, "-c", script], tmp_path / "log")


def test_a_run_that_ends_before_its_first_step_is_no_killed_one(tmp_path):
    with pytest.raises(PartFailed, match="no step before the end: error: broken"):
        kill_midway([sys.executable, "-c", "print('error: broken')"], tmp_path, tmp_path / "log")


def logged(workdir, *rows):
    folder = workdir / "stage1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return first_contact.training_rows(workdir)


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        ({"time/update": 9.0, "compile/programs": 3.0, "sample/useful": 0.5}, []),
        ({"loss": 0.5}, ["loss"]),
        ({"kl/turn1": 1.0, "time/update": 9.0}, ["kl/turn1"]),
    ],
)
def test_runs_are_compared_by_all_that_is_no_time(tmp_path, changed, differing):
    row = {"step": 1, "loss": 0.25, "time/update": 1.0}
    whole, cut = logged(tmp_path / "whole", row), logged(tmp_path / "cut", row | changed)
    found = first_contact.compared(whole, cut)
    assert (found["equal"], found["differing_metrics"]) == (not differing, differing)


def test_a_run_that_lost_a_step_is_another_one(tmp_path):
    rows = [{"step": step, "loss": 0.25} for step in (1, 2)]
    whole, cut = logged(tmp_path / "whole", *rows), logged(tmp_path / "cut", rows[0])
    found = first_contact.compared(whole, cut)
    assert not found["equal"] and (found["steps"], found["steps_of_resumed"]) == (2, 1)


def test_the_usual_contact_has_rows_for_eight_devices():
    settings = parse(contact.get_config())
    assert settings.batch % 8 == 0 and settings.rows % (8 * settings.learner.microbatches) == 0
    assert settings.steps == first_contact.STEPS


def test_a_contact_draws_and_learns_in_bfloat16():
    """So that the mismatch that it tells is one of bfloat16."""
    assert parse(contact.get_config()).compute.dtype == "bfloat16"


def test_one_chip_times_a_step_of_a_smaller_model():
    settings = parse(contact.get_config("one_chip"))
    assert settings.compute.dtype == "bfloat16" and settings.rows == 64
    assert settings.sampling.turn_limit == 192
    with pytest.raises(ValueError, match=r"part is 'two'; choose one of run, one_chip"):
        contact.get_config("two")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_overrides_reach_the_probe_and_every_run(tmp_path):
    flags = ("--config.compute.dtype=float32", "--config.weights.source=FILE.gguf")
    here = Contact(folder=tmp_path, flags=flags)
    assert set(flags) <= set(here.train("whole"))
    measured = here.measure("bench", "--mode=bench")
    assert flags[0] in measured and flags[1] not in measured  # it times a shape of its own
    line = ["probe", f"--config={ROOT}/configs/contact.py", *flags, f"--out={tmp_path}/out.json"]
    settings, out = contact_probe.parse_flags(line)
    assert (settings.compute.dtype, settings.weights.source) == ("float32", "FILE.gguf")
    assert out == tmp_path / "out.json"


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
