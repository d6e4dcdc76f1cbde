"""A completion: from the ids that a model chooses to the text that a command prints.

Shared by gpt2.py, which prints one text as it comes, and batch.py, which has many on the way.
"""

import codecs
import json
import sys

import numpy as np

import command


def prompt_ids(prompt, encoder, hparams, name="the prompt"):
    """The ids of a prompt, at least one of them and as many as the model sees."""
    n_ctx = hparams["n_ctx"]
    ids = encoder.encode(prompt) or hparams["eos_token_ids"][:1]
    if not ids:
        raise ValueError("an empty prompt needs a model with an end of text: give a prompt")
    if len(ids) > n_ctx:
        command.say(f"{name} has {len(ids)} tokens; the model sees the last {n_ctx}")
    return ids[-n_ctx:]


class Completion:
    """What follows a prompt, id by id, and why it ended.

    ids, and log_probabilities of each if scored. ended: "end of text", "stop" or "length". Of a
    stop nothing belongs to the text, and the token in which it begins is not among the ids.
    """

    def __init__(self, encoder, eos_token_ids, stops=(), scored=False):
        self.encoder, self.eos_token_ids, self.scored = encoder, eos_token_ids, scored
        self.stops = [stop.encode("utf-8", "replace") for stop in stops]
        self.ids, self.log_probabilities, self.ended = [], [], "length"
        self.data, self.ends = bytearray(), []  # the text's bytes, and where each id's are over
        self.n_shown, self.decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id_, logits):  # id, [n_vocab] -> str
        """-> the text that is certain now: whole characters that cannot become part of a stop."""
        if id_ in self.eos_token_ids:
            self.ended = "end of text"
            return ""
        self.ids.append(id_)
        if self.scored:
            self.log_probabilities.append(log_probability(logits, id_))
        n_before = len(self.data)
        self.data += self.encoder.decode_bytes([id_])
        self.ends.append(len(self.data))
        place = find_stop(self.data, self.stops, n_before)
        if place is not None:
            self.ended = "stop"
            del self.data[place:]
            n_ids = sum(end <= place for end in self.ends)
            del self.ids[n_ids:], self.log_probabilities[n_ids:], self.ends[n_ids:]
        return self._show(len(self.data) - n_held_back(self.data, self.stops))

    def rest(self):
        """-> the text that was held back, after the last id."""
        return self._show(len(self.data), final=True)

    def _show(self, stop, final=False):
        new = self.data[self.n_shown : stop]
        self.n_shown += len(new)
        return self.decoder.decode(new, final)

    def as_json(self, **others):
        """One line: an object of the others and of what it holds. In the text U+FFFD stands for
        what is not UTF-8, and valid_utf8 is then false."""
        text = self.data.decode("utf-8", "replace")
        found = {"text": text, "ids": self.ids, "log_probabilities": self.log_probabilities}
        found |= {"ended": self.ended, "valid_utf8": text.encode() == self.data}
        return json.dumps({**others, **found}, ensure_ascii=False)


def log_probability(logits, id_):  # [n_vocab], id -> nats
    """log softmax(logits)[id]"""
    logits = logits.astype(np.float64) - logits.max()
    return float(logits[id_] - np.log(np.exp(logits).sum()))


def find_stop(data, stops, n_before):
    """Where the first stop begins that the bytes after n_before complete, or None.

    The first to be complete, and of those the longest: so it does not matter how tokens are cut.
    """
    found = []
    for stop in stops:
        place = data.find(stop, max(0, n_before - len(stop) + 1))
        if place >= 0:
            found.append((place + len(stop), place))
    return min(found)[1] if found else None


def n_held_back(data, stops):
    """How many bytes at the end may turn out to be the beginning of a stop."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if data.endswith(stop[:n]))
    return max(lengths, default=0)


def report(loaded, n_inputs, ids, times, n_passes):
    """What --verbose says: times in seconds (times: of the start, and of each token), speeds in
    tokens a second."""
    say, n = command.say, len(times) - 1  # with the end of text, or a stop
    say(f"generated ids  {ids}")
    say(f"loading        {loaded:.3f} s")
    if n > 0:
        prefill = times[1] - times[0]
        say(f"prompt         {n_inputs} tokens in {prefill:.3f} s: {n_inputs / prefill:.1f}/s")
    if n > 1:
        decoding = times[-1] - times[1]
        say(f"generation     {n - 1} more in {decoding:.3f} s: {(n - 1) / decoding:.1f}/s")
        say(f"               {n / n_passes:.2f} tokens per pass over the model")
    try:
        import resource  # not on Windows
    except ImportError:
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say(f"peak memory    {peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB")
