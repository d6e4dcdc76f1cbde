"""Odd vocabulary files as data. odd_models.py has odd weights and configurations."""

import json

from odd_models import BOM, IDS, MERGES, MODELS, PLAIN, VOCABULARY, Odd

LOW, MASK = IDS["low"], IDS["mask"]
BYTES = {name: x for name, x in IDS.items() if x < 257}
SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACE = {**SPLIT, "add_prefix_space": True}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}  # "The fast class" below means this one.


def tokenizer(*added, model=None, **keys):
    """Return the contents of a tokenizer.json with the usual vocabulary."""
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    bpe |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    bpe |= {"ignore_merges": False, "vocab": IDS, "merges": [*map(list, VOCABULARY.merges)]}
    file = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [*added]}
    file |= {"normalizer": None, "pre_tokenizer": SPLIT, "post_processor": SPLIT, "decoder": SPLIT}
    return {**file, "model": {**bpe, **(model or {})}, **keys}


def only(*added, **keys):
    """Return the files of a directory that has no vocabulary file but tokenizer.json."""
    settings = keys.pop("settings", None)
    files = {"vocab.json": None, "merges.txt": None, "tokenizer.json": tokenizer(*added, **keys)}
    return {**files, **({"tokenizer_config.json": settings} if settings is not None else {})}


def token(content, id_=None, **flags):
    entry = {"content": content, "single_word": False, "lstrip": False, "rstrip": False}
    entry |= {"normalized": False, "special": True, **flags}
    return entry if id_ is None else {"id": id_, **entry}


X, M, Y = token("<x>", 270), token("<m>", 271), token("<y>", 272)
END = token("<|endoftext|>", rstrip=True, normalized=True)
FLAGS = [
    {},
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True},
    {"single_word": True},
    {"single_word": True, "lstrip": True, "rstrip": True},
    {"normalized": True, "special": False},
    {"normalized": True, "lstrip": True, "special": False},
]


def template(*single):
    """Return a post-processor, in which A is the text and E is <|endoftext|>."""
    names = {"A": {"Sequence": {"id": "A", "type_id": 0}}}
    names["E"] = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    pair = [names["A"], {"Sequence": {"id": "B", "type_id": 1}}]
    file = {"type": "TemplateProcessing", "single": [names[name] for name in single]}
    return {**file, "pair": pair, "special_tokens": special}


def special_inside():
    """Return what BpeTrainer(special_tokens=["<mask>", "<x>"]) writes: they have the first ids."""
    vocab = {"<mask>": 0, "<x>": 1, **{name: x + 1 for name, x in IDS.items() if x}}
    return only(token("<mask>", 0, lstrip=True), token("<x>", 1), model={"vocab": vocab})


def beside(**files):
    """Return files that stand beside vocab.json and merges.txt. files: settings, special, added."""
    names = {"settings": "tokenizer_config", "special": "special_tokens_map"}
    names["added"] = "added_tokens"
    return {f"{names[name]}.json": content for name, content in files.items()}


TOKENIZERS = {
    # Which files there are
    "tokenizer.json alone": Odd(files=only()),
    "tokenizer.json, by the fast class": Odd(files=only(settings=FAST)),
    "tokenizer.json, by the fast class's new name": Odd(
        files=only(X, settings={"tokenizer_class": "TokenizersBackend"})
    ),
    "tokenizer.json beside other merges": Odd(
        files={"tokenizer.json": tokenizer(X), "vocab.json": BYTES, "merges.txt": ""}
    ),
    "tokenizer.json beside a damaged vocab.json": Odd(
        files={"tokenizer.json": tokenizer(X), "vocab.json": b"{"}
    ),
    "merges as text": Odd(files=only(model={"merges": [" ".join(p) for p in VOCABULARY.merges]})),
    "a byte order mark before tokenizer.json": Odd(
        files={**only(), "tokenizer.json": BOM + json.dumps(tokenizer(X)).encode()},
        reference=Odd(files=only(X)),
    ),
    "vocab.json alone": Odd(files={"merges.txt": None}, refused="no vocab.json with merges.txt"),
    "no vocabulary": Odd(
        files={"merges.txt": None, "vocab.json": None}, refused="no vocab.json with merges.txt"
    ),
    "a byte without a token": Odd(
        files={"vocab.json": {**{k: v for k, v in IDS.items() if k != "!"}, "!!": IDS["!"]}},
        refused="byte 33 has no token",
    ),
    "ids with a hole": Odd(files={"vocab.json": {**IDS, "zz": 272}}),
    "merges.txt without a version": Odd(files={"merges.txt": MERGES.partition("\n")[2]}),
    "merges.txt with the line breaks of Windows": Odd(
        files={"merges.txt": MERGES.replace("\n", "\r\n")}, reference=PLAIN
    ),
    "no <|endoftext|> in the vocabulary": Odd(
        files=only(
            token("<x>", 269), model={"vocab": {name: x - 1 for name, x in IDS.items() if x}}
        )
    ),
    "no <|endoftext|> in the vocabulary, by the fast class": Odd(
        files=only(
            settings={**FAST, "pad_token": "<x>"},
            model={"vocab": {name: x - 1 for name, x in IDS.items() if x}},
        )
    ),
    # What differs from GPT-2's tokenizer
    **{
        f"{what}, {by}": Odd(files=only(settings=settings, **keys), refused=refused)
        for by, settings in (("by GPT-2's class", None), ("by the fast class", FAST))
        for what, keys, refused in (
            ("lower case", {"normalizer": {"type": "Lowercase"}}, "normalizer is not GPT-2's"),
            ("split by white space", {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is"),
            (
                "digits one by one",
                {
                    "pre_tokenizer": {
                        "type": "Sequence",
                        "pretokenizers": [{"type": "Digits", "individual_digits": True}, SPLIT],
                    }
                },
                "json: pre_tokenizer is not",
            ),
            ("no split", {"pre_tokenizer": {**SPLIT, "use_regex": False}}, "pre_tokenizer is not"),
            ("a template in front", {"post_processor": template("E", "A")}, "post_processor is"),
            ("a template at the end", {"post_processor": template("A", "E")}, "post_processor is"),
            (
                "a template among others",
                {"post_processor": {"type": "Sequence", "processors": [SPLIT, template("E", "A")]}},
                "post_processor is not",
            ),
            ("another decoder", {"decoder": {"type": "Fuse"}}, "decoder is not GPT-2's"),
            ("dropout of merges", {"model": {"dropout": 0.5}}, "model.dropout is not"),
            ("a mark at the end of a word", {"model": {"end_of_word_suffix": "</w>"}}, "suffix is"),
            (
                "a mark inside a word",
                {"model": {"continuing_subword_prefix": "##"}},
                "model.continuing_subword_prefix is not",
            ),
            ("byte fallback", {"model": {"byte_fallback": True}}, "model.byte_fallback is not"),
            ("whole words first", {"model": {"ignore_merges": True}}, "model.ignore_merges is not"),
            ("another kind of model", {"model": {"type": "WordPiece"}}, "its type is "),
        )
    },
    "no pre-tokenizer and no decoder, by GPT-2's class": Odd(
        files=only(pre_tokenizer=None, decoder=None)
    ),
    "no pre-tokenizer, by the fast class": Odd(
        files=only(pre_tokenizer=None, settings=FAST), refused="tokenizer.json: pre_tokenizer is mi"
    ),
    "no decoder, by the fast class": Odd(
        files=only(decoder=None, settings=FAST), refused="tokenizer.json: decoder is missing"
    ),
    "a template that adds nothing": Odd(files=only(X, post_processor=template("A"))),
    "no post-processor": Odd(files=only(X, post_processor=None)),
    "a pre-tokenizer in a sequence": Odd(
        files=only(X, pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT]})
    ),
    "a pre-tokenizer in a sequence, by the fast class": Odd(
        files=only(X, settings=FAST, pre_tokenizer={"type": "Sequence", "pretokenizers": [SPACE]})
    ),
    "truncation and padding": Odd(
        files=only(
            X,
            settings=FAST,
            truncation={
                "direction": "Right",
                "max_length": 2,
                "strategy": "LongestFirst",
                "stride": 0,
            },
            padding={
                "strategy": {"Fixed": 30},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 271,
                "pad_type_id": 0,
                "pad_token": "<m>",
            },
        )
    ),
    "the class of another model": Odd(
        files=beside(settings={"tokenizer_class": "RobertaTokenizerFast"}),
        refused="tokenizer_config.json: tokenizer_class 'RobertaTokenizerFast' is not GPT-2's",
    ),
    "the class of another model, in config.json": Odd(
        {"tokenizer_class": "BertTokenizer"},
        refused="config.json: tokenizer_class 'BertTokenizer' is not GPT-2's",
    ),
    "a class that needs tokenizer.json, which is missing": Odd(
        files=beside(settings=FAST), refused="tokenizer_class PreTrainedTokenizerFast reads tok"
    ),
    "GPT-2's class by its old name": Odd(
        files=beside(settings={"tokenizer_class": "GPT2TokenizerFast", "model_max_length": 5})
    ),
    "a token added at the beginning": Odd(
        files=beside(settings={"add_bos_token": True}), refused="add_bos_token is True"
    ),
    "a token added at the end": Odd(
        files=beside(settings={"add_eos_token": True}), refused="add_eos_token is True"
    ),
    "no token added at the beginning": Odd(files=beside(settings={"add_bos_token": False})),
    "add_bos_token, which tokenizer.json overrides": Odd(
        files=only(X, settings={"add_bos_token": True})
    ),
    "special tokens that are split": Odd(
        files=only(X, settings={"split_special_tokens": True}), refused="split_special_tokens is Tr"
    ),
    "files for each version of transformers": Odd(
        files=only(X, settings={"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}),
        refused="fast_tokenizer_files is",
    ),
    # A space in front of the text
    "a space in front": Odd(files=beside(settings={"add_prefix_space": True})),
    "a space in front, and added tokens": Odd(
        files=beside(settings={"add_prefix_space": True}, added={"<x>": 270, "<m>": 271})
    ),
    "a space in front, in both files": Odd(
        files=only(X, pre_tokenizer=SPACE, settings={"add_prefix_space": True})
    ),
    "a space in front that GPT-2's class ignores": Odd(files=only(X, pre_tokenizer=SPACE)),
    "a space in front by the fast class": Odd(files=only(X, M, pre_tokenizer=SPACE, settings=FAST)),
    "a space in front, in one of two files": Odd(
        files=only(X, pre_tokenizer=SPACE, settings={**FAST, "add_prefix_space": False}),
        refused="add_prefix_space contradicts tokenizer.json",
    ),
    # Added tokens
    **{
        f"an added token with {' and '.join(flags) or 'no flags'}": Odd(
            files=only({**X, **flags}, {**M, **flags}, {**Y, **other})
        )
        for flags, other in zip(FLAGS, FLAGS[1:] + FLAGS[:1], strict=True)
    },
    **{
        f"an added token with {' and '.join(flags) or 'no flags'}, by the fast class": Odd(
            files=only({**X, **other}, {**M, **flags}, {**Y, **flags}, settings=FAST)
        )
        for flags, other in zip(FLAGS, FLAGS[2:] + FLAGS[:2], strict=True)
    },
    "an added token that begins another": Odd(
        files=only(X, token("<x>x", 271, lstrip=True), token("<x", 272, normalized=True))
    ),
    "an added token that is searched for later and begins earlier": Odd(
        files=only(token("> <", 270), token("<x> <m>", 271, normalized=True))
    ),
    "special tokens inside the vocabulary": Odd(files=special_inside()),
    "an added token that is a token": Odd(files=only(token("low", LOW), token("mask", MASK))),
    "an added token that is a token, with single_word": Odd(
        files=only(token("low", LOW, single_word=True), token("mask", MASK, rstrip=True))
    ),
    "an added token with characters of the byte alphabet": Odd(
        files=only(
            token("<é>", 270), token("Ġ<x>", 271), token("日<m>", 272), token("low low", 273)
        )
    ),
    "added tokens in added_tokens.json": Odd(files=beside(added={"<x>": 270, "<m>": 271})),
    "added tokens in added_tokens.json, in another order": Odd(
        files=beside(added={"<m>": 271, "<x>": 270})
    ),
    "a token of vocab.json in added_tokens.json": Odd(files=beside(added={"low": LOW, "<x>": 270})),
    "added tokens in added_tokens.json and tokenizer.json": Odd(
        files={**only({**X, "lstrip": True}, settings={}), **beside(added={"<x>": 270, "<m>": 271})}
    ),
    "an id in added_tokens.json that another token has": Odd(
        files=beside(added={"<x>": 5}), refused="added_tokens.json: added token '<x>' has the id 5"
    ),
    "added tokens with a hole": Odd(
        files=beside(added={"<x>": 272}), refused="'<x>' has the id 272, but should have 270"
    ),
    "added tokens in tokenizer_config.json": Odd(
        files=beside(
            settings={
                "added_tokens_decoder": {
                    "0": token("<|endoftext|>", normalized=True),
                    "270": token("<x>", lstrip=True),
                    "271": token("<m>", rstrip=True, special=False),
                }
            }
        )
    ),
    "added tokens in tokenizer_config.json, by the fast class": Odd(
        files=only(X, settings={**FAST, "added_tokens_decoder": {"271": token("<m>")}})
    ),
    "added tokens in both, the same": Odd(
        files=only(X, settings={"added_tokens_decoder": {"270": token("<x>")}})
    ),
    "other flags of <|endoftext|> in the other file": Odd(
        files=only(
            token("<|endoftext|>", 0),
            X,
            settings={"added_tokens_decoder": {"0": END, "270": token("<x>")}},
        )
    ),
    "an added token that is not special, without normalized": Odd(
        files=beside(
            settings={
                "added_tokens_decoder": {
                    "270": token("<x>"),
                    "271": {"content": "low <x", "special": False},
                }
            }
        )
    ),
    "no <|endoftext|> in the vocabulary, and a special token": Odd(
        files={
            "vocab.json": {name: x - 1 for name, x in IDS.items() if x},
            **beside(special={"pad_token": "<x>"}),
        }
    ),
    "tokenizer_config.json lacks a token of tokenizer.json": Odd(
        files=only(X, M, settings={"added_tokens_decoder": {"270": token("<x>")}}),
        refused="tokenizer_config.json: added_tokens_decoder lacks '<m>'",
    ),
    "an added token with other flags in the other file": Odd(
        files=only(X, settings={"added_tokens_decoder": {"270": token("<x>", lstrip=True)}}),
        refused="tokenizer_config.json: added token '<x>' contradicts tokenizer.json",
    ),
    "an added token with another id in the other file": Odd(
        files=only(X, settings={"added_tokens_decoder": {"271": token("<x>")}}),
        refused="added token '<x>' has the id 271, but should have 270",
    ),
    "two added tokens of one id": Odd(
        files=only(X, token("<y>", 270)), refused="'<y>' has the id 270, but should have 271"
    ),
    "an empty added token": Odd(files=only(token("", 270)), refused="damaged added token"),
    "special tokens in special_tokens_map.json": Odd(
        files=beside(special={"pad_token": "<x>", "mask_token": token("<m>", lstrip=True)})
    ),
    "special tokens in special_tokens_map.json that are tokens already": Odd(
        files=beside(special={"pad_token": "low", "eos_token": "<|endoftext|>"})
    ),
    "special_tokens_map.json is read after tokenizer.json": Odd(
        files={
            **only(X, settings=FAST),
            **beside(special={"pad_token": token("<x>", lstrip=True), "cls_token": "<m>"}),
        }
    ),
    "special_tokens_map.json is not read beside added_tokens_decoder": Odd(
        files=beside(
            settings={"added_tokens_decoder": {"270": token("<m>")}}, special={"pad_token": "<x>"}
        )
    ),
    "special_tokens_map.json is not read beside an empty added_tokens_decoder": Odd(
        files=beside(settings={"added_tokens_decoder": {}}, special={"pad_token": "<x>"})
    ),
    "special tokens in tokenizer_config.json": Odd(
        files=beside(
            settings={
                "pad_token": "<x>",
                "eos_token": None,
                "mask_token": {"__type": "AddedToken", **token("<m>", lstrip=True)},
            }
        )
    ),
    "more special tokens in tokenizer_config.json": Odd(
        files=beside(settings={"additional_special_tokens": ["<m>", "<x>"], "pad_token": "<y>"})
    ),
    "special tokens of other purposes": Odd(
        files=beside(settings={"image_token": "<m>", "extra_special_tokens": ["<x>"]})
    ),
    "more special tokens in special_tokens_map.json": Odd(
        files={
            **only(settings=FAST),
            **beside(special={"additional_special_tokens": ["<m>", "<x>"]}),
        }
    ),
    "added_tokens.json with a special token": Odd(
        files=beside(added={"<x>": 270, "<m>": 271}, special={"pad_token": "<m>"})
    ),
    "added_tokens.json with a special token inside another one": Odd(
        files=beside(added={"<x>": 270, "a<x>": 271}, special={"pad_token": "<x>"})
    ),
    "an added token that is a list": Odd(
        files=only(settings={"added_tokens_decoder": [1]}), refused="damaged added tokens"
    ),
    "settings that are damaged": Odd(
        files={"tokenizer_config.json": b"["}, refused="tokenizer_config.json: damaged JSON"
    ),
}
CASES = MODELS | TOKENIZERS
