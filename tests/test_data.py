"""The data room: what is read, refused, kept and served."""

import dataclasses
import importlib.metadata
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from scaling_lab.data import (
    DataConfig,
    load,
    reference,
    resolve,
    sources,
    split,
    store,
    tokenizer,
)

TEXTS = [
    "".join(f"{word} {n * n} \n" for n in range(200))
    for word in ("alpha", "βeta", "gamma 🙂", "delta\t", "<|endoftext|>", "zeta")
]


@pytest.fixture
def corpus(tmp_path):
    """Six documents of about 2 kB, as a folder."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, "utf-8")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def dataset(corpus, cache):
    return load(DataConfig((str(corpus),), held_out_fraction=0.3), cache)


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name)


def tokens_of(data):
    return {name: np.array(ids) for name, ids in data._tokens.items()}


def test_import_is_light():
    heavy = "jax grain tokenizers pyarrow"
    script = (
        "import sys, scaling_lab.data;"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- Batches


def test_a_shard_is_rows_of_the_whole_batch(dataset):
    stream = dataset.stream("train", batch=8, length=32, seed=1)
    for rows in (slice(0, 4), slice(4, 8), slice(1, None, 3)):
        whole = {name: array[rows] for name, array in stream.batch(5).items()}
        same(stream.batch(5, rows), whole)


@pytest.mark.parametrize("rows", [None, slice(2, 4)])
def test_read_ahead_and_resume_serve_the_same_batches(dataset, rows):
    stream = dataset.stream("train", batch=4, length=32, seed=1)
    straight = [stream.batch(index, rows) for index in range(40)]
    for index, ahead in zip(range(40), stream.batches(rows=rows), strict=False):
        same(ahead, straight[index])
    resumed = dataset.stream("train", batch=4, length=32, seed=1).batches(33, rows)
    for index in range(33, 40):
        same(next(resumed), straight[index])


def test_an_epoch_serves_every_window_once_and_the_next_another_order(dataset):
    stream = dataset.stream("train", batch=1, length=64, seed=3)
    tokens = tokens_of(dataset)["train"]
    cut = [bytes(tokens[i * 64 : i * 64 + 64]) for i in range(stream.windows)]
    assert len(tokens) - 64 * stream.windows <= 64
    epochs = [
        [bytes(stream.batch(i)["tokens_BT"].astype(np.uint8)) for i in epoch]
        for epoch in (range(stream.windows), range(stream.windows, 2 * stream.windows))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(cut)
    assert epochs[0] != epochs[1]


def test_seeds_differ_and_neighbours_do_not_share_epochs(dataset):
    def order(seed, first):
        stream = dataset.stream("train", batch=1, length=64, seed=seed)
        picked = range(first * stream.windows, first * stream.windows + 20)
        return b"".join(stream.batch(i)["tokens_BT"].tobytes() for i in picked)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)


def test_targets_positions_and_segments_stop_at_documents(corpus, cache):
    (corpus / "00.jsonl").write_text('{"text": "ab"}\n{"text": "c"}\n')
    data = load(DataConfig((str(corpus),), held_out_fraction=0.0), cache)
    tokens = tokens_of(data)["train"].tolist()
    stream = data.stream("train", batch=1, length=50, seed=0)
    cut = {
        tuple(tokens[s : s + 50]): tokens[s + 1 : s + 51]
        for s in range(0, 50 * stream.windows, 50)
    }
    assert len(cut) == stream.windows
    ends = 0
    for index in range(stream.windows):
        batch = stream.batch(index)
        assert all(array.dtype == np.int32 for array in batch.values())
        line = {name: array[0].tolist() for name, array in batch.items()}
        position = segment = 0
        for t, token in enumerate(line["tokens_BT"]):
            following = cut[tuple(line["tokens_BT"])][t]
            assert line["positions_BT"][t] == position
            assert line["segments_BT"][t] == segment
            assert line["targets_BT"][t] == (-1 if token == 0 else following)
            position += 1
            if token == 0:
                position, segment, ends = 0, segment + 1, ends + 1
    assert ends == tokens[: 50 * stream.windows].count(0) >= 7


def test_bytes_of_tokens_are_bytes_of_text(corpus, cache):
    text = sum(len(text.encode()) for text in TEXTS)
    for name in ("byte", "bpe:300"):
        data = load(DataConfig((str(corpus),), name), cache)
        table_V = data.stream("train", 1, 8, 0).bytes_per_token_V
        assert len(table_V) == data.vocab_size
        ids = np.concatenate(list(tokens_of(data).values()))
        assert table_V[ids].sum() == text
        assert table_V[data.tokenizer.end_id] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"length": 10**6}, r"has \d+ token.*takes 1000001.*length of at most \d+"),
        ({"split": "test"}, "no split 'test'; there are train, held_out"),
    ],
)
def test_impossible_streams(dataset, change, message):
    with pytest.raises(ValueError, match=message):
        dataset.stream(
            **{"split": "train", "batch": 1, "length": 8, "seed": 0} | change
        )


def test_impossible_batches(dataset, corpus, cache):
    stream = dataset.stream("train", 4, 8, 0)
    with pytest.raises(ValueError, match="batch index is -1"):
        stream.batch(-1)
    with pytest.raises(ValueError, match="none of the batch's 4 rows"):
        stream.batches(rows=slice(4, 8))
    nothing_held = load(DataConfig((str(corpus),), held_out_fraction=0.0), cache)
    with pytest.raises(ValueError, match="'held_out' has 0 .*larger held_out_fraction"):
        nothing_held.stream("held_out", 1, 8, 0)


# --- Split


def test_splits_are_disjoint_and_together_everything(dataset):
    parts = {
        name: bytes(ids).decode().split("\0")[:-1]
        for name, ids in tokens_of(dataset).items()
    }
    assert parts["train"] and parts["held_out"]
    assert not set(parts["train"]) & set(parts["held_out"])
    assert sorted(parts["train"] + parts["held_out"]) == sorted(TEXTS)


def test_more_documents_move_none_of_the_others():
    few = [f"document {n}".encode() for n in range(200)]
    many = few + [f"another {n}".encode() for n in range(200)]
    fates = [
        [held for one in few for held, _ in split.pieces(one, limit)]
        for limit in (split.held_out_limit(docs, 0.2) for docs in (few, many))
    ]
    assert fates[0] == fates[1]
    assert 10 < sum(fates[0]) < 80


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_few_documents_leave_no_split_empty(fraction):
    texts = [b"one", b"two", b"three"]
    limit = split.held_out_limit(texts, fraction)
    assert {held for text in texts for held, _ in split.pieces(text, limit)} == {0, 1}
    alone = split.held_out_limit([b"one"], fraction)
    assert list(split.pieces(b"one", alone)) == [(False, b"one")]


@pytest.mark.parametrize("line", ["a line of text {}\n", "no-newline {} ", "字{}"])
def test_a_long_document_is_cut_between_characters_and_held_out_in_part(line):
    document = "".join(line.format(n) for n in range(20_000)).encode()
    limit = split.held_out_limit([document], 0.2)
    stretches = list(split.stretches(document))
    assert all(one.decode() and len(one) < 2 * split.STRETCH_BYTES for one in stretches)
    if line[-1].isspace():
        assert all(one.decode()[-1] == line[-1] for one in stretches)
    pieces = list(split.pieces(document, limit))
    assert b"".join(piece for _, piece in pieces) == document
    assert {held for held, _ in pieces} == {True, False}
    fates = [held for held, _ in pieces]
    assert all(one != other for one, other in itertools.pairwise(fates))


# --- Tokenizers


@pytest.mark.parametrize("name", ["byte", "bpe:300"])
def test_round_trip(corpus, cache, name):
    data = load(DataConfig((str(corpus),), name), cache)
    assert data.vocab_size == {"byte": 256, "bpe:300": 300}[name]
    for text in [*TEXTS, " é\r\n\x01 <|endoftext|>  ", ""]:
        ids = data.tokenizer.encode(text)
        assert data.tokenizer.end_id not in ids
        assert data.tokenizer.decode(ids) == text
        assert data.tokenizer.decode(np.array(ids, np.int32)) == text


def test_bpe_is_trained_on_the_train_split_once(corpus, cache, monkeypatch):
    trained = []
    original = tokenizer.train_bpe
    monkeypatch.setattr(
        "scaling_lab.data.dataset.train_bpe",
        lambda size, texts: original(size, trained.append(list(texts)) or trained[-1]),
    )
    config = DataConfig((str(corpus),), "bpe:300", held_out_fraction=0.3)
    digests = {resolve(config, cache).tokenizer_digest for _ in range(2)}
    assert len(trained) == len(digests) == 1
    held_out = load(DataConfig((str(corpus),), held_out_fraction=0.3), cache)
    kept = bytes(tokens_of(held_out)["train"]).split(b"\0")[:-1]
    assert trained[0] == kept


def test_a_local_tokenizer_file(corpus, cache, tmp_path):
    trained = load(DataConfig((str(corpus),), "bpe:300"), cache)
    content = next((cache / "tokenizers").iterdir()).read_text()
    (tmp_path / "tokenizer.json").write_text(content)
    for name in (tmp_path / "tokenizer.json", tmp_path):
        local = load(DataConfig((str(corpus),), str(name)), cache)
        assert local.config.tokenizer_digest == trained.config.tokenizer_digest
        for part, ids in tokens_of(trained).items():
            np.testing.assert_array_equal(tokens_of(local)[part], ids)
    (tmp_path / "no_end.json").write_text(content.replace("<|endoftext|>", "<|stop|>"))
    with pytest.raises(
        ValueError, match="(?s)no_end.json has no end-of-doc.*Add one: t"
    ):
        resolve(DataConfig((str(corpus),), str(tmp_path / "no_end.json")), cache)


def test_a_tokenizer_that_loses_text_is_refused(corpus, cache, tmp_path):
    lib = pytest.importorskip("tokenizers")
    vocab = {"[UNK]": 0, "</s>": 1, "alpha": 2}
    lossy = lib.Tokenizer(lib.models.WordLevel(vocab, unk_token="[UNK]"))
    lossy.pre_tokenizer = lib.pre_tokenizers.Whitespace()
    lossy.save(str(tmp_path / "lossy.json"))
    with pytest.raises(ValueError, match=r"stand for \d+ bytes where the text has \d+"):
        load(DataConfig((str(corpus),), str(tmp_path / "lossy.json")), cache)


def test_tokenizer_errors(corpus, cache, tmp_path, monkeypatch):
    def ask(name):
        return resolve(DataConfig((str(corpus),), str(name)), cache)

    with pytest.raises(FileNotFoundError, match="'byte', 'bpe:8192'"):
        ask("bytes")
    with pytest.raises(ValueError, match="only .* token ids; ask for 'bpe:"):
        ask("bpe:60000")
    with pytest.raises(ValueError, match="0.txt is no tokenizer file"):
        ask(corpus / "0.txt")
    (tmp_path / "model.bin").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="model.bin .* 0xff at offset 2"):
        ask(tmp_path / "model.bin")
    with pytest.raises(ValueError, match="NUL at character 1"):
        tokenizer.ByteTokenizer().encode("a\0")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'scaling_lab\[bpe\]'"):
        ask("bpe:300")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "python"}, r"give a tuple of names or paths, as \('python',\)"),
        ({"source": ()}, "give a tuple"),
        ({"held_out_fraction": 1.0}, "at least 0 and below 1"),
        ({"tokenizer": "bpe:200"}, "at least 257"),
        ({"tokenizer": "bpe:many"}, "as 'bpe:8192'"),
    ],
)
def test_impossible_configs(change, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)


# --- Reading


def write_parquet(path, **columns):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)


def test_jsonl_parquet_and_folders_are_read_in_order_without_duplicates(
    tmp_path, cache
):
    folder = tmp_path / "mixed"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "no.txt").write_text("hidden")
    (folder / "image.png").write_bytes(b"\0")
    (folder / "__init__.py").write_text("")
    (folder / "a.jsonl").write_text('{"text": "one"}\n\n{"id": 1, "text": "two"}\n')
    write_parquet(folder / "b" / "c.parquet", text=["three", None, "one", "fo\nur"])
    (folder / "d.md").write_bytes(b"\xef\xbb\xbffive")
    data = load(DataConfig((str(folder),), held_out_fraction=0.0), cache)
    assert bytes(tokens_of(data)["train"]) == b"one\0two\0five\0three\0fo\nur\0"


BAD = {
    "empty.txt": (b" \n", r"empty.txt is empty \(2 bytes"),
    "nul.txt": (b"abc\0d", "nul.txt is binary: byte 0x00 at offset 3.*Leave"),
    "latin.txt": (b"caf\xe9 x", "0xe9 at offset 3.*iconv -f ISO-8859-1 -t UTF-8"),
    "wide.txt": ("hé".encode("utf-16"), "0xff at offset 0.*iconv -f UTF-16"),
    "data.csv": (b"a,b", "kind '.csv'; accepted are .txt, .md.*Rename"),
    "README": (b"a", "kind 'without a suffix'"),
    "empty.jsonl": (b"\n", r"empty.jsonl is empty .*\{\"text\""),
    "blank.jsonl": (b'{"text": " "}\n', "blank.jsonl is empty"),
    "key.jsonl": (b'{"text": "a"}\n{"body": 1, "id": 2}', r"2 has .*\['body', 'id'\]"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text', "line 3 is not JSON"),
    "list.jsonl": (b"[1]", "line 1 is a JSON list"),
    "type.jsonl": (b'{"text": 3}', "line 1: 'text' is a int"),
    "nul.jsonl": (b'{"text": "a\\u0000"}', "line 1: 'text' holds NUL at character 1"),
    "half.jsonl": (b'{"text": "\\ud800"}', "line 1: .* half a surrogate"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": "\xff"}', "0xff at offset 24"),
    "bad.parquet": (b"PAR1", r"bad.parquet is not a whole parquet file \(4 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, cache, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        resolve(DataConfig((str(tmp_path / name),)), cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_bad_parquet(tmp_path, cache, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    invalid = arrow.array([b"fine", b"a\xff"]).view(arrow.string())
    for columns, message in [
        ({"body": ["a"]}, r"no column 'text', only \['body'\]"),
        ({"text": [1]}, "'text' holds int64"),
        ({"text": ["", None]}, r"is empty \(2 rows"),
        ({"text": ["a", "b\0"]}, "row 1: 'text' holds NUL"),
        ({"text": invalid}, "row 1 is not UTF-8: byte 0xff at offset 1"),
    ]:
        write_parquet(path, **columns)
        with pytest.raises(ValueError, match=message):
            resolve(DataConfig((str(path),)), cache)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'scaling_lab\[parquet\]'"):
        resolve(DataConfig((str(path),)), cache)


def test_missing_and_empty_places(corpus, cache, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="(?s)nearest: corpus.*'reference'"):
        resolve(DataConfig((str(tmp_path / "corpsu"),)), cache)
    with pytest.raises(FileNotFoundError, match=r"no 'x' \(nearest: 0.txt, 1.txt"):
        resolve(DataConfig((str(corpus / "x" / "y" / "z.txt"),)), cache)
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no text: it is empty"):
        resolve(DataConfig((str(folder),)), cache)
    (folder / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds no text: 1 .png; accepted are .txt"):
        resolve(DataConfig((str(folder),)), cache)
    (folder / "__init__.py").write_text("\n")
    with pytest.raises(ValueError, match="no text in .*__init__.py.*all are empty"):
        resolve(DataConfig((str(folder),)), cache)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALING_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set SCALING_LAB_CACHE to a folder"):
        resolve(DataConfig((str(corpus),)))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="it is read-only.*set SCALING_LAB_CACHE"):
        resolve(DataConfig((str(corpus),)), cache)


# --- Digests and the store


def test_the_digest_follows_content_alone(corpus, cache, tmp_path):
    config = DataConfig((str(corpus),))
    first = resolve(config, cache)
    state = (corpus / "0.txt").stat()
    os.utime(corpus / "0.txt", (1, 1))
    assert resolve(config, cache) == first
    corpus.rename(tmp_path / "moved")
    moved = resolve(DataConfig((str(tmp_path / "moved"),)), cache)
    assert moved.digest == first.digest
    changed = tmp_path / "moved" / "0.txt"
    changed.write_text("X" + TEXTS[0][1:], "utf-8")
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert resolve(DataConfig((str(tmp_path / "moved"),)), cache).digest != first.digest


@pytest.mark.parametrize("field", ["digest", "tokenizer_digest"])
def test_a_digest_that_differs_is_refused(corpus, cache, field):
    good = resolve(DataConfig((str(corpus),)), cache)
    with pytest.raises(ValueError) as caught:
        load(dataclasses.replace(good, **{field: "0123456789abcdef"}), cache)
    assert "0123456789abcdef" in str(caught.value)
    assert getattr(good, field) in str(caught.value)
    assert f"set {field} to None" in str(caught.value).replace("\n", " ")


def test_settled_files_are_read_once_and_damage_is_made_good(
    corpus, cache, monkeypatch
):
    assert sources.fingerprint(sources.files((str(corpus),))) is None
    monkeypatch.setattr(sources, "_UNSETTLED_SECONDS", -1.0)
    said = []
    config = DataConfig((str(corpus),))
    wanted = tokens_of(load(config, cache, said.append))
    assert [line.split()[0] for line in said] == ["reading", "tokenising"]
    said.clear()
    load(config, cache, said.append)
    assert said == []
    for name, verb in (("text-*/text.bin", "reading"), ("tokens-*/train.bin", "tok")):
        path = next(cache.glob(name))
        os.truncate(path, path.stat().st_size - 1)
        again = tokens_of(load(config, cache, said.append))
        assert len(said) == 1 and said.pop().startswith(verb)
        np.testing.assert_array_equal(again["train"], wanted["train"])
    next(cache.glob("tokens-*/meta.json")).write_text('{"file_by')
    next(cache.glob("listings/*.json")).write_text("")
    load(config, cache, said.append)
    assert len(said) == 2


def test_the_later_of_two_makers_discards_its_own(cache):
    cache.mkdir()

    def fill(folder, text, meanwhile=None):
        (folder / "text.bin").write_text(text)
        if meanwhile:
            store.make(cache, meanwhile)
        return "made", {"by": text}

    made = store.make(
        cache, lambda folder: fill(folder, "late", lambda other: fill(other, "early"))
    )
    assert store.meta(made)["by"] == "early"
    assert (made / "text.bin").read_text() == "early"
    assert not list(cache.glob(".making-*"))


def test_processes_may_race(corpus, cache):
    script = (
        "import sys; from scaling_lab.data import DataConfig, load;"
        "data = load(DataConfig((sys.argv[1],), 'bpe:300'), sys.argv[2]);"
        "print(data.config, [ids.sum() for ids in data._tokens.values()])"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(corpus), str(cache)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    printed = {process.communicate(timeout=60)[0] for process in racing}
    assert [process.returncode for process in racing] == [0, 0]
    assert len(printed) == 1
    assert len(list(cache.glob("tokens-*"))) == len(list(cache.glob("text-*"))) == 1
    assert not list(cache.rglob(".making-*"))


# --- Text that is on every machine


def test_python_source(cache):
    data = load(DataConfig(), cache)
    tokens = tokens_of(data)
    assert 5e6 < len(tokens["train"]) < 30e6
    assert 0.03 < len(tokens["held_out"]) / len(tokens["train"]) < 0.08
    text = bytes(tokens["train"]) + bytes(tokens["held_out"])
    found = {
        "source of the standard library": b"def namedtuple(" in text,
        "source of a small package": b"def rearrange(" in text,
        "prose of a large one": b"Evaluates the Einstein summation" in text,
        "source of a large one": b"def lu_pivots_to_permutation(" in text,
    }
    assert list(found.values()) == [True, True, True, False], found


def test_reference_is_the_same_everywhere(cache):
    wanted = reference.VERSIONS.items()
    installed = {package: importlib.metadata.version(package) for package, _ in wanted}
    differ = [f"{package}=={v}" for package, v in wanted if installed[package] != v]
    if differ:
        pytest.skip(f"the reference text needs {' '.join(differ)}")
    assert resolve(DataConfig(("reference",)), cache).digest == "0d9ec3cd52794ff8"


def test_reference_names_every_failure(cache, monkeypatch):
    files = {f"einops/{name}.py": "0" * 32 for name in "abcdef"}
    files["einops/einops.py"] = "1" * 32
    monkeypatch.setattr(
        reference, "DIGESTS", {"einops": files, "no-such-package": {"x.py": "2" * 32}}
    )
    monkeypatch.setattr(
        reference, "VERSIONS", {"einops": "0.0.1", "no-such-package": "9"}
    )
    monkeypatch.setattr(reference, "_SHOWN_FAILURES", 8)
    with pytest.raises(ValueError) as caught:
        resolve(DataConfig(("reference",)), cache)
    message = str(caught.value)
    assert "8 of its 8 files" in message
    assert "einops/a.py: not in einops" in message
    assert f"wanted {'1' * 32} (einops 0.0.1)" in message
    assert "einops/einops.py: found digest " in message
    assert "x.py: no-such-package is not installed" in message
    assert "pip install einops==0.0.1 no-such-package==9" in message
    monkeypatch.setattr(reference, "_SHOWN_FAILURES", 5)
    with pytest.raises(ValueError, match="and 3 more"):
        resolve(DataConfig(("reference",)), cache)
