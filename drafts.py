"""Guesses at what follows in a text, from what stands in it: prompt lookup (Saxena 2023).

Names, quotations and code come back, and a pass over the model that checks a guess of fifteen
tokens costs two or three of one token. The text stays the same: what is wrong is not taken.
Lesson: step 19.
"""


class Drafts:
    """The guesses at one text, and how good they were.

    A pass that checks seven tokens costs less than two passes of one (docs/speed.md), so a wrong
    guess is soon made up for. But the more of them are wrong, the longer the pause before the next.
    """

    NGRAM = 3  # the last tokens, which are looked up in the text before them
    FIRST, LONGEST = 7, 31  # tokens of a draft: 8 and 32 rows with the last one before it

    def __init__(self, longest=LONGEST):
        self.longest, self.length, self.n_misses, self.pause = longest, self.FIRST, 0, 0
        self.text = ""  # a character for each id, so that str.rfind searches
        self.n_passes = 0

    def guess(self, ids, room):
        """Up to room ids that may follow; none in a pause, or where nothing is found."""
        self.n_passes += 1
        self.text += "".join(map(chr, ids[len(self.text) :]))
        if self.pause > 0:
            self.pause -= 1
            return []
        found = look_up(self.text, self.NGRAM, min(self.length, self.longest, room))
        return [*map(ord, found)]

    def judge(self, guess, n_right):
        """Half right: the next is as long; all: twice; less: as at first, after a growing pause."""
        if not guess:
            return
        if 2 * n_right >= len(guess):
            self.n_misses = 0
            self.length = 2 * len(guess) + 1 if n_right == len(guess) else len(guess)
        else:
            self.length, self.pause = self.FIRST, 2 ** min(self.n_misses, 6) - 1  # 0, 1, 3 … 63
            self.n_misses += 1


def look_up(text, n, length):
    """What followed the last n tokens when they were last there, "" if they were not.

    A guess that reaches the end of the text goes round: "abcdeabc", 3, 10 -> "deabcdeabc"
    """
    place = text.rfind(text[-n:], 0, -1)  # -1: but not at the very end, where they are now
    if place < 0 or length <= 0 or text == "":
        return ""
    cycle = text[place + n :]
    return (cycle * (length // len(cycle) + 1))[:length]
