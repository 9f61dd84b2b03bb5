"""Token files of every layout that is known; those of another are told, never trained on."""

import gzip
import struct

import numpy as np
import pytest
from data.made import made

from selectbench.data.sources import open_tokens
from selectbench.errors import UserError
from selectbench.suite.sources import TokenFile

_SHARES = 1 / np.arange(1, 50_001)
IDS = np.random.default_rng(0).choice(50_000, 20_000, p=_SHARES / _SHARES.sum())
"""As rare as words are: id 0 is every tenth."""
TYPES = ("<u2", "<u4", "<i4", "<i8", "<u8", ">u2", ">u4", ">i4", ">i8")


def header(magic, version, ids, count=None):
    """As llm.c and modded-nanogpt write it: 256 int32."""
    numbers = [magic, version, len(ids) if count is None else count] + [0] * 253
    return struct.pack("<256i", *numbers)


def index(code, lengths, width, version=1, magic=b"MMIDIDX\0\0"):
    """As Megatron writes it beside the sequences."""
    starts = [sum(lengths[:n]) * width for n in range(len(lengths))]
    documents = range(len(lengths) + 1)
    return (
        magic + struct.pack("<QBQQ", version, code, len(lengths), len(documents))
        + struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(starts)}q", *starts)
        + struct.pack(f"<{len(documents)}q", *documents)
    )  # fmt: skip


def source(path, content, vocab_size=50_304, **more):
    path.write_bytes(content)
    return TokenFile(tokens=str(path), vocab_size=vocab_size, **more)


def refused(data, *words):
    with pytest.raises(UserError) as caught:
        open_tokens(data)
    (problem,) = caught.value.problems
    assert problem.startswith(f"job.data.tokens: {data.tokens}")
    for word in words:
        assert word in problem


def test_layouts_that_say_what_they_are(tmp_path):
    for kind in (*TYPES, "<u1"):
        np.save(tmp_path / "ids.npy", IDS.astype(kind))
        found = open_tokens(TokenFile(tokens=str(tmp_path / "ids.npy"), vocab_size=50_304))
        assert np.array_equal(found, IDS.astype(kind))
    np.save(tmp_path / "row.npy", IDS[None, :])
    assert np.array_equal(open_tokens(TokenFile(tokens=str(tmp_path / "row.npy"), vocab_size=50_304)), IDS)
    for magic, version, kind in ((20240520, 1, "<u2"), (20240801, 7, "<u4")):
        content = header(magic, version, IDS) + IDS.astype(kind).tobytes()
        assert np.array_equal(open_tokens(source(tmp_path / "shard.bin", content)), IDS)
    for code, kind in ((8, "<u2"), (4, "<i4"), (5, "<i8"), (3, "<i2"), (1, "u1")):
        ids = IDS % 100
        (tmp_path / "text_document.idx").write_bytes(index(code, [1, 0, 4_999, 15_000], np.dtype(kind).itemsize))
        content = ids.astype(kind).tobytes()
        assert np.array_equal(open_tokens(source(tmp_path / "text_document.bin", content)), ids)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("asked", [None, "uint16", "uint32", "int64"])
def test_bare_ids_are_read_as_they_were_written_or_not_at_all(kind, asked, tmp_path):
    """Whichever type is asked for, only ids of its width and order of bytes are read; the rest names what fits."""
    data = source(tmp_path / "ids.bin", IDS.astype(kind).tobytes(), **({"dtype": asked} if asked else {}))
    if kind[0] == "<" and np.dtype(kind).itemsize == np.dtype(asked or "uint16").itemsize:
        assert np.array_equal(open_tokens(data), IDS)
    elif kind[0] == "<":
        width = np.dtype(kind).itemsize
        refused(data, f"add `dtype: {({2: 'uint16', 4: 'int32', 8: 'int64'})[width]}`")
    else:
        refused(data, f"np.fromfile(FILE, '{kind.replace('>u4', '>i4')}')")


def test_what_an_honest_file_of_16_bits_may_look_like(tmp_path):
    """No vocabulary, no length and no share of zeros alone makes it one of 32 bits or of another order of bytes."""
    uniform = np.random.default_rng(1).integers(0, 1 << 16, 20_000)
    padded = np.where(np.arange(20_000) < 40, IDS + 1, 0)
    for ids, size in ((IDS, 1 << 16), (IDS, 128_256), (uniform, 1 << 16), (padded, 50_304), (IDS % 7, 7)):
        assert np.array_equal(open_tokens(source(tmp_path / "ids.bin", ids.astype("<u2").tobytes(), size)), ids)


def test_layouts_that_are_told_by_content_alone(tmp_path):
    path = tmp_path / "ids.bin"
    large = np.where(np.arange(20_000) == 5, 100_000, IDS)
    refused(source(path, large.astype("<i4").tobytes(), 128_256), "54% of the ids are 0", "add `dtype: int32`")
    refused(source(path, IDS.astype(">u2").tobytes(), 1 << 16), "np.fromfile(FILE, '>u2')")
    refused(source(path, (IDS % 200).astype("u1").tobytes(), 200), "as uint8 all are below", "add `dtype: uint8`")
    off = np.where(np.arange(20_000) == 7, 50_304, IDS)  # one id beyond the vocabulary, and the wrong width
    refused(source(path, off.astype("<i4").tobytes()), "token 14 is 50304", "add `dtype: int32`")
    refused(source(path, off.astype("<u2").tobytes()), "token 7 is 50304, vocab_size is 50304")
    masked = np.where(np.arange(20_000) == 7, -100, IDS)
    refused(source(path, masked.astype("<i4").tobytes(), dtype="int32"), "token 7 is -100")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (IDS.astype("<f4"), "a .npy file of float32, 20000: whole numbers in one dimension"),
        (IDS.reshape(100, -1), "a .npy file of int64, 100 x 200"),
        (np.array(5), "one value"),
        (np.array([], np.int64), "holds no ids, as a .npy file"),
        (np.array([{}], object), "or one of objects"),
        (IDS.astype([("id", "<i4")]), "[('id', '<i4')]"),
        (IDS.astype("<u4") + 60_000, "token 0 is 60"),
    ],
)
def test_arrays_that_are_no_tokens(array, words, tmp_path):
    np.save(tmp_path / "ids.npy", array)
    refused(TokenFile(tokens=str(tmp_path / "ids.npy"), vocab_size=50_304), words)


def test_arrays_that_are_cut_or_contradicted(tmp_path):
    np.save(tmp_path / "whole.npy", IDS)
    whole = (tmp_path / "whole.npy").read_bytes()
    refused(source(tmp_path / "cut.npy", whole[:-3]), "a damaged .npy file")
    refused(source(tmp_path / "header.npy", whole[:40]), "a damaged .npy file")
    refused(source(tmp_path / "two.npy", whole + whole), "320,256 bytes", "20,000 ids make 160,128")
    refused(source(tmp_path / "whole.npy", whole, dtype="uint16"), "int64, dtype is uint16: leave dtype out")


def test_headers_and_indices_that_do_not_fit_their_ids(tmp_path):
    path, ids = tmp_path / "shard.bin", IDS.astype("<u2").tobytes()
    refused(source(path, header(20240520, 1, IDS, 20_001) + ids), "20,001 ids make 41,026")
    refused(source(path, header(20240520, 1, IDS, 19_999) + ids), "19,999 ids make 41,022")
    refused(source(path, header(20240520, 2, IDS) + ids), "version 2, 1 is known")
    refused(source(path, header(20240520, 1, IDS)[:500]), "has 500 bytes")
    for content in (
        index(7, [20_000], 2), index(8, [20_000], 2, version=2), index(8, [5_000, 15_000], 2)[:50],
        index(8, [20_000], 2, magic=b"TNTIDX\0\0\0"), b"",
    ):  # fmt: skip
        (tmp_path / "shard.idx").write_bytes(content)
        refused(source(path, ids), f"no whole numbers: {tmp_path / 'shard.idx'}")
    (tmp_path / "shard.idx").write_bytes(index(8, [5_000, 15_000], 4))
    refused(source(path, ids), "do not follow each other")
    (tmp_path / "shard.idx").write_bytes(index(8, [5_000, 14_000], 2))
    refused(source(path, ids), "19,000 ids make 38,000")
    refused(TokenFile(tokens=str(tmp_path / "shard.idx"), vocab_size=500), "name the .bin file beside it")


def test_other_files_are_named_for_what_they_are(tmp_path):
    np.savez(tmp_path / "ids.npz", IDS)
    refused(TokenFile(tokens=str(tmp_path / "ids.npz"), vocab_size=1 << 16), "is a zip archive (.npz")
    refused(source(tmp_path / "a", gzip.compress(IDS.astype("<u2").tobytes()), 1 << 16), "gzip file: unpack it")
    refused(
        source(tmp_path / "b", "größe — 日本語のテキスト\n".encode() * 60, 1 << 16), "is text and no file of ids"
    )


def test_what_is_prepared_of_an_index_changes_with_it(tmp_path):
    """An index that appears beside a file says anew what is in it."""
    ids = np.arange(4_000) % 500
    data = source(tmp_path / "ids.bin", ids.astype("<u4").tobytes(), 500, dtype="uint32")
    bare = made(data, tokenizer=None)
    (tmp_path / "ids.idx").write_bytes(index(4, [4_000], 4))
    indexed = made(data, tokenizer=None)
    assert indexed.key != bare.key
    assert np.array_equal(bare.train(), ids[: bare.train_tokens])
    assert np.array_equal(indexed.train(), bare.train())
