"""Files as a bad disk, or somebody with bad intentions, would leave them."""

import json

EVIL = (
    *(None, True, 0, 1, -1, 2.5, 1e308, 1 << 31, 1 << 62, 10**30, "", "F16", "BF16", [], {}),
    *([0, 0], [1, 1, 257, 8], [[]], {"a": 1}, "transformer.wte.weight"),
)


def mutate(rng, data):
    """data with a few bits flipped, bytes replaced, inserted, deleted, repeated, or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, n = rng.randrange(len(data) or 1), rng.choice([1, 1, 2, 4, 9, 40])
        match rng.randrange(6):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + n] = rng.randbytes(n)
            case 2:
                data[at : at + n] = rng.choice([b"\xff", b"\0", b"\x80", b"\x7f"]) * n
            case 3:
                data[at:at] = rng.randbytes(n)
            case 4:
                del data[at : at + n]
            case 5:
                data[at : at + n] = data[(start := rng.randrange(len(data) or 1)) : start + n]
    return bytes(data) if rng.random() < 0.95 else bytes(data[: rng.randrange(len(data) or 1)])


def mutate_json(rng, data):
    """JSON with one value somewhere in it replaced, dropped, or put under another name."""
    content = json.loads(data)
    inner, key = content, rng.choice(list(content))
    while isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
        inner = inner[key]
        key = rng.randrange(len(inner)) if isinstance(inner, list) else rng.choice(list(inner))
    if rng.random() < 0.7:
        number = inner[key] if type(inner[key]) is int else 0
        inner[key] = rng.choice([*EVIL, number + 1, number - 1, number * 2, number // 2])
    else:
        value = inner.pop(key)
        if isinstance(inner, dict) and rng.random() < 0.5:
            inner[rng.choice(["wte.weight", "lm_head.weight", "n_ctx", "shape", key + "x"])] = value
    return json.dumps(content).encode()
