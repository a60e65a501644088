#!/usr/bin/env python3
"""Exchanges word vectors with gensim, NumPy and safetensors, in both directions, and evaluates them as gensim does.

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

# What only spaces and line ends do to words: tabs, other blanks and carriage returns are theirs.
odd = ["tab\tulator", "\x0bfeed\x0c", "\rreturn", "no\xa0break"]
for form in ["word2vec", "word2vec-bin"]:
    path = folder / f"odd.{endings[form]}"
    save(form, path, odd, np.eye(4, dtype=np.float32))
    assert load(form, path)[0] == odd, form
    lines = run("neighbors", path, "--words", *odd, "--top", 3, "--json").splitlines()
    found = [[json.loads(line)["word"], *(near["word"] for near in json.loads(line)["neighbours"])] for line in lines]
    assert found == [[word, *(other for other in odd if other != word)] for word in odd], (form, found)

# Evaluations: no two cosines of pairs, and no two answers, are as near to each other as rounding.
GAP = 1e-4
path = folder / "there.npy"
common = [word for word in reference.index_to_key[:300] if not set(word) & set("#:\t")]
shown = [str.upper, str.lower, str.title, str]
index = {}
for row, word in enumerate(reference.index_to_key):
    index.setdefault(word.upper(), row)


def first_of_its_name(word):
    return reference.index_to_key[index[word.upper()]]


pairs, cosines = ["# two words\tand\ta judgment"], []
for number, (a, b) in enumerate(zip(common[:-7:3], common[7::3])):
    cosine = reference.similarity(first_of_its_name(a), first_of_its_name(b))
    if all(abs(cosine - other) > GAP for other in cosines):
        cosines.append(cosine)
        # Each judgment comes for several pairs.
        judgment = round(5 + 4 * float(cosine) + number % 4, 0)
        pairs.append(f"{shown[number % 4](a)}\t{shown[number // 4 % 4](b)}\t{judgment}")
judgments = [line.split("\t")[2] for line in pairs[1:]]
assert len(cosines) > 30 and 3 < len(set(judgments)) < len(cosines) / 2, judgments
pairs += ["no-such-word\t" + common[0] + "\t3", "a pair without tabs 4", ""]
judged = folder / "judged.tsv"
judged.write_text("".join(f"{line}\n" for line in pairs), encoding="utf8")

questions = [": first section"]
for number, (a, b, c) in enumerate(zip(common[:100], common[50:150], common[120:220])):
    keys = [first_of_its_name(word) for word in (a, b, c)]
    names = {key.upper() for key in keys}
    answers = reference.most_similar(positive=keys[1:], negative=keys[:1], topn=5)
    answers = [(word, cosine) for word, cosine in answers if word.upper() not in names]
    if len(names) < 3 or len(answers) < 2 or answers[0][1] - answers[1][1] < GAP:
        continue
    if number > 50 and ": second" not in questions:
        questions.append(": second")
    expected = answers[number % 3 == 0][0]
    questions.append(" ".join(shown[(number + place) % 4](word) for place, word in enumerate((a, b, c, expected))))
questions += [f"{common[0]} {common[1]} {common[2]} no-such-word", "three words only"]
assert len(questions) > 40 and ": second" in questions
asked_file = folder / "questions.txt"
asked_file.write_text("".join(f"{line}\n" for line in questions), encoding="utf8")

for first in [None, 200]:
    flags = ["--first", first] if first else []
    lines = run("neighbors", path, "--evaluate", judged, asked_file, "--json", *flags).splitlines()
    found, *sections, total = map(json.loads, lines)
    restrict = first or 300000
    _, spearman, missing = reference.evaluate_word_pairs(str(judged), restrict_vocab=restrict)
    assert abs(spearman[0]) < 0.999
    assert abs(found["spearman"] - spearman[0]) < 1e-9, (first, found, spearman)
    assert abs(found["missing_percent"] - missing) < 1e-9, (first, found, missing)
    assert found["scored"] + found["missing"] == len(cosines) + 1 and found["skipped"] == 2, (first, found)
    accuracy, theirs = reference.evaluate_word_analogies(str(asked_file), restrict_vocab=restrict)
    assert 0.2 < accuracy < 0.9, accuracy
    assert abs(total["accuracy"] - accuracy) < 1e-9, (first, total, accuracy)
    assert total["asked"] + total["missing"] == len(questions) - 3 and total["skipped"] == 1, (first, total)
    assert len(sections) == len(theirs) - 1 == 2
    for section, their in zip(sections, theirs):
        assert section["section"] == their["section"]
        assert section["correct"] == len(their["correct"]), (first, section)
        assert section["asked"] == len(their["correct"]) + len(their["incorrect"]), (first, section)
print(f"{len(cosines)} judged pairs and {len(questions) - 4} analogies are scored as by gensim")
