"""Loads the folder that the test `what_is_exported_has_the_same_vectors` of tests/pairs.rs leaves, and compares.

    cargo test --release --test pairs exported
    pip install sentence-transformers
    python tests/pairs/check_sentence_transformers.py target/tmp/sentence_transformers
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

folder = Path(sys.argv[1])
checked = 0
for case in sorted(path for path in folder.iterdir() if path.is_dir()):
    expected = json.loads((case / "expected.json").read_text())
    found = SentenceTransformer(str(case / "model"), device="cpu").encode(expected["texts"])
    difference = np.abs(found - np.array(expected["vectors"], dtype=np.float32)).max()
    print(f"{case.name}: {len(expected['texts'])} texts, largest difference {difference:.2e}")
    assert difference < 1e-5, difference
    checked += len(expected["texts"])
assert checked > 0, f"{folder} has no case"
