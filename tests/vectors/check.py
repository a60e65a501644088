#!/usr/bin/env python3
"""Exchanges word vectors with gensim, NumPy and safetensors, in both directions.

    cargo build --release --example neighbors --example train_embeddings
    python tests/vectors/check.py [VECTORS]

Trains small vectors on this crate's sources unless a word2vec text file is given. Needs gensim, numpy and safetensors.
Ends with an error at the first difference.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from gensim.models import KeyedVectors
from safetensors.numpy import load_file, save_file

root = pathlib.Path(__file__).resolve().parent.parent.parent
examples = root / "target" / "release" / "examples"
folder = pathlib.Path(tempfile.mkdtemp())
endings = {"word2vec": "txt", "word2vec-bin": "bin", "npy": "npy", "safetensors": "safetensors"}


def run(example, *arguments):
    command = [examples / example, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def load(form, path):
    if form.startswith("word2vec"):
        vectors = KeyedVectors.load_word2vec_format(str(path), binary=form == "word2vec-bin")
        return vectors.index_to_key, vectors.vectors
    if form == "npy":
        return path.with_suffix(".words").read_text(encoding="utf8").splitlines(), np.load(path)
    tensors = load_file(path)
    return tensors["words"].tobytes().decode().splitlines(), tensors["vectors"]


def save(form, path, words, table):
    if form.startswith("word2vec"):
        vectors = KeyedVectors(table.shape[1])
        vectors.add_vectors(words, table)
        vectors.save_word2vec_format(str(path), binary=form == "word2vec-bin")
    elif form == "npy":
        np.save(path, table)
        path.with_suffix(".words").write_text("".join(f"{word}\n" for word in words), encoding="utf8")
    else:
        joined = "".join(f"{word}\n" for word in words).encode()
        save_file({"vectors": table, "words": np.frombuffer(joined, np.uint8)}, path)


def same(found, cosines, count, question, case):
    """The words found must have the highest of gensim's cosines; equal ones, to rounding, may change places."""
    expected = [cosines[index] for index in np.argsort(-cosines) if reference.index_to_key[index] not in question]
    assert len(found) == count, case
    for near, cosine in zip(found, expected):
        assert near["word"] not in question, case
        assert abs(near["cosine"] - cosine) < 1e-5, (case, near, cosine)
        assert abs(cosines[reference.get_index(near["word"])] - cosine) < 1e-5, (case, near, cosine)


# Written here, read there: the same run in every format.
written = {}
for form, ending in endings.items():
    path = folder / f"here.{ending}"
    run("train_embeddings", "--data", root / "src", "--dim", 20, "--epochs", 1, "--workers", 1, "--format", form,
        "--out", path)
    written[form] = load(form, path)
words, table = written["npy"]
assert len(words) > 100 and table.dtype == np.float32 and table.shape == (len(words), 20)
for form, (other_words, other_table) in written.items():
    assert list(other_words) == list(words), form
    assert np.array_equal(other_table, table), form
print(f"{len(words)} words written here in {len(written)} formats are the same in Python, bit by bit")

# Written there, read here: neighbours as gensim finds them.
if len(sys.argv) > 1:
    reference = KeyedVectors.load_word2vec_format(sys.argv[1])
else:
    reference = KeyedVectors(table.shape[1])
    reference.add_vectors(words, table)
asked = list(reference.index_to_key[5:200:13])
for form, ending in endings.items():
    path = folder / f"there.{ending}"
    save(form, path, reference.index_to_key, reference.vectors)
    lines = run("neighbors", path, "--words", *asked, "--top", 10, "--json").splitlines()
    assert len(lines) == len(asked)
    for word, line in zip(asked, lines):
        found = json.loads(line)
        assert found["word"] == word
        same(found["neighbours"], reference.most_similar(word, topn=None), 10, {word}, (form, word))
    a, b, c = asked[:3]
    found = json.loads(run("neighbors", path, "--analogy", a, b, c, "--top", 5, "--json"))["neighbours"]
    cosines = reference.most_similar(positive=[b, c], negative=[a], topn=None)
    same(found, cosines, 5, {a, b, c}, form)
    found = json.loads(run("neighbors", path, "--similarity", a, b, "--json"))["cosine"]
    assert abs(found - reference.similarity(a, b)) < 1e-5, form
print(f"{len(reference)} words written in Python are read here in {len(endings)} formats: "
      f"the neighbours of {len(asked)} words, an analogy and a similarity are gensim's")
