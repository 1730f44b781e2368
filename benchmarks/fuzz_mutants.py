"""Damaged copies of files: of their bytes, and of the structure inside zip, JSON, XML, MATLAB and pickle files."""

import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

NASTY_NUMBERS = (
    "0", "-1", "1", "255", "65536", "2147483648", "-9223372036854775809", "1e308", "1e400", "-1e400", "NaN", "Infinity",
    "9" * 400, "9" * 5000, "1.5", "-0.0",
)  # fmt: skip
NASTY_TEXTS = (
    "",
    "\0",
    "..",
    "/etc/passwd",
    "../x",
    "a" * 5000,
    "\ud800",
    "é\u0301",
    " ",
    "\n",
    "nan",
    "%s{}",
    "rot13",
)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of `data`; `other` is another file of the kind, from which parts may come."""
    kinds = [_bytes, *(change for start, change in _STRUCTURES.items() if re.match(start, data, re.DOTALL))]
    change = rng.choice(kinds)
    try:
        return change(data, other, rng)
    except Exception:  # the structure is damaged already
        return _bytes(data, other, rng)


def _bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change bytes, at most 8 times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # half of the changes are near the begin, where most formats have their sizes
        end = min(len(changed), 200) if rng.random() < 0.5 else len(changed)
        place = rng.randrange(end) if end else 0
        length = rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            value = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80", rng.randbytes(1)))
            changed[place : place + length] = value * length
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length] * rng.choice((1, 3, 100))
        elif kind == 5:
            begin = rng.randrange(len(other)) if other else 0
            changed[place : place + length] = other[begin : begin + length]
        else:
            order = rng.choice("<>")
            changed[place : place + 4] = struct.pack(f"{order}I", rng.choice((1, 4, 1 << 16, 1 << 30, 1 << 31)))
    return bytes(changed)


def nasty(rng: random.Random) -> str:
    """Return a JSON text of an unexpected value."""
    depth = rng.choice((3, 150, 900, 100_000))
    return rng.choice(
        [
            *rng.sample(NASTY_NUMBERS, 4), json.dumps(rng.choice(NASTY_TEXTS)), "null", "true", "[]", "{}", "[[]]",
            '{"a": 1}', '"3"', "[1, 2]", "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth,
        ]
    )  # fmt: skip


def _json(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Replace, drop, rename or repeat a value."""
    marker = "@@mutant@@"
    value = json.loads(data)
    holders: list[Any] = [value]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [item for item in inner if isinstance(item, dict | list) and item]
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 1000))
    elif kind == 1:
        holder[rng.choice(NASTY_TEXTS)] = holder.pop(key)
    else:
        holder[key] = marker
    return json.dumps(value).replace(json.dumps(marker), nasty(rng)).encode()


def _lines(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a line: its JSON, or one of its words."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    if lines[i].startswith(b"{"):
        lines[i] = _json(lines[i], other, rng)
    else:
        words = re.split(rb"([ ,;:\t]+)", lines[i])
        word = rng.choice([*NASTY_NUMBERS, *NASTY_TEXTS]).encode(errors="surrogatepass")
        words[rng.randrange(len(words))] = word
        lines[i] = b"".join(words)
    return b"\n".join(lines)


def _table(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Drop, repeat or move a column, change what divides them, or repeat a row."""
    lines = data.split(b"\n")
    divider = next(own for own in (b",", b";", b"\t", b" ") if own in lines[0])
    rows = [line.split(divider) for line in lines]
    column, kind = rng.randrange(len(rows[0])), rng.randrange(6)
    if kind == 0:
        rows = [row[:column] + row[column + 1 :] for row in rows]
    elif kind == 1:
        rows = [row[:column] + row[column : column + 1] * 2 + row[column + 1 :] for row in rows]
    elif kind == 2:
        rows = [row[column:] + row[:column] for row in rows]
    elif kind == 3:
        divider = rng.choice((b",", b";", b"\t", b" ", b"|", b'"', b"\r", b"\0"))
    elif kind == 4:
        rows = [[*row[:column], *(b'"' + cell + b'"' for cell in row[column:])] for row in rows]
    else:
        i = rng.randrange(len(rows))
        rows[i:i] = [rows[i]] * rng.choice((1, 30, 3000))
    return b"\n".join(map(divider.join, rows))


def _yaml(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Replace a value, repeat or rename a key, or shift a line."""
    lines = data.decode().split("\n")
    i = rng.choice([i for i, line in enumerate(lines) if ":" in line])
    key, _, value = lines[i].partition(":")
    values = (
        *NASTY_NUMBERS,
        *NASTY_TEXTS,
        "[cat",
        "{a: b}",
        "&a [*a]",
        "!!python/name:os.system",
        "!!set {a}",
        "|",
        "~",
    )
    kind = rng.randrange(4)
    if kind == 0:
        lines[i] = f"{key}: {rng.choice((*values, '2020-99-99', '1:30', '.nan', '0x7f', '<<: [1]', '? a', nasty(rng)))}"
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[i])
    elif kind == 2:
        lines[i] = f"{rng.choice((*values, 'names', 'train', 'nc', 'path', '<<'))}:{value}"
    else:
        lines[i] = rng.choice((" ", "\t", "- ", "  - ", "#", "---\n", "...\n")) + lines[i]
    return "\n".join(lines).encode(errors="surrogatepass")


def _xml(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change the text of a tag, its name or the prologue."""
    text = data.decode(errors="replace")
    kind = rng.randrange(6)
    if kind == 0:
        names = ("rot13", "hex", "utf-7", "none", "utf-16", "idna", "punycode", "undefined", "\u00e9", "utf-8" * 99)
        text = f'<?xml version="1.0" encoding="{rng.choice(names)}"?>' + re.sub(r"^<\?.*?\?>", "", text)
    elif kind == 1:
        depth = rng.choice((10, 1000, 100_000))
        text = text.replace("<object>", "<object>" * depth, 1)
    elif kind == 2:
        tags = re.findall(r"<(\w+)>", text)
        text = text.replace(rng.choice(tags), rng.choice(tags), rng.choice((1, 2)))
    else:
        found = rng.choice(list(re.finditer(r">[^<>]*<" if kind < 5 else r'"[^"<>]*"', text)))
        value = rng.choice([*NASTY_NUMBERS, *NASTY_TEXTS, "&lol;", "<b/>"])
        text = f"{text[: found.start() + 1]}{value}{text[found.end() - 1 :]}"
    return text.encode(errors="surrogatepass")


def _zip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Write the archive anew, so that its checks hold, with a changed member, name or compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    i = rng.randrange(len(members))
    name, content = members[i]
    kind = rng.randrange(6)
    if kind == 0:
        name = rng.choice((f"{name}x", "", "../x.npy", "a" * 300 + ".npy", "images.npy", name.upper(), "é.npy"))
    elif kind == 1:
        members.append(members[i])
    elif kind == 2:
        members.pop(i)
    else:
        content = mutate(content, rng.choice(members)[1], rng)
    if kind != 2:
        members[i] = name, content
    out = io.BytesIO()
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _npy(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change the shape or the type in the header."""
    (length,) = struct.unpack_from("<H", data, 8)
    header = data[10 : 10 + length].decode("latin1")
    dtype = rng.choice(
        ("<f8", "|O", ">f2", "<U4", "|S0", "<c16", "|b1", "<M8[s]", "|V8", "<i8", "(9999999,)<f8", "<u8")
    )
    shape = rng.choice(
        ("()", "(1,)", "(2, 2)", "(-1, 4)", "(10**9, 4)", "(1000000000, 4)", "(0, 4)", "(4, 0)", "(((())))")
    )
    if rng.random() < 0.5:
        header = re.sub(r"'descr': [^:]*, '", f"'descr': '{dtype}', '", header)
    else:
        header = re.sub(r"'shape': [^:]*, }", f"'shape': {shape}, }}", header)
    header = rng.choice((header, header, header, "(" * 5000, header.replace("False", "True")))
    encoded = header.encode("latin1")
    return data[:8] + struct.pack("<H", len(encoded)) + encoded + data[10 + length :]


def _mat(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change what is inside the compressed elements."""
    out, place = data[:128], 128
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        body = data[place + 8 : place + 8 + size]
        if kind == 15:
            body = zlib.compress(_bytes(zlib.decompress(body), body, rng))
        out += struct.pack("<II", kind, len(body)) + body
        place += 8 + size
    return out


def _pickle(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Drop, repeat or insert an operation."""
    places = [place for _, _, place in pickletools.genops(data) if place is not None]
    i = rng.randrange(1, len(places) - 1)
    begin, end = places[i], places[i + 1]
    kind = rng.randrange(3)
    if kind == 0:
        return data[:begin] + data[end:]
    if kind == 1:
        return data[:end] + data[begin:end] * rng.choice((1, 2, 40)) + data[end:]
    codes = (
        b"0",
        b"2",
        b"(",
        b"]",
        b")",
        b"}",
        b"K\x05",
        b"N",
        b"\x85",
        b"\x86",
        b"\x94",
        b"R",
        b"b",
        b"s",
        b"a",
        b"h\0",
    )
    return data[:begin] + rng.choice(codes) * rng.choice((1, 1, 30)) + data[begin:]


def _safetensors(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change the header, or the JSON in its metadata, and keep the arrays."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    texts = header.get("__metadata__", {})
    if texts and rng.random() < 0.7:
        name = rng.choice(list(texts))
        texts[name] = _json(texts[name].encode(), other, rng).decode()
        text = json.dumps(header).encode()
    else:
        text = _json(json.dumps(header).encode(), other, rng)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


Change = Callable[[bytes, bytes, random.Random], bytes]
_STRUCTURES: dict[bytes, Change] = {
    rb"\s*[\[{]": _json,
    rb"(\xef\xbb\xbf)?[\x20-\x7e\r\n]{4}": _lines,
    rb"[^\n{\[<]*[,;\t ][^\n]*\n": _table,
    rb"(?:[\x20-\x7e]*\n)*?\w+:[ \n]": _yaml,
    rb"<": _xml,
    rb"PK\x03\x04": _zip,
    rb"\x93NUMPY": _npy,
    rb".{124}\0\x01IM": _mat,
    rb"\x80[\x02-\x05]": _pickle,
    rb".{5}\0\0\0\{": _safetensors,
}
